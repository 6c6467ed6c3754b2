//! How an upstream does: how fast, how often not at all, and whether to count on it. In: answers and misses with the time
//! they came, in microseconds since the forwarder's start. Out: a rank among the others, and events when it goes down or up.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::{Forwarder, PROBE, Trouble, Upstream};
use crate::dns::answer::Question;
use crate::dns::name::Name;
use crate::events::EventKind;

/// When the next upstream is asked too: at a few times what this one usually takes, within these.
const LATE: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(150));
/// Unanswered questions in a row, and how long nothing has come, before an upstream counts as down. Names whose own
/// servers are dead stay unanswered too, but other names of a live upstream are answered in between.
const DOWN_AFTER: (u32, Duration) = (3, Duration::from_secs(1));
/// Between two signs of life that a down upstream is asked for.
const WATCH: Duration = Duration::from_secs(1);
/// Without an answer for so long, an upstream is cold: it may have died unseen.
const COLD: Duration = Duration::from_secs(15);
/// With an answer within this, it is taken to be alive.
const LIVE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Health {
    /// Smoothed time to answer in microseconds; 0 before the first.
    srtt: AtomicU64,
    unanswered: AtomicU32,
    answered_at: AtomicU64,
    down: AtomicBool,
    answers: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<String>,
}

impl Health {
    pub(super) fn answered(&self, took: Duration, now: u64) {
        let took = micros(took).max(1);
        let srtt = match self.srtt.load(Relaxed) {
            0 => took,
            before => (before * 7 + took) / 8, // RFC 6298 section 2.3
        };
        self.srtt.store(srtt.max(1), Relaxed);
        self.answered_at.store(now, Relaxed);
        self.unanswered.store(0, Relaxed);
        self.answers.fetch_add(1, Relaxed);
    }

    /// Whether the upstream has just gone down.
    pub(super) fn missed(&self, now: u64) -> bool {
        self.failures.fetch_add(1, Relaxed);
        let unanswered = self.unanswered.fetch_add(1, Relaxed).saturating_add(1);
        let quiet = now.saturating_sub(self.answered_at.load(Relaxed)) >= micros(DOWN_AFTER.1);
        unanswered >= DOWN_AFTER.0 && quiet && !self.down.swap(true, Relaxed)
    }

    /// It lost a race that took `took`: one not yet known must not go on counting as the fastest.
    pub(super) fn slower_than(&self, took: Duration) {
        self.srtt.fetch_max(micros(took.saturating_mul(2)).max(2), Relaxed);
    }

    pub(super) fn note(&self, trouble: impl Display) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = trouble.to_string();
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Relaxed)
    }

    /// Not known to answer: never asked, or not of late.
    pub(super) fn is_cold(&self, now: u64) -> bool {
        let since = now.saturating_sub(self.answered_at.load(Relaxed));
        self.answers.load(Relaxed) == 0 || since > micros(COLD) || self.unanswered.load(Relaxed) > 0
    }

    pub(super) fn is_live(&self, now: u64) -> bool {
        let since = now.saturating_sub(self.answered_at.load(Relaxed));
        self.answers.load(Relaxed) > 0 && since < micros(LIVE) && self.unanswered.load(Relaxed) == 0
    }

    /// Lower is asked first: those that answer, then those that have just missed a question, then those that are down.
    pub(super) fn rank(&self) -> (bool, bool, u64) {
        (self.is_down(), self.unanswered.load(Relaxed) > 0, self.srtt.load(Relaxed))
    }

    pub(super) fn late(&self) -> Duration {
        match self.srtt.load(Relaxed) {
            0 => LATE.1,
            srtt => Duration::from_micros(srtt.saturating_mul(3)).clamp(LATE.0, LATE.1),
        }
    }

    /// Answers, failures, smoothed time to answer, last error.
    pub(super) fn summary(&self) -> (u64, u64, u64, String) {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.answers.load(Relaxed), self.failures.load(Relaxed), self.srtt.load(Relaxed), last)
    }
}

/// Asks a down upstream for the root's name servers, which every resolver knows, until it answers anything at all. The first
/// time tells whether it is down, or only a name that guests kept asking for.
pub(super) async fn watch(forwarder: Arc<Forwarder>, upstream: Arc<Upstream>) {
    let question = Question { name: Name::root(), qtype: 2, dnssec_ok: false, checking_disabled: false };
    let mut told = false;
    loop {
        let begun = tokio::time::Instant::now();
        let sign = tokio::time::timeout(PROBE, upstream.exchange(&question)).await;
        if let Ok(Ok(_) | Err(Trouble::Unable(_))) = sign {
            upstream.health.answered(begun.elapsed(), forwarder.now());
            upstream.health.down.store(false, Relaxed);
            if told {
                let text = format!("DNS upstream {} answers again", upstream.server);
                info!(network = %forwarder.network, upstream = %upstream.server, "DNS upstream answers again");
                forwarder.events.send(EventKind::UpstreamUp, None, Some(&forwarder.network), text);
            }
            return;
        }
        // A guest's question may have been answered in between.
        if upstream.health.unanswered.load(Relaxed) == 0 {
            upstream.health.down.store(false, Relaxed);
            if !told {
                return;
            }
        }
        if !std::mem::replace(&mut told, true) {
            let (_, _, _, why) = upstream.health.summary();
            let text = format!("DNS upstream {} does not answer: {why}", upstream.server);
            warn!(network = %forwarder.network, upstream = %upstream.server, why, "DNS upstream does not answer");
            forwarder.events.send(EventKind::UpstreamDown, None, Some(&forwarder.network), text);
        }
        tokio::time::sleep_until(begun + WATCH).await;
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

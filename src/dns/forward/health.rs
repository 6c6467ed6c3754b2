//! How an upstream does: how fast, how often not at all, and whether to count on it. In: answers and misses with the time
//! they came, in microseconds since the forwarder's start. Out: a rank among the others, and events when it goes down or up.
//! While guests ask, an upstream that nothing is heard of is checked, so that no guest has to find out by waiting.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tracing::{info, warn};

use super::upstream::Upstream;
use super::{Context, PROBE};
use crate::dns::answer::Question;
use crate::dns::name::Name;
use crate::events::EventKind;

/// When the next upstream is asked too: at a few times what this one usually takes, within these.
const LATE: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(150));
/// Unanswered questions in a row, and how long nothing has come, before an upstream counts as down. Names whose own
/// servers are dead stay unanswered too, but other names of a live upstream are answered in between.
const DOWN_AFTER: (u32, Duration) = (3, Duration::from_secs(1));
/// An answer is late when it takes longer than answers take, within these: a pause of the machine is no silence.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(30), PROBE);
/// So many names in a row that an upstream could not say and another could, and how long it then comes after the others.
const DECLINES: (u32, Duration) = (3, Duration::from_secs(10));
/// Between two signs of life that a down upstream is asked for.
const WATCH: Duration = Duration::from_secs(1);
/// Without an answer for so long, an upstream is cold: it may have died unseen.
const COLD: Duration = Duration::from_secs(15);
/// An upstream that has been quiet for so long is checked: the first while it is being asked, the other while guests get by with
/// what is held, or with other upstreams.
const QUIET: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// It is being asked if it was within this.
const IN_USE: Duration = Duration::from_secs(10);
/// What a check may take: two datagrams' time, or a few times what the upstream usually takes.
const CHECK: (Duration, Duration) = (Duration::from_millis(500), PROBE);

#[derive(Debug, Default)]
pub(super) struct Health {
    /// Smoothed time to answer in microseconds, 0 before the first; and how much it varies.
    srtt: AtomicU64,
    rttvar: AtomicU64,
    unanswered: AtomicU32,
    answered_at: AtomicU64,
    /// When it was last found out that it does not even give a sign of life.
    silent_at: AtomicU64,
    doubted: AtomicBool,
    /// Names in a row that it could not say and another upstream could: how many, the last one, and when.
    declined: AtomicU32,
    declined_name: AtomicU64,
    declined_at: AtomicU64,
    /// Guests' questions, and checks.
    asked_at: AtomicU64,
    checked_at: AtomicU64,
    down: AtomicBool,
    answers: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<String>,
}

impl Health {
    pub(super) fn answered(&self, took: Duration, now: u64) {
        let took = micros(took).max(1);
        // RFC 6298 sections 2.2 and 2.3
        let (srtt, rttvar) = match self.srtt.load(Relaxed) {
            0 => (took, took / 2),
            srtt => ((srtt * 7 + took) / 8, (self.rttvar.load(Relaxed) * 3 + srtt.abs_diff(took)) / 4),
        };
        self.srtt.store(srtt.max(1), Relaxed);
        self.rttvar.store(rttvar, Relaxed);
        self.answers.fetch_add(1, Relaxed);
        self.heard(now);
    }

    /// It could say what a guest asked, which an answer to a check tells nothing of.
    pub(super) fn could_say(&self) {
        self.declined.store(0, Relaxed);
    }

    /// It gives a sign of life: how soon says nothing if it is no answer.
    fn heard(&self, now: u64) {
        self.answered_at.store(now, Relaxed);
        self.unanswered.store(0, Relaxed);
    }

    /// It said that it cannot or will not say.
    pub(super) fn unable(&self, now: u64) {
        self.failures.fetch_add(1, Relaxed);
        self.heard(now);
    }

    /// It could not say what another could. The same name again and again may be a name's fault (its zone's signatures, say).
    pub(super) fn declined(&self, name: &Name, now: u64) {
        let hash = name.as_wire().iter().fold(1, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte));
        if self.declined_name.swap(hash, Relaxed) != hash {
            self.declined.fetch_add(1, Relaxed);
        }
        self.declined_at.store(now, Relaxed);
    }

    /// Whether it could say nothing of late: others first, but for a try now and then.
    fn is_declining(&self, now: u64) -> bool {
        self.declined.load(Relaxed) >= DECLINES.0
            && now.saturating_sub(self.declined_at.load(Relaxed)) < micros(DECLINES.1)
    }

    /// Whether nothing is to be expected of it: it is down, or a question and then a check stayed unanswered for longer than it
    /// usually takes, with nothing heard since.
    pub(super) fn is_silent(&self) -> bool {
        self.is_down() || self.silent_at.load(Relaxed) > self.answered_at.load(Relaxed)
    }

    /// Whether an answer to a question that was sent at `sent` is late without anything else heard, which is to be looked into;
    /// once at a time.
    pub(super) fn is_to_be_doubted(&self, sent: u64) -> bool {
        self.answered_at.load(Relaxed) <= sent && !self.is_silent() && !self.doubted.swap(true, Relaxed)
    }

    /// How long an answer may take at most, going by those before (RFC 6298 section 2.3).
    pub(super) fn patience(&self) -> Duration {
        match self.srtt.load(Relaxed) {
            0 => PATIENCE.1,
            srtt => {
                let longest = srtt.saturating_add(self.rttvar.load(Relaxed).saturating_mul(4));
                Duration::from_micros(longest).clamp(PATIENCE.0, PATIENCE.1)
            }
        }
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

    pub(super) fn asked(&self, now: u64) {
        self.asked_at.store(now, Relaxed);
    }

    /// Whether it has been quiet for so long that it is to be checked; then it counts as checked.
    pub(super) fn is_due(&self, now: u64) -> bool {
        let since = |at: &AtomicU64| now.saturating_sub(at.load(Relaxed));
        let in_use = since(&self.asked_at) < micros(IN_USE);
        let quiet = micros(if in_use { QUIET.0 } else { QUIET.1 });
        let due = !self.is_down() && since(&self.answered_at) >= quiet && since(&self.checked_at) >= quiet;
        if due {
            self.checked_at.store(now, Relaxed);
        }
        due
    }

    fn check_time(&self) -> Duration {
        Duration::from_micros(self.srtt.load(Relaxed).saturating_mul(4)).clamp(CHECK.0, CHECK.1)
    }

    /// Lower is asked first: those that answer, then those that say they cannot, then those that have just missed a
    /// question, then those that are down.
    pub(super) fn rank(&self, now: u64) -> (bool, bool, bool, u64) {
        let missed = self.unanswered.load(Relaxed) > 0;
        (self.is_down(), missed, self.is_declining(now), self.srtt.load(Relaxed))
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

/// Whether it gives a sign of life within `time`: any answer at all when asked for the root's name servers, which every
/// resolver knows.
async fn is_alive(context: &Context, upstream: &Upstream, time: Duration) -> bool {
    let question = Question { name: Name::root(), qtype: 2, dnssec_ok: false, checking_disabled: false };
    let begun = tokio::time::Instant::now();
    let sign = tokio::time::timeout(time, upstream.exchange(&question)).await;
    match sign {
        Ok(Ok(_)) => upstream.health.answered(begun.elapsed(), context.now()),
        Ok(Err(trouble)) if trouble.is_sign_of_life() => upstream.health.heard(context.now()),
        _ => return false,
    }
    true
}

/// Finds out whether an upstream that is late with a question is there at all: then it is the question that takes time.
pub(super) async fn doubt(context: Context, upstream: Arc<Upstream>) {
    let health = &upstream.health;
    let begun = context.now();
    if !is_alive(&context, &upstream, health.patience()).await && health.answered_at.load(Relaxed) <= begun {
        health.silent_at.store(context.now(), Relaxed);
        context.fell.notify_waiters();
    }
    health.doubted.store(false, Relaxed);
}

/// Checks an upstream that has been quiet; one that gives no sign counts as down, until `watch` finds otherwise.
pub(super) async fn check(context: Context, upstream: Arc<Upstream>) {
    let (health, begun) = (&upstream.health, context.now());
    if is_alive(&context, &upstream, health.check_time()).await || health.answered_at.load(Relaxed) > begun {
        return;
    }
    health.note("it does not answer when it is checked");
    health.failures.fetch_add(1, Relaxed);
    // Any answer ends this, and so the watch.
    health.unanswered.fetch_add(1, Relaxed);
    if !health.down.swap(true, Relaxed) {
        context.fell.notify_waiters();
        watch(context, Arc::downgrade(&upstream)).await;
    }
}

/// Asks a down upstream for a sign of life until it gives one, or nobody asks it any more. The first time tells whether it is
/// down, or only a name that guests kept asking for.
pub(super) async fn watch(context: Context, upstream: Weak<Upstream>) {
    let mut told = false;
    while let Some(upstream) = upstream.upgrade() {
        let begun = tokio::time::Instant::now();
        if is_alive(&context, &upstream, PROBE).await {
            upstream.health.down.store(false, Relaxed);
            if told {
                let text = format!("DNS upstream {} answers again", upstream.server);
                info!(network = %context.network, upstream = %upstream.server, "DNS upstream answers again");
                context.events.send(EventKind::UpstreamUp, None, Some(&context.network), text);
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
            warn!(network = %context.network, upstream = %upstream.server, why, "DNS upstream does not answer");
            context.events.send(EventKind::UpstreamDown, None, Some(&context.network), text);
        }
        drop(upstream);
        tokio::time::sleep_until(begun + WATCH).await;
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

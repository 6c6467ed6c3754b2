//! How an upstream does: how fast, how often not at all, and whether to count on it. In: answers and misses with the time
//! they came, in microseconds since the forwarder's start. Out: a rank among the others, and events when it goes down or up.
//! While guests ask, an upstream that nothing is heard of is checked, so that no guest has to find out by waiting.

use std::fmt::Display;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::udp::RESEND;
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
/// Of an upstream that is known by so many answers the least is less, for a question that somebody waits for who could have a stale
/// answer, and then for a check. Together they leave him an answer in 10 ms, where answers take one.
const KNOWN: u64 = 8;
const HASTE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(3));
/// So many times as long takes a question with a new connection: there and back for TCP, twice for TLS 1.2, and once for itself.
const CONNECTING: u64 = 4;
/// A timer that is later than this has gone off after a pause of our own: the answer may be here, unread.
const PAUSE: Duration = Duration::from_millis(2);
/// So many names in a row that an upstream could not say and another could, and how long it then comes after the others.
const DECLINES: (u32, Duration) = (3, Duration::from_secs(10));
/// Between two signs of life that a down upstream is asked for.
const WATCH: Duration = Duration::from_secs(1);
/// Without an answer for so long, an upstream is cold: it may have died unseen.
const COLD: Duration = Duration::from_secs(15);
/// An upstream that has been quiet for so long is checked: the first while it is being asked, the other while guests get by with
/// what is held, or with other upstreams; its first `KNOWN` checks are of the first kind all the same.
const QUIET: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// It is being asked if it was within this.
const IN_USE: Duration = Duration::from_secs(10);
/// What a check may take: two datagrams' time, or a few times what the upstream usually takes.
const CHECK: (Duration, Duration) = (Duration::from_millis(500), PROBE);

#[derive(Debug, Default)]
pub(super) struct Health {
    /// Whether a question may have to wait for a connection first.
    connects: bool,
    /// Smoothed time to answer in microseconds, 0 before the first; and how much it varies.
    srtt: AtomicU64,
    rttvar: AtomicU64,
    /// Twice what the races took that it lost: by it others come first, and it fades as it answers. It is no measure of how long answers
    /// take, and so of how long one is waited for.
    lost: AtomicU64,
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
    checks: AtomicU64,
    down: AtomicBool,
    answers: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<String>,
}

impl Health {
    pub(super) fn new(connects: bool) -> Self {
        Self { connects, ..Self::default() }
    }

    pub(super) fn answered(&self, took: Duration, now: u64) {
        // Of one that comes back it may be the answer to a datagram that was sent later (RFC 6298 section 3, Karn's algorithm).
        let missed = self.unanswered.load(Relaxed) > 0 || self.is_silent();
        if !missed || self.connects || took < RESEND[0] {
            self.measured(micros(took).max(1));
        }
        self.answers.fetch_add(1, Relaxed);
        self.heard(now);
    }

    /// An answer took so many microseconds.
    fn measured(&self, took: u64) {
        let smoothed = |before: u64| (before * 7 + took) / 8;
        // RFC 6298 sections 2.2 and 2.3
        let (srtt, rttvar) = match self.srtt.load(Relaxed) {
            0 => (took, took / 2),
            srtt => (smoothed(srtt), (self.rttvar.load(Relaxed) * 3 + srtt.abs_diff(took)) / 4),
        };
        self.srtt.store(srtt.max(1), Relaxed);
        self.rttvar.store(rttvar, Relaxed);
        self.lost.store(smoothed(self.lost.load(Relaxed)), Relaxed);
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

    /// How long an answer may take at most, going by those before.
    pub(super) fn patience(&self) -> Duration {
        self.longest(PATIENCE.0)
    }

    /// The same for who could have a stale answer: for his question, and for a check.
    pub(super) fn haste(&self) -> (Duration, Duration) {
        let is_known = self.answers.load(Relaxed) >= KNOWN && !self.connects;
        let (question, check) = if is_known { HASTE } else { (PATIENCE.0, PATIENCE.0) };
        (self.longest(question), self.longest(check))
    }

    /// RFC 6298 section 2.3, `least` being its G.
    fn longest(&self, least: Duration) -> Duration {
        match self.srtt.load(Relaxed) {
            0 => PATIENCE.1,
            srtt => {
                let longest = srtt.saturating_add(self.rttvar.load(Relaxed).saturating_mul(4));
                let trips = if self.connects { CONNECTING } else { 1 };
                Duration::from_micros(longest.saturating_mul(trips)).clamp(least, PATIENCE.1)
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
        self.lost.fetch_max(micros(took.saturating_mul(2)).max(2), Relaxed);
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
        let in_use = since(&self.asked_at) < micros(IN_USE) || self.checks.load(Relaxed) < KNOWN;
        let quiet = micros(if in_use { QUIET.0 } else { QUIET.1 });
        let due = !self.is_down() && since(&self.answered_at) >= quiet && since(&self.checked_at) >= quiet;
        if due {
            self.checked_at.store(now, Relaxed);
            self.checks.fetch_add(1, Relaxed);
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
        let takes = self.srtt.load(Relaxed).max(self.lost.load(Relaxed));
        (self.is_down(), missed, self.is_declining(now), takes)
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

/// Finds out whether an upstream that is late with a question is there at all: then it is the question that takes time. An answer
/// that comes later than it should is one all the same, and ends the silence.
pub(super) async fn doubt(context: Context, upstream: Arc<Upstream>) {
    let (health, begun) = (&upstream.health, context.now());
    let mut sign = pin!(is_alive(&context, &upstream, health.patience()));
    let (_, check) = health.haste();
    let in_time = within(check, sign.as_mut()).await;
    if in_time != Some(true) && health.answered_at.load(Relaxed) <= begun {
        health.silent_at.store(context.now(), Relaxed);
        context.fell.notify_waiters();
    }
    if in_time.is_none() {
        sign.await;
    }
    health.doubted.store(false, Relaxed);
}

/// What it comes to if it ends within `time`, in which we ran ourselves; with pauses, within the least that is no pause.
pub(super) async fn within<T>(time: Duration, mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let due = Instant::now() + time;
        match timeout_at(due, future.as_mut()).await {
            Ok(outcome) => return Some(outcome),
            Err(_) if due.elapsed() < PAUSE || begun.elapsed() >= PATIENCE.0 => return None,
            Err(_) => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn that_took(health: Health, each: Duration, answers: u64) -> Health {
        (0..answers).for_each(|n| health.answered(each, n));
        health
    }

    #[test]
    fn who_is_known_to_be_quick_and_steady_is_given_less_time_by_who_has_a_stale_answer() {
        let quick = |answers| that_took(Health::default(), MS / 2, answers);
        assert_eq!(quick(KNOWN).haste(), HASTE);
        assert_eq!(quick(KNOWN).patience(), PATIENCE.0);
        assert_eq!(quick(KNOWN - 1).haste(), (PATIENCE.0, PATIENCE.0));
        assert_eq!(Health::default().haste(), (PATIENCE.1, PATIENCE.1));
        // As long as its answers take and vary (RFC 6298).
        let (question, check) = that_took(Health::default(), 20 * MS, 100).haste();
        assert!(question == check && question >= 20 * MS && question < 22 * MS, "{question:?}");
        let varies = quick(100);
        varies.answered(100 * MS, 0);
        assert!(varies.haste().0 > 100 * MS, "{:?}", varies.haste());
    }

    #[test]
    fn who_has_lost_a_race_comes_after_others_until_it_answers_and_is_waited_for_no_longer() {
        let quick = || that_took(Health::default(), MS / 2, 100);
        let lost = quick();
        lost.slower_than(32 * MS);
        assert!(lost.rank(0) > that_took(Health::default(), 60 * MS, 100).rank(0));
        assert_eq!((lost.haste(), lost.patience(), lost.late()), (HASTE, PATIENCE.0, LATE.0));
        let lost = that_took(lost, MS / 2, 4);
        assert!(lost.rank(0) > quick().rank(0));
        assert_eq!(lost.haste(), HASTE);
        assert_eq!(that_took(lost, MS / 2, 100).rank(0), quick().rank(0));
    }

    #[test]
    fn who_comes_back_by_a_datagram_that_was_sent_again_is_not_slow_for_it() {
        let quick = that_took(Health::default(), MS / 2, 100);
        quick.missed(200);
        quick.answered(500 * MS, 300);
        assert_eq!((quick.haste(), quick.rank(300).3), (HASTE, 500));
        // One that is there, and takes so long, does.
        quick.answered(500 * MS, 400);
        assert!(quick.haste().0 > 100 * MS, "{:?}", quick.haste());
    }

    #[test]
    fn who_may_have_to_be_connected_to_is_given_the_time_for_it() {
        let far = that_took(Health::new(true), 40 * MS, 100);
        assert!(far.patience() >= 160 * MS && far.haste().0 == far.patience(), "{:?}", far.patience());
        assert_eq!(that_took(Health::new(true), MS, 100).haste(), (PATIENCE.0, PATIENCE.0));
    }

    /// Checks an upstream that nobody asks, of this much quiet each time, for a minute.
    #[test]
    fn an_upstream_that_is_not_asked_is_soon_known_and_then_checked_now_and_then() {
        let health = Health::default();
        let seconds = (1..=60).map(|n| micros(Duration::from_secs(n) + IN_USE));
        let checked = |now: &u64| {
            let due = health.is_due(*now);
            if due {
                health.answered(MS, *now);
            }
            due
        };
        let at: Vec<_> = seconds.filter(checked).map(|at| (at - micros(IN_USE)) / 1_000_000).collect();
        assert_eq!(at, [1, 2, 3, 4, 5, 6, 7, 8, 18, 28, 38, 48, 58]);
    }

    #[tokio::test]
    async fn time_in_which_we_did_not_run_is_not_counted() {
        loop {
            let (tell, told) = tokio::sync::oneshot::channel();
            let begun = Instant::now();
            // The timer is due in a pause, after which it takes a moment until what it waits for has been read.
            let paused = async {
                tokio::task::yield_now().await;
                std::thread::sleep(8 * MS);
                tokio::time::sleep(MS).await;
                tell.send(()).ok();
            };
            let mut told = pin!(told);
            let (outcome, ()) = tokio::join!(within(4 * MS, told.as_mut()), paused);
            if outcome == Some(Ok(())) {
                break;
            }
            // With a longer pause of the machine's own it may be given up.
            assert!(begun.elapsed() >= PATIENCE.0);
        }
        assert_eq!(within(4 * MS, pin!(std::future::pending::<()>())).await, None);
    }
}

//! Asking upstreams. In: a question. Out: a checked answer, or that nobody could say, within `BUDGET`. The best upstream is
//! asked first, the next as soon as the first is late or unable, the first two at once when the first has not answered
//! lately; the first answer wins. A suffix may have upstreams of its own.

mod health;
mod secure;
mod tcp;
mod udp;
mod upstream;
mod wire;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout, timeout_at};
use tracing::trace;

pub(super) use self::secure::{SecureError, Trust};
pub use self::upstream::UpstreamReport;
use self::upstream::{Trouble, Upstream};
use super::answer::{Answer, Question};
use super::exchanges::{Payers, Permit};
use super::name::Name;
use super::reply::Ede;
use crate::events::Events;
use crate::model::{Network, NetworkName, Upstream as Server};

/// All the time a question has. A stub gives up at 5 s (resolv.conf(5)), and should hear from us before.
pub(super) const BUDGET: Duration = Duration::from_millis(3_500);
/// Upstreams asked at once for one question, so sockets per question.
const ABREAST: usize = 3;
/// What nobody could be asked is tried again so often at most (`RESEND`).
const AGAIN: usize = udp::RESEND.len();
/// What a question to one upstream may take when only its health is asked for.
const PROBE: Duration = Duration::from_secs(1);

/// Nobody could say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No upstream answered in time.
    Silence,
    /// Each upstream that answered said it could not.
    Unable,
    /// The answer's signatures are wrong (`validate`).
    Bogus,
    /// Nobody was asked: who waits for it has too much under way.
    Busy,
}

impl From<Failure> for Ede {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Silence => Self::NoReachableAuthority,
            Failure::Unable => Self::NetworkError,
            Failure::Bogus => Self::DnssecBogus,
            Failure::Busy => Self::Other,
        }
    }
}

/// Leave for a question's first exchange, and who pays for further ones.
pub(super) struct Paid<'a> {
    pub(super) payers: &'a Payers,
    pub(super) first: Permit,
}

struct Group {
    domain: Name,
    upstreams: Vec<Arc<Upstream>>,
}

pub(super) struct Forwarder {
    /// The longest suffix first; the last is the root's.
    groups: Vec<Group>,
    trust: Trust,
    context: Context,
}

/// What stays, whichever upstreams are asked.
#[derive(Clone)]
struct Context {
    epoch: Instant,
    network: NetworkName,
    events: Events,
    /// Told when an upstream goes down, or falls silent.
    fell: Arc<Notify>,
}

impl Context {
    /// Microseconds since the resolver's start.
    fn now(&self) -> u64 {
        health::micros(self.epoch.elapsed())
    }
}

impl Forwarder {
    pub(super) fn new(network: &Network, servers: &[Server], trust: Trust, events: Events) -> Self {
        let (epoch, fell) = (Instant::now(), Arc::default());
        let context = Context { epoch, network: network.name.clone(), events, fell };
        let upstream = |_: &Name, server: &Server| Arc::new(Upstream::new(server.clone(), &trust));
        let groups = groups(network, servers, upstream);
        Self { groups, trust, context }
    }

    /// The same with other upstreams; of those that it has too, what is known of them stays.
    pub(super) fn with(&self, network: &Network, servers: &[Server], trust: Trust) -> Self {
        let upstream = |domain: &Name, server: &Server| {
            let group = self.groups.iter().find(|group| group.domain == *domain);
            let known = group.and_then(|group| group.upstreams.iter().find(|known| known.server == *server));
            let same = known.filter(|known| known.is_plain() || trust.is_like(&self.trust));
            same.cloned().unwrap_or_else(|| Arc::new(Upstream::new(server.clone(), &trust)))
        };
        let groups = groups(network, servers, upstream);
        Self { groups, trust, context: self.context.clone() }
    }

    /// Whether every name is asked for at the same upstreams, in whatever order they are.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let all = |one: &Self, other: &Self| {
            one.groups.iter().all(|group| group.is_like(other.group(&group.domain)))
        };
        all(self, other) && all(other, self)
    }

    /// The same for one name.
    pub(super) fn asks_like(&self, other: &Self, name: &Name) -> bool {
        self.group(name).is_like(other.group(name))
    }

    /// Whether nothing is to be expected of any upstream that would be asked.
    pub(super) fn all_silent(&self, name: &Name) -> bool {
        self.group(name).upstreams.iter().all(|upstream| upstream.health.is_silent())
    }

    /// Ends when that is so, of which it makes sure itself: it is for who has just asked, and could have a stale answer.
    pub(super) async fn until_all_silent(&self, name: &Name) {
        let begun = self.context.now();
        let best = self.ranked(self.group(name));
        let question = best.first().map_or(Duration::ZERO, |best| best.health.haste().0);
        health::within(question, std::pin::pin!(self.until_known_silent(name))).await;
        for upstream in &self.group(name).upstreams {
            if upstream.health.is_to_be_doubted(begun) {
                tokio::spawn(health::doubt(self.context.clone(), upstream.clone()));
            }
        }
        self.until_known_silent(name).await;
    }

    async fn until_known_silent(&self, name: &Name) {
        loop {
            let fell = self.context.fell.notified();
            if self.all_silent(name) {
                return;
            }
            fell.await;
        }
    }

    /// Checks the upstreams that nothing has been heard of for some time.
    pub(super) fn check_quiet(&self) {
        let now = self.context.now();
        for upstream in self.groups.iter().flat_map(|group| &group.upstreams) {
            if upstream.health.is_due(now) {
                tokio::spawn(health::check(self.context.clone(), upstream.clone()));
            }
        }
    }

    /// Whether the name belongs to a suffix with upstreams of its own: what they say of private addresses is meant so.
    pub(super) fn is_conditional(&self, name: &Name) -> bool {
        self.group(name).domain.as_wire().len() > 1
    }

    /// The suffix whose upstreams are asked for `name`.
    pub(super) fn domain(&self, name: &Name) -> &Name {
        &self.group(name).domain
    }

    pub(super) fn reports(&self) -> Vec<UpstreamReport> {
        let each = |group: &Group| {
            let domain =
                if group.domain.as_wire().len() > 1 { group.domain.to_string() } else { String::new() };
            group.upstreams.iter().map(|upstream| upstream.report(domain.clone())).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(each).collect()
    }

    fn group(&self, name: &Name) -> &Group {
        let mut groups = self.groups.iter();
        let found = groups.find(|group| name.is_in(&group.domain));
        // The root is a suffix of every name, and its group always there.
        found.unwrap_or(&self.groups[self.groups.len() - 1])
    }

    /// Asks; with many under way for those who pay, a further upstream only when one of these has ended. Without payers it is
    /// part of what is paid for already.
    pub(super) async fn ask(
        self: &Arc<Self>,
        question: &Question,
        paid: Option<Paid<'_>>,
    ) -> Result<Answer, Failure> {
        let (payers, mut first) = paid.map(|paid| (paid.payers, paid.first)).unzip();
        let deadline = tokio::time::Instant::now() + BUDGET;
        let order = self.ranked(self.group(&question.side()));
        let mut waiting = order.iter();
        // When each question went out; it may wait for its turn, of which its upstream knows nothing.
        let sent: [OnceLock<Instant>; ABREAST + AGAIN] = Default::default();
        let (mut unsent, mut pauses, mut transient) = (sent.iter(), udp::RESEND.into_iter(), false);
        let mut running = FuturesUnordered::new();
        let mut started: Vec<(&Arc<Upstream>, &OnceLock<Instant>)> = vec![];
        let (mut failure, mut declined) = (Failure::Silence, vec![]);
        let mut at_once =
            if order.first().is_some_and(|best| best.health.is_cold(self.context.now())) { 2 } else { 1 };
        loop {
            let mut next_at = deadline;
            for upstream in waiting.by_ref().take(std::mem::replace(&mut at_once, 1)) {
                // There are as many as upstreams in `order`.
                let Some(sent) = unsent.next() else { break };
                started.push((upstream, sent));
                running.push(self.attempt(upstream, question, payers, first.take(), sent));
                next_at = deadline.min(tokio::time::Instant::now() + upstream.health.late());
            }
            if waiting.len() == 0 {
                next_at = deadline;
                if failure == Failure::Unable {
                    // One has said that it cannot: a look now and then at whether more is to be expected.
                    let usual = started.iter().map(|(upstream, _)| upstream.health.late()).max();
                    next_at = deadline.min(tokio::time::Instant::now() + usual.unwrap_or_default());
                }
            }
            match timeout_at(next_at, running.next()).await {
                Ok(Some((upstream, Ok(answer)))) => {
                    self.settle(&started, Some(upstream));
                    let now = self.context.now();
                    declined
                        .iter()
                        .for_each(|other: &&Arc<Upstream>| other.health.declined(&question.name, now));
                    return Ok(answer);
                }
                Ok(Some((upstream, Err(trouble)))) => {
                    trace!(upstream = %upstream.server, %trouble, "no answer");
                    transient |= trouble.is_transient();
                    if trouble.is_sign_of_life() {
                        failure = Failure::Unable;
                        declined.push(upstream);
                    }
                    self.settle_one(&mut started, upstream, &trouble);
                }
                // Nobody is left. Who could not be reached may be there in a moment, unless it has not been for some time.
                Ok(None) => {
                    let lives = order.iter().position(|upstream| !upstream.health.is_silent());
                    let (true, Failure::Silence, Some(at)) = (transient, failure, lives) else {
                        return Err(failure);
                    };
                    let Some(pause) = pauses.next() else { return Err(failure) };
                    if timeout_at(deadline, sleep(pause)).await.is_err() {
                        return Err(failure);
                    }
                    waiting = order[at..=at].iter();
                }
                // Late: on to the next upstream, unless there is no more time, or there are only some that are silent.
                Err(_) if next_at < deadline && (waiting.len() > 0 || !are_silent(&started)) => {}
                Err(_) => {
                    self.settle(&started, None);
                    return Err(failure);
                }
            }
        }
    }

    /// The first few by health, then by whether they can say, then by how fast they answer, then as configured. One not yet tried counts as fastest.
    fn ranked<'a>(&self, group: &'a Group) -> Vec<&'a Arc<Upstream>> {
        let mut order: Vec<_> = group.upstreams.iter().collect();
        let now = self.context.now();
        order.sort_by_key(|upstream| upstream.health.rank(now));
        order.truncate(ABREAST);
        order
    }

    /// Notes how the upstreams did that were still being asked when the question was settled.
    fn settle(
        self: &Arc<Self>,
        started: &[(&Arc<Upstream>, &OnceLock<Instant>)],
        winner: Option<&Arc<Upstream>>,
    ) {
        for (upstream, sent) in started {
            let Some(took) = sent.get().map(Instant::elapsed) else { continue };
            if winner.is_some_and(|winner| Arc::ptr_eq(winner, upstream)) {
                upstream.latency.add(took);
                upstream.health.answered(took, self.context.now());
                upstream.health.could_say();
            } else if took > upstream.health.late() {
                upstream.health.note("it does not answer in time");
                self.missed(upstream);
            } else {
                upstream.health.slower_than(took);
            }
        }
    }

    fn settle_one(
        self: &Arc<Self>,
        started: &mut Vec<(&Arc<Upstream>, &OnceLock<Instant>)>,
        upstream: &Arc<Upstream>,
        trouble: &Trouble,
    ) {
        let Some(at) = started.iter().position(|(other, _)| Arc::ptr_eq(other, upstream)) else { return };
        let (upstream, _) = started.swap_remove(at);
        upstream.health.note(trouble);
        match trouble {
            // It is alive, whatever it says.
            Trouble::Unable(_) | Trouble::Referral => upstream.health.unable(self.context.now()),
            Trouble::Io(_) => self.missed(upstream),
        }
    }

    /// Counts a miss; an upstream that is down is asked for a sign of life until it gives one.
    fn missed(self: &Arc<Self>, upstream: &Arc<Upstream>) {
        if upstream.health.missed(self.context.now()) {
            self.context.fell.notify_waiters();
            tokio::spawn(health::watch(self.context.clone(), Arc::downgrade(upstream)));
        }
    }

    async fn attempt<'a>(
        &self,
        upstream: &'a Arc<Upstream>,
        question: &Question,
        payers: Option<&Payers>,
        first: Option<Permit>,
        sent: &OnceLock<Instant>,
    ) -> (&'a Arc<Upstream>, Result<Answer, Trouble>) {
        let _permit = match (first, payers) {
            (None, Some(payers)) => Some(payers.permit().await),
            (first, _) => first,
        };
        let (health, begun) = (&upstream.health, self.context.now());
        health.asked(begun);
        sent.get_or_init(Instant::now);
        let mut exchange = std::pin::pin!(upstream.exchange(question));
        let outcome = match timeout(health.patience(), exchange.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if health.is_to_be_doubted(begun) {
                    tokio::spawn(health::doubt(self.context.clone(), upstream.clone()));
                }
                exchange.await
            }
        };
        (upstream, outcome)
    }
}

fn are_silent(started: &[(&Arc<Upstream>, &OnceLock<Instant>)]) -> bool {
    started.iter().all(|(upstream, _)| upstream.health.is_silent())
}

fn groups(
    network: &Network,
    servers: &[Server],
    upstream: impl Fn(&Name, &Server) -> Arc<Upstream>,
) -> Vec<Group> {
    let group = |domain: Name, servers: &[Server]| Group {
        domain,
        upstreams: servers.iter().map(|server| upstream(&domain, server)).collect(),
    };
    let zones = network.resolver.forward.iter();
    let mut groups: Vec<_> =
        zones.filter_map(|zone| Some(group(Name::from_text(zone.domain.as_str())?, &zone.servers))).collect();
    groups.push(group(Name::root(), servers));
    groups.sort_by_key(|group| std::cmp::Reverse(group.domain.as_wire().len()));
    groups
}

impl Group {
    /// Whether it is the same suffix and the same upstreams, known as the same.
    fn is_like(&self, other: &Self) -> bool {
        let has = |one: &Self, upstream: &Arc<Upstream>| {
            one.upstreams.iter().any(|other| Arc::ptr_eq(other, upstream))
        };
        self.domain == other.domain
            && self.upstreams.len() == other.upstreams.len()
            && self.upstreams.iter().all(|upstream| has(other, upstream))
    }
}

//! A query's way from bytes to bytes. In: a message and who sent it. Out: the answer at once, where a rule, the zone or the
//! cache has it; else a `Pending` to be awaited, which asks upstreams (`flights`).

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::rr::Record;
use tokio::time::{sleep_until, timeout_at};

use super::alias;
use super::answer::{Age, Answer, Question};
use super::cache::{Cache, Held, Key};
use super::counters::{Counters, count};
use super::exchanges::Exchanges;
use super::fair::{Fair, Place};
use super::flights::Flights;
use super::forward::BUDGET;
use super::guests::{Guest, Guests};
use super::histogram::Histogram;
use super::name::Name;
use super::policy::Verdict;
use super::query::{Edns, HEADER, Query, Reject};
use super::reply::{self, Code, Ede, Transport};
use super::route::{Local, Route, route};
use super::setup::Setup;
use super::zone::{self, Asker, Zones};
use crate::events::Events;
use crate::model::Subnet;
use crate::registry::Registry;

/// How long a guest waits for a fresh answer when there is a stale one (RFC 8767 section 5, client response timer), unless no
/// upstream counts as alive: then it need not wait.
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// A guest waits this much longer than the upstreams are given, so that it hears what became of its question.
const GRACE: Duration = Duration::from_millis(100);

pub(super) struct Resolver {
    pub(super) setup: ArcSwap<Setup>,
    pub(super) registry: Registry,
    /// Whether only addresses of the subnet may ask.
    pub(super) guests_only: bool,
    pub(super) own_subnets: Arc<[Subnet]>,
    pub(super) listen: SocketAddr,
    pub(super) exchanges: Arc<Exchanges>,
    pub(super) events: Events,
    pub(super) cache: Cache,
    pub(super) fair: Fair,
    pub(super) guests: Guests,
    pub(super) flights: Flights,
    pub(super) counters: Counters,
    pub(super) latency: Histogram,
    pub(super) cookie_secret: RandomState,
    pub(super) logged: AtomicU64,
}

/// What became of a message at once.
pub(super) enum Step {
    /// It gets no answer.
    Silent,
    /// The answer is in the buffer.
    Answered,
    Wait(Box<Pending>),
}

/// A query that waits for an upstream.
pub(super) struct Pending {
    /// The guest's message as far as an answer repeats it: header and question.
    message: Box<[u8]>,
    query: Query,
    pub(super) from: SocketAddr,
    how: Transport,
    pub(super) question: Question,
    stale: Option<Arc<Answer>>,
    /// Our own records that go before the upstream's: an alias whose target is not ours.
    before: Vec<Record>,
    guest: Arc<Guest>,
    place: Place,
    begun: Instant,
}

/// A query that is being answered.
pub(super) struct Asked<'a> {
    pub(super) setup: &'a Setup,
    pub(super) message: &'a [u8],
    pub(super) query: Query,
    pub(super) from: SocketAddr,
    pub(super) how: Transport,
    pub(super) guest: &'a Arc<Guest>,
}

/// What the cache says of a question.
pub(super) enum Look {
    Held(Arc<Answer>, Age),
    /// Upstreams have just failed on it.
    Failed,
    /// Ask upstreams; with the answer that will do if they cannot say.
    Wait(Option<Arc<Answer>>),
}

impl Resolver {
    pub(super) fn begin(
        self: &Arc<Self>,
        message: &[u8],
        from: SocketAddr,
        how: Transport,
        out: &mut Vec<u8>,
    ) -> Step {
        out.clear();
        let setup = self.setup.load();
        let guest = self.guests.of(from.ip());
        if !self.guests.is_within_rate(&guest, setup.network.resolver.queries_per_second) {
            self.tally(&guest, |counters| &counters.limited);
            return Step::Silent;
        }
        let mut query = match Query::parse(message) {
            Ok(query) => query,
            Err(mut reject) => {
                if let Reject::CookieOnly(edns) = &mut reject {
                    self.bake_cookie(edns, from.ip());
                }
                return self.put(&guest, out, reply::reject(message, reject));
            }
        };
        if let Some(edns) = &mut query.edns {
            self.bake_cookie(edns, from.ip());
        }
        let asked = Asked { setup: &setup, message, query, from, how, guest: &guest };
        if !self.may_ask(&setup, from.ip()) {
            return self.put_code(&asked, out, Code::prohibited());
        }
        let conditional = |name: &Name| setup.forwarder.is_conditional(name);
        match route(&asked.query, &setup.places, &setup.local, conditional) {
            Route::Refuse(refusal) => self.put_code(&asked, out, refusal.into()),
            Route::Local(Local::Any) | Route::Forward if self.is_ruled(&asked, out) => Step::Answered,
            Route::Local(found) => {
                self.tally(&guest, |counters| &counters.local);
                match self.ours(&asked, &found, &asked.query.name) {
                    Some(zone::Answer { beyond: Some(target), answers, .. }) => {
                        self.beyond(&asked, target, answers, out)
                    }
                    answer => self.put_answer(&asked, out, answer, "local"),
                }
            }
            Route::Forward => self.cached(&asked, out),
        }
    }

    /// What we have at `name` ourselves.
    pub(super) fn ours(&self, asked: &Asked<'_>, found: &Local, name: &Name) -> Option<zone::Answer> {
        let zones = Zones {
            network: &asked.setup.network,
            registry: &self.registry,
            added: &asked.setup.local,
            asker: self.asker(asked.setup, asked.from.ip(), asked.guest),
        };
        zones.answer(found, name, asked.query.qtype)
    }

    /// Whether a rule of the policy has answered.
    fn is_ruled(&self, asked: &Asked<'_>, out: &mut Vec<u8>) -> bool {
        let ruled = self.ruled(asked, &asked.query.name);
        ruled.is_some_and(|answer| {
            self.put_answer(asked, out, Some(answer), "rule");
            true
        })
    }

    /// What a rule of the policy says of `name`, unless it lets it pass.
    pub(super) fn ruled(&self, asked: &Asked<'_>, name: &Name) -> Option<zone::Answer> {
        let policy = &asked.setup.policy;
        if policy.is_empty() {
            return None;
        }
        let tried = |rule: &str| self.note_tried(asked, rule, name);
        let (rule, verdict) = policy.decide(asked.guest, name, tried)?;
        self.say(asked, rule, name, &verdict)
    }

    /// What a rule says of the first of the names that has one, from `name`, for which the upstream's answer is and which was let
    /// pass when it was asked for, on through those that it leads to: the aliases up to there, and the rule's answer.
    pub(super) fn ruled_beyond(
        &self,
        asked: &Asked<'_>,
        name: &Name,
        answer: &Answer,
        age: Age,
    ) -> Option<zone::Answer> {
        let policy = &asked.setup.policy;
        if policy.is_empty() {
            return None;
        }
        let tried = |rule: &str, name: &Name| self.note_tried(asked, rule, name);
        let (rule, target, verdict) = policy.decide_beyond(asked.guest, name, answer.targets(), tried)?;
        let ruled = self.say(asked, rule, &target, &verdict)?;
        Some(alias::up_to(name, &target, answer, age, ruled))
    }

    fn note_tried(&self, asked: &Asked<'_>, rule: &str, name: &Name) {
        self.tally(asked.guest, |counters| &counters.policy_dry);
        tracing::debug!(target: "guestnet::dns::policy", rule, %name, "a rule that is tried out matches");
    }

    fn say(&self, asked: &Asked<'_>, rule: &str, name: &Name, verdict: &Verdict) -> Option<zone::Answer> {
        let answer = zone::ruled(verdict, name, asked.query.qtype)?;
        tracing::debug!(target: "guestnet::dns::policy", rule, %name, "answered by a rule");
        self.tally(asked.guest, |counters| &counters.policy);
        Some(answer)
    }

    fn cached(self: &Arc<Self>, asked: &Asked<'_>, out: &mut Vec<u8>) -> Step {
        let question = Question::of(&asked.query);
        match self.look(asked, &question) {
            Look::Held(answer, age) => {
                if answer.leads_on()
                    && let Some(ruled) = self.ruled_beyond(asked, &question.name, &answer, age)
                {
                    return self.put_answer(asked, out, Some(ruled), "rule");
                }
                answer.write(asked.message, &asked.query, age, asked.how.limit(&asked.query), out);
                self.answered(asked, out, if age == Age::Stale { "stale cache" } else { "cache" })
            }
            Look::Failed => self.put_code(asked, out, Code::failed(Ede::CachedError)),
            Look::Wait(stale) => self.wait(asked, question, stale, vec![], out),
        }
    }

    /// What is held for a question, and whether that will do.
    pub(super) fn look(self: &Arc<Self>, asked: &Asked<'_>, question: &Question) -> Look {
        let key = Key::of(question);
        match self.cache.get(&key, Instant::now()) {
            Some(Held::Fresh { answer, age, renew }) => {
                if renew {
                    count(&self.counters.prefetched);
                    self.fly(question, &key, self.fair.background());
                }
                self.tally(asked.guest, |counters| &counters.cache_hits);
                Look::Held(answer, age)
            }
            Some(Held::Failed) => Look::Failed,
            Some(Held::Stale { answer, wait, retry, .. }) => {
                if wait && !asked.setup.forwarder.all_silent(&question.side()) {
                    return Look::Wait(Some(answer));
                }
                // Nothing better is to be had in time: answer, and look again behind the guest's back.
                if retry {
                    self.fly(question, &key, self.fair.background());
                }
                self.tally(asked.guest, |counters| &counters.stale);
                Look::Held(answer, Age::Stale)
            }
            None => match self.known_absent(asked.setup, question) {
                Some(answer) => {
                    self.tally(asked.guest, |counters| &counters.cache_hits);
                    Look::Held(Arc::new(answer), Age::Seconds(0))
                }
                None => Look::Wait(None),
            },
        }
    }

    /// RFC 8020: below a name that does not exist there is nothing. Not for who validates: the proof at hand is of the name
    /// above. Not across upstreams: another one's names are its own.
    fn known_absent(&self, setup: &Setup, question: &Question) -> Option<Answer> {
        if question.dnssec_ok {
            return None;
        }
        let domain = setup.forwarder.domain(&question.name);
        let mut name = question.name;
        let now = Instant::now();
        while name != *domain {
            if let Some(Held::Fresh { answer, age: Age::Seconds(age), .. }) =
                self.cache.get(&Key::of_nxdomain(&name, question), now)
            {
                return answer.cut(question, age);
            }
            name = name.parent(1);
        }
        None
    }

    pub(super) fn wait(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        question: Question,
        stale: Option<Arc<Answer>>,
        before: Vec<Record>,
        out: &mut Vec<u8>,
    ) -> Step {
        let Some(place) = self.fair.place(asked.from.ip()) else {
            self.tally(asked.guest, |counters| &counters.shed);
            return self.put_code(asked, out, Code::failed(Ede::Other));
        };
        self.tally(asked.guest, |counters| &counters.forwarded);
        let repeated = HEADER + asked.query.question_len();
        Step::Wait(Box::new(Pending {
            message: asked.message[..repeated].into(),
            query: asked.query,
            from: asked.from,
            how: asked.how,
            question,
            stale,
            before,
            guest: asked.guest.clone(),
            place,
            begun: Instant::now(),
        }))
    }

    /// The answer to a query that had to wait, in `out`; `false` if there is none to give.
    pub(super) async fn finish(self: &Arc<Self>, pending: Box<Pending>, out: &mut Vec<u8>) -> bool {
        let Pending { message, query, from, how, question, stale, before, guest, place, begun } = *pending;
        let (setup, key, side) = (self.setup.load_full(), Key::of(&question), question.side());
        let landed = async {
            let Some(mut flight) = self.fly(&question, &key, place.share()) else {
                return Some(Err(Ede::Other));
            };
            let landed = flight.wait_for(Option::is_some).await.ok()?;
            landed.clone()
        };
        let begun_at = tokio::time::Instant::from_std(begun);
        let outcome = match &stale {
            None => timeout_at(begun_at + BUDGET + GRACE, landed).await.ok().flatten(),
            Some(_) => tokio::select! {
                outcome = landed => outcome,
                () = setup.forwarder.until_all_silent(&side) => None,
                () = sleep_until(begun_at + STALE_AFTER) => {
                    self.cache.note_late(&key, Instant::now());
                    None
                }
            },
        };
        out.clear();
        // The rules may be others than when it was asked for.
        let setup = self.setup.load_full();
        let asked = Asked { setup: &setup, message: &message, query, from, how, guest: &guest };
        let given = match (outcome, stale) {
            (Some(Ok(answer)), _) => Ok((answer, Age::Seconds(0))),
            (failed, Some(stale)) => {
                self.tally(&guest, |counters| &counters.stale);
                if failed.is_none() {
                    // It goes on without the guest: what comes back is for the next.
                    self.fly(&question, &key, place.share());
                }
                Ok((stale, Age::Stale))
            }
            (failed, None) => Err(failed.and_then(Result::err).unwrap_or(Ede::NoReachableAuthority)),
        };
        let ruled = given.as_ref().ok();
        let ruled = ruled.and_then(|(answer, age)| self.ruled_beyond(&asked, &question.name, answer, *age));
        let source = if ruled.is_some() { "rule" } else { "upstream" };
        let failed = |ede| reply::code(&message, &query, from, how, Code::failed(ede));
        let bytes = match given {
            _ if ruled.is_some() => {
                let whole = ruled.map(|ruled| alias::behind(before, ruled));
                let bytes = whole.and_then(|whole| reply::local(&message, &query, from, how, &whole));
                bytes.or_else(|| failed(Ede::Other))
            }
            Ok((answer, age)) if before.is_empty() => {
                answer.write(&message, &query, age, how.limit(&query), out);
                None
            }
            Ok((answer, age)) => {
                let whole = alias::behind_upstreams(before, &answer, age);
                let bytes = whole.and_then(|whole| reply::local(&message, &query, from, how, &whole));
                // What the upstream sent may stand alone, and not behind an alias of ours.
                bytes.or_else(|| failed(Ede::Other))
            }
            Err(ede) => failed(ede),
        };
        if let Some(bytes) = bytes {
            *out = bytes;
        }
        let took = begun.elapsed();
        self.latency.add(took);
        guest.latency.add(took);
        self.answered(&asked, out, source);
        !out.is_empty()
    }

    /// Whether, with more waiting than can be answered, the guest has had its share; then it is counted.
    pub(super) fn is_over_share(&self, from: IpAddr) -> bool {
        let guest = self.guests.of(from);
        let over = self.guests.is_over_share(&guest);
        if over {
            self.tally(&guest, |counters| &counters.limited);
        }
        over
    }

    fn may_ask(&self, setup: &Setup, from: IpAddr) -> bool {
        match from {
            _ if !self.guests_only => true,
            IpAddr::V4(address) => setup.network.subnet.contains(address),
            IpAddr::V6(_) => false,
        }
    }

    fn asker<'a>(&self, setup: &Setup, from: IpAddr, guest: &'a Guest) -> Asker<'a> {
        let host = from == IpAddr::V4(setup.network.gateway) || (!self.guests_only && guest.vm.is_none());
        if host { Asker::Host } else { Asker::Guest(guest.workspace.as_ref()) }
    }

    /// Our part of the guest's cookie (RFC 7873 section 4.2): made from its own part and its address, so no other address
    /// can know it, and nothing is stored.
    fn bake_cookie(&self, edns: &mut Edns, from: IpAddr) {
        if let Some(cookie) = &mut edns.cookie {
            let halves =
                [0_u8, 1].map(|half| self.cookie_secret.hash_one((half, cookie.client, from)).to_be_bytes());
            cookie.server[..8].copy_from_slice(&halves[0]);
            cookie.server[8..].copy_from_slice(&halves[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::lonely_resolver;
    use super::*;

    #[test]
    fn of_a_query_that_waits_only_what_its_answer_repeats_is_kept() {
        let resolver = lonely_resolver();
        let plain = b"\xab\xcd\x01\x00\0\x01\0\0\0\0\0\x01\x03www\x07example\x03com\0\0\x01\0\x01";
        // With 3,000 bytes of a type that nobody knows.
        let mut message = plain.to_vec();
        message.extend_from_slice(b"\0\xff\0\0\x01\0\0\0\0\x0b\xb8");
        message.resize(message.len() + 3_000, b'x');
        let guest = SocketAddr::from(([10, 100, 0, 7], 40_000));
        let Step::Wait(pending) = resolver.begin(&message, guest, Transport::Tcp, &mut vec![]) else {
            panic!("nobody to be asked")
        };
        assert_eq!(*pending.message, plain[..]);
    }
}

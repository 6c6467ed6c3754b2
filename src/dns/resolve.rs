//! A query's way from bytes to bytes. In: a message and who sent it. Out: the answer at once, where the zone, a rule or the
//! cache has it; else a `Pending` to be awaited, which asks upstreams, once for all who wait for the same.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::answer::{Age, Answer, Question};
use super::cache::{Cache, Held, Key};
use super::counters::{Counters, count};
use super::fair::{Fair, PLACES, Place};
use super::forward::{BUDGET, Forwarder};
use super::query::Query;
use super::reply::{self, Code, Ede, Transport};
use super::route::{Places, Route, route};
use super::zone;
use crate::model::Network;
use crate::registry::Registry;

/// How long a guest waits for a fresh answer when there is a stale one (RFC 8767 section 5, client response timer). The
/// RFC's 1.8 s is for a resolver that walks the tree; a forwarder's upstream that is this late is in trouble.
const STALE_AFTER: Duration = Duration::from_millis(250);

/// A guest waits this much longer than the upstreams are given, so that it hears what became of its question.
const GRACE: Duration = Duration::from_millis(100);

pub(super) struct Resolver {
    pub(super) network: Arc<Network>,
    pub(super) registry: Registry,
    pub(super) places: Places,
    /// Whether only addresses of the subnet may ask.
    pub(super) guests_only: bool,
    pub(super) cache: Cache,
    pub(super) forwarder: Forwarder,
    pub(super) fair: Fair,
    pub(super) flights: Flights,
    pub(super) counters: Counters,
}

type Outcome = Result<Arc<Answer>, Ede>;
/// Holds the outcome once there is one; closed without if the resolver was stopped.
type Flight = watch::Receiver<Option<Outcome>>;

/// Questions on their way upstream. Each runs on its own, so that it ends in the cache whoever stops waiting for it.
#[derive(Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Box<[u8]>, Flight>>,
    tasks: Mutex<JoinSet<()>>,
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
    message: Vec<u8>,
    query: Query,
    from: SocketAddr,
    how: Transport,
    question: Question,
    stale: Option<Arc<Answer>>,
    place: Place,
    deadline: tokio::time::Instant,
}

impl Resolver {
    pub(super) fn begin(
        self: &Arc<Self>,
        message: &[u8],
        from: SocketAddr,
        how: Transport,
        out: &mut Vec<u8>,
    ) -> Step {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(reject) => return self.put(out, reply::reject(message, reject), &self.counters.refused),
        };
        if !self.may_ask(from.ip()) {
            let refused = reply::code(message, &query, from, how, Code::prohibited());
            return self.put(out, refused, &self.counters.refused);
        }
        match route(&query, &self.places) {
            Route::Refuse(refusal) => {
                let refused = reply::code(message, &query, from, how, refusal.into());
                self.put(out, refused, &self.counters.refused)
            }
            Route::Local(local) => {
                let answer = zone::answer(&self.network, &self.registry, &local, &query.name, query.qtype);
                let bytes = answer.and_then(|answer| reply::local(message, &query, from, how, &answer));
                self.put(out, bytes, &self.counters.local)
            }
            Route::Forward => self.cached(message, query, from, how, out),
        }
    }

    fn cached(
        self: &Arc<Self>,
        message: &[u8],
        query: Query,
        from: SocketAddr,
        how: Transport,
        out: &mut Vec<u8>,
    ) -> Step {
        let question = Question::of(&query);
        let key = Key::of(&question);
        let limit = how.limit(&query);
        let stale = match self.cache.get(&key, Instant::now()) {
            Some(Held::Fresh(answer, age)) => {
                count(&self.counters.queries);
                count(&self.counters.cache_hits);
                answer.write(message, &query, age, limit, out);
                return Step::Answered;
            }
            Some(Held::Failed) => {
                let failed = reply::code(message, &query, from, how, Code::failed(Ede::CachedError));
                return self.put(out, failed, &self.counters.servfail);
            }
            Some(Held::Stale { answer, retry }) => {
                if retry && !self.forwarder.all_down() {
                    Some(answer)
                } else {
                    // Nothing better is to be had in time: answer, and look again behind the guest's back.
                    if retry {
                        self.fly(&question, &key);
                    }
                    count(&self.counters.queries);
                    count(&self.counters.stale);
                    answer.write(message, &query, Age::Stale, limit, out);
                    return Step::Answered;
                }
            }
            None => None,
        };
        let Some(place) = self.fair.place(from.ip()) else {
            count(&self.counters.shed);
            let shed = reply::code(message, &query, from, how, Code::failed(Ede::Other));
            return self.put(out, shed, &self.counters.servfail);
        };
        count(&self.counters.queries);
        count(&self.counters.forwarded);
        let deadline = tokio::time::Instant::now() + BUDGET + GRACE;
        let message = message.to_vec();
        Step::Wait(Box::new(Pending { message, query, from, how, question, stale, place, deadline }))
    }

    /// The answer to a query that had to wait, in `out`; `false` if there is none to give.
    pub(super) async fn finish(self: &Arc<Self>, pending: Box<Pending>, out: &mut Vec<u8>) -> bool {
        let Pending { message, query, from, how, question, stale, place, deadline } = *pending;
        let wait = if stale.is_some() { STALE_AFTER } else { BUDGET + GRACE };
        let until = deadline.min(tokio::time::Instant::now() + wait);
        let outcome = timeout_at(until, async {
            let _turn = place.turn().await;
            let mut flight = self.fly(&question, &Key::of(&question))?;
            let landed = flight.wait_for(Option::is_some).await.ok()?;
            landed.clone()
        });
        let outcome = outcome.await.ok().flatten().unwrap_or(Err(Ede::NoReachableAuthority));
        let limit = how.limit(&query);
        match (outcome, stale) {
            (Ok(answer), _) => answer.write(&message, &query, Age::Seconds(0), limit, out),
            (Err(_), Some(stale)) => {
                count(&self.counters.stale);
                stale.write(&message, &query, Age::Stale, limit, out);
            }
            (Err(ede), None) => {
                count(&self.counters.servfail);
                let Some(failed) = reply::code(&message, &query, from, how, Code::failed(ede)) else {
                    return false;
                };
                *out = failed;
            }
        }
        true
    }

    /// Joins the question's flight, or starts it. `None` if too many are under way.
    fn fly(self: &Arc<Self>, question: &Question, key: &Key) -> Option<Flight> {
        let mut open = self.flights.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = open.get(key.as_bytes()) {
            return Some(flight.clone());
        }
        // Guests' places bound those who wait; this bounds what goes on after they have left.
        if open.len() >= PLACES {
            return None;
        }
        let (land, flight) = watch::channel(None);
        open.insert(key.as_bytes().into(), flight.clone());
        count(&self.counters.asked);
        let mut tasks = self.flights.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(fly(self.clone(), question.clone(), *key, land));
        Some(flight)
    }

    fn may_ask(&self, from: IpAddr) -> bool {
        match from {
            _ if !self.guests_only => true,
            IpAddr::V4(address) => self.network.subnet.contains(address),
            IpAddr::V6(_) => false,
        }
    }

    fn put(&self, out: &mut Vec<u8>, bytes: Option<Vec<u8>>, counter: &std::sync::atomic::AtomicU64) -> Step {
        let Some(bytes) = bytes else {
            count(&self.counters.dropped);
            return Step::Silent;
        };
        count(&self.counters.queries);
        count(counter);
        *out = bytes;
        Step::Answered
    }

    /// Ends every question on its way upstream.
    pub(super) fn stop(&self) {
        self.flights.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

async fn fly(resolver: Arc<Resolver>, question: Question, key: Key, land: watch::Sender<Option<Outcome>>) {
    let _landing = Landing { resolver: &resolver, key };
    let outcome = match resolver.forwarder.ask(&question).await {
        Ok(answer) => {
            let answer = Arc::new(answer);
            resolver.cache.put(&key, answer.clone(), Instant::now());
            Ok(answer)
        }
        Err(failure) => {
            resolver.cache.put_failure(&key, Instant::now());
            Err(failure.into())
        }
    };
    // In the cache first: who comes after the flight is off the list finds the answer there.
    land.send_replace(Some(outcome));
}

/// Takes a flight off the list however it ends.
struct Landing<'a> {
    resolver: &'a Resolver,
    key: Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut open = self.resolver.flights.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(self.key.as_bytes());
    }
}

//! Questions on their way upstream, each once for all who wait for it. In: a question. Out: what became of it, to everybody
//! who joined, and to the cache: a flight goes on to its end whoever stops waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::answer::{Answer, Question};
use super::cache::Key;
use super::counters::count;
use super::fair::PLACES;
use super::forward::Failure;
use super::reply::Ede;
use super::resolve::Resolver;

/// Seconds that an answer stands which was withheld.
const WITHHELD_FOR: u32 = 30;

pub(super) type Outcome = Result<Arc<Answer>, Ede>;
/// Holds the outcome once there is one; closed without if the resolver was stopped.
type Flight = watch::Receiver<Option<Outcome>>;

/// The flights under way.
#[derive(Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Box<[u8]>, Flight>>,
    /// Where they run, once they can: the thread that answers from the cache has no runtime.
    runtime: OnceLock<Handle>,
}

impl Flights {
    pub(super) fn run_on(&self, runtime: Handle) {
        // Set once, at the start.
        let _ = self.runtime.set(runtime);
    }

    /// A flight that has landed, for who has an outcome and no upstream.
    #[cfg(any(test, fuzzing))]
    pub(super) fn landed(&self, key: &Key, outcome: Option<Outcome>) {
        let mut open = self.lock();
        match outcome {
            Some(outcome) => drop(open.insert(key.as_bytes().into(), watch::channel(Some(outcome)).1)),
            None => drop(open.remove(key.as_bytes())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Flight>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    /// Joins the question's flight, or starts it. `None` if too many are under way, or none can be.
    pub(super) fn fly(self: &Arc<Self>, question: &Question, key: &Key) -> Option<Flight> {
        let mut open = self.flights.lock();
        if let Some(flight) = open.get(key.as_bytes()) {
            return Some(flight.clone());
        }
        // Guests' places bound those who wait; this bounds what goes on after they have left.
        if open.len() >= PLACES {
            return None;
        }
        let runtime = self.flights.runtime.get()?;
        let (land, flight) = watch::channel(None);
        open.insert(key.as_bytes().into(), flight.clone());
        count(&self.counters.asked);
        runtime.spawn(fly(self.clone(), question.clone(), *key, land));
        Some(flight)
    }

    /// An answer that names a private address is withheld: a name of the internet that leads into a guest's own network
    /// turns its browser against it (DNS rebinding). Names with upstreams of their own, and our subnets, are meant so.
    fn is_rebinding(&self, question: &Question, answer: &Answer) -> bool {
        let settings = &self.network.resolver;
        if !settings.rebind_protection || self.forwarder.is_conditional(&question.name) {
            return false;
        }
        let ours = |address: &IpAddr| match address {
            IpAddr::V4(v4) => self.own_subnets.iter().any(|subnet| subnet.contains(*v4)),
            IpAddr::V6(_) => false,
        };
        let private = answer.addresses().iter().any(|address| is_private(*address) && !ours(address));
        private && !self.places.rebind_exempt.iter().any(|zone| question.name.is_in(zone))
    }

    async fn fetch(self: &Arc<Self>, question: &Question, key: &Key) -> Result<Arc<Answer>, Failure> {
        let answer = match &self.validator {
            Some(validator) if !question.checking_disabled => validator.ask(question).await?,
            _ => self.forwarder.ask(question).await?,
        };
        Ok(self.keep(question, key, answer))
    }

    /// Judges an upstream's answer and puts it into the cache: what guests are given.
    pub(super) fn keep(&self, question: &Question, key: &Key, mut answer: Answer) -> Arc<Answer> {
        if self.is_rebinding(question, &answer) {
            count(&self.counters.rebind);
            answer = Answer::withheld(question, Ede::Filtered, WITHHELD_FOR);
        } else {
            answer.hold(self.network.resolver.min_ttl, self.network.resolver.max_ttl);
        }
        let (answer, now) = (Arc::new(answer), Instant::now());
        if answer.is_plain_nxdomain() {
            self.cache.put(&Key::of_nxdomain(&question.name, question), answer.clone(), now);
        }
        self.cache.put(key, answer.clone(), now);
        answer
    }
}

async fn fly(resolver: Arc<Resolver>, question: Question, key: Key, land: watch::Sender<Option<Outcome>>) {
    let _landing = Landing { resolver: &resolver, key };
    // In the cache first: who comes after the flight is off the list finds the answer there.
    let outcome = resolver.fetch(&question, &key).await.map_err(|failure| {
        resolver.cache.put_failure(&key, Instant::now());
        failure.into()
    });
    land.send_replace(Some(outcome));
}

/// Takes a flight off the list however it ends.
struct Landing<'a> {
    resolver: &'a Resolver,
    key: Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.resolver.flights.lock().remove(self.key.as_bytes());
    }
}

/// Addresses that mean something else on every network: RFC 1918, 6598, loopback, link-local, "this network", and the same
/// in IPv6 (RFC 4193, 4291).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || first == 0
                || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => {
                v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local()
            }
        },
    }
}

//! Questions on their way upstream, each once for all who wait for it. In: a question. Out: what became of it, to everybody
//! who joined, and to the cache: a flight goes on to its end whoever stops waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::answer::{Answer, Question};
use super::cache::Key;
use super::counters::count;
use super::fair::{PLACES, Share};
use super::name::Name;
use super::reply::Ede;
use super::resolve::Resolver;
use super::setup::Setup;

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

    /// Takes all off the list: who asks from now on is asked for anew. Those who wait have their answers all the same.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Flight>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    /// Joins the question's flight, or starts it as things are now, with `share` of the exchanges. `None` if too many are under
    /// way, or none can be.
    pub(super) fn fly(self: &Arc<Self>, question: &Question, key: &Key, share: &Share) -> Option<Flight> {
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
        let landing = Landing { resolver: self.clone(), key: *key, flight: flight.clone() };
        // Under the lock that a change of setup takes as well: a flight of the setup before it is off the list after it.
        let setup = self.setup.load_full();
        runtime.spawn(fly(landing, setup, question.clone(), share.clone(), land));
        Some(flight)
    }

    /// Judges an upstream's answer and puts it into the cache: what guests are given. `setup` is the one that it was asked
    /// under; what the present one would have asked otherwise is for those who waited only.
    pub(super) fn keep(
        &self,
        setup: &Arc<Setup>,
        question: &Question,
        key: &Key,
        mut answer: Answer,
    ) -> Arc<Answer> {
        if setup.is_rebinding(&question.name, &answer) {
            count(&self.counters.rebind);
            answer = Answer::withheld(question, Ede::Filtered, WITHHELD_FOR);
        } else {
            let settings = &setup.network.resolver;
            answer.hold(settings.min_ttl, settings.max_ttl);
        }
        let (answer, now) = (Arc::new(answer), Instant::now());
        let holds = || self.would_keep(setup, &question.name, Some(&answer));
        if answer.is_plain_nxdomain() {
            self.cache.put_if(&Key::of_nxdomain(&question.name, question), answer.clone(), now, holds);
        }
        self.cache.put_if(key, answer.clone(), now, holds);
        answer
    }

    fn would_keep(&self, setup: &Arc<Setup>, name: &Name, answer: Option<&Answer>) -> bool {
        let present = self.setup.load();
        Arc::ptr_eq(&present, setup) || present.keeps(setup, name, answer)
    }
}

async fn fly(
    landing: Landing,
    setup: Arc<Setup>,
    question: Question,
    share: Share,
    land: watch::Sender<Option<Outcome>>,
) {
    let Landing { resolver, key, .. } = &landing;
    let asked = match &setup.validator {
        Some(validator) if !question.checking_disabled => {
            // One of the share for all that a chain of trust needs: its questions are asked one after the other.
            let _exchange = share.acquire().await;
            validator.ask(&question).await
        }
        _ => setup.forwarder.ask(&question, Some(&share)).await,
    };
    // In the cache first: who comes after the flight is off the list finds the answer there.
    let outcome = match asked {
        Ok(answer) => Ok(resolver.keep(&setup, &question, key, answer)),
        Err(failure) => {
            let holds = || resolver.would_keep(&setup, &question.name, None);
            resolver.cache.put_failure_if(key, Instant::now(), holds);
            Err(failure.into())
        }
    };
    land.send_replace(Some(outcome));
}

/// Takes a flight off the list however it ends.
struct Landing {
    resolver: Arc<Resolver>,
    key: Key,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut open = self.resolver.flights.lock();
        // Another may have begun since, when the setup changed.
        if open.get(self.key.as_bytes()).is_some_and(|open| open.same_channel(&self.flight)) {
            open.remove(self.key.as_bytes());
        }
    }
}

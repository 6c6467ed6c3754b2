//! Questions on their way upstream, each once for all who wait for it. In: a question. Out: what became of it, to everybody
//! who joined, and to the cache: a flight goes on to its end whoever stops waiting.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::answer::{Answer, Question};
use super::cache::Key;
use super::counters::count;
#[cfg(any(test, fuzzing))]
use super::exchanges::Exchanges;
use super::exchanges::{Payers, Share};
use super::fair::OF_FLIGHTS;
use super::forward::{BUDGET, Failure, Paid};
use super::name::Name;
use super::reply::Ede;
use super::resolve::Resolver;
use super::setup::Setup;

/// Seconds that an answer stands which was withheld.
const WITHHELD_FOR: u32 = 30;

pub(super) type Outcome = Result<Arc<Answer>, Ede>;
/// Holds the outcome once there is one; closed without if the resolver was stopped.
type Landed = watch::Receiver<Option<Outcome>>;

/// A question on its way.
struct Flight {
    landed: Landed,
    payers: Arc<Payers>,
}

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
            Some(outcome) => {
                let exchanges = Arc::new(Exchanges::new(1));
                let payers = Arc::new(Payers::new(&exchanges, &exchanges.share()));
                let landed = watch::channel(Some(outcome)).1;
                open.insert(key.as_bytes().into(), Flight { landed, payers });
            }
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
    /// Joins the question's flight, or starts it as things are now, with `share` of the exchanges. `None` if who has the share
    /// has had its part of those under way, or none can be.
    pub(super) fn fly(
        self: &Arc<Self>,
        question: &Question,
        key: &Key,
        share: &Arc<Share>,
    ) -> Option<Landed> {
        let mut open = self.flights.lock();
        if let Some(flight) = open.get(key.as_bytes()) {
            flight.payers.join(share);
            return Some(flight.landed.clone());
        }
        // Guests' places bound those who wait; this bounds what goes on after they have left.
        let free = OF_FLIGHTS.all.saturating_sub(open.len());
        if !OF_FLIGHTS.may_have_more(share.flights.load(Relaxed), free) {
            return None;
        }
        let runtime = self.flights.runtime.get()?;
        let (land, landed) = watch::channel(None);
        let payers = Arc::new(Payers::new(&self.exchanges, share));
        open.insert(key.as_bytes().into(), Flight { landed: landed.clone(), payers: payers.clone() });
        count(&self.counters.asked);
        share.flights.fetch_add(1, Relaxed);
        // Under the lock that a change of setup takes as well: a flight of the setup before it is off the list after it.
        let setup = self.setup.load_full();
        drop(open);
        let landing =
            Landing { resolver: self.clone(), key: *key, landed: landed.clone(), share: share.clone() };
        // A runtime that ends drops it here and now, and so the landing, which takes the lock.
        runtime.spawn(fly(landing, setup, question.clone(), payers, land));
        Some(landed)
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
        let holds = || self.would_keep(setup, &question.side(), Some(&answer));
        if answer.is_plain_nxdomain() {
            if !question.dnssec_ok {
                self.cache.put_if(&Key::of_nxdomain(&question.name, question), answer.clone(), now, holds);
            }
        } else {
            // It is there, and so is what it is below: what was held to the contrary is over.
            let domain = setup.forwarder.domain(&question.name);
            let above = (0..).map(|count| question.name.parent(count));
            for name in above.take_while(|name| name != domain) {
                self.cache.forget(&Key::of_nxdomain(&name, question));
            }
        }
        self.cache.put_if(key, answer.clone(), now, holds);
        answer
    }

    fn would_keep(&self, setup: &Arc<Setup>, side: &Name, answer: Option<&Answer>) -> bool {
        let present = self.setup.load();
        Arc::ptr_eq(&present, setup) || present.keeps(setup, side, answer)
    }
}

async fn fly(
    landing: Landing,
    setup: Arc<Setup>,
    question: Question,
    payers: Arc<Payers>,
    land: watch::Sender<Option<Outcome>>,
) {
    let Landing { resolver, key, .. } = &landing;
    let asked = match (payers.permit_within(BUDGET).await, &setup.validator) {
        (None, _) => Err(Failure::Busy),
        (Some(permit), Some(validator)) if validator.judges(&question) => {
            // One exchange for all that a chain of trust needs: the validator asks one question after the other.
            let _permit = permit;
            Box::pin(validator.ask(&question)).await
        }
        (Some(first), validator) => {
            let asked = setup.forwarder.ask(&question, Some(Paid { payers: &payers, first })).await;
            // Where answers are validated, no upstream's word stands for it; nor for who has them unjudged (CD): AD would say that we
            // have looked (RFC 4035 section 3.2.3).
            if validator.is_some() { asked.map(|answer| answer.authentic(false)) } else { asked }
        }
    };
    // In the cache first: who comes after the flight is off the list finds the answer there.
    let outcome = match asked {
        Ok(answer) => Ok(resolver.keep(&setup, &question, key, answer)),
        // Nobody upstream was asked: of the name that says nothing.
        Err(Failure::Busy) => Err(Failure::Busy.into()),
        Err(failure) => {
            let holds = || resolver.would_keep(&setup, &question.side(), None);
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
    landed: Landed,
    share: Arc<Share>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut open = self.resolver.flights.lock();
        // Another may have begun since, when the setup changed.
        if open.get(self.key.as_bytes()).is_some_and(|open| open.landed.same_channel(&self.landed)) {
            open.remove(self.key.as_bytes());
        }
        self.share.flights.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::server::lonely_resolver;
    use super::*;

    #[test]
    fn a_question_that_comes_while_the_resolver_stops_holds_up_nobody() {
        let resolver = lonely_resolver();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        resolver.flights.run_on(runtime.handle().clone());
        drop(runtime);
        let name = Name::from_text("www.example.com").unwrap();
        let question = Question { name, qtype: 1, dnssec_ok: false, checking_disabled: false };
        let (tell, told) = mpsc::channel();
        let asks = resolver.clone();
        std::thread::spawn(move || {
            let landed = asks.fly(&question, &Key::of(&question), asks.fair.background());
            tell.send(landed.map(|landed| landed.has_changed().is_err())).unwrap();
        });
        // It has no outcome, and never will have one.
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Some(true)));
        assert!(resolver.flights.lock().is_empty());
        assert_eq!(resolver.fair.background().flights.load(Relaxed), 0);
    }
}

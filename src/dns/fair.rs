//! Shares of what guests wait for, so that one guest's slow names do not starve another's. In: a guest's address. Out: a place
//! in the guest's own queue with its share of the exchanges with upstreams, or that its queue is full. Answers from the zone
//! and the cache need none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// Questions a guest may have waiting or at the upstreams; the next is told SERVFAIL. A guest that looks up 400 names at
/// once gets 400 answers.
pub(super) const PLACES_PER_GUEST: usize = 512;
/// Over all guests: bounds tasks and memory.
pub(super) const PLACES: usize = 8_192;
/// Guests that are looked through for those that have nothing under way any more, at least.
const SWEEP: usize = 1_024;

/// A guest's exchanges with upstreams: a question to several of them is several exchanges.
pub(super) type Share = Arc<Semaphore>;

#[derive(Debug)]
pub(super) struct Fair {
    queues: Arc<Mutex<Queues>>,
    exchanges_per_guest: usize,
    /// Of what no guest waits for.
    background: Share,
}

#[derive(Debug, Default)]
struct Queues {
    guests: HashMap<IpAddr, Guest>,
    places: usize,
    /// With so many guests it is time to forget some.
    sweep_at: usize,
}

#[derive(Debug)]
struct Guest {
    places: usize,
    share: Share,
}

impl Guest {
    /// A question goes on after the guest has its answer, if that was a stale one: until then it has its share.
    fn is_idle(&self) -> bool {
        self.places == 0 && Arc::strong_count(&self.share) == 1
    }
}

/// A place in a guest's queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    queues: Arc<Mutex<Queues>>,
    guest: IpAddr,
    share: Share,
}

impl Fair {
    /// `exchanges_per_guest`: exchanges of one guest that may be under way.
    pub(super) fn new(exchanges_per_guest: usize) -> Self {
        let background = Arc::new(Semaphore::new(exchanges_per_guest));
        Self { queues: Arc::default(), exchanges_per_guest, background }
    }

    /// `None` if the guest, or all guests together, have no place left.
    pub(super) fn place(&self, address: IpAddr) -> Option<Place> {
        let mut queues = lock(&self.queues);
        if queues.places >= PLACES {
            return None;
        }
        if queues.guests.len() > queues.sweep_at.max(SWEEP) {
            queues.guests.retain(|_, guest| !guest.is_idle());
            queues.sweep_at = 2 * queues.guests.len();
        }
        let guest = queues.guests.entry(address).or_insert_with(|| Guest {
            places: 0,
            share: Arc::new(Semaphore::new(self.exchanges_per_guest)),
        });
        if guest.places >= PLACES_PER_GUEST {
            return None;
        }
        guest.places += 1;
        let share = guest.share.clone();
        queues.places += 1;
        Some(Place { queues: self.queues.clone(), guest: address, share })
    }

    pub(super) fn background(&self) -> &Share {
        &self.background
    }
}

impl Place {
    pub(super) fn share(&self) -> &Share {
        &self.share
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = lock(&self.queues);
        queues.places -= 1;
        if let Some(guest) = queues.guests.get_mut(&self.guest) {
            guest.places -= 1;
            // Ours is still there; what a question that goes on has is swept up later.
            if guest.places == 0 && Arc::strong_count(&guest.share) == 2 {
                queues.guests.remove(&self.guest);
            }
        }
    }
}

// Counts are changed in one go, so a panic elsewhere leaves them right.
fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_cannot_take_every_place() {
        let fair = Fair::new(8);
        let (greedy, other) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let taken: Vec<_> = (0..PLACES_PER_GUEST).map(|_| fair.place(greedy).unwrap()).collect();
        assert!(fair.place(greedy).is_none());
        assert!(fair.place(other).is_some());
        drop(taken);
        assert!(fair.place(greedy).is_some());
        assert!(lock(&fair.queues).guests.is_empty());
    }

    #[test]
    fn a_guest_that_left_has_its_share_until_its_questions_are_over() {
        let fair = Fair::new(8);
        let address = IpAddr::from([10, 0, 0, 2]);
        let place = fair.place(address).unwrap();
        let question = place.share().clone();
        drop(place);
        assert!(Arc::ptr_eq(fair.place(address).unwrap().share(), &question));
        drop(question);
        // Those whose questions went on after them are forgotten as others come.
        for n in 0..10_000_u32 {
            let place = fair.place(IpAddr::from(n.to_be_bytes())).unwrap();
            let question = place.share().clone();
            drop(place);
            drop(question);
        }
        let guests = lock(&fair.queues).guests.len();
        assert!(guests <= SWEEP + 1, "{guests}");
    }
}

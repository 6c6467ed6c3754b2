//! Shares of what guests wait for, so that one guest's slow names do not starve another's, nor many guests together a further
//! one. In: a guest's address. Out: a place in the guest's own queue with its share of the exchanges with upstreams
//! (`exchanges`), or that there is no place. Answers from the zone and the cache need none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::exchanges::{Exchanges, Share};

/// Questions a guest may have waiting or at the upstreams; the next is told SERVFAIL. A guest that looks up 400 names at
/// once gets 400 answers.
const PLACES_PER_GUEST: usize = 512;
/// Over all guests: bounds tasks and memory.
const PLACES: usize = 8_192;
const OF_PLACES: Portions = Portions { all: PLACES, most: PLACES_PER_GUEST };
/// Questions on their way upstream, whoever still waits for them.
pub(super) const OF_FLIGHTS: Portions = Portions { all: PLACES, most: PLACES };
/// Guests that are looked through for those that have nothing under way any more, at least.
const SWEEP: usize = 1_024;

/// Something of which there is so much for all guests together, and of which one may have so much at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portions {
    pub(super) all: usize,
    pub(super) most: usize,
}

impl Portions {
    /// Those of one guest that are few.
    const FEW: usize = 4;

    /// Whether who has `held` may have one more when so many are free. Not as many as are free beyond a fourth of all (a dynamic
    /// threshold, after Choudhury and Hahne); of that fourth each may have a few, and of the last sixteenth one. So who takes all
    /// it can get, with hundreds of others that do, leaves some for one that asks little.
    pub(super) fn may_have_more(&self, held: usize, free: usize) -> bool {
        held < self.most
            && match held {
                0 => free > 0,
                1..Self::FEW => free > self.all / 16,
                _ => held < free.saturating_sub(self.all / 4),
            }
    }
}

#[derive(Debug)]
pub(super) struct Fair {
    queues: Arc<Mutex<Queues>>,
    exchanges: Arc<Exchanges>,
    /// Of what no guest waits for.
    background: Arc<Share>,
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
    share: Arc<Share>,
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
    share: Arc<Share>,
}

impl Fair {
    pub(super) fn new(exchanges: Arc<Exchanges>) -> Self {
        let background = exchanges.share();
        Self { queues: Arc::default(), exchanges, background }
    }

    /// `None` if the guest has had its part of the places.
    pub(super) fn place(&self, address: IpAddr) -> Option<Place> {
        let mut queues = lock(&self.queues);
        if queues.guests.len() > queues.sweep_at.max(SWEEP) {
            queues.guests.retain(|_, guest| !guest.is_idle());
            queues.sweep_at = 2 * queues.guests.len();
        }
        let free = PLACES - queues.places;
        let guest = queues
            .guests
            .entry(address)
            .or_insert_with(|| Guest { places: 0, share: self.exchanges.share() });
        if !OF_PLACES.may_have_more(guest.places, free) {
            return None;
        }
        guest.places += 1;
        let share = guest.share.clone();
        queues.places += 1;
        Some(Place { queues: self.queues.clone(), guest: address, share })
    }

    pub(super) fn background(&self) -> &Arc<Share> {
        &self.background
    }
}

impl Place {
    pub(super) fn share(&self) -> &Arc<Share> {
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

    fn fair() -> Fair {
        Fair::new(Arc::new(Exchanges::new(64)))
    }

    #[test]
    fn one_guest_cannot_take_every_place() {
        let fair = fair();
        let (greedy, other) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let taken: Vec<_> = (0..PLACES_PER_GUEST).map(|_| fair.place(greedy).unwrap()).collect();
        assert!(fair.place(greedy).is_none());
        assert!(fair.place(other).is_some());
        drop(taken);
        assert!(fair.place(greedy).is_some());
        assert!(lock(&fair.queues).guests.is_empty());
    }

    /// A tenant with many VMs, each of which takes all that it gets, and a guest beside it.
    #[test]
    fn many_greedy_guests_leave_places_for_one_that_asks_little() {
        for greedy in [12, 100, 800_u32] {
            let fair = fair();
            let mut taken = vec![];
            for guest in 0..greedy {
                taken.extend(std::iter::from_fn(|| fair.place(IpAddr::from(guest.to_be_bytes()))));
            }
            let quiet = IpAddr::from([192, 0, 2, 1]);
            let places: Vec<_> = std::iter::from_fn(|| fair.place(quiet)).collect();
            assert!(!places.is_empty(), "{greedy}");
            // Who took what there was does not get more before the others have given some back.
            assert!(fair.place(IpAddr::from(0_u32.to_be_bytes())).is_none(), "{greedy}");
            // With few of them, even 400 names at once.
            assert!(greedy > 12 || taken.len() > 12 * 400, "{}", taken.len());
        }
    }

    #[test]
    fn a_guest_that_left_has_its_share_until_its_questions_are_over() {
        let fair = fair();
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

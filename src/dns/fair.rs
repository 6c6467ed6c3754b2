//! Who may have how much of the forwarder at once, so that one guest's slow names do not starve another's. In: a guest's
//! address. Out: a place in the guest's own queue, or that its queue is full. Answers from the zone and the cache need none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Questions a guest may have waiting or at the upstreams; the next is told SERVFAIL. A guest that looks up 400 names at
/// once gets 400 answers.
pub(super) const PLACES_PER_GUEST: usize = 512;
/// Over all guests: bounds tasks and memory.
pub(super) const PLACES: usize = 8_192;

#[derive(Debug)]
pub(super) struct Fair {
    queues: Arc<Mutex<Queues>>,
    running_per_guest: usize,
}

#[derive(Debug, Default)]
struct Queues {
    guests: HashMap<IpAddr, Guest>,
    places: usize,
}

#[derive(Debug)]
struct Guest {
    places: usize,
    running: Arc<Semaphore>,
}

/// A place in a guest's queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    queues: Arc<Mutex<Queues>>,
    guest: IpAddr,
    running: Arc<Semaphore>,
}

impl Fair {
    /// `running_per_guest`: questions of one guest that may be at the upstreams.
    pub(super) fn new(running_per_guest: usize) -> Self {
        Self { queues: Arc::default(), running_per_guest }
    }

    /// `None` if the guest, or all guests together, have no place left.
    pub(super) fn place(&self, address: IpAddr) -> Option<Place> {
        let mut queues = lock(&self.queues);
        if queues.places >= PLACES {
            return None;
        }
        let guest = queues.guests.entry(address).or_insert_with(|| Guest {
            places: 0,
            running: Arc::new(Semaphore::new(self.running_per_guest)),
        });
        if guest.places >= PLACES_PER_GUEST {
            return None;
        }
        guest.places += 1;
        let running = guest.running.clone();
        queues.places += 1;
        Some(Place { queues: self.queues.clone(), guest: address, running })
    }
}

impl Place {
    /// Waits for the guest's turn, which lasts as long as what it returns.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // `None` only if the semaphore were closed, which nobody does.
        self.running.clone().acquire_owned().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = lock(&self.queues);
        queues.places -= 1;
        if let Some(guest) = queues.guests.get_mut(&self.guest) {
            guest.places -= 1;
            if guest.places == 0 {
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
}

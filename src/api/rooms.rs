//! Room for the requests that are being received or answered, of callers of one kind. In: requests. Out: room for each in its turn, or
//! none within its patience; and word that somebody waits, so that answers which nobody reads make room sooner.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

#[derive(Debug, Clone)]
pub(super) struct Rooms {
    free: Arc<Semaphore>,
    waiting: watch::Sender<Waiting>,
}

/// Who waits for room.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    callers: usize,
    /// Since when there has always been one.
    pub(super) since: Option<Instant>,
}

impl Rooms {
    pub(super) fn new(number: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(number)), waiting: watch::Sender::default() }
    }

    /// Room for one request; none if there is none for so long.
    pub(super) async fn room(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        if let Ok(free) = self.free.clone().try_acquire_owned() {
            return Some(free);
        }
        let _waits = Waits::begin(&self.waiting);
        // The semaphore is never closed.
        tokio::time::timeout(patience, self.free.clone().acquire_owned()).await.ok()?.ok()
    }

    pub(super) fn waiting(&self) -> watch::Receiver<Waiting> {
        self.waiting.subscribe()
    }
}

/// A caller that waits, until this is dropped: it may hang up before there is room.
struct Waits<'a>(&'a watch::Sender<Waiting>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a watch::Sender<Waiting>) -> Self {
        waiting.send_if_modified(|waiting| {
            waiting.callers += 1;
            let is_first = waiting.since.is_none();
            waiting.since.get_or_insert_with(Instant::now);
            is_first
        });
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|waiting| {
            waiting.callers -= 1;
            let was_last = waiting.callers == 0;
            if was_last {
                waiting.since = None;
            }
            was_last
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_comes_free_or_the_patience_ends_and_it_is_known_meanwhile_that_somebody_waits() {
        let rooms = Rooms::new(1);
        let taken = rooms.room(Duration::ZERO).await.unwrap();
        let mut waiting = rooms.waiting();
        assert!(waiting.borrow_and_update().since.is_none());
        assert!(rooms.room(Duration::from_millis(20)).await.is_none());
        assert!(waiting.has_changed().unwrap() && waiting.borrow_and_update().since.is_none());
        let waits = tokio::spawn({
            let rooms = rooms.clone();
            async move { rooms.room(Duration::from_secs(30)).await.is_some() }
        });
        waiting.wait_for(|waiting| waiting.since.is_some()).await.unwrap();
        drop(taken);
        assert!(waits.await.unwrap());
        assert!(rooms.waiting().borrow().since.is_none());
    }
}

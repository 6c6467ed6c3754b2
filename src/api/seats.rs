//! The bounded number of watches. In: who wants to watch. Out: a seat, or a refusal. No peer has more than half of the seats, and a
//! watch that nobody reads gives its seat to one that finds none: whoever reads is kept out by nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use connectrpc::{ConnectError, ErrorCode};
use tokio::sync::oneshot;

use super::caller::Peer;
use super::connections::Reader;
use super::errors::refusal;

/// A watch of which nothing has been read for so long gives its seat to whoever finds none.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Seats {
    number: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    peer: Option<Peer>,
    reader: Option<Reader>,
    /// Dropped with the entry, which tells the watch to end.
    _keep: oneshot::Sender<()>,
}

impl Taken {
    fn unread_since(&self) -> Option<Instant> {
        self.reader.as_ref()?.unread_since()
    }
}

/// A watch's seat, free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    table: Arc<Mutex<Table>>,
    needed: Option<oneshot::Receiver<()>>,
}

impl Seats {
    pub(super) fn new(number: usize) -> Self {
        Self { number, table: Arc::default() }
    }

    /// A free one, or that of the watch that has been unread longest.
    pub(super) fn take(
        &self,
        peer: Option<Peer>,
        reader: Option<Reader>,
        now: Instant,
    ) -> Result<Seat, ConnectError> {
        let mut table = lock(&self.table);
        let half = self.number / 2;
        let its_own = table.taken.values().filter(|taken| taken.peer == peer).count();
        if its_own >= half {
            // Its own make room for it, and nobody else's.
            if !table.give_up(now, |taken| taken.peer == peer) {
                let words = format!(
                    "{half} watches of this caller are open already: end one of them and repeat the call"
                );
                return Err(refusal(ErrorCode::ResourceExhausted, "TOO_MANY_WATCHES", words));
            }
        } else if table.taken.len() >= self.number && !table.give_up(now, |_| true) {
            let words =
                format!("{} watches are open already: end one of them and repeat the call", self.number);
            return Err(refusal(ErrorCode::ResourceExhausted, "TOO_MANY_WATCHES", words));
        }
        let (keep, needed) = oneshot::channel();
        let id = table.next;
        table.next += 1;
        table.taken.insert(id, Taken { peer, reader, _keep: keep });
        Ok(Seat { id, table: self.table.clone(), needed: Some(needed) })
    }
}

impl Table {
    /// Whether one of them has been unread for long enough, and has lost its seat.
    fn give_up(&mut self, now: Instant, of: impl Fn(&Taken) -> bool) -> bool {
        let taken = self.taken.iter().filter(|(_, taken)| of(taken));
        let unread = taken.filter_map(|(id, taken)| Some((taken.unread_since()?, *id)));
        let longest = unread.min().filter(|(since, _)| now.saturating_duration_since(*since) >= PATIENCE);
        let Some((_, id)) = longest else { return false };
        tracing::debug!("a watch that nobody reads has given its seat to another");
        self.taken.remove(&id).is_some()
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    /// Resolves when another watch has been given this seat. To be asked for once.
    pub(super) fn needed(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let needed = self.needed.take();
        async move {
            match needed {
                // Only ever an error: nothing is sent, the sender is dropped.
                Some(needed) => drop(needed.await),
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.table).taken.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::connections::{Connections, InFlight, Place};
    use super::*;

    fn process(pid: i32) -> Option<Peer> {
        Some(Peer::Process { pid, uid: 0, gid: 0 })
    }

    async fn watch() -> (Place, InFlight, Option<Reader>) {
        let place = Connections::new(1, Duration::from_secs(30)).place().await;
        let watch = place.requests()();
        let reader = Some(watch.reader());
        (place, watch, reader)
    }

    #[tokio::test]
    async fn the_watch_that_has_been_unread_longest_gives_its_seat_and_one_that_is_read_never() {
        let seats = Seats::new(4);
        let mut open = Vec::new();
        for pid in 0..4 {
            let (place, watch, reader) = watch().await;
            let seat = seats.take(process(pid), reader, Instant::now()).unwrap();
            open.push((place, watch, seat));
        }
        let later = || Instant::now() + PATIENCE;
        let taken = |now| seats.take(process(9), None, now);
        assert_eq!(taken(later()).unwrap_err().code, ErrorCode::ResourceExhausted, "all of them are read");
        for unread in [2, 1] {
            open[unread].1.waits_for_its_reader();
        }
        assert!(taken(Instant::now()).is_err(), "they may be read yet");
        let mut needed: Vec<_> = open.iter_mut().map(|(_, _, seat)| Box::pin(seat.needed())).collect();
        let mut over =
            || -> Vec<usize> { (0..4).filter(|at| (&mut needed[*at]).now_or_never().is_some()).collect() };
        let first = taken(later()).unwrap();
        assert_eq!(over(), [2]);
        open.remove(2);
        let _second = taken(later()).unwrap();
        assert!(taken(later()).is_err());
        drop(first);
        let _third = taken(Instant::now()).unwrap();
    }

    #[tokio::test]
    async fn half_of_the_seats_are_a_callers_and_no_more() {
        let seats = Seats::new(4);
        let (_place, unread, reader) = watch().await;
        let now = Instant::now();
        let _first = seats.take(process(1), reader, now).unwrap();
        let _second = seats.take(process(1), None, now).unwrap();
        let refused = seats.take(process(1), None, now).unwrap_err();
        assert!(refused.message.unwrap().contains("2 watches of this caller"));
        let _others =
            (seats.take(process(2), None, now).unwrap(), seats.take(process(3), None, now).unwrap());
        unread.waits_for_its_reader();
        let _instead = seats.take(process(1), None, Instant::now() + PATIENCE).unwrap();
    }
}

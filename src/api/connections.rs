//! The bounded table of open connections. A connection without a request costs its place when another one needs it,
//! longest quiet first: idle or stalled callers never keep a working one out. In: connections and their requests as they
//! come and go. Out: a place, or word that every place is at work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    table: Mutex<Table>,
    /// Told when a place may have come free.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    open: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    in_flight: usize,
    /// Whether there has been a request.
    used: bool,
    quiet_since: Instant,
    /// Dropped with the entry, which tells the connection to close.
    _keep: oneshot::Sender<()>,
}

/// A connection's place in the table, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    id: u64,
    evicted: oneshot::Receiver<()>,
}

/// A request being answered: its connection keeps its place.
#[derive(Debug)]
pub(super) struct InFlight {
    connections: Connections,
    id: u64,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, table: Mutex::default(), freed: Notify::new() }))
    }

    /// A place for a new connection, as soon as there is one.
    pub(super) async fn place(&self) -> Place {
        loop {
            let freed = self.0.freed.notified();
            if let Some(place) = self.try_place() {
                return place;
            }
            freed.await;
        }
    }

    fn try_place(&self) -> Option<Place> {
        let mut table = self.table();
        if table.open.len() >= self.0.most {
            let quiet = table.open.iter().filter(|(_, entry)| entry.in_flight == 0);
            let longest = quiet.min_by_key(|(_, entry)| entry.quiet_since).map(|(id, _)| *id)?;
            table.open.remove(&longest);
            tracing::debug!("the API's connections are at their limit: the longest idle one is closed");
        }
        let (keep, evicted) = oneshot::channel();
        let id = table.next_id;
        table.next_id += 1;
        table.open.insert(id, Entry { in_flight: 0, used: false, quiet_since: Instant::now(), _keep: keep });
        Some(Place { connections: self.clone(), id, evicted })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Somebody has come: the connection is quiet from now on, however long its place was kept ready.
    pub(super) fn taken(&self) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            entry.quiet_since = Instant::now();
        }
    }

    /// Resolves when another connection has been given this place.
    pub(super) async fn evicted(&mut self) {
        // Only ever an error: nothing is sent, the sender is dropped.
        let _ = (&mut self.evicted).await;
    }

    /// Whether the connection has had a request.
    pub(super) fn is_used(&self) -> bool {
        self.connections.table().open.get(&self.id).is_some_and(|entry| entry.used)
    }

    /// For the connection's request handler, which outlives no connection but is a closure of its own.
    pub(super) fn requests(&self) -> impl Fn() -> InFlight + use<> {
        let (connections, id) = (self.connections.clone(), self.id);
        move || {
            if let Some(entry) = connections.table().open.get_mut(&id) {
                entry.in_flight += 1;
                entry.used = true;
            }
            InFlight { connections: connections.clone(), id }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            entry.in_flight -= 1;
            entry.quiet_since = Instant::now();
        }
        self.connections.0.freed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.id);
        self.connections.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_up_the_longest_quiet_connection_and_never_a_working_one() {
        let connections = Connections::new(2);
        let mut working = connections.try_place().unwrap();
        let request = working.requests()();
        let mut idle = connections.try_place().unwrap();
        let mut third = connections.try_place().unwrap();
        assert!(idle.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(working.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty));

        let other_request = third.requests()();
        assert!(connections.try_place().is_none(), "every place is at work");
        drop(request);
        assert!(connections.try_place().is_some());
        assert!(working.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(third.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        drop(other_request);
    }

    #[test]
    fn a_newcomer_is_not_the_longest_quiet_one_because_its_place_was_ready_early() {
        let connections = Connections::new(2);
        let mut ready = connections.try_place().unwrap();
        let mut older = connections.try_place().unwrap();
        ready.taken();
        let _next = connections.try_place().unwrap();
        assert!(ready.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        assert!(older.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
    }

    #[tokio::test]
    async fn a_connection_waits_until_a_place_is_free() {
        let connections = Connections::new(1);
        let first = connections.try_place().unwrap();
        let request = first.requests()();
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { connections.place().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(request);
        waiting.await.unwrap();
    }
}

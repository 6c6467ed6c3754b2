//! The bounded table of open connections. A connection without a request costs its place when another one needs it,
//! longest quiet first, and so does one whose caller has not read its answers for a while: idle or stalled callers never keep
//! a working one out. In: connections and their requests as they come and go. Out: a place, or word that every place is at
//! work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::rooms::Waiting;

/// For a caller to read on in its answers while others wait for room, of which they have waited for `GRACE` at least.
const SHORT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    /// For a caller to read on in its answers.
    patience: Duration,
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
    /// By number, which never comes twice.
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    quiet_since: Instant,
    /// Dropped with the entry, which tells the connection to close.
    _keep: oneshot::Sender<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Request {
    /// Its answer goes on as soon as its caller reads: since then nothing of it has been taken. None while it is being
    /// received, or answered by us.
    unread_since: Option<Instant>,
    /// Whether its answer has no end of its own.
    goes_on: bool,
}

/// A connection's place in the table, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    id: u64,
    evicted: oneshot::Receiver<()>,
}

/// A request being answered: its connection keeps its place, unless its caller does not read.
#[derive(Debug)]
pub(super) struct InFlight {
    connections: Connections,
    id: u64,
    request: u64,
}

/// How far a request's answer has been read, for who does not answer it.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    connections: Connections,
    id: u64,
    request: u64,
}

impl Entry {
    /// When its place may be another's; not while it is at work.
    fn given_up(&self, patience: Duration) -> Option<Instant> {
        if self.requests.values().any(|request| request.unread_since.is_none()) {
            return None;
        }
        let patience = if self.requests.is_empty() { Duration::ZERO } else { patience };
        self.quiet_since.checked_add(patience)
    }

    /// When it is closed, whether its place is needed or not: for an answer that nobody reads. Sooner while others have been waiting
    /// for room.
    fn stalled(&self, patience: Duration, waiting: Option<Instant>) -> Option<Instant> {
        let finite = self.requests.values().filter(|request| !request.goes_on);
        let closed = |unread: Instant| match waiting {
            Some(waiting) => (unread + SHORT).max(waiting + GRACE).min(unread + patience),
            None => unread + patience,
        };
        finite.filter_map(|request| request.unread_since.map(closed)).min()
    }
}

impl Connections {
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        Self(Arc::new(Shared { most, patience, table: Mutex::default(), freed: Notify::new() }))
    }

    /// A place for a new connection, as soon as there is one.
    pub(super) async fn place(&self) -> Place {
        loop {
            let freed = self.0.freed.notified();
            match self.try_place(Instant::now()) {
                Ok(place) => return place,
                Err(None) => freed.await,
                Err(Some(then)) => {
                    let _ = tokio::time::timeout_at(then.into(), freed).await;
                }
            }
        }
    }

    /// Without one: when one is given up, if nothing happens before.
    fn try_place(&self, now: Instant) -> Result<Place, Option<Instant>> {
        let mut table = self.table();
        if table.open.len() >= self.0.most {
            let given_up = table
                .open
                .iter()
                .filter_map(|(id, entry)| entry.given_up(self.0.patience).map(|since| (since, *id)));
            let (since, longest) = given_up.min().ok_or(None)?;
            if since > now {
                return Err(Some(since));
            }
            table.open.remove(&longest);
            tracing::debug!("the API's connections are at their limit: the longest idle one is closed");
        }
        let (keep, evicted) = oneshot::channel();
        let id = table.next_id;
        table.next_id += 1;
        let entry = Entry { requests: BTreeMap::new(), next_request: 0, quiet_since: now, _keep: keep };
        table.open.insert(id, entry);
        Ok(Place { connections: self.clone(), id, evicted })
    }

    #[cfg(test)]
    pub(super) fn stalled_at(&self, place: &Place) -> Option<Instant> {
        self.table().open[&place.id].stalled(self.0.patience, None)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when another connection has been given this place.
    pub(super) async fn evicted(&mut self) {
        // Only ever an error: nothing is sent, the sender is dropped.
        let _ = (&mut self.evicted).await;
    }

    /// Whether the connection has had a request.
    pub(super) fn is_used(&self) -> bool {
        self.connections.table().open.get(&self.id).is_some_and(|entry| entry.next_request > 0)
    }

    /// For the connection's request handler, which outlives no connection but is a closure of its own.
    pub(super) fn requests(&self) -> impl Fn() -> InFlight + use<> {
        let (connections, id) = (self.connections.clone(), self.id);
        move || {
            let mut request = 0;
            if let Some(entry) = connections.table().open.get_mut(&id) {
                request = entry.next_request;
                entry.next_request += 1;
                entry.requests.insert(request, Request::default());
            }
            InFlight { connections: connections.clone(), id, request }
        }
    }

    /// Resolves when the connection's caller has left an answer unread for too long.
    pub(super) fn stalled(&self, mut waiting: watch::Receiver<Waiting>) -> impl Future<Output = ()> + use<> {
        let (connections, id) = (self.connections.clone(), self.id);
        async move {
            loop {
                let (now, patience) = (Instant::now(), connections.0.patience);
                let waits = waiting.borrow_and_update().since;
                let stalled =
                    connections.table().open.get(&id).and_then(|entry| entry.stalled(patience, waits));
                // Of an answer that comes later the time is up later.
                let later = now + if waits.is_some() { SHORT } else { patience };
                match stalled {
                    Some(then) if then <= now => return,
                    then => tokio::select! {
                        () = tokio::time::sleep_until(then.unwrap_or(later).into()) => {}
                        Ok(()) = waiting.changed() => {}
                    },
                }
            }
        }
    }
}

impl InFlight {
    fn change(&self, change: impl FnOnce(&mut Entry, u64)) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            change(entry, self.request);
        }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { connections: self.connections.clone(), id: self.id, request: self.request }
    }

    /// The answer is one that goes on until somebody ends it.
    pub(super) fn goes_on(&self) {
        self.change(|entry, request| {
            entry.requests.entry(request).and_modify(|request| request.goes_on = true);
        });
    }

    /// The answer has got so far: there is something for its caller to read.
    pub(super) fn waits_for_its_reader(&self) {
        let now = Instant::now();
        self.change(|entry, request| {
            entry.quiet_since = now;
            entry.requests.entry(request).and_modify(|request| request.unread_since = Some(now));
        });
        // Whoever waits for a place is to know until when.
        self.connections.0.freed.notify_one();
    }

    /// Its caller has read all there is, and waits for us.
    pub(super) fn is_read(&self) {
        self.change(|entry, request| {
            entry.requests.entry(request).and_modify(|request| request.unread_since = None);
        });
    }
}

impl Reader {
    /// Since when something of the answer has been waiting for its caller.
    pub(super) fn unread_since(&self) -> Option<Instant> {
        self.connections.table().open.get(&self.id)?.requests.get(&self.request)?.unread_since
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.change(|entry, request| {
            entry.requests.remove(&request);
            entry.quiet_since = Instant::now();
        });
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

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_full_table_gives_up_the_longest_quiet_connection_and_never_a_working_one() {
        let connections = Connections::new(2, PATIENCE);
        let mut working = connections.try_place(Instant::now()).unwrap();
        let request = working.requests()();
        let mut idle = connections.try_place(Instant::now()).unwrap();
        let mut third = connections.try_place(Instant::now()).unwrap();
        assert!(idle.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(working.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty));

        let other_request = third.requests()();
        assert!(connections.try_place(Instant::now()).is_err(), "every place is at work");
        drop(request);
        assert!(connections.try_place(Instant::now()).is_ok());
        assert!(working.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(third.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        drop(other_request);
    }

    #[test]
    fn a_caller_that_does_not_read_its_answer_keeps_its_place_for_a_while_and_no_longer() {
        let connections = Connections::new(1, PATIENCE);
        let mut place = connections.try_place(Instant::now()).unwrap();
        let answer = place.requests()();
        answer.waits_for_its_reader();
        let now = Instant::now();
        let given_up = connections.try_place(now).unwrap_err().unwrap();
        assert!(given_up > now && given_up <= now + PATIENCE);
        answer.is_read();
        assert_eq!(connections.try_place(given_up).unwrap_err(), None, "it reads on, and waits for us");
        answer.waits_for_its_reader();
        let given_up = connections.try_place(now).unwrap_err().unwrap();
        assert!(connections.try_place(given_up).is_ok());
        assert!(place.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn an_answer_that_nobody_reads_costs_its_connection_and_a_watch_that_nobody_reads_does_not() {
        let connections = Connections::new(1, PATIENCE);
        let place = connections.try_place(Instant::now()).unwrap();
        let stalled = || connections.stalled_at(&place);
        let (watch, read, unread) = (place.requests()(), place.requests()(), place.requests()());
        watch.goes_on();
        watch.waits_for_its_reader();
        assert_eq!(stalled(), None);
        unread.waits_for_its_reader();
        let then = stalled().unwrap();
        // Others of the connection that get on are no excuse, nor is one at work.
        read.waits_for_its_reader();
        assert_eq!(stalled(), Some(then));
        drop(unread);
        assert!(stalled() > Some(then));
        read.is_read();
        assert_eq!(stalled(), None);
    }

    #[tokio::test]
    async fn a_connection_waits_until_a_place_is_free() {
        let connections = Connections::new(1, PATIENCE);
        let first = connections.try_place(Instant::now()).unwrap();
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

    #[test]
    fn an_answer_that_nobody_reads_is_given_up_sooner_while_others_wait_for_room() {
        let connections = Connections::new(1, PATIENCE);
        let place = connections.try_place(Instant::now()).unwrap();
        let answer = place.requests()();
        let closed = |waiting| connections.table().open[&place.id].stalled(PATIENCE, waiting);
        assert_eq!(closed(Some(Instant::now())), None, "it is being answered");
        answer.waits_for_its_reader();
        let unread = answer.reader().unread_since().unwrap();
        assert_eq!(closed(None), Some(unread + PATIENCE));
        assert_eq!(closed(Some(unread)), Some(unread + SHORT));
        let late = unread + Duration::from_secs(20);
        assert_eq!(closed(Some(late)), Some(late + GRACE));
        assert_eq!(closed(Some(unread + PATIENCE)), Some(unread + PATIENCE));
    }
}

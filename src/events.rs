//! What happens to guests and host, as it happens, for whoever watches: `WatchEvents`, logs, tests. In: events of any part.
//! Out: a stream to each watcher. Nobody waits for a watcher: one that is slow loses the oldest and is told how many.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::model::{Invalid, NetworkName, VmId};

/// Events a watcher may be behind before it loses some.
const BACKLOG: usize = 1024;
/// Events that are remembered for who comes later.
const RECENT: usize = 128;
/// And of what came before those, of each kind: the last of each VM. A busy host's comings and goings do not make it forget an attack.
const OLDER: usize = 32;

/// What happened. A kind that a guest can cause at will is sent by its source at a bounded rate, with a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A VM's network is ready to boot on.
    Bound,
    /// A VM's network is gone.
    Unbound,
    /// A guest was given its lease.
    LeaseGiven,
    /// A guest said that another host answers for its address.
    AddressDeclined,
    /// A MAC that no VM has asked for a lease.
    UnknownMac,
    /// Somebody else answers as a DHCP server.
    RogueDhcpServer,
    /// A guest sent under another's MAC or address.
    SpoofDenied,
    /// A DNS upstream stopped answering.
    UpstreamDown,
    /// A DNS upstream answers again.
    UpstreamUp,
    /// What somebody else changed in the kernel has been put right.
    DriftRepaired,
    /// What somebody else changed cuts guests off, and is not ours to put right.
    DriftReported,
}

impl EventKind {
    pub const ALL: [Self; 11] = [
        Self::Bound,
        Self::Unbound,
        Self::LeaseGiven,
        Self::AddressDeclined,
        Self::UnknownMac,
        Self::RogueDhcpServer,
        Self::SpoofDenied,
        Self::UpstreamDown,
        Self::UpstreamUp,
        Self::DriftRepaired,
        Self::DriftReported,
    ];

    /// Its name in the API and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Unbound => "unbound",
            Self::LeaseGiven => "lease_given",
            Self::AddressDeclined => "address_declined",
            Self::UnknownMac => "unknown_mac",
            Self::RogueDhcpServer => "rogue_dhcp_server",
            Self::SpoofDenied => "spoof_denied",
            Self::UpstreamDown => "upstream_down",
            Self::UpstreamUp => "upstream_up",
            Self::DriftRepaired => "drift_repaired",
            Self::DriftReported => "drift_reported",
        }
    }
}

impl FromStr for EventKind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = "bound, unbound, lease_given, address_declined, unknown_mac, rogue_dhcp_server, spoof_denied, \
                     upstream_down, upstream_up, drift_repaired or drift_reported";
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| Invalid::new(text, known))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: SystemTime,
    pub kind: EventKind,
    pub vm_id: Option<VmId>,
    pub network: Option<NetworkName>,
    /// For people: what exactly, with the values it is about.
    pub detail: String,
}

/// The host's events. Clones share one stream.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: broadcast::Sender<Event>,
    memory: Mutex<Memory>,
    /// In the order of `EventKind::ALL`.
    counts: [AtomicU64; EventKind::ALL.len()],
}

/// What is remembered, oldest first: `older` and then `recent`.
#[derive(Debug, Default)]
struct Memory {
    recent: VecDeque<Event>,
    older: Vec<Event>,
}

impl Memory {
    fn remember(&mut self, event: Event) {
        if self.recent.len() == RECENT
            && let Some(old) = self.recent.pop_front()
        {
            let about = |event: &Event| (event.kind, event.vm_id.clone(), event.network.clone());
            self.older.retain(|older| about(older) != about(&old));
            let mut same_kind = self.older.iter().enumerate().filter(|(_, older)| older.kind == old.kind);
            if let (Some((first, _)), true) = (same_kind.next(), same_kind.count() + 1 >= OLDER) {
                self.older.remove(first);
            }
            self.older.push(old);
        }
        self.recent.push_back(event);
    }

    fn all(&self) -> impl Iterator<Item = &Event> {
        self.older.iter().chain(&self.recent)
    }
}

impl Default for Events {
    fn default() -> Self {
        let (memory, counts) = Default::default();
        Self(Arc::new(Shared { stream: broadcast::Sender::new(BACKLOG), memory, counts }))
    }
}

impl Events {
    /// Tells every watcher; never waits for one.
    pub fn send(
        &self,
        kind: EventKind,
        vm_id: Option<&VmId>,
        network: Option<&NetworkName>,
        detail: impl Into<String>,
    ) {
        let (vm_id, network) = (vm_id.cloned(), network.cloned());
        if let Some(count) = EventKind::ALL.iter().position(|other| *other == kind) {
            self.0.counts[count].fetch_add(1, Relaxed);
        }
        let event = Event { at: SystemTime::now(), kind, vm_id, network, detail: detail.into() };
        let mut memory = self.memory();
        memory.remember(event.clone());
        // Under the lock, so that `watch_from_recent` sees each event once. An error means that nobody watches.
        let _ = self.0.stream.send(event);
    }

    /// What happens from now on.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.stream.subscribe()
    }

    /// What is remembered, oldest first, and what happens from then on.
    pub fn watch_from_recent(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let memory = self.memory();
        (memory.all().cloned().collect(), self.0.stream.subscribe())
    }

    /// How many of each kind there were.
    pub fn counts(&self) -> impl Iterator<Item = (EventKind, u64)> {
        EventKind::ALL.into_iter().zip(self.0.counts.iter().map(|count| count.load(Relaxed)))
    }

    /// The last `most` of what is remembered, oldest first.
    pub fn recent(&self, most: usize) -> Vec<Event> {
        let memory = self.memory();
        let all = memory.older.len() + memory.recent.len();
        memory.all().skip(all.saturating_sub(most)).cloned().collect()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_by_its_name() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("boun".parse::<EventKind>().is_err());
    }

    #[test]
    fn a_watcher_sees_each_event_once_whether_before_or_after_it_came() {
        let events = Events::default();
        events.send(EventKind::Bound, None, None, "before");
        let (recent, mut stream) = events.watch_from_recent();
        events.send(EventKind::Unbound, None, None, "after");
        assert_eq!(recent.iter().map(|event| event.detail.as_str()).collect::<Vec<_>>(), ["before"]);
        assert_eq!(stream.try_recv().unwrap().detail, "after");
        assert!(stream.try_recv().is_err());
    }

    #[test]
    fn the_last_events_are_remembered_and_of_older_ones_the_last_of_each_kind_and_vm() {
        let events = Events::default();
        let vm = |n: usize| Some(format!("vm-{n}").parse::<VmId>().unwrap());
        events.send(EventKind::RogueDhcpServer, None, None, "first");
        events.send(EventKind::RogueDhcpServer, None, None, "last");
        events.send(EventKind::SpoofDenied, vm(1).as_ref(), None, "of one");
        events.send(EventKind::SpoofDenied, vm(2).as_ref(), None, "of another");
        for n in 0..200 {
            events.send(EventKind::Bound, vm(n).as_ref(), None, n.to_string());
        }
        let all = events.recent(usize::MAX);
        assert_eq!(events.watch_from_recent().0, all);
        let details: Vec<&str> = all.iter().map(|event| event.detail.as_str()).collect();
        assert_eq!(details[..3], ["last", "of one", "of another"]);
        // 72 of the 200 are older than the last 128, and 32 of them are kept.
        let bound: Vec<String> = (40..200).map(|n| n.to_string()).collect();
        assert_eq!(details[3..], bound);
        assert_eq!(events.recent(1)[0].detail, "199");
    }
}

//! What happens to guests and host, as it happens, for whoever watches: `WatchEvents`, logs, tests. In: events of any part.
//! Out: a stream to each watcher. Nobody waits for a watcher: one that is slow loses the oldest and is told how many.

use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::model::{NetworkName, VmId};

/// Events a watcher may be behind before it loses some.
const BACKLOG: usize = 1024;

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
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Tells every watcher; never waits.
    pub fn send(
        &self,
        kind: EventKind,
        vm_id: Option<&VmId>,
        network: Option<&NetworkName>,
        detail: impl Into<String>,
    ) {
        let (vm_id, network) = (vm_id.cloned(), network.cloned());
        // An error means that nobody watches.
        let _ = self.0.send(Event { at: SystemTime::now(), kind, vm_id, network, detail: detail.into() });
    }

    /// What happens from now on.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

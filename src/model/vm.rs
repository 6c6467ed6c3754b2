use std::net::Ipv4Addr;

use super::{DhcpOptions, Hostname, IfName, Mac, NetworkName, RateMbps, VmId, WorkspaceId};

/// Number of a bridge port on this host; its host device is `gv<slot>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The bridge port on the host.
    pub fn host_device(self) -> IfName {
        // At most "gv4294967295", 12 characters of the alphabet a device name allows.
        #[allow(clippy::expect_used)]
        format!("gv{}", self.0).parse().expect("gv and ten digits are a device name")
    }
}

/// Who may open the TAP without privileges: the jailed VMM's user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapOwner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Desired state of one VM's network: what the store keeps and everything else is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    pub vm_id: VmId,
    pub network: NetworkName,
    pub workspace: Option<WorkspaceId>,
    pub slot: Slot,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub hostname: Hostname,
    pub rate_limit: Option<RateMbps>,
    /// Microseconds since 1970-01-01 UTC.
    pub created_at_us: i64,
    /// What its guest is told beside its network's own.
    pub dhcp_options: DhcpOptions,
}

impl Vm {
    /// Name of the TAP inside the VM's netns.
    pub const TAP: &'static str = "tap0";
}

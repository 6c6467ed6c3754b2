use std::net::Ipv4Addr;

use super::{DhcpOptions, Hostname, Mac, NetworkName, RateLimit, Slot, VmId, WorkspaceId};

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
    pub rate_limit: Option<RateLimit>,
    /// Microseconds since 1970-01-01 UTC.
    pub created_at_us: i64,
    /// What its guest is told beside its network's own.
    pub dhcp_options: DhcpOptions,
}

impl Vm {
    /// Name of the TAP inside the VM's netns.
    pub const TAP: &'static str = "tap0";
}

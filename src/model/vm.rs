use std::net::Ipv4Addr;

use super::{DhcpOptions, Hostname, Mac, NetworkName, RateLimit, Slot, VmId, WorkspaceId};

/// How the VM's TAP is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOptions {
    /// Who may open it without CAP_NET_ADMIN: the jailed VMM's user and group, both of them where both are set. With neither
    /// set it is everybody inside the netns (tun_not_capable in drivers/net/tun.c).
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Whether a VMM opens it once per queue (IFF_MULTI_QUEUE).
    pub multi_queue: bool,
    /// Whether frames carry a virtio-net header, and may come with checksum and segmentation left to the guest.
    pub offload: bool,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { uid: None, gid: None, multi_queue: false, offload: true }
    }
}

/// What a caller asks of a TAP; what is unset asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapRequest {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub multi_queue: Option<bool>,
    pub offload: Option<bool>,
}

impl From<TapRequest> for TapOptions {
    fn from(asked: TapRequest) -> Self {
        let default = Self::default();
        Self {
            uid: asked.uid,
            gid: asked.gid,
            multi_queue: asked.multi_queue.unwrap_or(default.multi_queue),
            offload: asked.offload.unwrap_or(default.offload),
        }
    }
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
    pub tap: TapOptions,
    /// Microseconds since 1970-01-01 UTC.
    pub created_at_us: i64,
    /// What its guest is told beside its network's own.
    pub dhcp_options: DhcpOptions,
}

impl Vm {
    /// Name of the TAP inside the VM's netns.
    pub const TAP: &'static str = "tap0";
}

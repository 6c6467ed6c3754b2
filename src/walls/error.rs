use std::net::Ipv4Addr;

use crate::kernel::KernelError;
use crate::model::{HostSide, IfName, Transport, VmId};
use crate::policy::{PolicyError, Scope};
use crate::store::StoreError;

/// Why a policy or a port forward was not set.
#[derive(Debug, thiserror::Error)]
pub enum WallsError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("{scope} has no policy of its own")]
    NoPolicy { scope: Scope },
    #[error("VM {vm_id} has no network: make it with guestnet vm create {vm_id}")]
    NoVm { vm_id: VmId },
    #[error("\"{given}\" is neither a VM nor an IPv4 address")]
    NoEndpoint { given: String },
    #[error("protocol {protocol} has no ports, so there is no port to test")]
    NoPorts { protocol: String },
    #[error("protocol {protocol} needs a port to test")]
    PortMissing { protocol: String },
    #[error(
        "{protocol} port {port} is one of the ephemeral ports {first}-{last} that this host's own connections use \
         (net.ipv4.ip_local_port_range): choose one outside"
    )]
    Ephemeral { protocol: Transport, port: u16, first: u16, last: u16 },
    #[error(
        "{protocol} port {port} at {at} is forwarded to VM {by} already: choose another port or delete that forward"
    )]
    ForwardTaken { protocol: Transport, at: HostSide, port: u16, by: VmId },
    #[error("{protocol} port {port} at {at} is in use by a program of this host: choose another, or stop it")]
    PortInUse { protocol: Transport, at: HostSide, port: u16 },
    #[error("{address} is no address of this host: choose one of {has}")]
    NotOurs { address: Ipv4Addr, has: String },
    #[error("there is no device {device} on this host")]
    NoDevice { device: IfName },
    #[error("there is no forward of {protocol} port {port} at {at}")]
    NoForward { protocol: Transport, at: HostSide, port: u16 },
    #[error("the state could not be saved: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("guestnet is stopping: repeat the call when it is back")]
    Stopping,
}

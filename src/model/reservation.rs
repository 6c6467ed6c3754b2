use std::net::Ipv4Addr;

use super::{DhcpOptions, Hostname, Mac, NetworkName};

/// An address for a MAC on a network whose plumbing is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub network: NetworkName,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub hostname: Hostname,
    pub options: DhcpOptions,
}

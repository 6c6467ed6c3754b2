use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{IfName, Invalid, VmId};

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Its number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Transport {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(Invalid::new(text, "a protocol with ports: tcp or udp")),
        }
    }
}

/// Where on the host a forwarded port is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostSide {
    /// At every address of the host, its loopback included.
    Everywhere,
    Address(Ipv4Addr),
    /// Whatever enters by this device, and is for the host.
    Uplink(IfName),
}

impl HostSide {
    /// Whether a packet can be for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(a), Self::Address(b)) => a == b,
            (Self::Uplink(a), Self::Uplink(b)) => a == b,
            _ => true,
        }
    }
}

impl fmt::Display for HostSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => f.write_str("every address"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Uplink(device) => write!(f, "{device}"),
        }
    }
}

/// A port of the host that leads to a port of a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortForward {
    pub protocol: Transport,
    pub at: HostSide,
    pub host_port: u16,
    pub vm_id: VmId,
    pub vm_port: u16,
}

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{
    BridgeName, DhcpOptions, Domain, Invalid, NetworkWalls, RateLimit, ResolverSettings, Subnet, Upstream,
    serde_as_text,
};

/// Name of a configured network, `^[a-z0-9][a-z0-9-]{0,31}$`; `network_id` in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=32).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "a network name: 1 to 32 of a-z 0-9 -, not starting with -"))
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(NetworkName);

/// Who answers a network's guests' DNS questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// guestnet, on the gateway address.
    On,
    /// The upstreams themselves; guests are told their addresses.
    Off,
}

/// Who makes a network's bridge and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plumbing {
    /// guestnet.
    Managed,
    /// Somebody else: guestnet serves DHCP and DNS there, by reservations, and touches no link.
    External,
}

impl Plumbing {
    /// As the configuration and the API call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::External => "external",
        }
    }
}

/// Which relay agents' requests are served, by their giaddr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relays {
    /// Those with an address in the network's subnet.
    Subnet,
    /// These; none when empty.
    These(Vec<Ipv4Addr>),
}

/// That guests are served their metadata, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// How far an answer gets: with 1 to the guest itself, not to what the guest routes for.
    pub hop_limit: u8,
}

impl Metadata {
    /// Where every cloud's guests look for it.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    /// Where it really is, on the gateway: not 80, which a web server of the host may have.
    pub const PORT: u16 = 8775;
}

/// A checked `[[network]]`: what its guests share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub name: NetworkName,
    pub bridge: BridgeName,
    pub subnet: Subnet,
    /// The bridge's address in the subnet: the guests' DHCP server and (with `DnsMode::On`) DNS server.
    pub gateway: Ipv4Addr,
    /// Where guests send what leaves the subnet: the bridge's address, but on external plumbing whoever routes there.
    pub router: Ipv4Addr,
    /// `dns_servers` of the configuration, in order, at least one.
    pub upstreams: Vec<Upstream>,
    pub dns: DnsMode,
    /// Whether our resolver answers guests' questions to other DNS servers too, and DNS over TLS is refused.
    pub dns_only_resolver: bool,
    pub resolver: ResolverSettings,
    pub domain: Domain,
    /// Bytes, of every link from the guest's interface to the bridge.
    pub mtu: u16,
    /// Addresses of the subnet that no guest is given.
    pub reserved: Vec<RangeInclusive<Ipv4Addr>>,
    /// Limit of a guest that asked for none of its own.
    pub rate_limit: Option<RateLimit>,
    /// Seconds; option 51.
    pub lease_seconds: u32,
    pub plumbing: Plumbing,
    pub relays: Relays,
    /// What its guests are told beside the address facts.
    pub dhcp_options: DhcpOptions,
    /// Off unless asked for.
    pub metadata: Option<Metadata>,
    /// Slots kept ready for VMs to come.
    pub pool_size: u16,
    pub walls: NetworkWalls,
}

impl Network {
    /// This network with what may change of it under guests as `configured` has it: what they are told by DHCP.
    pub fn with_live(&self, configured: &Self) -> Self {
        Self {
            lease_seconds: configured.lease_seconds,
            relays: configured.relays.clone(),
            dhcp_options: configured.dhcp_options.clone(),
            ..self.clone()
        }
    }

    /// Whether the configuration keeps `address` from guests.
    pub fn is_reserved(&self, address: Ipv4Addr) -> bool {
        self.reserved.iter().any(|range| range.contains(&address))
    }

    /// The DNS servers a guest is told: the one place that decides it.
    pub fn guest_dns(&self) -> Vec<IpAddr> {
        match self.dns {
            DnsMode::On => vec![IpAddr::V4(self.gateway)],
            DnsMode::Off => self.upstreams.iter().map(|upstream| upstream.address.ip()).collect(),
        }
    }

    pub fn serves_relay(&self, giaddr: Ipv4Addr) -> bool {
        match &self.relays {
            Relays::Subnet => self.subnet.has_host(giaddr),
            Relays::These(these) => these.contains(&giaddr),
        }
    }
}

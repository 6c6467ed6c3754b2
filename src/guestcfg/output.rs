use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::model::{StaticRoute, Subnet};

/// One file of a guest's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Relative to the guest's root, or to the folder the target is written to.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl GuestFile {
    pub(super) fn text(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o644, bytes: text.into().into_bytes() }
    }

    /// Its content, where a terminal can show it.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok().filter(|text| !text.contains('\0'))
    }
}

/// What a target made of a guest: its files, and what they could not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// At least one.
    pub files: Vec<GuestFile>,
    pub warnings: Vec<Warning>,
}

impl Generated {
    pub(super) fn one(file: GuestFile, warnings: Vec<Warning>) -> Self {
        Self { files: vec![file], warnings }
    }

    /// The whole output where it is one file of text: what a command prints.
    pub fn as_text(&self) -> Option<&str> {
        match self.files.as_slice() {
            [only] => only.as_text(),
            _ => None,
        }
    }
}

/// Which fact of a guest a warning is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    Dns,
    Search,
    Mtu,
    Hostname,
    Ntp,
    /// A static route.
    Route,
    /// Another DHCP option of the network or the VM.
    DhcpOption,
    /// An argument that stood on the kernel command line before.
    Argument,
    /// Length of the kernel command line.
    Length,
    UserData,
}

impl Fact {
    /// As JSON and the API have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Search => "search",
            Self::Mtu => "mtu",
            Self::Hostname => "hostname",
            Self::Ntp => "ntp",
            Self::Route => "route",
            Self::DhcpOption => "dhcp-option",
            Self::Argument => "argument",
            Self::Length => "length",
            Self::UserData => "user-data",
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dns => "DNS server",
            Self::Search => "search domain",
            Self::Mtu => "MTU",
            Self::Hostname => "host name",
            Self::Ntp => "NTP server",
            Self::Route => "route",
            Self::DhcpOption => "DHCP option",
            Self::Argument => "argument",
            Self::Length => "length",
            Self::UserData => "user-data",
        })
    }
}

/// What the output does not carry or may not do, and why. Nothing is dropped without one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    pub fact: Fact,
    pub value: String,
    pub reason: &'static str,
}

impl Warning {
    pub(super) fn new(fact: Fact, value: impl ToString, reason: &'static str) -> Self {
        Self { fact, value: value.to_string(), reason }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.fact, self.value, self.reason)
    }
}

/// Why nothing was generated: which value, and what would fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the address {address} cannot be a host's in {subnet}: choose one between its first and its last address"
    )]
    Address { address: Ipv4Addr, subnet: Subnet },
    #[error("the gateway {gateway} is outside the guest's subnet {subnet}: the guest would have no route")]
    GatewayOffLink { gateway: Ipv4Addr, subnet: Subnet },
    #[error("the gateway {gateway} is the guest's own address")]
    GatewayIsGuest { gateway: Ipv4Addr },
    #[error("{0} cannot be a DNS server: give a unicast address")]
    DnsServer(IpAddr),
    #[error("{0} cannot be an NTP server: give a unicast address")]
    NtpServer(Ipv4Addr),
    #[error(
        "the route {route} has its gateway outside the guest's subnet {subnet}: the guest could not set it"
    )]
    RouteOffLink { route: StaticRoute, subnet: Subnet },
    #[error("an MTU of {0} is below the 68 bytes that IPv4 needs (RFC 791)")]
    Mtu(u16),
    #[error("a prefix length of {0} leaves no room for a guest and its gateway: give 8 to 30")]
    PrefixLength(u8),
    #[error("the command line has {found:?} already: remove it, or {ours} would fight with it")]
    Taken { found: String, ours: &'static str },
    #[error("the command line has the character {0:?}: only printable ASCII can be passed to a kernel")]
    Character(char),
    #[error(
        "the command line has a double quote that is never closed: what is added after it would be part of it"
    )]
    OpenQuote,
    #[error("the command line is {length} bytes long, {limit} fit")]
    TooLong { length: usize, limit: usize },
    #[error("the user-data is {length} bytes long, {limit} fit")]
    UserDataTooLong { length: usize, limit: usize },
    #[error(
        "the user-data is neither UTF-8 text nor gzip (byte {at} is {byte:#04x}): cloud-init would ignore it"
    )]
    UserDataBinary { at: usize, byte: u8 },
    #[error("the user-data is {kind}, which cannot be a part of {place}: give it unpacked")]
    UserDataKind { kind: &'static str, place: &'static str },
    #[error("{target} has no place for {option}")]
    NoPlace { option: &'static str, target: String },
    #[error(
        "{target} needs the VM's netns and TAP, which an offline guest does not have: name a VM of the service"
    )]
    NoHostSide { target: String },
    #[error("netplan reads version 2 of network-config only: leave out v1")]
    NetplanIsVersion2,
    #[error("cannot make the seed image of {size} bytes: {reason}")]
    SeedImage { size: usize, reason: String },
}

//! DHCP needs nothing of a guest's facts, only a client that asks well. In: which clients an image has. Out: their settings,
//! the files of guest/, each at its place in the image.

use std::fmt;
use std::str::FromStr;

use super::GuestFile;
use crate::model::Invalid;

/// A DHCP client of a guest's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpClient {
    /// busybox's.
    Udhcpc,
    /// ISC's.
    Dhclient,
    Dhcpcd,
    /// systemd-networkd.
    Networkd,
}

/// A file of guest/: where it goes, its mode, its content.
type Shipped = (&'static str, u32, &'static str);

const UDHCPC: [Shipped; 2] = [
    ("etc/udhcpc/default.script", 0o755, include_str!("../../guest/udhcpc.script")),
    ("etc/init.d/S40guestnet", 0o755, include_str!("../../guest/S40guestnet")),
];
const DHCLIENT: [Shipped; 1] = [("etc/dhcp/dhclient.conf", 0o644, include_str!("../../guest/dhclient.conf"))];
const DHCPCD: [Shipped; 1] = [("etc/dhcpcd.conf", 0o644, include_str!("../../guest/dhcpcd.conf"))];
const NETWORKD: [Shipped; 3] = [
    (
        "etc/systemd/network/95-guestnet-dhcp.network",
        0o644,
        include_str!("../../guest/95-guestnet-dhcp.network"),
    ),
    (
        "etc/systemd/system/guestnet-hostname.service",
        0o644,
        include_str!("../../guest/guestnet-hostname.service"),
    ),
    (
        "etc/systemd/system/multi-user.target.d/guestnet.conf",
        0o644,
        include_str!("../../guest/multi-user-guestnet.conf"),
    ),
];

impl DhcpClient {
    pub const ALL: [Self; 4] = [Self::Udhcpc, Self::Dhclient, Self::Dhcpcd, Self::Networkd];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udhcpc => "udhcpc",
            Self::Dhclient => "dhclient",
            Self::Dhcpcd => "dhcpcd",
            Self::Networkd => "networkd",
        }
    }

    /// Where an image that has the client may have it.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Udhcpc => &["bin/busybox", "usr/bin/busybox", "sbin/udhcpc", "usr/sbin/udhcpc"],
            Self::Dhclient => &["sbin/dhclient", "usr/sbin/dhclient"],
            Self::Dhcpcd => &["sbin/dhcpcd", "usr/sbin/dhcpcd"],
            Self::Networkd => &["lib/systemd/systemd-networkd", "usr/lib/systemd/systemd-networkd"],
        }
    }

    fn shipped(self) -> &'static [Shipped] {
        match self {
            Self::Udhcpc => &UDHCPC,
            Self::Dhclient => &DHCLIENT,
            Self::Dhcpcd => &DHCPCD,
            Self::Networkd => &NETWORKD,
        }
    }
}

/// The settings of these clients.
pub fn dhcp(clients: &[DhcpClient]) -> Vec<GuestFile> {
    let shipped = clients.iter().flat_map(|client| client.shipped());
    shipped.map(|&(path, mode, text)| GuestFile { mode, ..GuestFile::text(path, text) }).collect()
}

impl FromStr for DhcpClient {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|client| client.as_str() == text);
        known.ok_or_else(|| Invalid::new(text, "a DHCP client: udhcpc, dhclient, dhcpcd or networkd"))
    }
}

impl fmt::Display for DhcpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

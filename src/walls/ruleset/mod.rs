//! The walls that stand whatever guests there are: two tables, their sets empty of guests. Pure: networks in, tables out.
//! `nft list table bridge guestnet` and `… inet guestnet` show them; every rule says what it is for.

pub mod bridge;
pub mod inet;

use super::nft::{Dynamic, Family, Key, TableName};

/// The port's own table: who sends.
pub const BRIDGE: TableName = TableName { family: Family::Bridge, name: "guestnet" };
/// The host's table: what gets where.
pub const INET: TableName = TableName { family: Family::Inet, name: "guestnet" };

/// Why a guest's frame was dropped at its port.
pub const PORT_REASONS: [&str; 11] = [
    "spoofed_mac",
    "spoofed_arp",
    "spoofed_address",
    "other_ethertype",
    "multicast",
    "not_to_gateway",
    "martian",
    "dhcp_server",
    "dhcp_rate",
    "arp_rate",
    "link_local",
];

/// Why a packet was dropped on its way through the host.
pub const HOST_REASONS: [&str; 12] = [
    "host",
    "not_ipv4",
    "invalid",
    "stray_tcp",
    "dhcp_server",
    "new_connections",
    "live_connections",
    "dns_rate",
    "blocked_egress",
    "egress_closed",
    "policy",
    "closed",
];

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Guests at one time whose rates are kept.
const RATES: u32 = 65_536;
const IDLE_MS: u64 = 60_000;

fn dynamic(timeout_ms: Option<u64>) -> Dynamic {
    Dynamic { size: RATES, timeout_ms }
}

/// A second's worth and what comes at once when a guest starts.
fn burst(rate: u64) -> u32 {
    u32::try_from(rate.saturating_mul(2)).unwrap_or(u32::MAX)
}

pub(super) fn id(at: usize) -> Key {
    // Networks are a handful.
    Key::new().id(u32::try_from(at).unwrap_or(u32::MAX))
}

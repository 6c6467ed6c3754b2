//! The keys of a `[[network]]` that say what its guests may reach and take. Pure.

use ipnetwork::{IpNetwork, Ipv4Network};
use toml::Value;

use super::section::Section;
use crate::model::{Action, Caps, NetworkWalls};

pub(super) fn read(section: &mut Section<'_>) -> Option<NetworkWalls> {
    let default = Caps::default();
    let intra_workspace = section.take("intra_workspace", "deny", action);
    let egress = section.take("egress_default", "allow", action);
    let blocked_egress = section.take("blocked_egress", vec!["169.254.0.0/16"], prefixes);
    let mut cap = |key, default: u32| section.take(key, i64::from(default), cap);
    let caps = Some(Caps {
        new_connections_per_second: cap("new_connections_per_second", default.new_connections_per_second)?,
        live_connections: cap("live_connections", default.live_connections)?,
        dhcp_per_second: cap("dhcp_per_second", default.dhcp_per_second)?,
        dns_per_second: cap("dns_per_second", default.dns_per_second)?,
    });
    Some(NetworkWalls {
        intra_workspace: intra_workspace?,
        egress: egress?,
        blocked_egress: blocked_egress?,
        caps: caps?,
    })
}

fn action(value: &Value) -> Result<Action, String> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or("\"allow\" or \"deny\"".into())
}

/// Without those inside others: the kernel's ranges must not overlap.
fn prefixes(value: &Value) -> Result<Vec<Ipv4Network>, String> {
    let prefix = |item: &Value| match item.as_str()?.parse::<IpNetwork>().ok()? {
        IpNetwork::V4(network) => Ipv4Network::new(network.network(), network.prefix()).ok(),
        IpNetwork::V6(_) => None,
    };
    let parsed: Option<Vec<Ipv4Network>> =
        value.as_array().and_then(|items| items.iter().map(prefix).collect());
    let parsed = parsed.filter(|prefixes| prefixes.len() <= 1000);
    let parsed = parsed
        .ok_or("a list of at most 1000 IPv4 prefixes, like [\"169.254.0.0/16\", \"192.168.0.0/16\"]")?;
    let inside = |a: &Ipv4Network, b: &Ipv4Network| b.prefix() < a.prefix() && b.contains(a.network());
    let mut kept: Vec<Ipv4Network> = Vec::new();
    for prefix in &parsed {
        if !parsed.iter().any(|other| inside(prefix, other)) && !kept.contains(prefix) {
            kept.push(*prefix);
        }
    }
    Ok(kept)
}

fn cap(value: &Value) -> Result<u32, String> {
    let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
    number.filter(|n| (1..=10_000_000).contains(n)).ok_or("a number of 1 to 10000000".into())
}

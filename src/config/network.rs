//! One `[[network]]` table → `model::Network`, and what several networks must not do to each other. Pure.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use toml::Value;

use super::section::Section;
use super::{reservation, resolver};
use crate::model::{
    BridgeName, BurstKib, DhcpOptions, DnsMode, Domain, IfName, Invalid, Metadata, Network, NetworkName,
    Plumbing, RateLimit, RateMbps, Relays, Reservation, Subnet, Upstream,
};

/// RFC 2132 section 9.2 with RFC 2131 section 3.3: this lease time means "infinity".
const INFINITE: u32 = u32::MAX;

/// Where no guest can live: "this network", loopback, link-local, multicast and reserved (RFC 6890 section 2.2.2).
const NOT_FOR_GUESTS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// A network and the section it came from, for what is checked between networks.
pub(super) struct Read {
    pub(super) network: Network,
    pub(super) reservations: Vec<Reservation>,
    pub(super) named: Named,
}

/// How an operator finds the keys that two networks can clash over.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) bridge_name: String,
    pub(super) vm_subnet: String,
    pub(super) dns_servers: String,
}

pub(super) fn read(mut section: Section<'_>) -> Option<Read> {
    let name = section.take("name", "default", text::<NetworkName>);
    let plumbing = section.take("plumbing", "managed", plumbing);
    let bridge = section.take("bridge_name", "br-vms", |value| match plumbing {
        Some(Plumbing::External) => text::<IfName>(value).map(BridgeName::of_interface),
        _ => text::<BridgeName>(value),
    });
    let bridge_ip = section.take("bridge_ip", "10.100.0.1/16", bridge_ip);
    let subnet = section.take("vm_subnet", "10.100.0.0/16", subnet);
    let reserved = section.take("reserved_ranges", Value::Array(Vec::new()), reserved_ranges);
    let upstreams = section.take("dns_servers", vec!["8.8.8.8", "8.8.4.4"], upstreams);
    let dns = section.take("dns", "on", dns_mode);
    let dns_only_resolver = section.take("dns_only_resolver", false, flag);
    let domain = section.take("domain", "vm.internal", text::<Domain>);
    let limited = section.take("enable_rate_limit", true, flag);
    let rate = section.take("rate_limit_mbps", 100, rate);
    let burst = section.take("rate_limit_burst_kib", "auto", burst);
    let mtu = section.take("mtu", 1500, mtu);
    let lease_seconds = section.take("lease_seconds", 43_200, lease_seconds);
    let relays = section.take("dhcp_relays", default_relays(plumbing), relays);
    let dhcp_options = section.take("dhcp_options", toml::Table::new(), dhcp_options);
    let tables = reservation::take(&mut section, plumbing);
    let metadata = section.take("metadata", false, |value| value.as_bool().ok_or("true or false".into()));
    let hop_limit = section.take("metadata_hop_limit", 1, hop_limit);
    if (plumbing, metadata) == (Some(Plumbing::External), Some(true)) {
        section.problem(
            "metadata",
            "true needs plumbing = \"managed\": guestnet changes nothing on others' interfaces",
        );
    }
    let pool_size = section.take("pool_size", 32, pool_size);
    let walls = super::walls::read(&mut section);

    let resolver = section.table("resolver", |section| resolver::read(section, domain.as_ref()));

    let gateway = check_gateway(&mut section, bridge_ip, subnet);
    let router = router(&mut section, plumbing, subnet, gateway);
    check_reserved(&mut section, reserved.as_deref(), subnet);
    check_upstreams(&mut section, upstreams.as_deref(), dns);
    if (dns, dns_only_resolver) == (Some(DnsMode::Off), Some(true)) {
        section.problem("dns_only_resolver", "needs dns = \"on\": there is no resolver of ours to ask");
    }
    let named = Named {
        name: section.name_of("name"),
        bridge_name: section.name_of("bridge_name"),
        vm_subnet: section.name_of("vm_subnet"),
        dns_servers: section.name_of("dns_servers"),
    };
    let taken = not_for_guests(gateway, router, reserved.as_deref());
    let reservations = reservation::read(&mut section, tables, name.as_ref(), subnet, taken.as_deref());
    section.finish();
    let limit = RateLimit { rate: rate?, burst: burst? };
    let limited = limited?;
    let (metadata, hop_limit) = (metadata?, hop_limit?);
    let network = Network {
        name: name?,
        bridge: bridge?,
        subnet: subnet?,
        gateway: gateway?,
        router: router?,
        reserved: reserved?,
        upstreams: upstreams?,
        dns: dns?,
        dns_only_resolver: dns_only_resolver?,
        resolver: resolver?,
        domain: domain?,
        mtu: mtu?,
        rate_limit: limited.then_some(limit),
        lease_seconds: lease_seconds?,
        plumbing: plumbing?,
        relays: relays?,
        dhcp_options: dhcp_options?,
        metadata: metadata.then_some(Metadata { hop_limit }),
        pool_size: pool_size?,
        walls: walls?,
    };
    Some(Read { network, reservations, named })
}

/// The gateway is a host address of the subnet, written with the subnet's own prefix length: guests are told the one,
/// the bridge is given the other.
fn check_gateway(
    section: &mut Section<'_>,
    bridge_ip: Option<Ipv4Network>,
    subnet: Option<Subnet>,
) -> Option<Ipv4Addr> {
    let (bridge_ip, subnet) = (bridge_ip?, subnet?);
    let beside = format!("{subnet} ({})", section.name_of("vm_subnet"));
    if !subnet.has_host(bridge_ip.ip()) {
        // The subnet has at least two host addresses after its own.
        let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
        let fits = format!("{first}/{}", subnet.prefix_len());
        section
            .problem("bridge_ip", format!("{bridge_ip} is not a host address of {beside}; {fits} would fit"));
        return None;
    }
    if bridge_ip.prefix() != subnet.prefix_len() {
        let (ip, fits) = (bridge_ip.ip(), subnet.prefix_len());
        section.problem(
            "bridge_ip",
            format!("{bridge_ip} is not of the prefix length of {beside}; {ip}/{fits} would fit"),
        );
        return None;
    }
    Some(bridge_ip.ip())
}

/// The bridge's address, unless somebody else routes for a network that is not ours.
fn router(
    section: &mut Section<'_>,
    plumbing: Option<Plumbing>,
    subnet: Option<Subnet>,
    gateway: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let (plumbing, subnet, gateway) = (plumbing?, subnet?, gateway?);
    section.take("router", "bridge_ip", |value| {
        if value.as_str() == Some("bridge_ip") {
            return Ok(gateway);
        }
        let address = value.as_str().and_then(|text| text.parse().ok());
        let address = address.filter(|address| subnet.has_host(*address));
        let address = address.ok_or_else(|| format!("a host address of {subnet}, or \"bridge_ip\""))?;
        match plumbing {
            Plumbing::Managed if address != gateway => {
                Err("\"bridge_ip\": a bridge of guestnet's own is its guests' router".into())
            }
            _ => Ok(address),
        }
    })
}

/// What reservations may not name.
fn not_for_guests(
    gateway: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    reserved: Option<&[RangeInclusive<Ipv4Addr>]>,
) -> Option<Vec<(&'static str, RangeInclusive<Ipv4Addr>)>> {
    let (gateway, router) = (gateway?, router?);
    let ranges = reserved.unwrap_or_default().iter().map(|range| ("reserved_ranges", range.clone()));
    Some([("bridge_ip", gateway..=gateway), ("router", router..=router)].into_iter().chain(ranges).collect())
}

/// What is outside the subnet keeps nothing from anybody: it is a slip.
fn check_reserved(
    section: &mut Section<'_>,
    reserved: Option<&[RangeInclusive<Ipv4Addr>]>,
    subnet: Option<Subnet>,
) {
    let (Some(reserved), Some(subnet)) = (reserved, subnet) else { return };
    for range in reserved.iter().filter(|r| !subnet.contains(*r.start()) || !subnet.contains(*r.end())) {
        let (first, last) = (range.start(), range.end());
        let beside = section.name_of("vm_subnet");
        section.problem("reserved_ranges", format!("{first}-{last} is not inside {subnet} ({beside})"));
    }
}

/// With `dns = "off"` the guests themselves ask the upstreams, and they have IPv4 only.
fn check_upstreams(section: &mut Section<'_>, upstreams: Option<&[Upstream]>, dns: Option<DnsMode>) {
    if dns == Some(DnsMode::Off) {
        let reachable = |upstream: &Upstream| {
            let address = upstream.address.ip();
            upstream.is_plain_on_53() && !address.is_loopback() && address.is_ipv4()
        };
        for upstream in upstreams.unwrap_or_default().iter().filter(|upstream| !reachable(upstream)) {
            section.problem(
                "dns_servers",
                format!("{upstream} is not an IPv4 address that guests can reach, which dns = \"off\" needs"),
            );
        }
    }
}

pub(super) fn flag(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or("true or false".into())
}

pub(super) fn text<T: FromStr<Err = Invalid>>(value: &Value) -> Result<T, String> {
    value.as_str().unwrap_or_default().parse().map_err(|invalid: Invalid| invalid.expected.to_owned())
}

fn bridge_ip(value: &Value) -> Result<Ipv4Network, String> {
    let text = value.as_str().filter(|text| text.contains('/'));
    text.and_then(|text| text.parse().ok())
        .ok_or("an IPv4 address with its prefix length, like 10.100.0.1/16".into())
}

fn subnet(value: &Value) -> Result<Subnet, String> {
    let subnet: Subnet = text(value)?;
    let taken = NOT_FOR_GUESTS.iter().filter_map(|(address, len)| Ipv4Network::new(*address, *len).ok());
    match taken.into_iter().find(|taken| subnet.overlaps(*taken)) {
        None => Ok(subnet),
        Some(taken) => Err(format!("a subnet for guests: {taken} has another meaning (RFC 6890)")),
    }
}

fn reserved_ranges(value: &Value) -> Result<Vec<RangeInclusive<Ipv4Addr>>, String> {
    let ranges: Option<Vec<_>> =
        value.as_array().and_then(|items| items.iter().map(|item| range(item.as_str()?)).collect());
    ranges.ok_or(
        "a list of addresses, like [\"10.100.0.9\", \"10.100.0.20-10.100.0.29\", \"10.100.255.0/24\"]".into(),
    )
}

/// One address, the first and the last of several, or all of a subnet.
fn range(text: &str) -> Option<RangeInclusive<Ipv4Addr>> {
    if text.contains('/') {
        let network: Ipv4Network = text.parse().ok()?;
        return (network.ip() == network.network()).then(|| network.network()..=network.broadcast());
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

pub(super) fn upstreams(value: &Value) -> Result<Vec<Upstream>, String> {
    let items = value.as_array().filter(|items| (1..=8).contains(&items.len()));
    let items = items.ok_or("a list of 1 to 8 DNS servers, like [\"8.8.8.8\", \"8.8.4.4\"]")?;
    items
        .iter()
        .map(|item| {
            let text = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
            text.parse().map_err(|invalid: Invalid| format!("a list of DNS servers: {invalid}"))
        })
        .collect()
}

fn rate(value: &Value) -> Result<RateMbps, String> {
    let mbps = value.as_integer().and_then(|mbps| u32::try_from(mbps).ok());
    mbps.and_then(|mbps| RateMbps::try_from(mbps).ok()).ok_or(RateMbps::EXPECTED.into())
}

fn burst(value: &Value) -> Result<Option<BurstKib>, String> {
    if value.as_str() == Some("auto") {
        return Ok(None);
    }
    let kib = value.as_integer().and_then(|kib| u32::try_from(kib).ok());
    let burst = kib.and_then(|kib| BurstKib::try_from(kib).ok());
    burst.map(Some).ok_or(format!("{}, or \"auto\"", BurstKib::EXPECTED))
}

fn dns_mode(value: &Value) -> Result<DnsMode, String> {
    match value.as_str() {
        Some("on") => Ok(DnsMode::On),
        Some("off") => Ok(DnsMode::Off),
        _ => Err("\"on\" or \"off\"".into()),
    }
}

/// From what every IPv4 host must take (RFC 791 section 3.1) to jumbo frames.
fn mtu(value: &Value) -> Result<u16, String> {
    let mtu = value.as_integer().and_then(|mtu| u16::try_from(mtu).ok());
    mtu.filter(|mtu| (576..=9000).contains(mtu)).ok_or("an MTU of 576 to 9000 bytes".into())
}

fn lease_seconds(value: &Value) -> Result<u32, String> {
    if value.as_str() == Some("infinite") {
        return Ok(INFINITE);
    }
    let seconds = value.as_integer().and_then(|seconds| u32::try_from(seconds).ok());
    seconds
        .filter(|s| (10..INFINITE).contains(s))
        .ok_or("a lease of 10 to 4294967294 seconds, or \"infinite\"".into())
}

fn pool_size(value: &Value) -> Result<u16, String> {
    let size = value.as_integer().and_then(|size| u16::try_from(size).ok());
    size.filter(|size| *size <= 4096).ok_or("a number of ready-made guest networks, 0 to 4096".into())
}

fn hop_limit(value: &Value) -> Result<u8, String> {
    let hops = value.as_integer().and_then(|hops| u8::try_from(hops).ok());
    hops.filter(|hops| (1..=64).contains(hops)).ok_or("a number of hops, 1 to 64".into())
}

fn plumbing(value: &Value) -> Result<Plumbing, String> {
    match value.as_str() {
        Some("managed") => Ok(Plumbing::Managed),
        Some("external") => Ok(Plumbing::External),
        _ => Err("\"managed\" or \"external\"".into()),
    }
}

/// A guest of ours has no business to be a relay; on plumbing of somebody else's one may stand on the link.
fn default_relays(plumbing: Option<Plumbing>) -> Value {
    match plumbing {
        Some(Plumbing::External) => "subnet".into(),
        _ => Value::Array(Vec::new()),
    }
}

fn relays(value: &Value) -> Result<Relays, String> {
    if value.as_str() == Some("subnet") {
        return Ok(Relays::Subnet);
    }
    let relay = |item: &Value| item.as_str()?.parse::<Ipv4Addr>().ok();
    let these: Option<Vec<Ipv4Addr>> = value.as_array().and_then(|items| items.iter().map(relay).collect());
    these
        .map(Relays::These)
        .ok_or("\"subnet\" (agents with an address in vm_subnet) or a list of relay agents' addresses".into())
}

pub(super) fn dhcp_options(value: &Value) -> Result<DhcpOptions, String> {
    value
        .clone()
        .try_into()
        .map_err(|error: toml::de::Error| format!("a table of DHCP options: {}", error.message()))
}

/// What two networks of one host cannot both have: the key at fault, and why.
pub(super) fn clashes(networks: &[Read]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, later) in networks.iter().enumerate() {
        let (b, b_named) = (&later.network, &later.named);
        for Read { network: a, named: a_named, .. } in &networks[..at] {
            if a.name == b.name {
                let message =
                    format!("\"{}\" is already the name of another network ({})", b.name, a_named.name);
                found.push((b_named.name.clone(), message));
            }
            if share_a_device(&a.bridge, &b.bridge) {
                let message = format!(
                    "\"{}\" is the bridge \"{}\" ({}) or one of its shards; choose another name",
                    b.bridge, a.bridge, a_named.bridge_name
                );
                found.push((b_named.bridge_name.clone(), message));
            }
            if a.subnet.overlaps(b.subnet.as_network()) {
                let message = format!("{} overlaps {} ({})", b.subnet, a.subnet, a_named.vm_subnet);
                found.push((b_named.vm_subnet.clone(), message));
            }
        }
        // A resolver of ours as an upstream would ask itself for ever.
        for gateway in
            networks.iter().map(|n| IpAddr::V4(n.network.gateway)).filter(|gateway| asks(b, *gateway))
        {
            let message =
                format!("{gateway} is a gateway of guestnet's own, so questions would go in a loop");
            found.push((b_named.dns_servers.clone(), message));
        }
    }
    found
}

fn asks(network: &Network, address: IpAddr) -> bool {
    let zones = network.resolver.forward.iter().flat_map(|zone| &zone.servers);
    network.upstreams.iter().chain(zones).any(|upstream| upstream.address.ip() == address)
}

/// A bridge's further shards are called `<bridge>-<n>`.
fn share_a_device(a: &BridgeName, b: &BridgeName) -> bool {
    let is_shard = |shard: &str, bridge: &str| {
        let number = shard.strip_prefix(bridge).and_then(|rest| rest.strip_prefix('-'));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let (a, b) = (a.as_str(), b.as_str());
    a == b || is_shard(a, b) || is_shard(b, a)
}

//! Everything a guest can be told, encoded once for as long as its reservation stands: the one list of what is in a lease.
//! PURE. In: the guest's address facts, its network's options and its own. Out: option data by code.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use dhcproto::Encodable;
use dhcproto::v4::DhcpOption;
use hickory_proto::rr::Name;

use crate::model::{DhcpOptions, DnsMode, GuestNet, Network, OptionText};
use crate::registry::Reserved;

/// Option data by code; of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Code, and where its data lies; ordered by code.
    index: Box<[(u8, u16, u16)]>,
    data: Box<[u8]>,
    /// The siaddr field.
    pub(super) next_server: Ipv4Addr,
    /// With `DnsMode::On`: its name is resolved here (RFC 4702 section 4).
    pub(super) name_served: bool,
    /// The guest's full name, as text.
    pub(super) full_name: Box<str>,
}

impl Told {
    pub fn new(reserved: &Reserved) -> Self {
        let mut all = facts(&reserved.guest, &reserved.network);
        all.extend(further(&reserved.guest.options));
        all.sort_unstable_by_key(|(code, _)| *code);
        let (mut index, mut bytes) = (Vec::with_capacity(all.len()), Vec::new());
        for (code, data) in all {
            // At most 60 options of at most 1,020 bytes; more than that is not indexed, and not sent.
            if let (Ok(from), Ok(length)) = (u16::try_from(bytes.len()), u16::try_from(data.len())) {
                index.push((code, from, length));
                bytes.extend(data);
            }
        }
        Self {
            index: index.into(),
            data: bytes.into(),
            next_server: reserved.guest.options.next_server.unwrap_or(Ipv4Addr::UNSPECIFIED),
            name_served: reserved.network.dns == DnsMode::On,
            full_name: format!("{}.{}", reserved.guest.hostname, reserved.guest.domain).into(),
        }
    }

    /// The data of an option, whatever its length.
    pub(super) fn get(&self, code: u8) -> Option<&[u8]> {
        let at = self.index.binary_search_by_key(&code, |entry| entry.0).ok()?;
        let (_, from, length) = self.index[at];
        let from = usize::from(from);
        Some(&self.data[from..from + usize::from(length)])
    }
}

/// What follows from the address facts and the lease time.
fn facts(guest: &GuestNet, network: &Network) -> Vec<(u8, Vec<u8>)> {
    let address = |address: Ipv4Addr| address.octets().to_vec();
    let mut facts = vec![
        (1, address(guest.subnet.netmask())),
        (3, address(guest.gateway)),
        // From the API, not from the guest.
        (12, guest.hostname.as_str().into()),
        (15, guest.domain.as_str().into()),
        (26, guest.mtu.to_be_bytes().to_vec()),
        (28, address(guest.subnet.broadcast())),
        (51, network.lease_seconds.to_be_bytes().to_vec()),
        (54, address(network.gateway)),
    ];
    // Option 6 has room for IPv4 only; servers of the other family are left out.
    let servers: Vec<u8> = guest.dns_servers.iter().filter_map(ipv4).flat_map(|ip| ip.octets()).collect();
    if !servers.is_empty() {
        facts.push((6, servers));
    }
    // T1 = 0.5 and T2 = 0.875 of the lease (RFC 2131 section 4.4.5). A lease without end is not renewed.
    let seconds = network.lease_seconds;
    if seconds != u32::MAX {
        facts.push((58, (seconds / 2).to_be_bytes().to_vec()));
        facts.push((59, (seconds - seconds / 8).to_be_bytes().to_vec()));
    }
    facts.extend(encoded(&search(guest)));
    facts.push((121, routes(guest)));
    let times = &guest.options.ntp_servers;
    if !times.is_empty() {
        facts.push((42, times.iter().flat_map(|server| server.octets()).collect()));
    }
    facts
}

/// What the configuration or the caller adds.
fn further(options: &DhcpOptions) -> Vec<(u8, Vec<u8>)> {
    let mut further = Vec::new();
    let text = |text: &OptionText| text.as_str().as_bytes().to_vec();
    further.extend(options.tftp_server_name.as_ref().map(|name| (66, text(name))));
    further.extend(options.bootfile_name.as_ref().map(|name| (67, text(name))));
    further.extend(options.ipv6_only_seconds.map(|seconds| (108, seconds.to_be_bytes().to_vec())));
    further.extend(options.captive_portal.as_ref().map(|url| (114, text(url))));
    further.extend(options.vendor_specific.as_ref().map(|bytes| (43, bytes.as_slice().to_vec())));
    further.extend(options.vendor_identifying.as_ref().map(|bytes| (125, bytes.as_slice().to_vec())));
    further.extend(options.raw.iter().map(|(code, bytes)| (code.code(), bytes.as_slice().to_vec())));
    further
}

/// RFC 3397; the network's own domain comes first.
fn search(guest: &GuestNet) -> DhcpOption {
    let name = |domain: &crate::model::Domain| {
        let mut name = Name::from_str(domain.as_str()).ok()?;
        name.set_fqdn(true);
        Some(name)
    };
    DhcpOption::DomainSearch(guest.search().filter_map(name).collect())
}

/// A client that takes this option ignores the router option, so the default route is in it (RFC 3442). Each route is
/// its prefix length, the octets of the destination that matter, and the router.
fn routes(guest: &GuestNet) -> Vec<u8> {
    let mut data = Vec::new();
    for route in guest.routes() {
        let prefix = route.destination.prefix();
        data.push(prefix);
        data.extend(&route.destination.network().octets()[..usize::from(prefix.div_ceil(8))]);
        data.extend(route.via.octets());
    }
    data.push(0);
    data.extend(guest.gateway.octets());
    data
}

fn ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

/// An option's code and its data, which dhcproto puts on the wire in pieces of at most 255.
fn encoded(option: &DhcpOption) -> Option<(u8, Vec<u8>)> {
    let wire = option.to_vec().ok()?;
    let (code, mut rest, mut data) = (*wire.first()?, &wire[..], Vec::new());
    while let [_, length, after @ ..] = rest {
        let (piece, next) = after.split_at_checked(usize::from(*length))?;
        data.extend(piece);
        rest = next;
    }
    Some((code, data))
}

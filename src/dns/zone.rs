//! PURE: the answers we hold ourselves. In: a routed name, its type and the live bindings. Out: records, or NODATA or
//! NXDOMAIN with the SOA that lets a stub cache it. A VM is in the zone from the moment it is bound, and no longer than it is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA};
use hickory_proto::rr::{self, RData, Record};

use super::name::Name;
use super::query::qtype;
use super::route::Local;
use crate::model::{Domain, Network};
use crate::registry::Registry;

/// Seconds. Long enough that a busy guest does not ask per connection, short enough that a VM made anew under the same
/// name is found within the first retry of whoever looks for it.
const TTL: u32 = 5;
/// Seconds, of names that never change: localhost, empty zones and the answer to ANY (RFC 6303 section 3).
const FIXED_TTL: u32 = 10_800;
/// More VMs of one name than this are not all told; a datagram of 512 bytes holds them.
const MOST_ADDRESSES: usize = 16;

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) rcode: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// In the authority section of a negative answer (RFC 2308 section 3).
    pub(super) soa: Option<Record>,
}

pub(super) fn answer(
    network: &Network,
    registry: &Registry,
    local: &Local,
    name: &Name,
    asked: u16,
) -> Option<Answer> {
    let owner = wire_name(name)?;
    let found = match local {
        Local::Domain(labels) => {
            let zone = LocalZone::of_domain(&network.domain)?;
            match labels.as_slice() {
                [] => zone.data(asked, &owner, vec![zone.soa_data(), zone.ns_data()]),
                [label] => match addresses(network, registry, label) {
                    found if found.is_empty() => zone.nxdomain(),
                    found => zone.data(asked, &owner, found.into_iter().map(|a| RData::A(A(a))).collect()),
                },
                _ => zone.nxdomain(),
            }
        }
        Local::Reverse { address, zone } => {
            let apex = zone == name;
            let zone = LocalZone::of_subnet(zone, &network.domain)?;
            let mut data = if apex { vec![zone.soa_data(), zone.ns_data()] } else { vec![] };
            data.extend(host_of(network, registry, *address));
            if data.is_empty() { zone.nxdomain() } else { zone.data(asked, &owner, data) }
        }
        Local::ReverseParent { zone } => {
            let apex = zone == name;
            let zone = LocalZone::of_subnet(zone, &network.domain)?;
            // Of a name between the zone and its guests, NXDOMAIN would deny the guests too (RFC 8020 section 2).
            let data = if apex { vec![zone.soa_data(), zone.ns_data()] } else { vec![] };
            zone.data(asked, &owner, data)
        }
        // RFC 6761 section 6.3: address queries get the loopback address.
        Local::Localhost { zone } => {
            let loopback = vec![RData::A(A(Ipv4Addr::LOCALHOST)), RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))];
            LocalZone::fixed(zone)?.data(asked, &owner, loopback)
        }
        Local::LocalhostReverse { zone } => {
            let localhost = wire_name(&Name::from_text("localhost")?)?;
            LocalZone::fixed(zone)?.data(asked, &owner, vec![RData::PTR(PTR(localhost))])
        }
        Local::Empty { zone, apex } => {
            let zone = LocalZone::fixed(zone)?;
            if *apex {
                zone.data(asked, &owner, vec![zone.soa_data(), zone.ns_data()])
            } else {
                zone.nxdomain()
            }
        }
        Local::Any => minimal_any(&owner, FIXED_TTL),
    };
    Some(found)
}

/// The A records of a label in the guests' domain: the gateway, else the VMs of that host name, else the VM of that id.
fn addresses(network: &Network, registry: &Registry, label: &[u8]) -> Vec<Ipv4Addr> {
    if label == b"gateway" {
        return vec![network.gateway];
    }
    let Ok(text) = std::str::from_utf8(label) else { return vec![] };
    // A VM of another network is as unknown here as one that does not exist.
    let named = text.parse().map(|host| registry.by_hostname(&network.name, &host)).unwrap_or_default();
    if !named.is_empty() {
        return named.iter().take(MOST_ADDRESSES).map(|reserved| reserved.guest.address).collect();
    }
    registry
        .by_vm_label(&network.name, text)
        .iter()
        .take(MOST_ADDRESSES)
        .map(|reserved| reserved.guest.address)
        .collect()
}

fn host_of(network: &Network, registry: &Registry, address: Ipv4Addr) -> Option<RData> {
    let host = |label: &str| {
        let name = Name::from_text(&format!("{label}.{}", network.domain))?;
        Some(RData::PTR(PTR(wire_name(&name)?)))
    };
    if address == network.gateway {
        return host("gateway");
    }
    let reserved = registry.by_address(&network.name, address)?;
    host(reserved.guest.hostname.as_str())
}

/// RFC 8482 section 4.2: a HINFO that says why.
fn minimal_any(owner: &rr::Name, ttl: u32) -> Answer {
    let hinfo = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    let record = Record::from_rdata(owner.clone(), ttl, hinfo);
    Answer { rcode: ResponseCode::NoError, answers: vec![record], soa: None }
}

/// A zone's own facts, from which its negative answers are made.
struct LocalZone {
    apex: rr::Name,
    server: rr::Name,
    mailbox: rr::Name,
    ttl: u32,
}

impl LocalZone {
    fn of_domain(domain: &Domain) -> Option<Self> {
        Self::of_subnet(&Name::from_text(domain.as_str())?, domain)
    }

    fn of_subnet(zone: &Name, domain: &Domain) -> Option<Self> {
        let in_domain = |label: &str| wire_name(&Name::from_text(&format!("{label}.{domain}"))?);
        let (server, mailbox) = (in_domain("gateway")?, in_domain("hostmaster")?);
        Some(Self { apex: wire_name(zone)?, server, mailbox, ttl: TTL })
    }

    /// RFC 6303 section 3: the zone is its own name server, and nobody its keeper.
    fn fixed(zone: &Name) -> Option<Self> {
        let mailbox = wire_name(&Name::from_text("nobody.invalid")?)?;
        Some(Self { apex: wire_name(zone)?, server: wire_name(zone)?, mailbox, ttl: FIXED_TTL })
    }

    fn soa_data(&self) -> RData {
        let (server, mailbox) = (self.server.clone(), self.mailbox.clone());
        // Nobody transfers the zone, so its serial tells nothing; the last field is how long a denial holds (RFC 2308).
        RData::SOA(SOA::new(server, mailbox, 1, 3600, 1200, 604_800, self.ttl))
    }

    fn ns_data(&self) -> RData {
        RData::NS(NS(self.server.clone()))
    }

    fn soa(&self) -> Record {
        Record::from_rdata(self.apex.clone(), self.ttl, self.soa_data())
    }

    fn nxdomain(&self) -> Answer {
        Answer { rcode: ResponseCode::NXDomain, answers: vec![], soa: Some(self.soa()) }
    }

    /// What of `data`, all that `owner` has, is of the type asked for; NODATA with the SOA if none is.
    fn data(&self, asked: u16, owner: &rr::Name, data: Vec<RData>) -> Answer {
        if asked == qtype::ANY && !data.is_empty() {
            return minimal_any(owner, self.ttl);
        }
        let of_type = data.into_iter().filter(|data| u16::from(data.record_type()) == asked);
        let answers: Vec<_> = of_type.map(|data| Record::from_rdata(owner.clone(), self.ttl, data)).collect();
        let soa = answers.is_empty().then(|| self.soa());
        Answer { rcode: ResponseCode::NoError, answers, soa }
    }
}

fn wire_name(name: &Name) -> Option<rr::Name> {
    let mut wire = rr::Name::from_labels(name.labels()).ok()?;
    wire.set_fqdn(true);
    Some(wire)
}

//! PURE: the answers we hold ourselves. In: a routed name, its type and the live bindings. Out: records, or NODATA or
//! NXDOMAIN with the SOA that lets a stub cache it. A VM is in the zone from the moment it is bound, and no longer than it is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA};
use hickory_proto::rr::{self, RData, Record};

use super::local::{Found, LocalData};
use super::name::Name;
use super::policy::Verdict;
use super::query::qtype;
use super::reply::Ede;
use super::route::Local;
use crate::model::{Domain, Network, WorkspaceId};
use crate::registry::{Registry, Reserved};

/// Seconds. Long enough that a busy guest does not ask per connection, short enough that a VM made anew under the same
/// name is found within the first retry of whoever looks for it.
const TTL: u32 = 5;
/// Seconds, of names that never change: localhost, empty zones and the answer to ANY (RFC 6303 section 3).
const FIXED_TTL: u32 = 10_800;
/// Seconds, of what a rule of the policy says: the rules may change at any time.
const RULED_TTL: u32 = 10;
/// Aliases that are followed one after the other; a loop of them ends here.
const ALIASES: usize = 8;
/// More VMs of one name than this are not all told; a datagram of 512 bytes holds them.
const MOST_ADDRESSES: usize = 16;

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) rcode: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// Of a negative answer the SOA (RFC 2308 section 3).
    pub(super) authority: Vec<Record>,
    pub(super) ede: Option<Ede>,
    /// The alias' target, which is not ours: its answer comes after these records.
    pub(super) beyond: Option<Name>,
}

/// Who asks: what a guest may see follows its workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker<'a> {
    /// The host itself: it sees every name of the network.
    Host,
    /// A guest, with its workspace if it has one: it sees the names of the same workspace.
    Guest(Option<&'a WorkspaceId>),
}

impl Asker<'_> {
    fn sees(self, reserved: &Reserved) -> bool {
        match self {
            Self::Host => true,
            Self::Guest(workspace) => reserved.workspace.as_ref() == workspace,
        }
    }
}

/// What answers are made from.
#[derive(Clone, Copy)]
pub(super) struct Zones<'a> {
    pub(super) network: &'a Network,
    pub(super) registry: &'a Registry,
    pub(super) added: &'a LocalData,
    pub(super) asker: Asker<'a>,
}

impl Answer {
    pub(super) fn empty() -> Self {
        Self { rcode: ResponseCode::NoError, answers: vec![], authority: vec![], ede: None, beyond: None }
    }
}

impl Zones<'_> {
    pub(super) fn answer(&self, local: &Local, name: &Name, asked: u16) -> Option<Answer> {
        let owner = wire_name(name)?;
        let found = match local {
            Local::Domain(labels) => return self.in_domain(labels, name, asked, ALIASES),
            Local::Reverse { address, zone } => {
                let apex = zone == name;
                let zone = LocalZone::of_subnet(zone, &self.network.domain)?;
                let mut data = if apex { vec![zone.soa_data(), zone.ns_data()] } else { vec![] };
                data.extend(self.host_of(*address));
                let data = self.with_added(&zone, name, data);
                if data.is_empty() { zone.nxdomain() } else { zone.timed_data(asked, &owner, data) }
            }
            Local::ReverseParent { zone } => {
                let apex = zone == name;
                let zone = LocalZone::of_subnet(zone, &self.network.domain)?;
                // Of a name between the zone and its guests, NXDOMAIN would deny the guests too (RFC 8020 section 2).
                let data = if apex { vec![zone.soa_data(), zone.ns_data()] } else { vec![] };
                zone.data(asked, &owner, data)
            }
            Local::Added { zone } => return self.added(zone.as_ref().unwrap_or(name), name, asked, ALIASES),
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

    /// A name in the guests' domain: the gateway, else the VMs of that host name, else the VM of that id, with what the operator
    /// added for just that name; else what the operator added for it or by a wildcard.
    fn in_domain(&self, labels: &[Vec<u8>], name: &Name, asked: u16, aliases: usize) -> Option<Answer> {
        let zone = LocalZone::of_domain(&self.network.domain)?;
        let found = match labels {
            [label] => self.addresses(label),
            _ => vec![],
        };
        if found.is_empty() {
            let domain = Name::from_text(self.network.domain.as_str())?;
            return self.added(&domain, name, asked, aliases);
        }
        let data = found.into_iter().map(|address| RData::A(A(address))).collect();
        Some(zone.timed_data(asked, &wire_name(name)?, self.with_added(&zone, name, data)))
    }

    /// What a VM or the gateway has at `name`, and what the operator added for it: neither hides the other. But an alias stands
    /// beside nothing (RFC 1034 section 3.6.2), so it is left out where there is something.
    fn with_added(&self, zone: &LocalZone, name: &Name, own: Vec<RData>) -> Vec<(u32, RData)> {
        let added = self.added.at(name).iter();
        let beside =
            added.filter(|(_, data)| !matches!(data, RData::CNAME(_)) && !own.contains(data)).cloned();
        let beside: Vec<_> = beside.collect();
        own.into_iter().map(|data| (zone.ttl, data)).chain(beside).collect()
    }

    /// What the operator added at `name`, in `zone`; an alias is followed as long as its target is ours.
    fn added(&self, apex: &Name, name: &Name, asked: u16, aliases: usize) -> Option<Answer> {
        let owner = wire_name(name)?;
        let zone = match self.network.domain.as_str() == apex.to_string().trim_end_matches('.') {
            true => LocalZone::of_domain(&self.network.domain)?,
            false => LocalZone::of_subnet(apex, &self.network.domain)?,
        };
        let mut data =
            if apex == name { vec![(zone.ttl, zone.soa_data()), (zone.ttl, zone.ns_data())] } else { vec![] };
        match self.added.find(name, |encloser| self.is_of_vm(encloser)) {
            Some(Found::Data(added)) => data.extend(added.iter().cloned()),
            Some(Found::Nothing) => {}
            None if data.is_empty() => return Some(zone.nxdomain()),
            None => {}
        }
        let alias = data.iter().find_map(|(ttl, data)| match data {
            RData::CNAME(target) => Some((*ttl, target.0.clone())),
            _ => None,
        });
        let Some((ttl, target)) = alias.filter(|_| !matches!(asked, qtype::CNAME | qtype::ANY)) else {
            return Some(zone.timed_data(asked, &owner, data));
        };
        let alias = Record::from_rdata(owner, ttl, RData::CNAME(rr::rdata::CNAME(target.clone())));
        let mut answer = self.follow(&target, asked, aliases)?;
        answer.answers.insert(0, alias);
        Some(answer)
    }

    /// What an alias' target has; `beyond` if that is for upstreams to say.
    fn follow(&self, target: &rr::Name, asked: u16, aliases: usize) -> Option<Answer> {
        let name = Name::from_text(&target.to_ascii())?;
        if aliases == 0 {
            return Some(Answer::empty());
        }
        let domain = Name::from_text(self.network.domain.as_str())?;
        if let Some(above) = name.labels_above(&domain) {
            let labels: Vec<_> = above.into_iter().map(<[u8]>::to_vec).collect();
            return self.in_domain(&labels, &name, asked, aliases - 1);
        }
        let zone = self.added.zone(&name);
        // Above a record of the operator's there may be much of others.
        if zone.is_some() || matches!(self.added.find(&name, |_| false), Some(Found::Data(_))) {
            return self.added(&zone.unwrap_or(name), &name, asked, aliases - 1);
        }
        Some(Answer { beyond: Some(name), ..Answer::empty() })
    }

    /// Whether a VM or the gateway has the name in the guests' domain.
    fn is_of_vm(&self, name: &Name) -> bool {
        let domain = Name::from_text(self.network.domain.as_str());
        let label = domain.and_then(|domain| match name.labels_above(&domain)?[..] {
            [label] => Some(label),
            _ => None,
        });
        label.is_some_and(|label| !self.addresses(label).is_empty())
    }

    /// The A records of a label in the guests' domain.
    fn addresses(&self, label: &[u8]) -> Vec<Ipv4Addr> {
        if label == b"gateway" {
            return vec![self.network.gateway];
        }
        let Ok(text) = std::str::from_utf8(label) else { return vec![] };
        let network = &self.network.name;
        let seen = |all: Vec<Arc<Reserved>>| -> Vec<Ipv4Addr> {
            let seen = all.iter().filter(|reserved| self.asker.sees(reserved));
            seen.take(MOST_ADDRESSES).map(|reserved| reserved.guest.address).collect()
        };
        // A VM of another network or workspace is as unknown here as one that does not exist.
        let named =
            text.parse().map(|host| seen(self.registry.by_hostname(network, &host))).unwrap_or_default();
        if named.is_empty() { seen(self.registry.by_vm_label(network, text)) } else { named }
    }

    fn host_of(&self, address: Ipv4Addr) -> Option<RData> {
        let host = |label: &str| {
            let name = Name::from_text(&format!("{label}.{}", self.network.domain))?;
            Some(RData::PTR(PTR(wire_name(&name)?)))
        };
        if address == self.network.gateway {
            return host("gateway");
        }
        let reserved = self.registry.by_address(&self.network.name, address)?;
        if self.asker.sees(&reserved) { host(reserved.guest.hostname.as_str()) } else { None }
    }
}

/// What a rule of the policy makes of a question; with a SOA, so that a stub may hold it.
pub(super) fn ruled(verdict: &Verdict, name: &Name, asked: u16) -> Option<Answer> {
    let zone = LocalZone { ttl: RULED_TTL, ..LocalZone::fixed(name)? };
    let owner = wire_name(name)?;
    let (answer, ede) = match verdict {
        Verdict::Allow => return None,
        Verdict::NxDomain => (zone.nxdomain(), Ede::Blocked),
        Verdict::NoData => (zone.data(asked, &owner, vec![]), Ede::Blocked),
        Verdict::Refused => (Answer { rcode: ResponseCode::Refused, ..Answer::empty() }, Ede::Blocked),
        Verdict::Address(addresses) => {
            let data = addresses.iter().map(|address| match address {
                IpAddr::V4(v4) => RData::A(A(*v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
            });
            (zone.data(asked, &owner, data.collect()), Ede::ForgedAnswer)
        }
    };
    Some(Answer { ede: Some(ede), ..answer })
}

/// RFC 8482 section 4.2: a HINFO that says why.
fn minimal_any(owner: &rr::Name, ttl: u32) -> Answer {
    let hinfo = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    let record = Record::from_rdata(owner.clone(), ttl, hinfo);
    Answer { answers: vec![record], ..Answer::empty() }
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
        Answer { rcode: ResponseCode::NXDomain, authority: vec![self.soa()], ..Answer::empty() }
    }

    /// What of `data`, all that `owner` has, is of the type asked for; NODATA with the SOA if none is.
    fn data(&self, asked: u16, owner: &rr::Name, data: Vec<RData>) -> Answer {
        self.timed_data(asked, owner, data.into_iter().map(|data| (self.ttl, data)).collect())
    }

    fn timed_data(&self, asked: u16, owner: &rr::Name, data: Vec<(u32, RData)>) -> Answer {
        if asked == qtype::ANY && !data.is_empty() {
            return minimal_any(owner, self.ttl);
        }
        let of_type = data.into_iter().filter(|(_, data)| u16::from(data.record_type()) == asked);
        let of_type: Vec<_> = of_type.collect();
        // RFC 2181 section 5.2: records of one name and type hold equally long, which is the least of them.
        let ttl = of_type.iter().map(|(ttl, _)| *ttl).min().unwrap_or(self.ttl);
        let answers: Vec<_> =
            of_type.into_iter().map(|(_, data)| Record::from_rdata(owner.clone(), ttl, data)).collect();
        let authority = answers.is_empty().then(|| self.soa()).into_iter().collect();
        Answer { answers, authority, ..Answer::empty() }
    }
}

pub(super) fn wire_name(name: &Name) -> Option<rr::Name> {
    let mut wire = rr::Name::from_labels(name.labels()).ok()?;
    wire.set_fqdn(true);
    Some(wire)
}

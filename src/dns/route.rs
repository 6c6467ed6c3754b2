//! PURE: who answers a question. In: a checked query, a network's domain and subnet. Out: our own zone, a special name's
//! fixed answer, an upstream, or a refusal. The order of the rules is the order of this file.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use super::local::{Found, LocalData};
use super::name::Name;
use super::query::{CLASS_IN, Query, flag, qtype};
use crate::model::{Network, Subnet};

/// Where an answer comes from.
// Lives on the stack for one query: a box would cost more than its size.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Local(Local),
    Forward,
    Refuse(Refusal),
}

/// Names that are answered here and never sent upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Local {
    /// A name in the guests' domain, by its labels above the domain.
    Domain(Vec<Vec<u8>>),
    /// The reverse name of an address in the guests' subnet, in the zone that holds it.
    Reverse {
        address: Ipv4Addr,
        zone: Name,
    },
    /// A reverse name that covers several addresses, all of the guests' subnet.
    ReverseParent {
        zone: Name,
    },
    Localhost {
        zone: Name,
    },
    LocalhostReverse {
        zone: Name,
    },
    /// A zone that exists to be empty: its own name has no data, and no name is below it.
    Empty {
        zone: Name,
        apex: bool,
    },
    /// A name that the operator added records for, or of a zone of the operator's own.
    Added {
        zone: Option<Name>,
    },
    /// Type ANY of a name we do not hold (RFC 8482).
    Any,
}

impl Local {
    /// For people.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Domain(_) => "a name of the guests' domain",
            Self::Reverse { .. } | Self::ReverseParent { .. } => "a reverse name of the guests' subnet",
            Self::Localhost { .. } | Self::LocalhostReverse { .. } => "localhost",
            Self::Empty { .. } => "a special name, never asked for upstream",
            Self::Added { .. } => "a record or zone of the configuration, the API or the hosts file",
            Self::Any => "type ANY (RFC 8482)",
        }
    }
}

/// Why a query is not answered. Each is an rcode on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// BADVERS: an EDNS version other than 0 (RFC 6891 section 6.1.3).
    EdnsVersion,
    /// REFUSED: a class other than IN, so also CHAOS, which would tell our version.
    Class,
    /// REFUSED: a zone transfer.
    Transfer,
    /// FORMERR: a type that is no data and cannot be asked for (RFC 6895 section 3.1, RFC 9824 section 3.5).
    MetaType,
    /// REFUSED: recursion is not desired, so it could only tell what others have asked for.
    NoRecursion,
}

/// What the routes of one network depend on.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) domain: Name,
    pub(super) subnet: Subnet,
    /// Names that may have private addresses.
    pub(super) rebind_exempt: Vec<Name>,
}

impl Places {
    /// `None` if the domain does not fit a name, which a checked `Domain` always does.
    pub(super) fn of(network: &Network) -> Option<Self> {
        let exempt = network.resolver.rebind_exempt.iter();
        Some(Self {
            domain: Name::from_text(network.domain.as_str())?,
            subnet: network.subnet,
            rebind_exempt: exempt.filter_map(|name| Name::from_text(name.as_str())).collect(),
        })
    }
}

/// `conditional`: whether a name has upstreams of its own, which then know better than any rule for special names.
pub(super) fn route(
    query: &Query,
    places: &Places,
    added: &LocalData,
    conditional: impl Fn(&Name) -> bool,
) -> Route {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Route::Refuse(Refusal::EdnsVersion);
    }
    if query.qclass != CLASS_IN {
        return Route::Refuse(Refusal::Class);
    }
    match query.qtype {
        0 | qtype::OPT | 128..=qtype::TKEY | 250 | 253 | qtype::MAILA => {
            return Route::Refuse(Refusal::MetaType);
        }
        251 | 252 => return Route::Refuse(Refusal::Transfer),
        _ => {}
    }
    if let Some(local) = local(&query.name, places, added, conditional) {
        return Route::Local(local);
    }
    if !query.has(flag::RD) {
        return Route::Refuse(Refusal::NoRecursion);
    }
    if query.qtype == qtype::ANY { Route::Local(Local::Any) } else { Route::Forward }
}

fn local(
    name: &Name,
    places: &Places,
    added: &LocalData,
    conditional: impl Fn(&Name) -> bool,
) -> Option<Local> {
    if let Some(above) = name.labels_above(&places.domain) {
        return Some(Local::Domain(above.into_iter().map(<[u8]>::to_vec).collect()));
    }
    if let Some(reverse) = reverse(name, places.subnet) {
        return Some(reverse);
    }
    if !added.is_empty() {
        let zone = added.zone(name);
        // What lies above a name of the operator's, but in no zone of ours, is not ours: with db.example.com we have not got .com.
        if zone.is_some() || matches!(added.find(name, |_| false), Some(Found::Data(_))) {
            return Some(Local::Added { zone });
        }
    }
    if conditional(name) { None } else { special(name) }
}

/// The reverse names of the subnet (RFC 1035 section 3.5). Their zone is cut at a whole octet: of 10.100.16.0/20 every
/// `N.100.10.in-addr.arpa` that lies in it is a zone of its own.
fn reverse(name: &Name, subnet: Subnet) -> Option<Local> {
    let above = name.labels_above(&ZONES.in_addr)?;
    let zone_octets = usize::from(subnet.prefix_len().div_ceil(8));
    if above.len() > 4 || above.len() < zone_octets {
        return None;
    }
    let mut octets = [0; 4];
    for (octet, label) in octets.iter_mut().zip(above.iter().rev()) {
        *octet = decimal_octet(label)?;
    }
    let address = Ipv4Addr::from(octets);
    let zone = name.parent(above.len() - zone_octets);
    let found =
        if above.len() == 4 { Local::Reverse { address, zone } } else { Local::ReverseParent { zone } };
    subnet.contains(address).then_some(found)
}

/// An octet as it is written in a reverse name: no leading zero, else two names would be one address.
fn decimal_octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok().filter(|_| text == "0" || !text.starts_with('0'))
}

/// Names the RFCs give a fixed answer. `example` is not among them: caching servers resolve it normally (RFC 6761
/// section 6.5). Nor are `internal` and single labels: what an operator's upstream makes of them is the operator's.
fn special(name: &Name) -> Option<Local> {
    let last = name.labels().last()?;
    // Cheap first look: almost every name ends in none of these.
    if !matches!(last, b"arpa" | b"localhost" | b"invalid" | b"test" | b"local" | b"onion" | b"alt") {
        return None;
    }
    if name.is_in(&ZONES.localhost) {
        return Some(Local::Localhost { zone: ZONES.localhost });
    }
    if *name == ZONES.localhost_reverse {
        return Some(Local::LocalhostReverse { zone: name.parent(3) });
    }
    let zone = ZONES.empty.iter().find(|zone| name.is_in(zone))?;
    Some(Local::Empty { zone: *zone, apex: name == zone })
}

struct Zones {
    in_addr: Name,
    localhost: Name,
    localhost_reverse: Name,
    empty: Vec<Name>,
}

/// Zones that hold nothing and are not asked for upstream.
const EMPTY: &[&str] = &[
    "invalid",       // RFC 6761 section 6.4
    "test",          // RFC 6761 section 6.2: a caching server answers it negatively by default
    "local",         // RFC 6762 section 22.1: multicast DNS only
    "onion",         // RFC 7686 section 2
    "alt",           // RFC 9476 section 2: not a DNS name
    "home.arpa",     // RFC 8375 section 4: the home's own, and none is configured here
    "resolver.arpa", // RFC 9462 section 8: an upstream's answer would send guests past this resolver
    // RFC 6303 section 4.2 and RFC 6761 section 6.1
    "10.in-addr.arpa",
    "168.192.in-addr.arpa",
    "0.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    // RFC 6303 sections 4.3 to 4.6
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
];

static ZONES: LazyLock<Zones> = LazyLock::new(|| {
    let ranged = (16..=31)
        .map(|n| format!("{n}.172.in-addr.arpa")) // RFC 6303 section 4.1
        .chain((64..=127).map(|n| format!("{n}.100.in-addr.arpa"))); // RFC 7793 section 3
    let empty = EMPTY.iter().map(|&zone| zone.to_owned()).chain(ranged);
    // The texts above fit a name; the test `every_zone_of_the_tables_is_a_name` reads each.
    let name = |text: &str| Name::from_text(text).unwrap_or_else(Name::root);
    Zones {
        in_addr: name("in-addr.arpa"),
        localhost: name("localhost"),
        localhost_reverse: name("1.0.0.127.in-addr.arpa"),
        empty: empty.map(|zone| name(&zone)).collect(),
    }
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::query::Edns;

    const A: u16 = 1;
    const PTR: u16 = 12;

    fn asked(name: &str, qtype: u16) -> Query {
        let name = Name::from_text(name).unwrap();
        Query { id: 1, flags: flag::RD, name, qtype, qclass: CLASS_IN, edns: None }
    }

    fn places(subnet: &str) -> Places {
        let domain = Name::from_text("vm.internal").unwrap();
        Places { domain, subnet: subnet.parse().unwrap(), rebind_exempt: vec![] }
    }

    fn plain(query: &Query, places: &Places) -> Route {
        route(query, places, &LocalData::default(), |_| false)
    }

    fn routed(name: &str) -> Route {
        plain(&asked(name, A), &places("10.100.0.0/16"))
    }

    #[test]
    fn every_zone_of_the_tables_is_a_name() {
        assert_eq!(ZONES.empty.len(), EMPTY.len() + 16 + 64);
        assert!(ZONES.empty.iter().all(|zone| zone.labels().count() > 0));
    }

    #[test]
    fn names_of_the_internet_are_forwarded() {
        for name in [
            "www.example.com",
            "web.guestnet.example",
            "example",
            "metadata.google.internal",
            "",
            "com",
            "8.8.8.8.in-addr.arpa",
            "xvm.internal",
            "notlocal",
            "a.localhost.example",
            "11.in-addr.arpa",
            "32.172.in-addr.arpa",
        ] {
            assert_eq!(routed(name), Route::Forward, "{name}");
        }
    }

    #[test]
    fn nothing_in_our_domain_is_forwarded() {
        assert_eq!(routed("VM.Internal"), Route::Local(Local::Domain(vec![])));
        assert_eq!(routed("web.vm.internal"), Route::Local(Local::Domain(vec![b"web".to_vec()])));
        assert!(matches!(routed("a.b.c.vm.internal"), Route::Local(Local::Domain(_))));
    }

    #[test]
    fn special_names_stay_here() {
        for name in [
            "x.invalid",
            "test",
            "printer.local",
            "abc.onion",
            "x.alt",
            "home.arpa",
            "_dns.resolver.arpa",
            "1.1.168.192.in-addr.arpa",
            "5.0.0.10.in-addr.arpa",
            "1.20.172.in-addr.arpa",
            "1.0.64.100.in-addr.arpa",
            "1.2.d.f.ip6.arpa",
            "b.e.f.ip6.arpa",
        ] {
            assert!(matches!(routed(name), Route::Local(Local::Empty { .. })), "{name}");
        }
        assert!(matches!(routed("localhost"), Route::Local(Local::Localhost { .. })));
        assert!(matches!(routed("a.b.localhost"), Route::Local(Local::Localhost { .. })));
    }

    #[test]
    fn reverse_names_of_the_subnet_are_ours_to_the_octet() {
        let zone = |text| Name::from_text(text).unwrap();
        let address = Ipv4Addr::new(10, 100, 3, 7);
        assert_eq!(
            routed("7.3.100.10.in-addr.arpa"),
            Route::Local(Local::Reverse { address, zone: zone("100.10.in-addr.arpa") })
        );
        assert_eq!(
            routed("3.100.10.in-addr.arpa"),
            Route::Local(Local::ReverseParent { zone: zone("100.10.in-addr.arpa") })
        );
        let small = |name| plain(&asked(name, PTR), &places("198.18.7.32/27"));
        let address = Ipv4Addr::new(198, 18, 7, 33);
        assert_eq!(
            small("33.7.18.198.in-addr.arpa"),
            Route::Local(Local::Reverse { address, zone: zone("33.7.18.198.in-addr.arpa") })
        );
        assert_eq!(small("64.7.18.198.in-addr.arpa"), Route::Forward);
        assert_eq!(small("033.7.18.198.in-addr.arpa"), Route::Forward);
        assert_eq!(small("x.33.7.18.198.in-addr.arpa"), Route::Forward);
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        let places = places("10.100.0.0/16");
        let refused = |change: fn(&mut Query)| {
            let mut query = asked("www.example.com", A);
            change(&mut query);
            match plain(&query, &places) {
                Route::Refuse(refusal) => refusal,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|q| q.qclass = 3), Refusal::Class);
        assert_eq!(refused(|q| q.qclass = 255), Refusal::Class);
        assert_eq!(refused(|q| q.qtype = 252), Refusal::Transfer);
        assert_eq!(refused(|q| q.qtype = 41), Refusal::MetaType);
        assert_eq!(refused(|q| q.qtype = 128), Refusal::MetaType);
        assert_eq!(refused(|q| q.flags = 0), Refusal::NoRecursion);
        let version = Edns { payload: 1232, version: 1, dnssec_ok: false, cookie: None };
        let mut query = asked("www.example.com", A);
        query.edns = Some(version);
        assert_eq!(plain(&query, &places), Route::Refuse(Refusal::EdnsVersion));
    }

    #[test]
    fn a_suffix_with_upstreams_of_its_own_goes_before_special_names() {
        let home = Name::from_text("home.arpa").unwrap();
        let places = places("10.100.0.0/16");
        let routed = |name| route(&asked(name, A), &places, &LocalData::default(), |name| name.is_in(&home));
        assert_eq!(routed("nas.home.arpa"), Route::Forward);
        assert!(matches!(routed("printer.local"), Route::Local(Local::Empty { .. })));
    }

    #[test]
    fn any_is_answered_here() {
        let any = plain(&asked("www.example.com", qtype::ANY), &places("10.100.0.0/16"));
        assert_eq!(any, Route::Local(Local::Any));
    }
}

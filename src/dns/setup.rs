//! What a configuration decides of a resolver, switched as a whole while it runs: a query sees all of the old or all of the
//! new. In: a network, records of the API, and the setup before, from which stays what is the same: upstreams with what is
//! known of them. Out: the new setup, or why it cannot be; and which held answers it would have given too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::answer::Answer;
use super::forward::{Forwarder, Trust};
use super::local::LocalData;
use super::name::Name;
use super::policy::Policy;
use super::route::Places;
use super::server::DnsError;
use super::validate::{AnchorError, Validator};
use crate::events::Events;
use crate::model::{DnsRecord, Network, Subnet, Upstream};

#[derive(Clone)]
pub(super) struct Setup {
    pub(super) network: Arc<Network>,
    pub(super) places: Places,
    pub(super) local: Arc<LocalData>,
    pub(super) policy: Arc<Policy>,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) validator: Option<Validator>,
    anchor: Option<Anchor>,
    /// Subnets whose addresses may stand in any answer.
    own_subnets: Arc<[Subnet]>,
}

/// From which keys on answers are validated.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Anchor {
    /// The root's own.
    Root,
    /// Those of this text.
    Text(String),
}

/// What a setup is made of beside its network.
pub(super) struct Materials<'a> {
    pub(super) upstreams: &'a [Upstream],
    pub(super) records: &'a [DnsRecord],
    pub(super) own_subnets: &'a Arc<[Subnet]>,
    /// The resolver's own address, which is no upstream.
    pub(super) listen: SocketAddr,
    pub(super) events: &'a Events,
}

impl Setup {
    /// Reads the files that the network's settings name.
    pub(super) fn load(
        network: Arc<Network>,
        materials: &Materials<'_>,
        before: Option<&Self>,
    ) -> Result<Self, DnsError> {
        let name = || network.name.to_string();
        let Materials { upstreams, records, listen, .. } = *materials;
        if upstreams.is_empty() {
            return Err(DnsError::NoUpstream { network: name() });
        }
        let settings = &network.resolver;
        let zones = settings.forward.iter().flat_map(|zone| &zone.servers);
        let servers: Vec<&Upstream> = upstreams.iter().chain(zones).collect();
        if servers.iter().any(|upstream| upstream.address == listen) {
            return Err(DnsError::UpstreamIsSelf { network: name(), address: listen });
        }
        let domain = || DnsError::Domain { network: name(), domain: network.domain.to_string() };
        let places = Places::of(&network).ok_or_else(domain)?;
        let local = LocalData::load(settings, records)
            .map_err(|source| DnsError::Hosts { network: name(), source })?;
        let policy =
            Policy::load(&settings.rules).map_err(|source| DnsError::Policy { network: name(), source })?;
        let trust = Trust::new(&servers, settings.upstream_ca.as_deref())
            .map_err(|source| DnsError::Secure { network: name(), source })?;
        let forwarder = Arc::new(match before {
            None => Forwarder::new(&network, upstreams, trust, materials.events.clone()),
            Some(before) => before.forwarder.with(&network, upstreams, trust),
        });
        let refused = |source| DnsError::Anchor { network: name(), source };
        let anchor = settings.dnssec.then(|| anchor(settings.trust_anchor.as_deref()));
        let anchor = anchor.transpose().map_err(refused)?;
        let validator =
            anchor.is_some().then(|| Validator::new(forwarder.clone(), settings.trust_anchor.as_deref()));
        let validator = validator.transpose().map_err(refused)?;
        let (local, policy) = (Arc::new(local), Arc::new(policy));
        let own_subnets = materials.own_subnets.clone();
        Ok(Self { network, places, local, policy, forwarder, validator, anchor, own_subnets })
    }

    /// The same with other names of the operator's.
    pub(super) fn with_local(&self, local: Arc<LocalData>) -> Self {
        Self { local, ..self.clone() }
    }

    /// Whether everything is asked for, and judged, as `before`.
    pub(super) fn asks_like(&self, before: &Self) -> bool {
        self.anchor == before.anchor && self.forwarder.is_like(&before.forwarder) && self.judges_like(before)
    }

    /// Whether this setup would have the answer from the zone on that `side` too that one `before` it has: from the same upstreams,
    /// validated from the same keys, held no longer than it may be, and not withheld. A failure (no answer) is one of its upstreams.
    pub(super) fn keeps(&self, before: &Self, side: &Name, answer: Option<&Answer>) -> bool {
        if self.anchor != before.anchor || !self.forwarder.asks_like(&before.forwarder, side) {
            return false;
        }
        let Some(answer) = answer else { return true };
        if self.judges_like(before) {
            return true;
        }
        let settings = &self.network.resolver;
        let held_up = before.network.resolver.min_ttl;
        let within = answer.lifetime() <= settings.max_ttl
            && answer.longest() <= settings.max_ttl
            && (settings.min_ttl >= held_up || answer.lifetime() > held_up);
        within && !answer.is_withheld() && !self.is_rebinding(side, answer)
    }

    fn judges_like(&self, before: &Self) -> bool {
        let (now, then) = (&self.network.resolver, &before.network.resolver);
        (now.min_ttl, now.max_ttl, now.rebind_protection)
            == (then.min_ttl, then.max_ttl, then.rebind_protection)
            && now.rebind_exempt == then.rebind_exempt
    }

    /// An answer that names a private address is withheld: a name of the internet that leads into a guest's own network
    /// turns its browser against it (DNS rebinding). Names with upstreams of their own, and our subnets, are meant so.
    pub(super) fn is_rebinding(&self, name: &Name, answer: &Answer) -> bool {
        if !self.network.resolver.rebind_protection || self.forwarder.is_conditional(name) {
            return false;
        }
        let ours = |address: &IpAddr| match address {
            IpAddr::V4(v4) => self.own_subnets.iter().any(|subnet| subnet.contains(*v4)),
            IpAddr::V6(_) => false,
        };
        let private = answer.addresses().iter().any(|address| is_private(*address) && !ours(address));
        private && !self.places.rebind_exempt.iter().any(|zone| name.is_in(zone))
    }
}

fn anchor(path: Option<&Path>) -> Result<Anchor, AnchorError> {
    path.map_or(Ok(Anchor::Root), |path| {
        super::file::read_text(path).map(Anchor::Text).map_err(|error| AnchorError::new(path, &error))
    })
}

/// Addresses that mean something else on every network: RFC 1918, 6598, loopback, link-local, "this network", the same in IPv6
/// (RFC 4193, 4291), and those of IPv4 within IPv6: mapped (RFC 4291 section 2.5.5.2) and for NAT64, whose well-known prefix is
/// not for private ones (RFC 6052 section 3.1).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || first == 0
                || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().or_else(|| translated(v6)) {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => {
                v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local()
            }
        },
    }
}

/// The IPv4 address within one of 64:ff9b::/96.
fn translated(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = v6.octets();
    let well_known = octets.starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);
    octets.last_chunk::<4>().filter(|_| well_known).map(|last| Ipv4Addr::from(*last))
}

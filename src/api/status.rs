//! GetStatus: one look at the service. In: the parts that count. Out: one message.

use std::sync::Arc;
use std::time::SystemTime;

use super::{LeaseSources, wire};
use crate::dhcp;
use crate::dns::{DnsAdmin, DnsCounters};
use crate::events::Events;
use crate::manager::{Manager, ManagerError};
use crate::metrics::Histogram;
use crate::model::LeaseState;
use crate::proto::guestnet::v1;
use crate::reload::Reloader;
use crate::reservations::Reservations;

/// Events that a status shows.
const EVENTS: usize = 10;

/// What a status is made of.
#[derive(Clone)]
pub struct Sources {
    pub started_at: SystemTime,
    pub events: Events,
    /// Of every network's DHCP server.
    pub dhcp: Arc<dhcp::Counters>,
    /// The networks' resolvers, of those that have one.
    pub dns: DnsAdmin,
    pub leases: LeaseSources,
    pub reservations: Reservations,
    /// Where the time is counted that changes take.
    pub bind: Arc<Histogram>,
    pub unbind: Arc<Histogram>,
    pub reloader: Reloader,
}

pub(super) fn status(manager: &Manager, sources: &Sources) -> Result<v1::GetStatusResponse, ManagerError> {
    let mut networks = Vec::new();
    for network in manager.networks() {
        let name = &network.network.name;
        let leases = manager.leases(Some(name))?;
        let bound = leases.iter().filter(|(_, view)| view.state == LeaseState::Bound).count();
        let dns = sources.dns.one(Some(name)).ok().map(|dns| dns_status(dns.counters()));
        networks.push(v1::NetworkStatus {
            network: wire::network(&network, &sources.dns).into(),
            leases_bound: u32::try_from(bound).unwrap_or(u32::MAX),
            dns: dns.into(),
            ..Default::default()
        });
    }
    Ok(v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: wire::timestamp(sources.started_at).into(),
        networks,
        dhcp: dhcp_status(sources.dhcp.snapshot()).into(),
        recent_events: sources.events.recent(EVENTS).iter().map(wire::event).collect(),
        ..Default::default()
    })
}

fn dhcp_status(counts: dhcp::Counts) -> v1::DhcpStatus {
    let answered = counts.offers + counts.acks + counts.naks + counts.informs + counts.bootp;
    v1::DhcpStatus {
        requests: counts.received,
        offers: counts.offers,
        acks: counts.acks,
        naks: counts.naks,
        unanswered: counts.received.saturating_sub(answered + counts.declines + counts.releases),
        declines: counts.declines,
        ..Default::default()
    }
}

fn dns_status(counts: DnsCounters) -> v1::DnsStatus {
    v1::DnsStatus {
        queries: counts.queries,
        local: counts.local,
        cache_hits: counts.cache_hits + counts.stale,
        forwarded: counts.forwarded,
        failed: counts.servfail,
        ..Default::default()
    }
}

//! Who asks. In: a query's source address. Out: what is kept of that guest: its VM and workspace, which decide what it may
//! see and look up, its counters, and its share when there is more to do than time. One look-up for a query, whatever it costs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::counters::{Counters, DnsCounters};
use super::histogram::{Histogram, Latencies};
use crate::model::{NetworkName, VmId, WorkspaceId};
use crate::registry::Registry;

/// Addresses that are kept apart; what comes from further ones is counted together. Only VMs' addresses can get as far as
/// this where ports are locked, so it bounds what a flood of forged addresses can cost elsewhere.
const MOST: usize = 65_536;
/// Burst of a guest's own rate, in seconds of it.
const BURST: f64 = 1.0;
/// Shares are counted anew after so many queries over all guests.
const ROUND: u64 = 1_024;

#[derive(Debug, Default)]
pub(super) struct Guest {
    pub(super) vm: Option<VmId>,
    pub(super) workspace: Option<WorkspaceId>,
    pub(super) counters: Arc<Counters>,
    pub(super) latency: Arc<Histogram>,
    /// The registry's generation when `vm` was looked up.
    generation: u64,
    bucket: Bucket,
    /// The round it was last seen in, and its queries in it.
    round: AtomicU64,
    in_round: AtomicU64,
}

/// Tokens of a guest's own rate. Two readers at once may give a token twice; a cap of this kind bears that.
#[derive(Debug, Default)]
struct Bucket {
    /// Nanoseconds since the start until which what was asked has used the rate up.
    used_until: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Guests {
    network: NetworkName,
    registry: Registry,
    by_address: RwLock<HashMap<Ipv4Addr, Arc<Guest>>>,
    /// Everybody beyond `MOST`, and who is no IPv4 host.
    others: Arc<Guest>,
    start: Instant,
    seen: AtomicU64,
    /// Guests of the round before, and of this one so far.
    last_round_guests: AtomicU64,
    round_guests: AtomicU64,
}

/// A guest's side of the resolver, for people.
#[derive(Debug, Clone)]
pub struct GuestReport {
    pub address: Ipv4Addr,
    pub vm: Option<VmId>,
    pub counters: DnsCounters,
    pub latency: Latencies,
}

impl Guests {
    pub(super) fn new(network: NetworkName, registry: Registry) -> Self {
        Self {
            network,
            registry,
            by_address: RwLock::default(),
            others: Arc::default(),
            start: Instant::now(),
            seen: AtomicU64::new(0),
            last_round_guests: AtomicU64::new(1),
            round_guests: AtomicU64::new(0),
        }
    }

    pub(super) fn of(&self, address: IpAddr) -> Arc<Guest> {
        let IpAddr::V4(address) = address else { return self.others.clone() };
        let generation = self.registry.generation();
        let guests = self.by_address.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = guests.get(&address)
            && guest.generation == generation
        {
            return guest.clone();
        }
        drop(guests);
        self.look_up(address, generation)
    }

    fn look_up(&self, address: Ipv4Addr, generation: u64) -> Arc<Guest> {
        let reserved = self.registry.by_address(&self.network, address);
        let vm = reserved.as_ref().and_then(|reserved| reserved.vm_id.clone());
        let workspace = reserved.and_then(|reserved| reserved.workspace.clone());
        let mut guests = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = |counters, latency| Guest {
            vm: vm.clone(),
            workspace,
            counters,
            latency,
            generation,
            ..Guest::default()
        };
        let guest = match guests.get(&address) {
            // The same VM as before goes on with its counts; another VM at the address begins anew.
            Some(known) if known.vm == vm => fresh(known.counters.clone(), known.latency.clone()),
            None if guests.len() >= MOST => return self.others.clone(),
            _ => fresh(Arc::default(), Arc::default()),
        };
        let guest = Arc::new(guest);
        guests.insert(address, guest.clone());
        guest
    }

    /// Whether a query of `guest` is within `rate`, in queries a second; 0 is no limit.
    pub(super) fn is_within_rate(&self, guest: &Guest, rate: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let each = 1e9 / f64::from(rate);
        let used = guest.bucket.used_until.load(Relaxed).max(now);
        let within = (used - now) as f64 <= BURST * 1e9;
        if within {
            guest.bucket.used_until.store(used + each as u64, Relaxed);
        }
        within
    }

    /// Counts a query, and says whether, with more waiting than can be answered, the guest has had more than its share of
    /// the current round. A guest alone may have all of it.
    pub(super) fn is_over_share(&self, guest: &Guest) -> bool {
        let seen = self.seen.fetch_add(1, Relaxed);
        let round = seen / ROUND + 1;
        if seen.is_multiple_of(ROUND) {
            self.last_round_guests.store(self.round_guests.swap(0, Relaxed).max(1), Relaxed);
        }
        if guest.round.swap(round, Relaxed) != round {
            guest.in_round.store(0, Relaxed);
            self.round_guests.fetch_add(1, Relaxed);
        }
        let guests = self.last_round_guests.load(Relaxed);
        guests > 1 && guest.in_round.fetch_add(1, Relaxed) > 2 * ROUND / (guests + 1)
    }

    pub(super) fn reports(&self) -> Vec<GuestReport> {
        let guests = self.by_address.read().unwrap_or_else(PoisonError::into_inner);
        let mut reports: Vec<_> = guests
            .iter()
            .map(|(address, guest)| GuestReport {
                address: *address,
                vm: guest.vm.clone(),
                counters: guest.counters.snapshot(),
                latency: guest.latency.snapshot(),
            })
            .collect();
        reports.sort_by_key(|report| report.address);
        reports
    }
}

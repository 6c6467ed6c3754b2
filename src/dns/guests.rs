//! Who asks. In: a query's source address. Out: what is kept of that guest: its VM and workspace, which decide what it may
//! see and look up, its counters, and its share when there is more to do than time. One look-up for a query, whatever it costs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::counters::{Counters, DnsCounters};
use super::histogram::{Histogram, Latencies};
use crate::model::{NetworkName, VmId, WorkspaceId};
use crate::registry::Registry;

/// Addresses that are kept apart; what comes from further ones is counted together. Only VMs' addresses can get as far as
/// this where ports are locked, so it bounds what a flood of forged addresses can cost elsewhere.
const MOST: usize = 65_536;
/// Between two looks for guests that are gone.
const PRUNE: Duration = Duration::from_secs(10);
/// Burst of a guest's own rate, in seconds of it.
const BURST: f64 = 1.0;
/// Shares are counted anew after so many queries over all guests.
const ROUND: u64 = 1_024;

/// A guest as it was last looked up.
#[derive(Debug, Default)]
pub(super) struct Guest {
    pub(super) vm: Option<VmId>,
    pub(super) workspace: Option<WorkspaceId>,
    /// The registry's generation when it was.
    generation: u64,
    account: Arc<Account>,
}

/// What a guest has done: it stays, whatever changes about others.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) counters: Counters,
    pub(super) latency: Histogram,
    bucket: Bucket,
    /// The round it was last seen in, and its queries in it.
    round: AtomicU64,
    in_round: AtomicU64,
    /// Its queries when it was last looked at for being forgotten, and one; 0: not yet.
    looked_at: AtomicU64,
}

impl Deref for Guest {
    type Target = Account;

    fn deref(&self) -> &Account {
        &self.account
    }
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
    /// Milliseconds after that.
    pruned_at: AtomicU64,
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
            pruned_at: AtomicU64::new(0),
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
        self.prune(&mut guests);
        let account = match guests.get(&address) {
            // The same VM as before goes on with its counts and its rate; another VM at the address begins anew.
            Some(known) if known.vm == vm => known.account.clone(),
            None if guests.len() >= MOST => return self.others.clone(),
            _ => Arc::default(),
        };
        let guest = Arc::new(Guest { vm, workspace, generation, account });
        guests.insert(address, guest.clone());
        guest
    }

    /// Forgets VMs that are gone at once, and who never was one when it has asked nothing for `PRUNE` and more; looked for as
    /// often, when somebody asks who is new or has changed.
    fn prune(&self, guests: &mut HashMap<Ipv4Addr, Arc<Guest>>) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let since = now.saturating_sub(self.pruned_at.load(Relaxed));
        if u128::from(since) < PRUNE.as_millis() {
            return;
        }
        self.pruned_at.store(now, Relaxed);
        guests.retain(|address, guest| match &guest.vm {
            Some(vm) => {
                let reserved = self.registry.by_address(&self.network, *address);
                reserved.is_some_and(|reserved| reserved.vm_id.as_ref() == Some(vm))
            }
            None => {
                let asked = guest.counters.snapshot().queries.saturating_add(1);
                guest.looked_at.swap(asked, Relaxed) != asked
            }
        });
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
        let mut guests = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        self.prune(&mut guests);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;
    use crate::registry::Binding;

    fn guests(registry: &Registry) -> Guests {
        Guests::new(testing::network().name, registry.clone())
    }

    fn bind(registry: &Registry, n: u8) -> IpAddr {
        let vm = testing::vm(n);
        let address = vm.address;
        registry.bind(Arc::new(Binding::new(vm, Arc::new(testing::network()))));
        IpAddr::V4(address)
    }

    /// As if the time for a look had come.
    fn look(guests: &mut Guests) {
        guests.start -= 2 * PRUNE;
        guests.pruned_at.store(0, Relaxed);
    }

    #[test]
    fn a_guests_rate_is_its_own_whatever_happens_to_others() {
        let registry = Registry::default();
        let (guests, address) = (guests(&registry), bind(&registry, 1));
        let within = || (0..100).filter(|_| guests.is_within_rate(&guests.of(address), 10)).count();
        assert!((10..15).contains(&within()));
        bind(&registry, 2);
        // Another look-up, and not another burst.
        assert!(within() < 5);
        let guest = guests.of(address);
        guests.is_over_share(&guest);
        bind(&registry, 3);
        assert_eq!(guests.of(address).in_round.load(Relaxed), guest.in_round.load(Relaxed));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let registry = Registry::default();
        let mut guests = guests(&registry);
        let addresses: Vec<_> = (1..=50).map(|n| bind(&registry, n)).collect();
        addresses.iter().for_each(|address| drop(guests.of(*address)));
        // Who is no VM, one of whom goes on asking.
        let strangers: Vec<_> = (1..=50).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        strangers.iter().for_each(|address| drop(guests.of(*address)));
        assert_eq!(guests.reports().len(), 100);
        for n in 2..=50 {
            registry.unbind(&testing::vm(n).vm_id);
        }
        look(&mut guests);
        assert_eq!(guests.reports().len(), 51);
        look(&mut guests);
        super::super::counters::count(&guests.of(strangers[0]).counters.queries);
        let left: Vec<_> = guests.reports().iter().map(|report| IpAddr::V4(report.address)).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.contains(&addresses[0]) && left.contains(&strangers[0]), "{left:?}");
    }
}

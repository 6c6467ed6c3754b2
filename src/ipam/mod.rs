//! Which address a VM of a subnet gets. In: a subnet, what is not for guests, and calls with `now`. Out: an address, or why
//! there is none. Pure, and the cost of a call depends neither on the subnet's size nor on how full it is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::model::Subnet;

/// How long a freed address rests: what still knows the old guest under it (neighbours' ARP caches, open connections)
/// must not reach the new one.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// Never-used addresses go first, so that an address comes back as late as it can, until this many freed ones are
/// remembered; it bounds the memory that a /8 can take.
const MANY_FREED: usize = 65_536;

/// The addresses of one subnet. Each is either excluded, taken, freed, or has never been used.
#[derive(Debug, Clone)]
pub struct Ipam {
    subnet: Subnet,
    quarantine: Duration,
    /// Sorted, apart from each other, without network and broadcast address.
    usable: Vec<RangeInclusive<u32>>,
    usable_count: u64,
    /// What has never been given out: ranges, first to last, by their turns. There are no more of them than of addresses that
    /// were taken out of turn.
    untouched: BTreeMap<Turn, Turn>,
    /// Turns are counted from here.
    gateway: u32,
    used: HashMap<u32, Use>,
    /// Oldest first. Put back with no guest ever (no time) comes before all.
    freed: BTreeMap<FreedKey, u32>,
    next_freed: u64,
    /// Ranges and freed addresses that calls have looked at.
    #[cfg(test)]
    looks: u64,
}

/// How far an address is after the gateway, round the whole of the address space: the order in which they are given out.
type Turn = u32;

/// When it was freed, and which of those freed at that time.
type FreedKey = (Option<Instant>, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// And when a guest was the last to have it before.
    Taken(Option<Instant>),
    Freed(FreedKey),
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("network {subnet} is full: {taken} in use, {}", Resting(*quarantined, *next_free_in))]
    Full { subnet: Subnet, taken: u64, quarantined: u64, next_free_in: Option<Duration> },
    #[error("address {0} is already in use")]
    Taken(Ipv4Addr),
    #[error("address {address} is not for a guest of {subnet}: {why}")]
    NotForGuests { address: Ipv4Addr, subnet: Subnet, why: &'static str },
}

/// The end of the message of a full subnet.
struct Resting(u64, Option<Duration>);

impl fmt::Display for Resting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in quarantine", self.0)?;
        match self.1 {
            Some(wait) => {
                write!(f, ", the next is free in {} s", wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            }
            None => Ok(()),
        }
    }
}

impl Ipam {
    /// Every host address of `subnet` but the gateway and what is in `reserved`, all unused.
    pub fn new(
        subnet: Subnet,
        gateway: Ipv4Addr,
        reserved: &[RangeInclusive<Ipv4Addr>],
        quarantine: Duration,
    ) -> Self {
        let gateway = u32::from(gateway);
        let mut excluded: Vec<RangeInclusive<u32>> =
            reserved.iter().map(|range| u32::from(*range.start())..=u32::from(*range.end())).collect();
        excluded.push(gateway..=gateway);
        let usable = without(hosts(subnet), excluded);
        let usable_count = usable.iter().map(count).sum();
        // No range has the gateway in it, so none begins before it and ends after.
        let turns = |range: &RangeInclusive<u32>| {
            (range.start().wrapping_sub(gateway), range.end().wrapping_sub(gateway))
        };
        let untouched = usable.iter().map(turns).collect();
        Self {
            subnet,
            quarantine,
            usable,
            usable_count,
            untouched,
            gateway,
            used: HashMap::new(),
            freed: BTreeMap::new(),
            next_freed: 0,
            #[cfg(test)]
            looks: 0,
        }
    }

    /// The next address: one put back unused, else one never used, else the one freed longest ago; none that is still in
    /// quarantine.
    pub fn allocate_next(&mut self, now: Instant) -> Result<Ipv4Addr, IpamError> {
        let put_back = self.freed.first_key_value().is_some_and(|((freed_at, _), _)| freed_at.is_none());
        let ripe_first = put_back || self.freed.len() >= MANY_FREED;
        let address = if ripe_first {
            self.take_ripe(now).or_else(|| self.take_untouched())
        } else {
            self.take_untouched().or_else(|| self.take_ripe(now))
        };
        let (address, before) = address.ok_or_else(|| self.full(now))?;
        self.used.insert(address, Use::Taken(before));
        Ok(Ipv4Addr::from(address))
    }

    /// This very address. Whoever names one knows what had it: quarantine does not hold it back.
    pub fn allocate(&mut self, address: Ipv4Addr) -> Result<(), IpamError> {
        if let Some(why) = self.not_for_guests(address) {
            return Err(IpamError::NotForGuests { address, subnet: self.subnet, why });
        }
        match self.used.entry(u32::from(address)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Use::Taken(None));
                self.touch(u32::from(address).wrapping_sub(self.gateway));
                Ok(())
            }
            Entry::Occupied(mut occupied) => match *occupied.get() {
                Use::Taken(_) => Err(IpamError::Taken(address)),
                Use::Freed(key) => {
                    self.freed.remove(&key);
                    occupied.insert(Use::Taken(key.0));
                    Ok(())
                }
            },
        }
    }

    /// Puts a taken address into quarantine; whether it was taken. `freed_at` may lie back, as after a restart.
    pub fn free(&mut self, address: Ipv4Addr, freed_at: Instant) -> bool {
        self.release(u32::from(address), |_| Some(freed_at))
    }

    /// Puts back a taken address that no guest has had since it was taken: one that none ever had is the next to be given out, another
    /// rests as long as it would have. Whether it was taken.
    pub fn put_back(&mut self, address: Ipv4Addr) -> bool {
        self.release(u32::from(address), |before| before)
    }

    /// How many addresses nobody has, in quarantine or not.
    pub fn free_count(&self) -> u64 {
        self.usable_count - self.taken_count()
    }

    /// How many addresses are in use.
    pub fn taken_count(&self) -> u64 {
        (self.used.len() - self.freed.len()) as u64
    }

    /// `freed_at` of when a guest was the last to have it before; none for an address that no guest has had.
    fn release(&mut self, address: u32, freed_at: impl Fn(Option<Instant>) -> Option<Instant>) -> bool {
        let Some(state) = self.used.get_mut(&address) else { return false };
        let Use::Taken(before) = *state else { return false };
        let key = (freed_at(before), self.next_freed);
        self.next_freed += 1;
        *state = Use::Freed(key);
        self.freed.insert(key, address);
        true
    }

    fn take_untouched(&mut self) -> Option<(u32, Option<Instant>)> {
        let (&first, _) = self.untouched.first_key_value()?;
        self.touch(first);
        Some((first.wrapping_add(self.gateway), None))
    }

    /// Takes an address that has never been given out from those.
    fn touch(&mut self, turn: Turn) {
        self.looked();
        let Some((&first, &last)) = self.untouched.range(..=turn).next_back() else { return };
        self.untouched.remove(&first);
        if first < turn {
            self.untouched.insert(first, turn - 1);
        }
        if turn < last {
            self.untouched.insert(turn + 1, last);
        }
    }

    fn looked(&mut self) {
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }

    fn take_ripe(&mut self, now: Instant) -> Option<(u32, Option<Instant>)> {
        self.looked();
        let oldest = self.freed.first_entry()?;
        if let (Some(freed_at), _) = *oldest.key()
            && now.saturating_duration_since(freed_at) < self.quarantine
        {
            return None;
        }
        let (freed_at, _) = *oldest.key();
        Some((oldest.remove(), freed_at))
    }

    /// Asked when there is nothing untouched and nothing ripe: whatever is freed is in quarantine.
    fn full(&self, now: Instant) -> IpamError {
        let next_free_in = self.freed.first_key_value().and_then(|((freed_at, _), _)| *freed_at);
        IpamError::Full {
            subnet: self.subnet,
            taken: self.taken_count(),
            quarantined: self.freed.len() as u64,
            next_free_in: next_free_in
                .map(|at| self.quarantine.saturating_sub(now.saturating_duration_since(at))),
        }
    }

    fn not_for_guests(&self, address: Ipv4Addr) -> Option<&'static str> {
        let number = u32::from(address);
        let at = self.usable.partition_point(|range| *range.end() < number);
        if self.usable.get(at).is_some_and(|range| range.contains(&number)) {
            None
        } else if !self.subnet.contains(address) {
            Some("it is outside")
        } else if self.subnet.has_host(address) {
            Some("it is the gateway or reserved")
        } else {
            Some("it is the network's own or its broadcast address")
        }
    }
}

fn hosts(subnet: Subnet) -> RangeInclusive<u32> {
    u32::from(subnet.network()) + 1..=u32::from(subnet.broadcast()) - 1
}

fn count(range: &RangeInclusive<u32>) -> u64 {
    u64::from(*range.end() - *range.start()) + 1
}

/// What is left of `whole` when `holes` are cut out, in order; none of it empty.
fn without(whole: RangeInclusive<u32>, mut holes: Vec<RangeInclusive<u32>>) -> Vec<RangeInclusive<u32>> {
    holes.retain(|hole| !hole.is_empty());
    holes.sort_by_key(|hole| *hole.start());
    let mut left = Vec::new();
    // Wider than an address: the one after 255.255.255.255 must be told from 0.0.0.0.
    let mut from = u64::from(*whole.start());
    let end = u64::from(*whole.end());
    for hole in holes {
        let (first, last) = (u64::from(*hole.start()), u64::from(*hole.end()));
        if first > end {
            break;
        }
        if from < first {
            left.push(from as u32..=(first - 1) as u32);
        }
        from = from.max(last + 1);
    }
    if from <= end {
        left.push(from as u32..=end as u32);
    }
    left
}

#[cfg(test)]
mod tests;

//! Which address comes next. In: a subnet, what is excluded, the time. Out: an address that nobody has and nobody had
//! lately. Constant time at any fill and any prefix: nothing is sized by the subnet. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::model::Subnet;

/// How long a freed address rests: longer than its old guest's flows, neighbour entries and cached names live.
const QUARANTINE: Duration = Duration::from_secs(30);

/// No address can be given out now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{taken} are taken and {resting} were freed less than {} s ago: delete a VM or widen vm_subnet", QUARANTINE.as_secs())]
pub struct Full {
    pub taken: u64,
    pub resting: u64,
}

/// Why a certain address cannot be given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("it is taken")]
    Taken,
    #[error("it is outside the subnet, or excluded")]
    Excluded,
}

/// The addresses of one subnet. A fresh one is given out in ascending order, then freed ones, oldest first.
#[derive(Debug)]
pub struct Allocator {
    subnet: Subnet,
    excluded: Vec<RangeInclusive<u32>>,
    /// The lowest address that was never looked at; above `last` when there is none.
    next: u64,
    last: u32,
    taken: HashSet<u32>,
    /// Given back unused: these need no rest.
    unused: Vec<u32>,
    /// Freed addresses by the turn in which they were freed, so oldest first.
    freed: BTreeMap<u64, (u32, Instant)>,
    turn_of: HashMap<u32, u64>,
    turn: u64,
}

impl Allocator {
    /// Network, broadcast and gateway address are never given out.
    pub fn new(subnet: Subnet, gateway: Ipv4Addr) -> Self {
        let (first, last) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
        let excluded = [first, u32::from(gateway), last].map(|address| address..=address).to_vec();
        Self {
            subnet,
            excluded,
            next: u64::from(first) + 1,
            last,
            taken: HashSet::new(),
            unused: Vec::new(),
            freed: BTreeMap::new(),
            turn_of: HashMap::new(),
            turn: 0,
        }
    }

    /// The next address: the lowest never used, else the longest freed that has rested.
    pub fn allocate_next(&mut self, now: Instant) -> Result<Ipv4Addr, Full> {
        while let Some(address) = self.unused.pop().or_else(|| self.never_used()) {
            // One that was asked for by name has a life of its own.
            if !self.taken.contains(&address) && !self.turn_of.contains_key(&address) {
                self.taken.insert(address);
                return Ok(address.into());
            }
        }
        if let Some((&turn, &(address, freed_at))) = self.freed.first_key_value()
            && now.saturating_duration_since(freed_at) >= QUARANTINE
        {
            self.freed.remove(&turn);
            self.turn_of.remove(&address);
            self.taken.insert(address);
            return Ok(address.into());
        }
        Err(Full { taken: self.taken.len() as u64, resting: self.freed.len() as u64 })
    }

    /// This address. Whoever asks for one by name may have it while it rests.
    pub fn allocate(&mut self, address: Ipv4Addr) -> Result<(), Unavailable> {
        let number = u32::from(address);
        if !self.subnet.has_host(address) || self.is_excluded(number) {
            return Err(Unavailable::Excluded);
        }
        if !self.taken.insert(number) {
            return Err(Unavailable::Taken);
        }
        if let Some(turn) = self.turn_of.remove(&number) {
            self.freed.remove(&turn);
        }
        Ok(())
    }

    /// No guest has had it: it is the next one again.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if self.taken.remove(&u32::from(address)) {
            self.unused.push(address.into());
        }
    }

    /// Its guest is gone: it rests from now on.
    pub fn free(&mut self, address: Ipv4Addr, now: Instant) {
        let number = u32::from(address);
        if self.taken.remove(&number) {
            self.turn += 1;
            self.freed.insert(self.turn, (number, now));
            self.turn_of.insert(number, self.turn);
        }
    }

    /// Addresses that are neither taken nor excluded, resting ones included.
    pub fn free_count(&self) -> u64 {
        let excluded: u64 =
            self.excluded.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum();
        (1_u64 << (32 - self.subnet.prefix_len())) - excluded - self.taken.len() as u64
    }

    fn never_used(&mut self) -> Option<u32> {
        let address = u32::try_from(self.next).ok().filter(|address| *address <= self.last)?;
        self.next += 1;
        // A range is stepped over at once, however wide.
        if let Some(range) = self.excluded.iter().find(|range| range.contains(&address)) {
            self.next = u64::from(*range.end()) + 1;
            return self.never_used();
        }
        Some(address)
    }

    fn is_excluded(&self, address: u32) -> bool {
        self.excluded.iter().any(|range| range.contains(&address))
    }
}

#[cfg(test)]
mod tests;

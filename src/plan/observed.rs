use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::model::{Mac, RateLimit, Slot};

/// What of ours is in the kernel now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What is under /run/netns with the name of a slot.
    pub anchors: BTreeMap<Slot, Anchor>,
    /// What is in those that were looked into.
    pub inside: BTreeMap<Slot, ObservedInside>,
    /// VMs' names under /run/netns that lead to a slot.
    pub names: BTreeMap<String, Slot>,
    /// Host devices that are ours by index and name.
    pub ports: BTreeMap<Slot, ObservedPort>,
    /// Slots whose host device's name somebody else's device has.
    pub foreign: BTreeSet<Slot>,
    /// Permanent neighbours: device, address, MAC.
    pub neighbours: BTreeSet<(u32, Ipv4Addr, Mac)>,
    /// Our guest routes: device, address.
    pub routes: BTreeSet<(u32, Ipv4Addr)>,
}

/// How much of a slot there is inside its netns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The file is there without a namespace, as an admin's unmounting leaves it.
    File,
    Bare,
    /// The TAP, which a VMM may have open.
    Tap,
    /// The TAP and this end of the veth.
    Whole,
}

/// What there is of a slot's devices in its netns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObservedInside {
    /// Who alone may open the TAP.
    pub owner: Option<u32>,
    pub group: Option<u32>,
    /// Every frame goes from the TAP to the veth, and back.
    pub joined: bool,
    /// The token bucket at this end of the veth.
    pub limit: Option<ObservedLimit>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPort {
    /// Index of the bridge it is a port of.
    pub bridge: Option<u32>,
    pub mtu: u32,
    /// Up, isolated, locked, neither learning nor flooding.
    pub in_shape: bool,
    pub forwarding: BTreeSet<Mac>,
    /// The token bucket at the host's end, which is set last.
    pub limit: Option<ObservedLimit>,
}

impl Observed {
    /// The bridge that a whole slot is on: one that was built to its end and lost nothing since.
    pub fn standing(&self, slot: Slot) -> Option<u32> {
        let whole = self.anchors.get(&slot) == Some(&Anchor::Whole);
        self.ports.get(&slot).filter(|_| whole)?.bridge
    }

    /// Every slot of which there is anything.
    pub fn slots(&self) -> BTreeSet<Slot> {
        self.anchors.keys().chain(self.ports.keys()).copied().collect()
    }
}

/// A token bucket as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedLimit {
    pub bytes_per_second: u64,
    /// About: the kernel keeps it as the time that it takes.
    pub burst: u64,
}

impl ObservedLimit {
    pub fn of(limit: RateLimit) -> Self {
        let burst = u64::from(limit.burst().kib()) * 1_024;
        Self { bytes_per_second: limit.rate.bytes_per_second(), burst }
    }

    pub fn is(self, limit: RateLimit) -> bool {
        let wanted = Self::of(limit);
        self.bytes_per_second == wanted.bytes_per_second
            && self.burst.abs_diff(wanted.burst) <= wanted.burst / 64
    }
}

/// Whether a device has the limit that it is to have, or none.
pub fn is_limited(observed: Option<ObservedLimit>, wanted: Option<RateLimit>) -> bool {
    match (observed, wanted) {
        (Some(observed), Some(wanted)) => observed.is(wanted),
        (observed, wanted) => observed.is_none() && wanted.is_none(),
    }
}

use super::{IfName, Invalid};

/// Number of a ready-made guest network on this host: a netns `guestnet-<n>` with a TAP, wired to the bridge port `gv<n>`.
/// It belongs to no tenant; a VM is bound to it and unbound from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The bridge port on the host.
    pub fn host_device(self) -> IfName {
        // At most "gv4294967295", 12 characters of the alphabet a device name allows.
        #[allow(clippy::expect_used)]
        format!("gv{}", self.0).parse().expect("gv and ten digits are a device name")
    }

    /// Name of its netns under /run/netns.
    pub fn namespace(self) -> String {
        format!("{NAMESPACE}{}", self.0)
    }

    /// The slot whose netns has that name.
    pub fn of_namespace(name: &str) -> Option<Self> {
        let slot = Self(name.strip_prefix(NAMESPACE)?.parse().ok()?);
        (slot.namespace() == name).then_some(slot)
    }

    /// The slot whose host device has that name; whether it is ours, its ifindex says.
    pub fn of_host_device(name: &str) -> Option<Self> {
        let slot = Self(name.strip_prefix("gv")?.parse().ok()?);
        (slot.host_device().as_str() == name).then_some(slot)
    }
}

const NAMESPACE: &str = "guestnet-";

/// The device group ("gnpt") of every port, by which the walls know what comes from one whose bridge is gone.
pub const PORTS: u32 = 0x676e_7074;

/// The interface indexes of one guestnet's own devices. The kernel lets a device's maker choose its index, so they are known
/// and recorded before there is a device: whatever has an index of the range and the name that goes with it is ours, however a
/// start or a call ended, and no message needs a look at the device first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRange {
    first: u32,
}

impl IndexRange {
    /// How many there are: half for slots, half for bridges.
    pub const SIZE: u32 = 65_536;
    /// Slots of a host at most.
    pub const SLOTS: u32 = Self::SIZE / 2;

    /// The index of a slot's host device.
    pub fn port(self, slot: Slot) -> u32 {
        self.first + slot.0
    }

    /// The index of the n-th bridge.
    pub fn bridge(self, n: u32) -> u32 {
        self.first + Self::SLOTS + n
    }

    /// Whether it is one of them.
    pub fn has(self, index: u32) -> bool {
        index.checked_sub(self.first).is_some_and(|n| n < Self::SIZE)
    }

    /// The slot whose host device has this index.
    pub fn slot_at(self, index: u32) -> Option<Slot> {
        index.checked_sub(self.first).filter(|n| *n < Self::SLOTS).map(Slot)
    }

    /// The slot whose host device has this index and name.
    pub fn slot_of(self, index: u32, name: &str) -> Option<Slot> {
        self.slot_at(index).filter(|slot| slot.host_device().as_str() == name)
    }
}

impl TryFrom<u32> for IndexRange {
    type Error = Invalid;
    /// Far above the numbers that the kernel counts up from 1, and a positive i32 to the end.
    fn try_from(first: u32) -> Result<Self, Invalid> {
        if (1 << 24..=i32::MAX as u32 - Self::SIZE).contains(&first) {
            Ok(Self { first })
        } else {
            Err(Invalid::new(first, "the first of a range of interface indexes"))
        }
    }
}

/// One of a network's bridges: `br-vms`, then `br-vms-1` and so on, each with the network's gateway address and MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    pub bridge: IfName,
    pub index: u32,
}

impl Shard {
    /// Ports of a shard at most; the kernel stops at 1,023.
    pub const PORTS: usize = 512;
}

/// Where a slot is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub slot: Slot,
    /// Index of the slot's host device.
    pub port: u32,
    pub shard: Shard,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_slots_by_name_and_index_together() {
        let range = IndexRange::try_from(1 << 28).unwrap();
        let index = range.port(Slot(7));
        assert_eq!(range.slot_of(index, "gv7"), Some(Slot(7)));
        assert_eq!(range.slot_of(7, "gv7"), None);
        assert_eq!(range.slot_of(index, "gv8"), None);
        assert_eq!(range.slot_of(index, "gv07"), None);
        assert_eq!(Slot::of_namespace("guestnet-12"), Some(Slot(12)));
        assert_eq!(Slot::of_namespace("guestnet-012"), None);
    }
}

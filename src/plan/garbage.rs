//! What is ours by record and belongs to nobody. In: everything of ours that is in the kernel, and what there is to be. Out:
//! each leftover with what takes it away. What bears none of our marks (an index of our range, the mark of a namespace, the
//! protocol of a route, a bridge or port of ours that it is on) is somebody else's and not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use super::{Observed, Undo};
use crate::model::{IndexRange, Mac, Place, Shard, Slot, Subnet, Vm, VmId};

/// Something of ours without an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A device with an index of our range.
    Device {
        index: u32,
        name: String,
    },
    Namespace(Slot),
    /// A VM's name for a namespace.
    Name {
        vm_id: VmId,
        slot: Slot,
    },
    /// A route of our protocol, to a guest or for the rest of a subnet.
    Route(OurRoute),
    Neighbour {
        bridge: u32,
        address: Ipv4Addr,
    },
    ForwardingEntry {
        port: u32,
        mac: Mac,
    },
    /// An address on a bridge of ours that is not its gateway's.
    Address {
        bridge: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    },
}

/// A route of our protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OurRoute {
    pub destination: Ipv4Addr,
    pub prefix_len: u8,
    /// None of one that is unreachable.
    pub device: Option<u32>,
}

impl Leftover {
    /// For programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Device { .. } => "device",
            Self::Namespace(_) => "namespace",
            Self::Name { .. } => "name",
            Self::Route(_) => "route",
            Self::Neighbour { .. } => "neighbour",
            Self::ForwardingEntry { .. } => "forwarding_entry",
            Self::Address { .. } => "address",
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { index, name } => write!(f, "{name}, index {index}"),
            Self::Namespace(slot) => f.write_str(&slot.namespace()),
            Self::Name { vm_id, slot } => write!(f, "{}, a name of {}", vm_id.namespace(), slot.namespace()),
            Self::Route(OurRoute { destination, prefix_len, device: Some(device) }) => {
                write!(f, "{destination}/{prefix_len} on the device of index {device}")
            }
            Self::Route(OurRoute { destination, prefix_len, device: None }) => {
                write!(f, "unreachable {destination}/{prefix_len}")
            }
            Self::Neighbour { bridge, address } => write!(f, "{address} on the bridge of index {bridge}"),
            Self::ForwardingEntry { port, mac } => write!(f, "{mac} at the port of index {port}"),
            Self::Address { bridge, address, prefix_len } => {
                write!(f, "{address}/{prefix_len} on the bridge of index {bridge}")
            }
        }
    }
}

/// What of ours is in the kernel beside what is observed of slots.
#[derive(Debug, Clone, Default)]
pub struct Marked {
    /// Devices with an index of our range, by index.
    pub devices: BTreeMap<u32, String>,
    /// Routes of our protocol.
    pub routes: Vec<OurRoute>,
    /// Addresses on devices of our range.
    pub addresses: Vec<(u32, Ipv4Addr, u8)>,
}

/// What there is to be.
pub struct Owners<'a> {
    pub vms: &'a [(&'a Vm, Place)],
    /// Each bridge, with its gateway's address.
    pub bridges: &'a [(Shard, Ipv4Addr)],
    pub subnets: &'a [Subnet],
    /// Slots that are whole, being built or being taken away: the stock sees to them.
    pub kept: &'a dyn Fn(Slot) -> bool,
    pub indexes: IndexRange,
}

/// Everything without an owner, in the order in which it is to go.
pub fn leftovers(owners: &Owners<'_>, observed: &Observed, marked: &Marked) -> Vec<Leftover> {
    let at: BTreeSet<(u32, Ipv4Addr)> =
        owners.vms.iter().map(|(vm, place)| (place.shard.index, vm.address)).collect();
    let macs: BTreeSet<(u32, Mac)> = owners.vms.iter().map(|(vm, place)| (place.port, vm.mac)).collect();
    let bridges: BTreeMap<u32, Ipv4Addr> =
        owners.bridges.iter().map(|(shard, gateway)| (shard.index, *gateway)).collect();
    let mut found = Vec::new();

    for (slot, port) in &observed.ports {
        let index = owners.indexes.port(*slot);
        let strange =
            port.forwarding.iter().filter(|mac| (owners.kept)(*slot) && !macs.contains(&(index, **mac)));
        found.extend(strange.map(|mac| Leftover::ForwardingEntry { port: index, mac: *mac }));
    }
    let has_owner = |route: &OurRoute| match route.device {
        Some(device) => route.prefix_len == 32 && at.contains(&(device, route.destination)),
        None => owners
            .subnets
            .iter()
            .any(|subnet| (subnet.network(), subnet.prefix_len()) == (route.destination, route.prefix_len)),
    };
    found.extend(marked.routes.iter().filter(|route| !has_owner(route)).copied().map(Leftover::Route));
    let stale = |(bridge, address): (u32, Ipv4Addr)| {
        bridges.contains_key(&bridge) && !at.contains(&(bridge, address))
    };
    for (bridge, address, _) in &observed.neighbours {
        if stale((*bridge, *address)) {
            found.push(Leftover::Neighbour { bridge: *bridge, address: *address });
        }
    }
    for (bridge, address, prefix_len) in &marked.addresses {
        if bridges.get(bridge).is_some_and(|gateway| gateway != address) {
            found.push(Leftover::Address { bridge: *bridge, address: *address, prefix_len: *prefix_len });
        }
    }
    let names: BTreeMap<String, Slot> =
        owners.vms.iter().map(|(vm, place)| (vm.vm_id.namespace(), place.slot)).collect();
    for (name, slot) in observed.names.iter().filter(|(name, slot)| names.get(*name) != Some(slot)) {
        let vm_id = name.strip_prefix("vm-").and_then(|id| id.parse().ok());
        found.extend(vm_id.map(|vm_id| Leftover::Name { vm_id, slot: *slot }));
    }
    for (index, name) in &marked.devices {
        let kept = owners.indexes.slot_at(*index).is_some_and(|slot| (owners.kept)(slot));
        if !kept && !bridges.contains_key(index) {
            found.push(Leftover::Device { index: *index, name: name.clone() });
        }
    }
    let anchors = observed.anchors.keys().filter(|slot| !(owners.kept)(**slot));
    found.extend(anchors.copied().map(Leftover::Namespace));
    found
}

/// What takes it away.
pub fn remove(leftover: &Leftover) -> Undo {
    match leftover {
        Leftover::Device { index, .. } => Undo::Veth { port: *index },
        Leftover::Namespace(slot) => Undo::Namespace { slot: *slot },
        Leftover::Name { vm_id, slot } => Undo::Name { vm_id: vm_id.clone(), slot: *slot },
        Leftover::Neighbour { bridge, address } => Undo::Neighbour { bridge: *bridge, address: *address },
        Leftover::ForwardingEntry { port, mac } => Undo::ForwardingEntry { port: *port, mac: *mac },
        Leftover::Route(route) => Undo::Route { route: *route },
        Leftover::Address { bridge, address, prefix_len } => {
            Undo::Address { bridge: *bridge, address: *address, prefix_len: *prefix_len }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;
    use crate::plan::{Anchor, ObservedPort};

    #[test]
    fn what_has_an_owner_stays_and_what_has_none_goes() {
        let (network, vm, place) = (testing::network(), testing::vm(1), testing::place(1));
        let indexes = IndexRange::try_from(1 << 28).unwrap();
        let place = Place { port: indexes.port(place.slot), ..place };
        let (bridge, stray) = (place.shard.index, Slot(9));
        let other: Ipv4Addr = "10.100.0.99".parse().unwrap();
        let mac = Mac::for_address(other);
        let port =
            |macs: &[Mac]| ObservedPort { forwarding: macs.iter().copied().collect(), ..Default::default() };
        let route = |destination, prefix_len, device| OurRoute { destination, prefix_len, device };
        let subnet = route(network.subnet.network(), network.subnet.prefix_len(), None);
        let mut observed = Observed {
            anchors: [(place.slot, Anchor::Whole)].into(),
            names: [(vm.vm_id.namespace(), place.slot)].into(),
            ports: [(place.slot, port(&[vm.mac]))].into(),
            neighbours: [(bridge, vm.address, vm.mac), (3, other, mac)].into(),
            ..Default::default()
        };
        let mut marked = Marked {
            devices: [(place.port, "gv1".to_owned()), (bridge, "br-vms".to_owned())].into(),
            routes: vec![route(vm.address, 32, Some(bridge)), subnet],
            addresses: vec![(bridge, network.gateway, 16)],
        };
        let vms = [(&vm, place.clone())];
        let owners = Owners {
            vms: &vms,
            bridges: &[(place.shard.clone(), network.gateway)],
            subnets: &[network.subnet],
            kept: &|slot| slot == place.slot,
            indexes,
        };
        assert_eq!(leftovers(&owners, &observed, &marked), []);
        observed.anchors.insert(stray, Anchor::Bare);
        observed.names.insert("vm-gone".into(), place.slot);
        observed.ports.insert(place.slot, port(&[vm.mac, mac]));
        observed.neighbours.insert((bridge, other, mac));
        marked.devices.insert(indexes.port(stray), "gv9".into());
        marked.routes.extend([route(other, 32, Some(bridge)), route(other, 32, None)]);
        marked.addresses.push((bridge, other, 16));
        let found = leftovers(&owners, &observed, &marked);
        let kinds: Vec<&str> = found.iter().map(Leftover::kind).collect();
        let wanted =
            ["forwarding_entry", "route", "route", "neighbour", "address", "name", "device", "namespace"];
        assert_eq!(kinds, wanted, "{found:?}");
        assert!(found.iter().all(|leftover| !leftover.to_string().is_empty()));
    }
}

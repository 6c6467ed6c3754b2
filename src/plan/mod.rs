//! What has to be done to the kernel, as data: desired state and what was observed go in, ordered steps come out. Each
//! step is one kernel object, knows how it is undone and whether it is there already; `kernel` carries steps out. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod firewall;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub use firewall::{CHAINS, COMMENT, HostRules, host_rules};

use crate::model::{BridgeName, Mac, Network, RateMbps, Slot, Subnet, Vm, VmId};

/// One kernel object of ours, made by a step and removed by its undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The bridge with its fixed MAC, address, sysctls: up, empty.
    Bridge { bridge: BridgeName, gateway: Ipv4Addr, subnet: Subnet, mtu: u16 },
    /// `unreachable SUBNET`: addresses no guest has must not leak upstream.
    UnreachableSubnet { subnet: Subnet },

    /// netns `vm-<vm_id>`, made first and removed last: the anchor for finding what was left behind.
    Namespace { vm_id: VmId },
    /// `tap0`, persistent, with virtio-net headers, up.
    Tap { vm_id: VmId, mtu: u16 },
    /// `gv<slot>` on the host, down, and its peer `in0` in the netns, up; both ways redirected between `in0` and `tap0`.
    /// `replace` takes away the `gv<slot>` that leads into a netns that was lost; otherwise a device of that name is not
    /// ours, and an error.
    Veth { vm_id: VmId, slot: Slot, mtu: u16, replace: bool },
    /// `gv<slot>` as an isolated, locked port that neither learns nor floods.
    Port { slot: Slot, bridge: BridgeName },
    /// A token bucket on each end of the veth: the guest's upload on `in0`, its download on `gv<slot>`.
    RateLimit { vm_id: VmId, slot: Slot, rate: RateMbps },
    /// The MAC is this port's and no other's.
    ForwardingEntry { slot: Slot, mac: Mac },
    /// The host never asks who has the address.
    Neighbour { bridge: BridgeName, address: Ipv4Addr, mac: Mac },
    /// `ADDRESS/32 dev BRIDGE`.
    GuestRoute { bridge: BridgeName, address: Ipv4Addr, gateway: Ipv4Addr },
    /// The port goes up, last: nothing passes before all else stands.
    PortUp { slot: Slot },
}

/// How a step is taken back. Removing a thing that is gone already is not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    Bridge {
        bridge: BridgeName,
    },
    UnreachableSubnet {
        subnet: Subnet,
    },
    Namespace {
        vm_id: VmId,
    },
    Tap {
        vm_id: VmId,
    },
    /// Removing one end removes the other, the port, its queues and its forwarding entries.
    Veth {
        slot: Slot,
    },
    Neighbour {
        bridge: BridgeName,
        address: Ipv4Addr,
    },
    GuestRoute {
        bridge: BridgeName,
        address: Ipv4Addr,
    },
    PortDown {
        slot: Slot,
    },
}

/// What of ours is in the kernel now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub namespaces: BTreeSet<String>,
    /// Bridge ports by slot, with the bridge they are on.
    pub ports: BTreeMap<Slot, ObservedPort>,
    pub neighbours: BTreeSet<(Ipv4Addr, Mac)>,
    pub routes: BTreeSet<Ipv4Addr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPort {
    pub bridge: Option<String>,
    pub up: bool,
    pub forwarding: BTreeSet<Mac>,
    pub rate_limited: bool,
}

impl Step {
    pub fn undo(&self) -> Option<Undo> {
        Some(match self {
            Self::Bridge { bridge, .. } => Undo::Bridge { bridge: bridge.clone() },
            Self::UnreachableSubnet { subnet } => Undo::UnreachableSubnet { subnet: *subnet },
            Self::Namespace { vm_id } => Undo::Namespace { vm_id: vm_id.clone() },
            Self::Tap { vm_id, .. } => Undo::Tap { vm_id: vm_id.clone() },
            Self::Veth { slot, .. } => Undo::Veth { slot: *slot },
            Self::Neighbour { bridge, address, .. } => {
                Undo::Neighbour { bridge: bridge.clone(), address: *address }
            }
            Self::GuestRoute { bridge, address, .. } => {
                Undo::GuestRoute { bridge: bridge.clone(), address: *address }
            }
            Self::PortUp { slot } => Undo::PortDown { slot: *slot },
            // These live on the veth and go with it.
            Self::Port { .. } | Self::RateLimit { .. } | Self::ForwardingEntry { .. } => return None,
        })
    }

    fn is_in(&self, observed: &Observed) -> bool {
        let port = |slot: &Slot| observed.ports.get(slot);
        match self {
            // Made or checked once at the start, not per VM.
            Self::Bridge { .. } | Self::UnreachableSubnet { .. } => false,
            // Neither the TAP nor the port's flags can be seen in the dumps: both are done again, at no cost to a guest.
            Self::Tap { .. } | Self::Port { .. } => false,
            Self::Namespace { vm_id } => observed.namespaces.contains(&vm_id.namespace()),
            Self::Veth { vm_id, slot, .. } => {
                port(slot).is_some() && observed.namespaces.contains(&vm_id.namespace())
            }
            Self::RateLimit { slot, .. } => port(slot).is_some_and(|p| p.rate_limited),
            Self::ForwardingEntry { slot, mac } => port(slot).is_some_and(|p| p.forwarding.contains(mac)),
            Self::Neighbour { address, mac, .. } => observed.neighbours.contains(&(*address, *mac)),
            Self::GuestRoute { address, .. } => observed.routes.contains(address),
            Self::PortUp { slot } => port(slot).is_some_and(|p| p.up),
        }
    }
}

/// What a network needs before its first VM.
pub fn network(network: &Network) -> Vec<Step> {
    vec![
        Step::Bridge {
            bridge: network.bridge.clone(),
            gateway: network.gateway,
            subnet: network.subnet,
            mtu: network.mtu,
        },
        Step::UnreachableSubnet { subnet: network.subnet },
    ]
}

/// What a VM needs that is not there yet, in order; all of it for a new one.
pub fn vm(vm: &Vm, network: &Network, observed: &Observed) -> Vec<Step> {
    let lost_its_netns = observed.ports.contains_key(&vm.slot);
    vm_steps(vm, network, lost_its_netns).into_iter().filter(|step| !step.is_in(observed)).collect()
}

/// What takes a VM away: its port first, its netns last.
pub fn remove_vm(vm: &Vm, network: &Network) -> Vec<Undo> {
    undo_of(vm_steps(vm, network, false))
}

fn undo_of(steps: Vec<Step>) -> Vec<Undo> {
    steps.iter().rev().filter_map(Step::undo).collect()
}

fn vm_steps(vm: &Vm, network: &Network, replace: bool) -> Vec<Step> {
    let (vm_id, slot, mtu, bridge) = (&vm.vm_id, vm.slot, network.mtu, &network.bridge);
    let rate_limit = vm.rate_limit.map(|rate| Step::RateLimit { vm_id: vm_id.clone(), slot, rate });
    [
        Step::Namespace { vm_id: vm_id.clone() },
        Step::Tap { vm_id: vm_id.clone(), mtu },
        Step::Veth { vm_id: vm_id.clone(), slot, mtu, replace },
        Step::Port { slot, bridge: bridge.clone() },
    ]
    .into_iter()
    .chain(rate_limit)
    .chain([
        Step::ForwardingEntry { slot, mac: vm.mac },
        Step::Neighbour { bridge: bridge.clone(), address: vm.address, mac: vm.mac },
        Step::GuestRoute { bridge: bridge.clone(), address: vm.address, gateway: network.gateway },
        Step::PortUp { slot },
    ])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    #[test]
    fn a_new_vm_is_built_from_its_netns_to_its_port_and_removed_the_other_way() {
        let (network, vm) = (testing::network(), testing::vm(1));
        let steps = self::vm(&vm, &network, &Observed::default());
        assert!(matches!(steps.first(), Some(Step::Namespace { .. })));
        assert!(matches!(steps.last(), Some(Step::PortUp { .. })));
        assert_eq!(steps.len(), 9);
        let undone = remove_vm(&vm, &network);
        assert!(matches!(undone.first(), Some(Undo::PortDown { .. })));
        assert!(matches!(undone.last(), Some(Undo::Namespace { .. })));
    }

    #[test]
    fn of_a_vm_that_stands_only_what_cannot_be_seen_is_done_again_and_a_lost_route_is_made() {
        let (network, vm) = (testing::network(), testing::vm(1));
        let port = ObservedPort {
            bridge: Some("br-vms".into()),
            up: true,
            forwarding: [vm.mac].into(),
            rate_limited: true,
        };
        let mut observed = Observed {
            namespaces: [vm.vm_id.namespace()].into(),
            ports: [(vm.slot, port)].into(),
            neighbours: [(vm.address, vm.mac)].into(),
            routes: [vm.address].into(),
        };
        assert!(matches!(self::vm(&vm, &network, &observed)[..], [Step::Tap { .. }, Step::Port { .. }]));
        observed.routes.clear();
        let steps = self::vm(&vm, &network, &observed);
        assert!(matches!(steps[..], [Step::Tap { .. }, Step::Port { .. }, Step::GuestRoute { .. }]));
    }

    #[test]
    fn a_vm_whose_netns_is_gone_gets_a_new_veth_into_the_new_one() {
        let (network, vm) = (testing::network(), testing::vm(1));
        let observed = Observed { ports: [(vm.slot, ObservedPort::default())].into(), ..Observed::default() };
        let steps = self::vm(&vm, &network, &observed);
        assert!(steps.iter().any(|step| matches!(step, Step::Veth { replace: true, .. })));
    }
}

//! A VM on its slot: bound, unbound, and brought back into shape at a start.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::{Anchor, Observed, Step, Undo, build_slot, clear_slot, is_limited, replug_slot, wire_slot};
use crate::model::{IndexRange, Mac, Network, Place, Slot, TapOptions, Vm};

/// What binds a VM to its slot: nothing passes before the last step.
pub fn bind(vm: &Vm, place: &Place, network: &Network) -> Vec<Step> {
    let tap = Step::TapOptions { slot: place.slot, tap: vm.tap };
    let tap = (vm.tap != TapOptions::default()).then_some(tap);
    tap.into_iter().chain(rebind(vm, place, network)).collect()
}

/// The same for a VM whose TAP is as it was: a VMM may have it open.
pub fn rebind(vm: &Vm, place: &Place, network: &Network) -> Vec<Step> {
    let (slot, port, bridge) = (place.slot, place.port, place.shard.index);
    // A slot comes with the network's own limit.
    let limit = (vm.rate_limit != network.rate_limit).then(|| limit(vm, place));
    limit
        .into_iter()
        .chain([
            Step::Name { vm_id: vm.vm_id.clone(), slot },
            Step::Neighbour { bridge, address: vm.address, mac: vm.mac },
            Step::GuestRoute { bridge, address: vm.address, gateway: network.gateway },
            Step::ForwardingEntry { port, mac: vm.mac },
        ])
        .collect()
}

/// What gives a VM the limit that it is to have.
pub fn limit(vm: &Vm, place: &Place) -> Step {
    Step::RateLimit { slot: place.slot, port: place.port, limit: vm.rate_limit }
}

/// What unbinds a VM: nothing passes after the first step.
pub fn unbind(vm: &Vm, place: &Place, network: &Network) -> Vec<Undo> {
    bind(vm, place, network).iter().rev().filter_map(Step::undo).collect()
}

/// What brings a VM back into shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mend {
    pub undo: Vec<Undo>,
    pub steps: Vec<Step>,
}

/// What of a bound VM is missing or in the way. Of a slot that is not whole the TAP is kept, if it is there: a VMM may have it
/// open, and its guest is back as soon as it is wired again.
pub fn mend(vm: &Vm, place: &Place, network: &Network, observed: &Observed) -> Mend {
    let inside = observed.inside.get(&place.slot);
    // Of a TAP that was made and not finished by a run that was cut off. Last: if a VMM has it open all the same it fails, and
    // nothing else.
    let fits = |wanted: Option<u32>, is: Option<u32>| wanted.is_none() || wanted == is;
    let unfinished =
        inside.is_some_and(|inside| !fits(vm.tap.uid, inside.owner) || !fits(vm.tap.gid, inside.group));
    let finish = unfinished.then_some(Step::TapOptions { slot: place.slot, tap: vm.tap });
    let kept = |steps: [Vec<Step>; 2]| steps.into_iter().flatten().chain(finish.clone()).collect();
    if observed.standing(place.slot) != Some(place.shard.index) {
        let veth = vec![Undo::Veth { port: place.port }];
        let build = || [build_slot(place, network, vm.tap.multi_queue), bind(vm, place, network)].concat();
        let mtu = observed.ports.get(&place.slot).map(|port| port.mtu);
        let (undo, steps) = match observed.anchors.get(&place.slot) {
            // Its bridge was removed, or it was taken off it.
            Some(Anchor::Whole) if mtu == Some(network.mtu.into()) => {
                (Vec::new(), kept([replug_slot(place, network), rebind(vm, place, network)]))
            }
            Some(Anchor::Tap | Anchor::Whole) => {
                (veth, kept([wire_slot(place, network), rebind(vm, place, network)]))
            }
            Some(_) => (clear_slot(place), build()),
            None => (veth, build()),
        };
        return Mend { undo, steps };
    }
    let port = &observed.ports[&place.slot];
    let strangers = port.forwarding.iter().filter(|mac| **mac != vm.mac);
    let undo = strangers.map(|mac| Undo::ForwardingEntry { port: place.port, mac: *mac }).collect();
    let again = Step::Port { slot: place.slot, port: place.port, bridge: place.shard.index };
    let again = (!port.in_shape).then_some(again);
    let join = inside.is_some_and(|inside| !inside.joined).then_some(Step::Redirect { slot: place.slot });
    let missing = rebind(vm, place, network).into_iter().filter(|step| !is_in(step, place, observed));
    // Whether it is the network's own or another, from before a configuration or a call that was cut off.
    let limited = is_limited(port.limit, vm.rate_limit)
        && inside.is_none_or(|inside| is_limited(inside.limit, vm.rate_limit));
    let limit = (!limited).then(|| limit(vm, place));
    let steps = again.into_iter().chain(join).chain(limit).chain(missing);
    Mend { undo, steps: kept([steps.collect(), Vec::new()]) }
}

fn is_in(step: &Step, place: &Place, observed: &Observed) -> bool {
    match step {
        // Seen to apart from the others.
        Step::RateLimit { .. } => true,
        Step::Name { vm_id, slot } => observed.names.get(&vm_id.namespace()) == Some(slot),
        Step::Neighbour { bridge, address, mac } => observed.neighbours.contains(&(*bridge, *address, *mac)),
        Step::GuestRoute { bridge, address, .. } => observed.routes.contains(&(*bridge, *address)),
        Step::ForwardingEntry { mac, .. } => observed.ports[&place.slot].forwarding.contains(mac),
        _ => false,
    }
}

/// What stands for VMs that are not: left by a call that was cut off, or of a bridge that a VM was on once. `vms` are all that
/// there are, with their places.
pub fn strays<'a>(
    vms: impl Iterator<Item = (&'a Vm, &'a Place)>,
    bridges: &BTreeSet<u32>,
    indexes: IndexRange,
    observed: &Observed,
) -> Vec<Undo> {
    let mut at: HashMap<(u32, Ipv4Addr), Mac> = HashMap::new();
    let mut names: HashMap<String, Slot> = HashMap::new();
    let mut taken: BTreeSet<Slot> = BTreeSet::new();
    for (vm, place) in vms {
        at.insert((place.shard.index, vm.address), vm.mac);
        names.insert(vm.vm_id.namespace(), place.slot);
        taken.insert(place.slot);
    }
    let names = observed.names.iter().filter(|(name, slot)| names.get(*name) != Some(slot));
    let names = names.filter_map(|(name, slot)| {
        let vm_id = name.strip_prefix("vm-")?.parse().ok()?;
        Some(Undo::Name { vm_id, slot: *slot })
    });
    let ours =
        |bridge: &u32, address: &Ipv4Addr| bridges.contains(bridge) && !at.contains_key(&(*bridge, *address));
    let routes = observed.routes.iter().filter(|(bridge, address)| ours(bridge, address));
    let routes = routes.map(|(bridge, address)| Undo::GuestRoute { bridge: *bridge, address: *address });
    let neighbours = observed.neighbours.iter().filter(|(bridge, address, _)| ours(bridge, address));
    let neighbours =
        neighbours.map(|(bridge, address, _)| Undo::Neighbour { bridge: *bridge, address: *address });
    let free = observed.ports.iter().filter(|(slot, _)| !taken.contains(slot));
    let entries = free.flat_map(|(slot, port)| port.forwarding.iter().map(move |mac| (*slot, *mac)));
    let entries = entries.map(|(slot, mac)| Undo::ForwardingEntry { port: indexes.port(slot), mac });
    entries.chain(routes).chain(neighbours).chain(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;
    use crate::plan::{ObservedInside, ObservedLimit, ObservedPort};

    fn standing() -> (Network, Vm, Place, Observed) {
        let (network, vm, place) = (testing::network(), testing::vm(1), testing::place(1));
        let bridge = place.shard.index;
        let port = ObservedPort {
            bridge: Some(bridge),
            mtu: 1500,
            in_shape: true,
            forwarding: [vm.mac].into(),
            limit: network.rate_limit.map(ObservedLimit::of),
        };
        let observed = Observed {
            anchors: [(vm.slot, Anchor::Whole)].into(),
            names: [(vm.vm_id.namespace(), vm.slot)].into(),
            ports: [(vm.slot, port)].into(),
            neighbours: [(bridge, vm.address, vm.mac)].into(),
            routes: [(bridge, vm.address)].into(),
            ..Observed::default()
        };
        (network, vm, place, observed)
    }

    #[test]
    fn a_vm_is_let_in_last_and_shut_out_first() {
        let (network, vm, place, _) = standing();
        assert!(matches!(bind(&vm, &place, &network).last(), Some(Step::ForwardingEntry { .. })));
        assert!(matches!(unbind(&vm, &place, &network).first(), Some(Undo::ForwardingEntry { .. })));
    }

    #[test]
    fn of_a_vm_that_stands_only_what_was_lost_is_made() {
        let (network, vm, place, mut observed) = standing();
        assert_eq!(mend(&vm, &place, &network, &observed), Mend::default());
        observed.routes.clear();
        observed.ports.get_mut(&vm.slot).unwrap().in_shape = false;
        let steps = mend(&vm, &place, &network, &observed).steps;
        assert!(matches!(steps[..], [Step::Port { .. }, Step::GuestRoute { .. }]));
    }

    #[test]
    fn what_was_changed_inside_a_slot_is_made_again() {
        let (network, vm, place, mut observed) = standing();
        let whole = ObservedInside {
            joined: true,
            limit: network.rate_limit.map(ObservedLimit::of),
            ..ObservedInside::default()
        };
        let mut steps = |inside: ObservedInside| {
            observed.inside.insert(vm.slot, inside);
            mend(&vm, &place, &network, &observed).steps
        };
        assert_eq!(steps(whole), []);
        assert!(matches!(steps(ObservedInside { joined: false, ..whole })[..], [Step::Redirect { .. }]));
        for limit in [None, Some(ObservedLimit { bytes_per_second: 1, burst: 1 })] {
            assert!(matches!(steps(ObservedInside { limit, ..whole })[..], [Step::RateLimit { .. }]));
        }
    }

    #[test]
    fn a_taps_owner_is_set_where_it_is_not_and_after_all_else() {
        let (network, mut vm, place, mut observed) = standing();
        vm.tap.uid = Some(1000);
        // Its name was taken away under a VMM that has the TAP open.
        observed.names.clear();
        let inside = |owner| ObservedInside {
            owner,
            joined: true,
            limit: network.rate_limit.map(ObservedLimit::of),
            ..ObservedInside::default()
        };
        observed.inside.insert(vm.slot, inside(Some(1000)));
        assert!(matches!(mend(&vm, &place, &network, &observed).steps[..], [Step::Name { .. }]));
        observed.inside.clear();
        assert!(matches!(mend(&vm, &place, &network, &observed).steps[..], [Step::Name { .. }]));
        // A run that was cut off when it had made the TAP and no more.
        for anchor in [Anchor::Whole, Anchor::Tap] {
            observed.anchors.insert(vm.slot, anchor);
            observed.inside.insert(vm.slot, inside(None));
            let steps = mend(&vm, &place, &network, &observed).steps;
            assert!(matches!(steps.last(), Some(Step::TapOptions { .. })), "{steps:?}");
            assert!(steps.iter().any(|step| matches!(step, Step::Name { .. })));
        }
    }

    #[test]
    fn a_slot_that_is_not_whole_is_made_anew_but_for_a_tap_that_may_be_open() {
        let (network, vm, place, observed) = standing();
        let anew = Step::Namespace { slot: place.slot, port: place.port };
        let wired = Step::Veth { slot: place.slot, port: place.port, mtu: network.mtu };
        let anchored = |anchor| Observed { anchors: [(vm.slot, anchor)].into(), ..observed.clone() };
        let cases = [
            (anchored(Anchor::File), &anew),
            (anchored(Anchor::Bare), &anew),
            (Observed { anchors: [].into(), ..observed.clone() }, &anew),
            (anchored(Anchor::Tap), &wired),
            (Observed { ports: [].into(), ..observed.clone() }, &wired),
        ];
        for (observed, first) in cases {
            let mend = mend(&vm, &place, &network, &observed);
            assert!(mend.undo.contains(&Undo::Veth { port: place.port }), "{observed:?}");
            assert_eq!(mend.steps.first(), Some(first), "{observed:?}");
            assert!(matches!(mend.steps.last(), Some(Step::ForwardingEntry { .. })));
        }
    }

    #[test]
    fn a_whole_slot_off_its_bridge_is_plugged_in_again_with_its_veth() {
        let (network, vm, place, mut observed) = standing();
        for bridge in [None, Some(place.shard.index + 1)] {
            observed.ports.get_mut(&vm.slot).unwrap().bridge = bridge;
            let mend = mend(&vm, &place, &network, &observed);
            assert_eq!(mend.undo, []);
            assert!(matches!(mend.steps.first(), Some(Step::Unplug { .. })));
            assert!(mend.steps.iter().any(|step| matches!(step, Step::Port { .. })));
            assert!(matches!(mend.steps.last(), Some(Step::ForwardingEntry { .. })));
        }
        // One of another MTU is no veth of this network.
        observed.ports.get_mut(&vm.slot).unwrap().mtu += 1;
        assert_eq!(super::mend(&vm, &place, &network, &observed).undo, [Undo::Veth { port: place.port }]);
    }

    #[test]
    fn what_stands_for_no_vm_is_a_stray() {
        let (_, vm, place, mut observed) = standing();
        let indexes = IndexRange::try_from(1 << 28).unwrap();
        let bridges = BTreeSet::from([place.shard.index]);
        let strays = |observed: &Observed, vms: &[(&Vm, &Place)]| {
            super::strays(vms.iter().copied(), &bridges, indexes, observed)
        };
        assert_eq!(strays(&observed, &[(&vm, &place)]), []);
        assert_eq!(strays(&observed, &[]).len(), 4);
        // A neighbour on a device that is not ours is not ours either.
        observed.neighbours.insert((2, "192.0.2.1".parse().unwrap(), vm.mac));
        assert_eq!(strays(&observed, &[(&vm, &place)]), []);
    }
}

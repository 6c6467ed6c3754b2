//! A slot: what of a guest's network can be made before there is a guest.

use super::{Observed, Step, Undo, is_limited};
use crate::model::{Network, Place};

/// A slot of `network`, from its netns to its port.
pub fn build_slot(place: &Place, network: &Network, multi_queue: bool) -> Vec<Step> {
    let (slot, port, mtu) = (place.slot, place.port, network.mtu);
    [Step::Namespace { slot, port }, Step::Tap { slot, port, mtu, multi_queue }]
        .into_iter()
        .chain(wire_slot(place, network))
        .collect()
}

/// The part of it from the TAP to the bridge.
pub fn wire_slot(place: &Place, network: &Network) -> Vec<Step> {
    let (slot, port, mtu) = (place.slot, place.port, network.mtu);
    let limit = network.rate_limit.map(|limit| Step::RateLimit { slot, port, limit: Some(limit) });
    [Step::Veth { slot, port, mtu }, Step::Redirect { slot }]
        .into_iter()
        .chain(limit)
        .chain([Step::Port { slot, port, bridge: place.shard.index }])
        .collect()
}

/// A whole slot that is a port of no bridge, or of another: what it has inside may be unfinished. Its TAP and its veth stay.
pub fn replug_slot(place: &Place, network: &Network) -> Vec<Step> {
    let (slot, port) = (place.slot, place.port);
    let wired = wire_slot(place, network).into_iter().filter(|step| !matches!(step, Step::Veth { .. }));
    [Step::Unplug { slot, port }].into_iter().chain(wired).collect()
}

/// What takes a slot away, whatever there is of it: its port first, its netns last.
pub fn clear_slot(place: &Place) -> Vec<Undo> {
    vec![Undo::Veth { port: place.port }, Undo::Namespace { slot: place.slot }]
}

/// Whether a slot without a VM is as it was built: on its bridge, closed, up, with the network's limit; inside, too, if it was
/// looked into.
pub fn is_whole(place: &Place, network: &Network, observed: &Observed) -> bool {
    let Some(port) = observed.ports.get(&place.slot) else { return false };
    let inside = observed.inside.get(&place.slot);
    let inside_limited =
        inside.is_none_or(|inside| inside.joined && is_limited(inside.limit, network.rate_limit));
    let limited = is_limited(port.limit, network.rate_limit) && inside_limited;
    observed.standing(place.slot) == Some(place.shard.index) && port.in_shape && limited
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;
    use crate::plan::{Anchor, ObservedLimit, ObservedPort};

    #[test]
    fn a_slot_is_built_from_its_netns_to_its_port() {
        let steps = build_slot(&testing::place(1), &testing::network(), false);
        assert!(matches!(steps.first(), Some(Step::Namespace { .. })));
        assert!(matches!(steps.last(), Some(Step::Port { .. })), "a port of a bridge is a whole slot");
    }

    #[test]
    fn a_slot_that_lost_anything_is_not_whole() {
        let (place, network) = (testing::place(1), testing::network());
        let port = ObservedPort {
            bridge: Some(place.shard.index),
            mtu: network.mtu.into(),
            in_shape: true,
            limit: network.rate_limit.map(ObservedLimit::of),
            ..ObservedPort::default()
        };
        let whole = |anchor, port: &ObservedPort| {
            let observed = Observed {
                anchors: [(place.slot, anchor)].into(),
                ports: [(place.slot, port.clone())].into(),
                ..Observed::default()
            };
            is_whole(&place, &network, &observed)
        };
        assert!(whole(Anchor::Whole, &port));
        assert!(!whole(Anchor::Tap, &port));
        let another = ObservedLimit { bytes_per_second: 1, burst: 1 };
        let other_limit = port.limit.map_or(Some(another), |_| None);
        for broken in [
            ObservedPort { bridge: None, ..port.clone() },
            ObservedPort { bridge: Some(place.shard.index + 1), ..port.clone() },
            ObservedPort { in_shape: false, ..port.clone() },
            ObservedPort { limit: other_limit, ..port.clone() },
            ObservedPort { limit: Some(another), ..port.clone() },
        ] {
            assert!(!whole(Anchor::Whole, &broken), "{broken:?}");
        }
        assert!(!is_whole(&place, &network, &Observed::default()));
    }
}

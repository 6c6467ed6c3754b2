//! What of ours is in the kernel: one dump of each kind, whatever the number of VMs, and a look into each slot.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;

use super::error::{Doing, KernelError};
use super::lane::Hands;
use super::{inside, links, netns, routes, tc};
use crate::model::{IndexRange, Slot};
use crate::plan::garbage::Marked;
use crate::plan::{Anchor, Observed, ObservedPort};

/// No namespace has a number below 0.
const NOWHERE: i32 = -1;

/// Into which slots to look: it takes entering each one's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look<'a> {
    Everywhere,
    /// A port that is there has its other end inside; and into these, and those whose namespaces have these numbers.
    WherePortsAreGoneAnd(&'a BTreeSet<Slot>, &'a BTreeSet<i32>),
    /// Of the others nothing is to be known.
    Into(&'a BTreeSet<Slot>),
}

impl Look<'_> {
    /// `namespace` is the number of that which the slot's port leads to; none when there is no such port.
    fn is_into(self, slot: Slot, namespace: Option<i32>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::WherePortsAreGoneAnd(slots, namespaces) => {
                slots.contains(&slot) || namespace.is_none_or(|number| namespaces.contains(&number))
            }
            Self::Into(slots) => slots.contains(&slot),
        }
    }
}

pub(super) fn observe(
    hands: &mut Hands,
    indexes: IndexRange,
    look: Look<'_>,
) -> Result<Observed, KernelError> {
    let mut ports = BTreeMap::new();
    let mut foreign = BTreeSet::new();
    let mut namespaces = BTreeMap::new();
    for link in links::all(&mut hands.rtnl)? {
        match indexes.slot_of(link.index, &link.name) {
            Some(slot) => {
                let in_shape = link.up && link.closed;
                let (bridge, mtu) = (link.controller, link.mtu);
                ports.insert(slot, ObservedPort { bridge, mtu, in_shape, ..ObservedPort::default() });
                namespaces.insert(slot, link.namespace.unwrap_or(NOWHERE));
            }
            None => foreign.extend(Slot::of_host_device(&link.name)),
        }
    }
    let port_of = |index: u32| indexes.slot_at(index);
    for (port, mac) in routes::forwarding(&mut hands.rtnl)? {
        if let Some(port) = port_of(port).and_then(|slot| ports.get_mut(&slot)) {
            port.forwarding.insert(mac);
        }
    }
    let qdiscs = hands.rtnl.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()));
    for qdisc in qdiscs.doing(|| "listing queueing disciplines".into())? {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = qdisc else { continue };
        let slot = u32::try_from(qdisc.header.index).ok().and_then(port_of);
        if let Some(port) = slot.and_then(|slot| ports.get_mut(&slot)) {
            port.limit = port.limit.or(tc::limit_of(&qdisc));
        }
    }
    let mut names = netns::names()?;
    let (mut anchors, mut looked_into) = (BTreeMap::new(), BTreeMap::new());
    for (slot, is_namespace) in names.anchors {
        let found = match is_namespace {
            true if !look.is_into(slot, namespaces.get(&slot).copied()) => Some((Anchor::Whole, None)),
            true => inside::look(hands, slot, indexes.port(slot))?
                .map(|inside| (inside.anchor, Some(inside.found))),
            false => Some((Anchor::File, None)),
        };
        match found {
            Some((anchor, found)) => {
                anchors.insert(slot, anchor);
                looked_into.extend(found.map(|found| (slot, found)));
            }
            None => _ = foreign.insert(slot),
        }
    }
    anchors.retain(|slot, _| !foreign.contains(slot));
    names.names.retain(|_, slot| !foreign.contains(slot));
    Ok(Observed {
        anchors,
        inside: looked_into,
        names: names.names,
        ports,
        foreign,
        neighbours: routes::neighbours(&mut hands.rtnl)?.into_iter().collect(),
        routes: routes::guests(&mut hands.rtnl)?.into_iter().collect(),
    })
}

/// What bears a mark of ours beside what is observed of slots.
pub(super) fn marked(hands: &mut Hands, indexes: IndexRange) -> Result<Marked, KernelError> {
    let devices = links::all(&mut hands.rtnl)?.into_iter().filter(|link| indexes.has(link.index));
    let addresses = links::all_addresses(&mut hands.rtnl)?.into_iter();
    Ok(Marked {
        devices: devices.map(|link| (link.index, link.name)).collect(),
        routes: routes::ours(&mut hands.rtnl)?,
        addresses: addresses.filter(|(index, ..)| indexes.has(*index)).collect(),
    })
}

/// What `lo` and the TAP in a slot's namespace are marked with.
pub(super) fn mark(port: u32) -> String {
    format!("guestnet {port}")
}

/// The port of a slot that something is marked with.
pub(super) fn port_of_mark(mark: &str) -> Option<u32> {
    mark.strip_prefix("guestnet ")?.parse().ok()
}

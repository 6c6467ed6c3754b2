//! What of ours is in the kernel: one dump of each kind, whatever the number of VMs.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::Handle;

use super::error::{Doing, KernelError};
use super::{links, netns, routes};
use crate::model::Slot;
use crate::plan::{Observed, ObservedPort};

pub(super) async fn observe(handle: &Handle) -> Result<Observed, KernelError> {
    let links = links::all(handle).await?;
    let name_of: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let mut ports = BTreeMap::new();
    let mut slot_of = BTreeMap::new();
    for link in &links {
        let Some(slot) = slot_from(&link.name) else { continue };
        slot_of.insert(link.index, slot);
        let bridge = link.controller.and_then(|index| name_of.get(&index)).map(ToString::to_string);
        ports.insert(slot, ObservedPort { bridge, up: link.up, ..ObservedPort::default() });
    }
    let port_at = |index: &u32| slot_of.get(index);
    for (port, mac) in routes::forwarding(handle).await? {
        if let Some(port) = port_at(&port).and_then(|slot| ports.get_mut(slot)) {
            port.forwarding.insert(mac);
        }
    }
    let qdiscs: Vec<TcMessage> =
        handle.qdisc().get().execute().try_collect().await.doing(|| "listing queueing disciplines".into())?;
    for qdisc in qdiscs {
        let token_bucket =
            qdisc.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "tbf"));
        let port = u32::try_from(qdisc.header.index).ok().and_then(|index| slot_of.get(&index).copied());
        if let Some(port) = port.and_then(|slot| ports.get_mut(&slot)) {
            port.rate_limited |= token_bucket;
        }
    }
    let neighbours = routes::neighbours(handle).await?;
    Ok(Observed {
        namespaces: netns::names()?.into_iter().collect(),
        ports,
        neighbours: neighbours.into_iter().map(|(_, address, mac)| (address, mac)).collect(),
        routes: routes::guests(handle).await?.into_iter().collect(),
    })
}

/// The slot of a device named as ours are; whether it is ours the store knows.
fn slot_from(name: &str) -> Option<Slot> {
    let slot = Slot(name.strip_prefix("gv")?.parse().ok()?);
    (slot.host_device().as_str() == name).then_some(slot)
}

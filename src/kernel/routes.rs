//! Routes, permanent neighbours and static forwarding entries by rtnetlink. Our routes carry our own protocol number,
//! so that what is ours can be told from what is the host's.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnetwork::Ipv4Network;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::error::{Doing, KernelError, gone_is_fine};
use crate::model::{Mac, Subnet};

/// Marks our routes; of the numbers that rtnetlink.h leaves to user space, one that no known daemon uses.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(103);

fn unreachable(subnet: Subnet) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.network(), subnet.prefix_len())
        .kind(RouteType::Unreachable)
        .scope(RouteScope::Universe)
        .protocol(PROTOCOL)
        .build()
}

fn to_guest(bridge: u32, address: Ipv4Addr) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(bridge)
        .scope(RouteScope::Link)
        .protocol(PROTOCOL)
}

pub(super) async fn add_unreachable(handle: &Handle, subnet: Subnet) -> Result<(), KernelError> {
    let added = handle.route().add(unreachable(subnet)).replace().execute().await;
    added.doing(|| format!("adding route unreachable {subnet}"))
}

pub(super) async fn remove_unreachable(handle: &Handle, subnet: Subnet) -> Result<(), KernelError> {
    gone_is_fine(handle.route().del(unreachable(subnet)).execute().await)
        .doing(|| format!("removing route unreachable {subnet}"))
}

pub(super) async fn add_guest(
    handle: &Handle,
    bridge: u32,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), KernelError> {
    let route = to_guest(bridge, address).pref_source(gateway).build();
    handle.route().add(route).replace().execute().await.doing(|| format!("adding route {address}/32"))
}

pub(super) async fn remove_guest(handle: &Handle, bridge: u32, address: Ipv4Addr) -> Result<(), KernelError> {
    gone_is_fine(handle.route().del(to_guest(bridge, address).build()).execute().await)
        .doing(|| format!("removing route {address}/32"))
}

pub(super) async fn add_neighbour(
    handle: &Handle,
    bridge: u32,
    address: Ipv4Addr,
    mac: Mac,
) -> Result<(), KernelError> {
    handle
        .neighbours()
        .add(bridge, IpAddr::V4(address))
        .link_layer_address(&mac.octets())
        .replace()
        .execute()
        .await
        .doing(|| format!("adding neighbour {address} at {mac}"))
}

pub(super) async fn remove_neighbour(
    handle: &Handle,
    bridge: u32,
    address: Ipv4Addr,
) -> Result<(), KernelError> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = bridge;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    gone_is_fine(handle.neighbours().del(message).execute().await)
        .doing(|| format!("removing neighbour {address}"))
}

/// `bridge fdb replace MAC dev PORT master static`: frames to the MAC leave by this port, frames from it are let in there.
pub(super) async fn add_forwarding(handle: &Handle, port: u32, mac: Mac) -> Result<(), KernelError> {
    handle
        .neighbours()
        .add_bridge(port, &mac.octets())
        .state(NeighbourState::Noarp)
        .flags(NeighbourFlags::Controller)
        .replace()
        .execute()
        .await
        .doing(|| format!("adding forwarding entry {mac}"))
}

/// Our guest routes, by address.
pub(super) async fn guests(handle: &Handle) -> Result<Vec<Ipv4Addr>, KernelError> {
    let ours = ipv4(handle).await?.into_iter().filter(|r| r.header.protocol == PROTOCOL);
    Ok(ours
        .filter(|r| r.header.kind == RouteType::Unicast)
        .filter_map(|r| Some(destination(&r)?.ip()))
        .collect())
}

/// The first route of the host's own that overlaps `subnet`, as text; the default route overlaps nothing.
pub(super) async fn overlapping(handle: &Handle, subnet: Subnet) -> Result<Option<String>, KernelError> {
    let foreign = ipv4(handle)
        .await?
        .into_iter()
        .filter(|r| r.header.protocol != PROTOCOL && r.header.table == RouteHeader::RT_TABLE_MAIN);
    Ok(foreign
        .filter_map(|route| Some((destination(&route)?, route)))
        .find(|(network, _)| network.prefix() > 0 && subnet.overlaps(*network))
        .map(|(network, route)| {
            let device = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            match device.and_then(|index| nix::net::if_::if_indextoname(index).ok()) {
                Some(device) => format!("{network} dev {}", device.to_string_lossy()),
                None => network.to_string(),
            }
        }))
}

/// The permanent neighbours and static forwarding entries of the kernel: (device, address, MAC) and (port, MAC).
pub(super) async fn neighbours(handle: &Handle) -> Result<Vec<(u32, Ipv4Addr, Mac)>, KernelError> {
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Inet)
        .execute()
        .try_collect()
        .await
        .doing(|| "listing neighbours".into())?;
    let permanent = all.into_iter().filter(|n| n.header.state == NeighbourState::Permanent);
    Ok(permanent
        .filter_map(|n| {
            let address = n.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
                _ => None,
            });
            Some((n.header.ifindex, address?, mac_of(&n)?))
        })
        .collect())
}

pub(super) async fn forwarding(handle: &Handle) -> Result<Vec<(u32, Mac)>, KernelError> {
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Bridge)
        .execute()
        .try_collect()
        .await
        .doing(|| "listing forwarding entries".into())?;
    let fixed = all.into_iter().filter(|n| n.header.state == NeighbourState::Noarp);
    Ok(fixed.filter_map(|n| Some((n.header.ifindex, mac_of(&n)?))).collect())
}

async fn ipv4(handle: &Handle) -> Result<Vec<RouteMessage>, KernelError> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    handle.route().get(all).execute().try_collect().await.doing(|| "listing routes".into())
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    Ipv4Network::new(address.unwrap_or(Ipv4Addr::UNSPECIFIED), route.header.destination_prefix_length).ok()
}

fn mac_of(neighbour: &NeighbourMessage) -> Option<Mac> {
    neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => {
            Mac::try_from(<[u8; 6]>::try_from(bytes.as_slice()).ok()?).ok()
        }
        _ => None,
    })
}

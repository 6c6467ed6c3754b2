//! Routes, permanent neighbours and static forwarding entries, as messages. Our routes carry our own protocol number, so that
//! what is ours can be told from what is the host's.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::error::{Doing, KernelError};
use super::rtnl::{Request, Rtnl};
use crate::model::{Mac, Subnet};
use crate::plan::garbage::OurRoute;

/// Marks our routes; of the numbers that rtnetlink.h leaves to user space, one that no known daemon uses.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(103);
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

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

pub(super) fn add_unreachable(subnet: Subnet) -> Request {
    Request::new(PUT, RouteNetlinkMessage::NewRoute(unreachable(subnet)))
}

pub(super) fn remove_unreachable(subnet: Subnet) -> Request {
    Request::new(0, RouteNetlinkMessage::DelRoute(unreachable(subnet)))
}

pub(super) fn add_guest(bridge: u32, address: Ipv4Addr, gateway: Ipv4Addr) -> Request {
    let route = to_guest(bridge, address).pref_source(gateway).build();
    Request::new(PUT, RouteNetlinkMessage::NewRoute(route))
}

pub(super) fn remove_guest(bridge: u32, address: Ipv4Addr) -> Request {
    Request::new(0, RouteNetlinkMessage::DelRoute(to_guest(bridge, address).build()))
}

fn neighbour(bridge: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = bridge;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message
}

pub(super) fn add_neighbour(bridge: u32, address: Ipv4Addr, mac: Mac) -> Request {
    let mut message = neighbour(bridge, address);
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    Request::new(PUT, RouteNetlinkMessage::NewNeighbour(message))
}

pub(super) fn remove_neighbour(bridge: u32, address: Ipv4Addr) -> Request {
    Request::new(0, RouteNetlinkMessage::DelNeighbour(neighbour(bridge, address)))
}

fn forwarding_entry(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

/// `bridge fdb replace MAC dev PORT master static`: frames to the MAC leave by this port, frames from it are let in there.
pub(super) fn add_forwarding(port: u32, mac: Mac) -> Request {
    Request::new(PUT, RouteNetlinkMessage::NewNeighbour(forwarding_entry(port, mac)))
}

pub(super) fn remove_forwarding(port: u32, mac: Mac) -> Request {
    Request::new(0, RouteNetlinkMessage::DelNeighbour(forwarding_entry(port, mac)))
}

/// Our routes to guests: device and address.
pub(super) fn guests(rtnl: &mut Rtnl) -> Result<Vec<(u32, Ipv4Addr)>, KernelError> {
    let ours = ipv4(rtnl)?.into_iter().filter(|r| r.header.protocol == PROTOCOL);
    Ok(ours
        .filter(|r| r.header.kind == RouteType::Unicast)
        .filter_map(|r| Some((device(&r)?, destination(&r)?.ip())))
        .collect())
}

/// Every route of our protocol.
pub(super) fn ours(rtnl: &mut Rtnl) -> Result<Vec<OurRoute>, KernelError> {
    let ours = ipv4(rtnl)?.into_iter().filter(|r| r.header.protocol == PROTOCOL);
    let read = |route: RouteMessage| {
        let destination = destination(&route)?;
        let device = if route.header.kind == RouteType::Unreachable { None } else { Some(device(&route)?) };
        Some(OurRoute { destination: destination.ip(), prefix_len: destination.prefix(), device })
    };
    Ok(ours.filter_map(read).collect())
}

pub(super) fn remove_ours(route: OurRoute) -> Request {
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination, route.prefix_len)
        .protocol(PROTOCOL);
    let message = match route.device {
        Some(device) => message.output_interface(device).scope(RouteScope::Link),
        None => message.kind(RouteType::Unreachable).scope(RouteScope::Universe),
    };
    Request::new(0, RouteNetlinkMessage::DelRoute(message.build()))
}

/// Whether the rest of `subnet` is unreachable by a route of ours.
pub(super) fn has_unreachable(rtnl: &mut Rtnl, subnet: Subnet) -> Result<bool, KernelError> {
    let ours = ipv4(rtnl)?.into_iter().filter(|r| r.header.protocol == PROTOCOL);
    let whole = ours.filter(|r| r.header.kind == RouteType::Unreachable).filter_map(|r| destination(&r));
    Ok(whole.into_iter().any(|found| found.ip() == subnet.network() && found.prefix() == subnet.prefix_len()))
}

/// The first route of the host's own that overlaps `subnet`, as text; the default route overlaps nothing.
pub(super) fn overlapping(rtnl: &mut Rtnl, subnet: Subnet) -> Result<Option<String>, KernelError> {
    let foreign = ipv4(rtnl)?
        .into_iter()
        .filter(|r| r.header.protocol != PROTOCOL && r.header.table == RouteHeader::RT_TABLE_MAIN);
    Ok(foreign
        .filter_map(|route| Some((destination(&route)?, route)))
        .find(|(network, _)| network.prefix() > 0 && subnet.overlaps(*network))
        .map(|(network, route)| {
            let gateway = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(format!(" via {gateway}")),
                _ => None,
            });
            let device = device(&route).and_then(|index| nix::net::if_::if_indextoname(index).ok());
            let device = device.map(|device| format!(" dev {}", device.to_string_lossy()));
            format!("{network}{}{}", gateway.unwrap_or_default(), device.unwrap_or_default())
        }))
}

/// The device of the host's default route, of several the one with the lowest metric.
pub(super) fn uplink(rtnl: &mut Rtnl) -> Result<Option<String>, KernelError> {
    let metric = |route: &RouteMessage| {
        let priority = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        priority.unwrap_or_default()
    };
    let default = ipv4(rtnl)?.into_iter().filter(|route| {
        route.header.destination_prefix_length == 0
            && route.header.table == RouteHeader::RT_TABLE_MAIN
            && route.header.kind == RouteType::Unicast
    });
    let index = default.min_by_key(metric).and_then(|route| device(&route));
    let name = index.and_then(|index| nix::net::if_::if_indextoname(index).ok());
    Ok(name.map(|name| name.to_string_lossy().into_owned()))
}

/// The permanent neighbours of the kernel: device, address, MAC.
pub(super) fn neighbours(rtnl: &mut Rtnl) -> Result<Vec<(u32, Ipv4Addr, Mac)>, KernelError> {
    let all = neighbour_table(rtnl, AddressFamily::Inet).doing(|| "listing neighbours".into())?;
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

/// The static forwarding entries: port and MAC.
pub(super) fn forwarding(rtnl: &mut Rtnl) -> Result<Vec<(u32, Mac)>, KernelError> {
    let all = neighbour_table(rtnl, AddressFamily::Bridge).doing(|| "listing forwarding entries".into())?;
    let fixed = all.into_iter().filter(|n| n.header.state == NeighbourState::Noarp);
    Ok(fixed.filter_map(|n| Some((n.header.ifindex, mac_of(&n)?))).collect())
}

fn neighbour_table(rtnl: &mut Rtnl, family: AddressFamily) -> std::io::Result<Vec<NeighbourMessage>> {
    let mut asked = NeighbourMessage::default();
    asked.header.family = family;
    let found = rtnl.dump(&RouteNetlinkMessage::GetNeighbour(asked))?.into_iter();
    Ok(found
        .filter_map(|found| match found {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        })
        .collect())
}

fn ipv4(rtnl: &mut Rtnl) -> Result<Vec<RouteMessage>, KernelError> {
    let mut asked = RouteMessage::default();
    asked.header.address_family = AddressFamily::Inet;
    let found = rtnl.dump(&RouteNetlinkMessage::GetRoute(asked)).doing(|| "listing routes".into())?;
    Ok(found
        .into_iter()
        .filter_map(|found| match found {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .collect())
}

fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
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

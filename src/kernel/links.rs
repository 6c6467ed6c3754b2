//! Bridges, veth pairs and bridge ports, as messages and by them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecUnspec, BridgeStpState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
};

use super::error::{Doing, KernelError, gone_is_fine};
use super::rtnl::{Request, Rtnl};
use super::sysctl::{self, Ipv6Conf};
use super::{GUEST_SIDE, GUEST_SIDE_INDEX};
use crate::model::{Mac, PORTS, Shard, Slot, Subnet};

/// The group ("gnet") that devices are put in to be removed together: one wait for the kernel's readers, not one each.
const LEAVING: u32 = 0x676e_6574;

/// Index of the device `name`; `None` when there is none.
pub(super) fn index(rtnl: &mut Rtnl, name: &str) -> Result<Option<u32>, KernelError> {
    Ok(named(rtnl, name)?.map(|link| link.header.index))
}

/// What the device `name` carries, in bytes; `None` when there is none.
pub(super) fn mtu(rtnl: &mut Rtnl, name: &str) -> Result<Option<u32>, KernelError> {
    Ok(named(rtnl, name)?.map(|link| read(link).mtu))
}

fn named(rtnl: &mut Rtnl, name: &str) -> Result<Option<LinkMessage>, KernelError> {
    let mut asked = LinkMessage::default();
    asked.attributes.push(LinkAttribute::IfName(name.to_owned()));
    asked.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let found = rtnl.get(RouteNetlinkMessage::GetLink(asked));
    Ok(match found.doing(|| format!("looking up device {name}"))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Some(link),
        _ => None,
    })
}

/// Removes a device; success if it is gone already.
pub(super) fn remove(index: u32) -> Request {
    Request::new(
        0,
        RouteNetlinkMessage::DelLink(LinkMessageBuilder::<LinkUnspec>::new().index(index).build()),
    )
}

/// Removes many devices at once.
pub(super) fn remove_all(rtnl: &mut Rtnl, indexes: &[u32]) -> Result<(), KernelError> {
    let leave = |index: &u32| {
        let device = LinkMessageBuilder::<LinkUnspec>::new().index(*index).link_group(LEAVING).build();
        Request::new(0, RouteNetlinkMessage::SetLink(device))
    };
    let leave: Vec<Request> = indexes.iter().map(leave).collect();
    let doing = || format!("removing {} devices", indexes.len());
    let outcomes = rtnl.execute(&leave).doing(doing)?;
    let mut any = false;
    for outcome in outcomes {
        any |= outcome.is_ok();
        gone_is_fine(outcome).doing(doing)?;
    }
    if !any {
        return Ok(());
    }
    let group = LinkMessageBuilder::<LinkUnspec>::new().link_group(LEAVING).build();
    gone_is_fine(rtnl.request(0, RouteNetlinkMessage::DelLink(group))).doing(doing)
}

/// Takes a device up, with `mtu` if one is given.
pub(super) fn up(index: u32, mtu: Option<u16>) -> Request {
    let mut device = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
    if let Some(mtu) = mtu {
        device = device.mtu(mtu.into());
    }
    Request::new(0, RouteNetlinkMessage::SetLink(device.build()))
}

/// Takes a device down.
pub(super) fn down(index: u32) -> Request {
    Request::new(
        0,
        RouteNetlinkMessage::SetLink(LinkMessageBuilder::<LinkUnspec>::new().index(index).down().build()),
    )
}

pub(super) fn alias(index: u32, text: &str) -> Request {
    let device = LinkMessageBuilder::<LinkUnspec>::new().index(index).alias(text);
    Request::new(0, RouteNetlinkMessage::SetLink(device.build()))
}

/// The shard's bridge, made or brought into shape: fixed MAC, no STP, no snooping, the gateway's address, the sysctls of
/// a gateway that routes between isolated ports; up.
pub(super) fn bridge(
    rtnl: &mut Rtnl,
    shard: &Shard,
    gateway: Ipv4Addr,
    subnet: Subnet,
    mtu: u16,
) -> Result<(), KernelError> {
    let (name, index) = (shard.bridge.as_str(), shard.index);
    let shape = || {
        LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .up()
            .index(index)
            .mtu(mtu.into())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            // LLDP and the like (IEEE 802.1Q, 8.6.3) would pass by every wall of the bridge: they go the way of all frames.
            .group_fwd_mask(0xfff8)
    };
    let doing = || format!("making bridge {name}");
    let is_new = self::index(rtnl, name)?.is_none();
    let (flags, device) = if is_new {
        let mac = Mac::for_address(gateway).octets().to_vec();
        (NLM_F_CREATE | NLM_F_EXCL, shape().name(name.to_owned()).address(mac))
    } else {
        // Without the MAC: setting it, even to what it is, makes the kernel forget every neighbour on the bridge. Without the
        // name: beside an index, Linux before 6.2 takes it for a renaming, which it refuses for a device that is up.
        (0, shape())
    };
    rtnl.request(flags, RouteNetlinkMessage::NewLink(device.build())).doing(doing)?;
    let done = finish_bridge(rtnl, shard, gateway, subnet);
    if is_new { or_removed(rtnl, index, done) } else { done }
}

fn finish_bridge(
    rtnl: &mut Rtnl,
    shard: &Shard,
    gateway: Ipv4Addr,
    subnet: Subnet,
) -> Result<(), KernelError> {
    let (name, index) = (shard.bridge.as_str(), shard.index);
    // Guests reach each other and the world through us: ARP for any address behind another port is answered by the
    // bridge (Documentation/networking/ip-sysctl.rst, proxy_arp_pvlan), at once, and never corrected by a redirect.
    for (key, value) in [
        (format!("ipv4/conf/{name}/forwarding"), "1"),
        (format!("ipv4/conf/{name}/proxy_arp"), "1"),
        (format!("ipv4/conf/{name}/proxy_arp_pvlan"), "1"),
        (format!("ipv4/conf/{name}/send_redirects"), "0"),
        (format!("ipv4/conf/{name}/rp_filter"), "1"),
        (format!("ipv4/neigh/{name}/proxy_delay"), "0"),
    ] {
        sysctl::write(&key, value).doing(|| format!("setting net/{key} to {value}"))?;
    }
    Ipv6Conf::default().disable(name).doing(|| format!("switching IPv6 off on {name}"))?;
    address(rtnl, index, gateway, subnet).doing(|| format!("giving {name} the address of the gateway"))?;
    rtnl.all(&[up(index, None)]).doing(|| format!("taking {name} up"))
}

/// Whether the bridge is up and has the gateway's address. One of our index and name is there.
pub(super) fn bridge_stands(
    rtnl: &mut Rtnl,
    shard: &Shard,
    gateway: Ipv4Addr,
    subnet: Subnet,
) -> Result<bool, KernelError> {
    let doing = || format!("looking at bridge {}", shard.bridge);
    let asked = LinkMessageBuilder::<LinkUnspec>::new().index(shard.index).build();
    let found = rtnl.get(RouteNetlinkMessage::GetLink(asked)).doing(doing)?;
    let is_up = |found: &RouteNetlinkMessage| matches!(found, RouteNetlinkMessage::NewLink(link) if link.header.flags.contains(LinkFlags::Up));
    if !found.as_ref().is_some_and(is_up) {
        return Ok(false);
    }
    let standing = addresses(rtnl, shard.index).doing(doing)?;
    Ok(standing.iter().any(|found| is_gateway(found, gateway, subnet)))
}

fn is_gateway(found: &AddressMessage, gateway: Ipv4Addr, subnet: Subnet) -> bool {
    found.header.prefix_len == subnet.prefix_len()
        && found.attributes.contains(&AddressAttribute::Local(gateway.into()))
}

pub(super) fn remove_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> Request {
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix_len).build();
    Request::new(0, RouteNetlinkMessage::DelAddress(message))
}

/// Every IPv4 address: device, address, length of its prefix.
pub(super) fn all_addresses(rtnl: &mut Rtnl) -> Result<Vec<(u32, Ipv4Addr, u8)>, KernelError> {
    let mut all = AddressMessage::default();
    all.header.family = netlink_packet_route::AddressFamily::Inet;
    let standing = rtnl.dump(&RouteNetlinkMessage::GetAddress(all)).doing(|| "listing addresses".into())?;
    let read = |found| {
        let RouteNetlinkMessage::NewAddress(found) = found else { return None };
        let local = found.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        Some((found.header.index, local?, found.header.prefix_len))
    };
    Ok(standing.into_iter().filter_map(read).collect())
}

/// The IPv4 addresses of a device.
fn addresses(rtnl: &mut Rtnl, index: u32) -> std::io::Result<Vec<AddressMessage>> {
    let mut all = AddressMessage::default();
    all.header.family = netlink_packet_route::AddressFamily::Inet;
    let standing = rtnl.dump(&RouteNetlinkMessage::GetAddress(all))?.into_iter();
    let of_it = standing.filter_map(|found| match found {
        RouteNetlinkMessage::NewAddress(found) if found.header.index == index => Some(found),
        _ => None,
    });
    Ok(of_it.collect())
}

/// The gateway's address, and none that another configuration gave the bridge. Without the prefix route: guests are reached by
/// a /32 each, the rest of the subnet is unreachable.
fn address(rtnl: &mut Rtnl, index: u32, gateway: Ipv4Addr, subnet: Subnet) -> std::io::Result<()> {
    let mut wanted =
        AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(gateway, subnet.prefix_len()).build();
    wanted.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    let mut stands = false;
    for found in addresses(rtnl, index)? {
        let ours = is_gateway(&found, gateway, subnet);
        stands |= ours;
        if !ours {
            gone_is_fine(rtnl.request(0, RouteNetlinkMessage::DelAddress(found)))?;
        }
    }
    if stands {
        return Ok(());
    }
    rtnl.request(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddress(wanted))
}

/// The pair of `gv<slot>` in our namespace, down, and `in0` made inside `namespace` (making it here and moving it takes
/// twenty times as long), down too: a veth cannot go up before its pair exists.
pub(super) fn veth(
    rtnl: &mut Rtnl,
    ipv6: &mut Ipv6Conf,
    slot: Slot,
    port: u32,
    namespace: &File,
    mtu: u16,
) -> Result<(), KernelError> {
    let host = slot.host_device();
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(GUEST_SIDE)
        .index(GUEST_SIDE_INDEX)
        .setns_by_fd(namespace.as_raw_fd())
        .mtu(mtu.into())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(host.as_str())
        .index(port)
        .mtu(mtu.into())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let made = rtnl.request(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(pair));
    made.doing(|| format!("making veth {host}"))?;
    let done = ipv6.disable(host.as_str()).doing(|| format!("switching IPv6 off on {host}"));
    or_removed(rtnl, port, done)
}

/// A device that was made and could not be finished goes; the first error is the one that tells.
fn or_removed(rtnl: &mut Rtnl, index: u32, done: Result<(), KernelError>) -> Result<(), KernelError> {
    if done.is_err() {
        let _ = rtnl.all(&[remove(index)]);
    }
    done
}

/// What the host says of its addresses to who asks by ARP at the device itself, which has no bridge then: nothing. A guest that took the
/// device's MAC for the gateway's would be cut off for as long as it remembers (Documentation/networking/ip-sysctl.rst, arp_ignore).
fn says_no_address() -> LinkAttribute {
    // include/uapi/linux/if_link.h and ip.h: IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { IPV4_DEVCONF_ARP_IGNORE } } }.
    const INET_CONF: u16 = 1;
    const ARP_IGNORE: u16 = 19;
    let attribute = |kind: u16, value: &[u8]| {
        // Some bytes.
        #[allow(clippy::cast_possible_truncation)]
        let length = (value.len() + 4) as u16;
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    let for_no_address = 8_u32;
    let settings = attribute(INET_CONF, &attribute(ARP_IGNORE, &for_no_address.to_ne_bytes()));
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Other(DefaultNla::new(libc::AF_INET as u16, settings))])
}

/// The device as a port of the bridge, isolated from other ports and open only to the MACs that are entered for it; up when
/// all of that stands.
pub(super) fn port(port: u32, bridge: u32) -> [Request; 3] {
    let join = LinkMessageBuilder::<LinkUnspec>::new().index(port).controller(bridge).link_group(PORTS);
    let join = join.append_extra_attribute(says_no_address()).build();
    let flags = LinkBridgePort::new(port)
        .isolated(true)
        .locked(true)
        .learning(false)
        .flood(false)
        .mcast_flood(false)
        .build();
    [
        Request::new(0, RouteNetlinkMessage::SetLink(join)),
        Request::new(0, RouteNetlinkMessage::NewLink(flags)),
        up(port, None),
    ]
}

/// Whether the device is the bridge's port, as `port` makes one.
pub(super) fn is_port(rtnl: &mut Rtnl, port: u32, bridge: u32) -> Result<bool, KernelError> {
    let mut asked = LinkMessageBuilder::<LinkUnspec>::new().index(port).build();
    asked.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let found = rtnl.get(RouteNetlinkMessage::GetLink(asked));
    Ok(match found.doing(|| format!("looking at the port of index {port}"))? {
        Some(RouteNetlinkMessage::NewLink(link)) => {
            let link = read(link);
            link.controller == Some(bridge) && link.up && link.closed
        }
        _ => false,
    })
}

/// What a dump of all devices says of one.
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    pub controller: Option<u32>,
    pub up: bool,
    pub mtu: u32,
    /// A bridge port with the flags and the group that `port` sets.
    pub closed: bool,
    /// Of the namespace that the other end of a veth is in, as ours numbers it.
    pub namespace: Option<i32>,
}

pub(super) fn all(rtnl: &mut Rtnl) -> Result<Vec<Link>, KernelError> {
    let mut asked = LinkMessage::default();
    // The counters of a device are most of what there is to say of it.
    asked.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = rtnl.dump(&RouteNetlinkMessage::GetLink(asked)).doing(|| "listing devices".into())?;
    let read = |link| match link {
        RouteNetlinkMessage::NewLink(link) => Some(read(link)),
        _ => None,
    };
    Ok(links.into_iter().filter_map(read).collect())
}

fn read(link: LinkMessage) -> Link {
    let up = link.header.flags.contains(LinkFlags::Up);
    let index = link.header.index;
    let mut read = Link {
        index,
        name: String::new(),
        alias: None,
        controller: None,
        up,
        mtu: 0,
        closed: false,
        namespace: None,
    };
    let mut group = 0;
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::Group(found) => group = found,
            LinkAttribute::IfName(name) => read.name = name,
            LinkAttribute::IfAlias(alias) => read.alias = Some(alias),
            LinkAttribute::Controller(index) => read.controller = Some(index),
            LinkAttribute::Mtu(mtu) => read.mtu = mtu,
            LinkAttribute::LinkNetNsId(namespace) => read.namespace = Some(namespace),
            LinkAttribute::LinkInfo(info) => read.closed = info.iter().any(is_closed),
            _ => {}
        }
    }
    read.closed &= group == PORTS;
    read
}

fn is_closed(info: &LinkInfo) -> bool {
    let LinkInfo::PortData(InfoPortData::BridgePort(flags)) = info else { return false };
    [
        InfoBridgePort::Isolated(true),
        InfoBridgePort::Locked(true),
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
    ]
    .iter()
    .all(|flag| flags.contains(flag))
}

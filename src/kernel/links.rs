//! Bridges, veth pairs and bridge ports by rtnetlink.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{BridgeStpState, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::error::{Doing, KernelError, gone_is_fine, netlink_to_io, there_is_fine};
use super::sysctl;
use crate::model::{Mac, Subnet};

/// Index of the device `name`; `None` when there is none.
pub(super) async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, KernelError> {
    let mut answers = handle.link().get().match_name(name).execute();
    match answers.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(KernelError::new(format!("looking up device {name}"), netlink_to_io(error))),
    }
}

/// Index of a device that has to be there.
pub(super) async fn existing(handle: &Handle, name: &str) -> Result<u32, KernelError> {
    let index = index(handle, name).await?;
    index.ok_or_else(|| KernelError::new(format!("looking up device {name}"), missing()))
}

fn missing() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::ENODEV)
}

/// Removes a device; success if it is gone already.
pub(super) async fn remove(handle: &Handle, name: &str) -> Result<(), KernelError> {
    let Some(index) = index(handle, name).await? else { return Ok(()) };
    gone_is_fine(handle.link().del(index).execute().await).doing(|| format!("removing device {name}"))
}

pub(super) async fn set_up(handle: &Handle, name: &str, up: bool) -> Result<(), KernelError> {
    let device = LinkMessageBuilder::<LinkUnspec>::new().name(name);
    let device = if up { device.up() } else { device.down() };
    let done = handle.link().set(device.build()).execute().await;
    let done = if up { done } else { gone_is_fine(done) };
    done.doing(|| format!("taking device {name} {}", if up { "up" } else { "down" }))
}

/// The bridge `name`, made or brought into shape: fixed MAC, no STP, no snooping, the gateway's address, the sysctls of
/// a gateway that routes between isolated ports; up.
pub(super) async fn bridge(
    handle: &Handle,
    name: &str,
    gateway: Ipv4Addr,
    subnet: Subnet,
    mtu: u16,
) -> Result<(), KernelError> {
    let shape = || {
        LinkBridge::new(name)
            .mtu(mtu.into())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
    };
    let doing = || format!("making bridge {name}");
    if index(handle, name).await?.is_none() {
        let mac = Mac::for_address(gateway).octets().to_vec();
        handle.link().add(shape().address(mac).build()).execute().await.doing(doing)?;
    } else {
        // Without the MAC: setting it, even to what it is, makes the kernel forget every neighbour on the bridge.
        handle.link().change(shape().build()).execute().await.doing(doing)?;
    }
    let index = existing(handle, name).await?;

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
    sysctl::disable_ipv6(name).doing(|| format!("switching IPv6 off on {name}"))?;

    // Without the prefix route: guests are reached by a /32 each, the rest of the subnet is unreachable.
    let mut address = handle.address().add(index, gateway.into(), subnet.prefix_len());
    address.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    there_is_fine(address.execute().await)
        .doing(|| format!("giving {name} the address {gateway}/{}", subnet.prefix_len()))?;
    set_up(handle, name, true).await
}

/// The pair of `host` in our namespace, down, and `guest_side` made inside `namespace` (making it here and moving it
/// takes twenty times as long), down too: a veth cannot go up before its pair exists.
pub(super) async fn veth(
    handle: &Handle,
    host: &str,
    guest_side: &str,
    namespace: &File,
    mtu: u16,
) -> Result<(), KernelError> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(guest_side)
        .setns_by_fd(namespace.as_raw_fd())
        .mtu(mtu.into())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(host)
        .mtu(mtu.into())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    handle.link().add(pair).execute().await.doing(|| format!("making veth {host}"))?;
    sysctl::disable_ipv6(host).doing(|| format!("switching IPv6 off on {host}"))
}

/// `device` as a port of `bridge`: isolated from other ports, and open only to the MACs that are entered for it.
pub(super) async fn port(handle: &Handle, device: &str, bridge: &str) -> Result<(), KernelError> {
    let bridge_index = existing(handle, bridge).await?;
    let device_index = existing(handle, device).await?;
    let join = LinkMessageBuilder::<LinkUnspec>::new().index(device_index).controller(bridge_index).build();
    handle.link().set(join).execute().await.doing(|| format!("making {device} a port of {bridge}"))?;
    let flags = LinkBridgePort::new(device_index)
        .isolated(true)
        .locked(true)
        .learning(false)
        .flood(false)
        .mcast_flood(false)
        .build();
    handle.link().set_port(flags).execute().await.doing(|| format!("isolating and locking port {device}"))
}

/// What a dump of all devices says of one.
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub controller: Option<u32>,
    pub up: bool,
}

pub(super) async fn all(handle: &Handle) -> Result<Vec<Link>, KernelError> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.doing(|| "listing devices".into())?;
    Ok(links
        .into_iter()
        .map(|link| {
            let mut name = String::new();
            let mut controller = None;
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name.clone_from(text),
                    LinkAttribute::Controller(index) => controller = Some(*index),
                    _ => {}
                }
            }
            let up = link.header.flags.contains(netlink_packet_route::link::LinkFlags::Up);
            Link { index: link.header.index, name, controller, up }
        })
        .collect())
}

//! Whether this kernel has what guestnet asks of it: each thing is made in a network namespace of its own, which goes with the
//! thread that looks. Nothing of the host is changed.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkMessageBuilder};

use super::error::{Doing, KernelError};
use super::fault::{self, When};
use super::nft::Nft;
use super::rtnl::{Request, Rtnl};
use super::sysctl::Ipv6Conf;
use super::{GUEST_SIDE_INDEX, firewall, links, netns, tap, tc};
use crate::model::{RateLimit, RateMbps, Slot, Vm};
use crate::plan::COMMENT;
use crate::walls::ruleset::{bridge, inet};

/// A thing that the kernel has to have, and why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// In words of the kernel's configuration.
    pub feature: &'static str,
    pub why: String,
}

const BRIDGE_INDEX: u32 = 200;
const PORT_INDEX: u32 = 201;

/// All that is missing; an error where a namespace to look in cannot be had.
pub fn missing() -> io::Result<Vec<Missing>> {
    let look = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(in_this_namespace())
    };
    let thread = std::thread::Builder::new().name("features".into()).spawn(look)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("looking for kernel features was broken off")))
}

fn in_this_namespace() -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut look = |feature, step: &str, made: &mut dyn FnMut() -> Result<(), KernelError>| {
        let made =
            fault::point(When::Before, step).doing(|| format!("making {feature}")).and_then(|()| made());
        missing.extend(made.err().map(|error| Missing { feature, why: error.to_string() }));
    };
    let new = |device| Request::new(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(device));
    look("CONFIG_BRIDGE", "bridge", &mut || {
        let device = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .name("features".to_owned())
            .index(BRIDGE_INDEX);
        let mut rtnl = Rtnl::open().doing(|| "opening a netlink socket".into())?;
        rtnl.all(&[new(device.build())]).doing(|| "making a bridge".into())
    });
    look("CONFIG_VETH", "veth", &mut || {
        let here = netns::own().doing(|| "opening a namespace".into())?;
        let mut rtnl = Rtnl::open().doing(|| "opening a netlink socket".into())?;
        links::veth(&mut rtnl, &mut Ipv6Conf::default(), Slot(0), PORT_INDEX, &here, 1_500)
    });
    look("isolated and locked ports of bridges (Linux 5.18)", "port", &mut || {
        let mut rtnl = Rtnl::open().doing(|| "opening a netlink socket".into())?;
        rtnl.all(&links::port(PORT_INDEX, BRIDGE_INDEX)).doing(|| "making a port".into())
    });
    look("CONFIG_TUN", "tap", &mut || {
        tap::create(Vm::TAP, super::TAP_INDEX, false).doing(|| "making a TAP".into())
    });
    look("CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED", "redirect", &mut || {
        let mut rtnl = Rtnl::open().doing(|| "opening a netlink socket".into())?;
        rtnl.all(&tc::redirect(GUEST_SIDE_INDEX, PORT_INDEX)).doing(|| "redirecting".into())
    });
    look("CONFIG_NET_SCH_TBF", "rate", &mut || {
        let limit = RateMbps::try_from(1).ok().map(|rate| RateLimit { rate, burst: None });
        let mut rtnl = Rtnl::open().doing(|| "opening a netlink socket".into())?;
        tc::set_limit(&mut rtnl, PORT_INDEX, limit).doing(|| "limiting a rate".into())
    });
    look(
        "CONFIG_NF_TABLES with the families inet and bridge, sets and maps, ct, limit, connlimit, nat, fib",
        "all-walls",
        &mut || {
            let none = || std::iter::empty();
            Nft::open()?.replace(&[bridge::table(none()), inet::table(none())]).map(drop)
        },
    );
    look("CONFIG_NF_CT_NETLINK", "forget-connections", &mut || {
        Nft::open()?.connections(Ipv4Addr::LOCALHOST).map(drop)
    });
    look("nat of iptables with MASQUERADE and comments", "rules", &mut || {
        let tables = firewall::open()?;
        let rule = format!("{COMMENT} -j MASQUERADE");
        let adding = || format!("adding nat POSTROUTING {rule}");
        firewall::run(adding, || tables.append("nat", "POSTROUTING", &rule))
    });
    missing
}

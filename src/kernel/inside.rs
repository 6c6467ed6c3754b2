//! What there is inside a slot's namespace: one visit, one socket, a dump of devices and one of queues, the filters by their handles. Its
//! parts are few, and the same at any number of VMs; a start looks into every slot.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::error::{Doing, KernelError};
use super::lane::Hands;
use super::observe::mark;
use super::raw::{attribute, dump, open};
use super::{GUEST_SIDE, GUEST_SIDE_INDEX, TAP_INDEX, counters, netns, tap, tc};
use crate::model::{Slot, Vm};
use crate::plan::{Anchor, ObservedInside};

// include/uapi/linux/rtnetlink.h, if_link.h
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_INFO_DATA: u16 = 2;

#[derive(Debug)]
pub(super) struct Inside {
    pub anchor: Anchor,
    pub found: ObservedInside,
    /// Packets wait for the way out of the namespace.
    pub waiting: bool,
}

impl Inside {
    fn of(anchor: Anchor) -> Self {
        Self { anchor, found: ObservedInside::default(), waiting: false }
    }
}

/// What there is of a slot in the namespace that has its name; `None` when it is somebody else's.
pub(super) fn look(hands: &mut Hands, slot: Slot, port: u32) -> Result<Option<Inside>, KernelError> {
    let Some(namespace) = netns::open(slot)? else { return Ok(Some(Inside::of(Anchor::File))) };
    let doing = || format!("looking into {}", slot.namespace());
    let mut socket = hands.inside(&namespace, |_| open(NETLINK_ROUTE)).doing(doing)?;
    read(&mut socket, &mark(port)).doing(doing)
}

fn read(socket: &mut Socket, mark: &str) -> io::Result<Option<Inside>> {
    let devices = devices(socket)?;
    if !devices.iter().any(|device| device.index == 1 && device.alias == mark) {
        return Ok(None);
    }
    let has =
        |name: &str, index: u32| devices.iter().find(|device| device.index == index && device.name == name);
    let Some(tap) = has(Vm::TAP, TAP_INDEX) else { return Ok(Some(Inside::of(Anchor::Bare))) };
    let mut inside = Inside::of(Anchor::Tap);
    (inside.found.owner, inside.found.group) = (tap.owner, tap.group);
    if has(GUEST_SIDE, GUEST_SIDE_INDEX).is_none() {
        return Ok(Some(inside));
    }
    inside.anchor = Anchor::Whole;
    counters::root_queues(socket, |device, message| {
        if device == GUEST_SIDE_INDEX {
            inside.found.limit = tc::limit_in(message);
            inside.waiting = counters::waiting_at_root(message).is_some_and(|waiting| waiting > 0);
        }
    })?;
    let both_ways = [(TAP_INDEX, GUEST_SIDE_INDEX), (GUEST_SIDE_INDEX, TAP_INDEX)];
    inside.found.joined = tc::are_redirected(socket, both_ways)? == [true; 2];
    Ok(Some(inside))
}

#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    alias: String,
    owner: Option<u32>,
    group: Option<u32>,
}

fn devices(socket: &mut Socket) -> io::Result<Vec<Device>> {
    // struct ifinfomsg, and that counters need not be told.
    let mask = [8_u16.to_ne_bytes(), IFLA_EXT_MASK.to_ne_bytes()].concat();
    let request = [&[0; 16][..], &mask, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes()].concat();
    let mut devices: Vec<Device> = Vec::new();
    dump(socket, libc::RTM_GETLINK, &request, libc::RTM_NEWLINK, |message| {
        if let Some(device) = device(message) {
            // Interrupted, it begins again.
            devices.retain(|known| known.index != device.index);
            devices.push(device);
        }
    })?;
    Ok(devices)
}

fn device(message: &[u8]) -> Option<Device> {
    let index = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let attributes = message.get(16..)?;
    let text = |kind| {
        let bytes = attribute(attributes, kind).unwrap_or_default();
        String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
    };
    let data = attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_DATA));
    let number = |kind| Some(u32::from_ne_bytes(*attribute(data?, kind)?.first_chunk()?));
    let (owner, group) = match index {
        TAP_INDEX => (number(tap::IFLA_TUN_OWNER), number(tap::IFLA_TUN_GROUP)),
        _ => (None, None),
    };
    Some(Device { index, name: text(IFLA_IFNAME), alias: text(IFLA_IFALIAS), owner, group })
}

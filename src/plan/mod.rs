//! What has to be done to the kernel, as data: desired state and what was observed go in, ordered steps come out. Each
//! step is one kernel object and knows how it is undone; `kernel` carries steps out. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod drift;
mod firewall;
pub mod garbage;
mod observed;
mod slot;
mod vm;

use std::fmt;
use std::net::Ipv4Addr;

pub use firewall::{CHAINS, COMMENT, HostRules, host_rules, nat_rule};
pub use observed::{Anchor, Observed, ObservedInside, ObservedLimit, ObservedPort, is_limited};
pub use slot::{build_slot, clear_slot, is_whole, replug_slot, wire_slot};
pub use vm::{Mend, bind, limit, mend, rebind, strays, unbind};

use garbage::OurRoute;

use crate::model::{Mac, Network, RateLimit, Shard, Slot, Subnet, TapOptions, VmId};

/// One kernel object of ours, made by a step and removed by its undo. Devices are named by the index that was chosen for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The bridge with its fixed MAC, address, sysctls: up, empty.
    Bridge { shard: Shard, gateway: Ipv4Addr, subnet: Subnet, mtu: u16 },
    /// `unreachable SUBNET`: addresses no guest has must not leak upstream.
    UnreachableSubnet { subnet: Subnet },

    /// netns `guestnet-<slot>`, made first and removed last: the anchor for finding what was left behind. Marked as ours with
    /// the index of its port.
    Namespace { slot: Slot, port: u32 },
    /// `tap0`, persistent, with virtio-net headers, up; marked with the index of the slot's port.
    Tap { slot: Slot, port: u32, mtu: u16, multi_queue: bool },
    /// Who may open it, and with which headers. Goes with the slot: no other VM gets one that was somebody's.
    TapOptions { slot: Slot, tap: TapOptions },
    /// `gv<slot>` on the host, down, and its peer `in0` in the netns.
    Veth { slot: Slot, port: u32, mtu: u16 },
    /// Both ways between `in0` and `tap0`; both up.
    Redirect { slot: Slot },
    /// A token bucket on each end of the veth: the guest's upload on `in0`, its download on `gv<slot>`. None takes them away.
    RateLimit { slot: Slot, port: u32, limit: Option<RateLimit> },
    /// `gv<slot>` as an isolated, locked port that neither learns nor floods; up. Last: a port of a bridge is a whole slot.
    Port { slot: Slot, port: u32, bridge: u32 },

    /// The port down, as it is while it is plugged in anew: no frame passes a port that is not closed yet.
    Unplug { slot: Slot, port: u32 },

    /// The slot's netns under the VM's name, `vm-<vm_id>`.
    Name { vm_id: VmId, slot: Slot },
    /// The host never asks who has the address.
    Neighbour { bridge: u32, address: Ipv4Addr, mac: Mac },
    /// `ADDRESS/32 dev BRIDGE`.
    GuestRoute { bridge: u32, address: Ipv4Addr, gateway: Ipv4Addr },
    /// The MAC is this port's and no other's. Last: a locked port lets nobody in until it has an entry.
    ForwardingEntry { port: u32, mac: Mac },
}

/// How a step is taken back. Removing a thing that is gone already is not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    Bridge {
        index: u32,
    },
    UnreachableSubnet {
        subnet: Subnet,
    },
    Namespace {
        slot: Slot,
    },
    /// Removing one end removes the other, the port, its queues and its forwarding entries.
    Veth {
        port: u32,
    },
    Name {
        vm_id: VmId,
        slot: Slot,
    },
    Neighbour {
        bridge: u32,
        address: Ipv4Addr,
    },
    GuestRoute {
        bridge: u32,
        address: Ipv4Addr,
    },
    ForwardingEntry {
        port: u32,
        mac: Mac,
    },
    /// A route of ours, whatever it leads to.
    Route {
        route: OurRoute,
    },
    /// An address of a bridge of ours.
    Address {
        bridge: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    },
}

impl Step {
    pub fn undo(&self) -> Option<Undo> {
        Some(match self {
            Self::Bridge { shard, .. } => Undo::Bridge { index: shard.index },
            Self::UnreachableSubnet { subnet } => Undo::UnreachableSubnet { subnet: *subnet },
            Self::Namespace { slot, .. } => Undo::Namespace { slot: *slot },
            Self::Veth { port, .. } => Undo::Veth { port: *port },
            Self::Name { vm_id, slot } => Undo::Name { vm_id: vm_id.clone(), slot: *slot },
            Self::Neighbour { bridge, address, .. } => Undo::Neighbour { bridge: *bridge, address: *address },
            Self::GuestRoute { bridge, address, .. } => {
                Undo::GuestRoute { bridge: *bridge, address: *address }
            }
            Self::ForwardingEntry { port, mac } => Undo::ForwardingEntry { port: *port, mac: *mac },
            // These live in the netns or on the veth and go with it; a limit is reset when the slot is wiped.
            Self::Tap { .. }
            | Self::TapOptions { .. }
            | Self::Redirect { .. }
            | Self::RateLimit { .. }
            | Self::Unplug { .. }
            | Self::Port { .. } => {
                return None;
            }
        })
    }

    /// For faults that tests inject, and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge { .. } => "bridge",
            Self::UnreachableSubnet { .. } => "unreachable",
            Self::Namespace { .. } => "namespace",
            Self::Tap { .. } => "tap",
            Self::TapOptions { .. } => "tap-options",
            Self::Veth { .. } => "veth",
            Self::Redirect { .. } => "redirect",
            Self::RateLimit { .. } => "rate",
            Self::Unplug { .. } => "unplug",
            Self::Port { .. } => "port",
            Self::Name { .. } => "name",
            Self::Neighbour { .. } => "neighbour",
            Self::GuestRoute { .. } => "route",
            Self::ForwardingEntry { .. } => "forwarding",
        }
    }
}

impl Undo {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge { .. } => "undo-bridge",
            Self::UnreachableSubnet { .. } => "undo-unreachable",
            Self::Namespace { .. } => "undo-namespace",
            Self::Veth { .. } => "undo-veth",
            Self::Name { .. } => "undo-name",
            Self::Neighbour { .. } => "undo-neighbour",
            Self::GuestRoute { .. } => "undo-route",
            Self::ForwardingEntry { .. } => "undo-forwarding",
            Self::Route { .. } => "undo-any-route",
            Self::Address { .. } => "undo-address",
        }
    }
}

/// One of a network's bridges.
pub fn bridge(network: &Network, shard: Shard) -> Step {
    Step::Bridge { shard, gateway: network.gateway, subnet: network.subnet, mtu: network.mtu }
}

/// What a network needs before its first VM.
pub fn network(network: &Network, first: Shard) -> Vec<Step> {
    vec![bridge(network, first), Step::UnreachableSubnet { subnet: network.subnet }]
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { shard, .. } => write!(f, "bridge {}", shard.bridge),
            Self::UnreachableSubnet { subnet } => write!(f, "route unreachable {subnet}"),
            Self::Namespace { slot, .. } => write!(f, "network namespace {}", slot.namespace()),
            Self::Tap { slot, .. } => write!(f, "tap0 of {}", slot.namespace()),
            Self::TapOptions { slot, .. } => write!(f, "the options of tap0 of {}", slot.namespace()),
            Self::Veth { slot, .. } => write!(f, "veth {}", slot.host_device()),
            Self::Redirect { slot } => write!(f, "the redirect between tap0 and in0 of {}", slot.namespace()),
            Self::RateLimit { slot, .. } => write!(f, "the rate limit of {}", slot.host_device()),
            Self::Unplug { slot, .. } => write!(f, "port {} down", slot.host_device()),
            Self::Port { slot, .. } => write!(f, "port {}", slot.host_device()),
            Self::Name { vm_id, .. } => write!(f, "the name {}", vm_id.namespace()),
            Self::Neighbour { address, .. } => write!(f, "neighbour {address}"),
            Self::GuestRoute { address, .. } => write!(f, "route {address}/32"),
            Self::ForwardingEntry { mac, .. } => write!(f, "forwarding entry {mac}"),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { index } => write!(f, "the bridge of index {index}"),
            Self::UnreachableSubnet { subnet } => write!(f, "route unreachable {subnet}"),
            Self::Namespace { slot } => write!(f, "network namespace {}", slot.namespace()),
            Self::Veth { port } => write!(f, "the veth of index {port}"),
            Self::Name { vm_id, .. } => write!(f, "the name {}", vm_id.namespace()),
            Self::Neighbour { address, .. } => write!(f, "neighbour {address}"),
            Self::GuestRoute { address, .. } => write!(f, "route {address}/32"),
            Self::ForwardingEntry { mac, .. } => write!(f, "forwarding entry {mac}"),
            Self::Route { route } => write!(f, "route {}/{}", route.destination, route.prefix_len),
            Self::Address { address, prefix_len, .. } => write!(f, "address {address}/{prefix_len}"),
        }
    }
}

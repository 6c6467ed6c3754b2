//! What others change in the kernel's network, as the kernel tells it: a multicast socket for links, addresses, routes,
//! neighbours and queues, one for what is inside slots, one for nf_tables. What we did ourselves is left out by a filter in the
//! kernel. Of iptables-legacy it tells nothing: where that is in use, its tables are glanced at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{SockFilter, SockRef};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::error::{Doing, KernelError};
use super::legacy::{self, Table};
use super::observe::port_of_mark;
use super::raw::{BUFFER, Messages, attribute};
use super::rtnl::Rtnl;
use super::{GUEST_SIDE_INDEX, TAP_INDEX, links, tc};
use crate::model::Mac;
use crate::plan::drift::{Change, Rules, RulesFamily};

const NETLINK_NETFILTER: isize = 12;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
/// RTNLGRP_LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE (linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 5] = [RTNLGRP_LINK, 3, RTNLGRP_TC, 5, 7];
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 7;
/// A bridge that goes with all its ports is some thousand messages.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Datagrams of one look: what waits behind them is for the next.
const AT_ONCE: usize = 1_024;
/// From one glance at iptables-legacy to the next; more after one that took long: very large tables take a hundredth of a CPU.
const GLANCE: Duration = Duration::from_millis(500);
const GLANCE_IDLE: u32 = 100;

const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const AF_INET: u8 = libc::AF_INET as u8;
// linux/if_link.h, IFLA_BRPORT_*
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_IFALIAS: u16 = 20;
/// LEARNING, UNICAST_FLOOD, MCAST_FLOOD, ISOLATED, LOCKED, as `links::port` sets them.
const CLOSED: [(u16, u8); 5] = [(8, 0), (9, 0), (27, 0), (33, 1), (39, 1)];
// linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_DST: u16 = 1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TC_H_ROOT: u32 = u32::MAX;

/// An open watch. What happens from its opening on is not missed, or `Change::Lost` says so.
pub struct Watch {
    route: AsyncFd<Socket>,
    rules: AsyncFd<Socket>,
    /// Hears of every namespace that a veth leads to, which are the slots' own and other containers'.
    inside: Option<AsyncFd<Socket>>,
    /// Of its own: what is told of waits for no work on slots.
    asking: Rtnl,
    glance_at: Instant,
    legacy: BTreeMap<&'static str, Table>,
}

impl Watch {
    /// In the calling thread's network namespace. `own_route` and `own_rules` are the ports of the sockets by which we change
    /// things and ask. Needs a tokio runtime.
    pub(super) fn open(own_route: &[u32], own_rules: u32) -> Result<Self, KernelError> {
        let open = |protocol,
                    groups: &[u32],
                    filter: &[SockFilter],
                    everywhere: bool|
         -> io::Result<AsyncFd<Socket>> {
            let mut socket = Socket::new(protocol)?;
            socket.set_non_blocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            SockRef::from(&socket).attach_filter(filter)?;
            if everywhere {
                socket.set_listen_all_namespaces(true)?;
            }
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in groups {
                socket.add_membership(*group)?;
            }
            // SAFETY: the socket has its descriptor for itself, until it is dropped.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        };
        let doing = || "watching what others change in the kernel".to_owned();
        let inside = match open(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_TC], &in_slots(own_route), true) {
            // Bounded to less than it asks for, as in a container: nothing else depends on it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                warn!(
                    "without CAP_NET_BROADCAST what somebody changes inside guests' namespaces is noticed at the next start only"
                );
                None
            }
            opened => Some(opened.doing(doing)?),
        };
        Ok(Self {
            route: open(NETLINK_ROUTE, &ROUTE_GROUPS, &by_others(own_route), false).doing(doing)?,
            rules: open(NETLINK_NETFILTER, &[NFTABLES_GROUP], &by_others(&[own_rules]), false)
                .doing(doing)?,
            inside,
            asking: Rtnl::open().doing(doing)?,
            glance_at: Instant::now() + GLANCE,
            // What cannot be read now, for its table changes while it is read (EAGAIN), is new at the next glance: a look for nothing.
            legacy: legacy::tables().unwrap_or_default(),
        })
    }

    /// Waits for changes that are known here; at least one look's worth.
    pub async fn next(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.is_empty() {
            self.more(&mut changes).await;
        }
        changes
    }

    /// Of these ports, each with its bridge, those that are as we make them.
    pub fn ports_in_shape(&mut self, ports: &BTreeMap<u32, u32>) -> Result<BTreeSet<u32>, KernelError> {
        let mut in_shape = BTreeSet::new();
        for (&port, &bridge) in ports {
            if links::is_port(&mut self.asking, port, bridge)? {
                in_shape.insert(port);
            }
        }
        Ok(in_shape)
    }

    async fn more(&mut self, changes: &mut Vec<Change>) {
        tokio::select! {
            ready = self.route.readable() => drain(ready, changes, of_route),
            ready = self.rules.readable() => drain(ready, changes, of_rules),
            ready = readable(self.inside.as_ref()) => drain_inside(ready, changes),
            () = tokio::time::sleep_until(self.glance_at.into()) => self.glance(changes),
        }
    }

    fn glance(&mut self, changes: &mut Vec<Change>) {
        let begun = Instant::now();
        // What cannot be read now is at the next glance.
        if let Ok(now) = legacy::tables() {
            changes.extend(legacy::changes(&self.legacy, &now));
            self.legacy = now;
        }
        self.glance_at = Instant::now() + GLANCE.max(begun.elapsed() * GLANCE_IDLE);
    }
}

/// Lets through the datagrams whose first message is no consequence of a request from one of these ports: all messages of a
/// datagram have the same (nlmsg_pid, at 12).
fn by_others(own: &[u32]) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = vec![SockFilter::new(LOAD_WORD, 0, 0, 12)];
    for (at, port) in own.iter().enumerate() {
        // To the last instruction. A handful of ports: it fits.
        let drop = (own.len() - at) as u8;
        // A load takes the bytes as the network's.
        filter.push(SockFilter::new(JUMP_EQUAL, drop, 0, port.to_be()));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    filter.push(SockFilter::new(RETURN, 0, 0, 0));
    filter
}

/// Lets through the deletion of a device that has the index of a slot's TAP, and what somebody else than these ports does to queues and
/// filters of devices that have the indexes of a slot's: nlmsg_type, at 4, nlmsg_pid, at 12, and ifi_index or tcm_ifindex, at 20.
fn in_slots(own: &[u32]) -> Vec<SockFilter> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let kind = |kind: u16| u32::from(kind.to_be());
    let is = |value: u32, then: u8, otherwise: u8| SockFilter::new(JUMP_EQUAL, then, otherwise, value);
    // A handful of ports: it fits. Jumps count from the next instruction.
    let ports = own.len() as u8;
    let mut filter = vec![
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        is(kind(libc::RTM_DELLINK), 4, 0),
        is(kind(libc::RTM_NEWQDISC), 5, 0),
        is(kind(libc::RTM_DELQDISC), 4, 0),
        is(kind(RTM_NEWTFILTER), 3, 0),
        is(kind(RTM_DELTFILTER), 2, 7 + ports),
        // Of a device:
        SockFilter::new(LOAD_WORD, 0, 0, 20),
        is(TAP_INDEX.to_be(), 4 + ports, 5 + ports),
        // Of a queue or filter:
        SockFilter::new(LOAD_WORD, 0, 0, 20),
        is(TAP_INDEX.to_be(), 1, 0),
        is(GUEST_SIDE_INDEX.to_be(), 0, 2 + ports),
        SockFilter::new(LOAD_WORD, 0, 0, 12),
    ];
    for (at, port) in own.iter().enumerate() {
        filter.push(is(port.to_be(), (own.len() - at) as u8, 0));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    filter.push(SockFilter::new(RETURN, 0, 0, 0));
    filter
}

/// A message of another namespace, of that number: of a TAP with our mark, or of queues and filters.
fn of_inside(kind: u16, body: &[u8], namespace: Option<i32>) -> Option<Change> {
    if kind != libc::RTM_DELLINK {
        return Some(Change::Inside { namespace: namespace? });
    }
    // struct ifinfomsg, 16 bytes.
    let alias = attribute(body.get(16..)?, IFLA_IFALIAS)?;
    let alias = std::str::from_utf8(alias.strip_suffix(b"\0").unwrap_or(alias)).ok()?;
    Some(Change::TapGone { port: port_of_mark(alias)? })
}

/// Never of none.
async fn readable(socket: Option<&AsyncFd<Socket>>) -> Ready<'_> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

type Ready<'a> = io::Result<tokio::io::unix::AsyncFdReadyGuard<'a, Socket>>;

fn drain(ready: Ready<'_>, changes: &mut Vec<Change>, read: fn(u16, &[u8]) -> Option<Change>) {
    // The runtime is ending.
    let Ok(mut ready) = ready else { return };
    let mut buffer = Vec::with_capacity(BUFFER);
    for _ in 0..AT_ONCE {
        buffer.clear();
        match ready.get_inner().recv(&mut buffer, 0) {
            Ok(_) => {
                let found = Messages(&buffer).filter_map(|message| read(message.kind, message.payload));
                changes.extend(found);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // ENOBUFS: the kernel had to leave some out.
            Err(_) => changes.push(Change::Lost),
        }
    }
}

fn drain_inside(ready: Ready<'_>, changes: &mut Vec<Change>) {
    // The runtime is ending.
    let Ok(mut ready) = ready else { return };
    let mut buffer = vec![0; BUFFER];
    for _ in 0..AT_ONCE {
        match receive(ready.get_inner(), &mut buffer) {
            Ok((length, namespace)) => {
                let messages = Messages(&buffer[..length]);
                changes.extend(
                    messages.filter_map(|message| of_inside(message.kind, message.payload, namespace)),
                );
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // ENOBUFS: the kernel had to leave some out.
            Err(_) => changes.push(Change::Lost),
        }
    }
}

/// A datagram's length, and the number of the namespace that it is from; none of our own.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut into = [IoSliceMut::new(buffer)];
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::empty())?;
    let number = |message| match message {
        ControlMessageOwned::Unknown(message)
            if message.cmsg_header.cmsg_level == libc::SOL_NETLINK
                && message.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
        {
            Some(i32::from_ne_bytes(*message.data_bytes.first_chunk()?))
        }
        _ => None,
    };
    Ok((got.bytes, got.cmsgs()?.find_map(number)))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?))
}

/// A message of rtnetlink (linux/rtnetlink.h); `None` for what tells nothing here.
fn of_route(kind: u16, body: &[u8]) -> Option<Change> {
    let family = *body.first()?;
    let there = matches!(kind, libc::RTM_NEWLINK);
    match kind {
        // struct ifinfomsg, 16 bytes.
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let (index, attributes) = (word(body, 4)?, body.get(16..)?);
            if family == AF_BRIDGE {
                let flags = attribute(attributes, IFLA_PROTINFO);
                // An older kernel says only the port's state, as a single byte.
                let flags = flags.filter(|flags| flags.len() > 1);
                let is = |(flag, wanted): &(u16, u8)| {
                    flags.and_then(|flags| attribute(flags, *flag)).is_none_or(|value| value == [*wanted])
                };
                return Some(Change::Port { index, closed: there && CLOSED.iter().all(is) });
            }
            let up = word(body, 8)? & libc::IFF_UP as u32 != 0;
            let bridge = attribute(attributes, IFLA_MASTER).and_then(|value| word(value, 0));
            Some(Change::Device { index, there, up: there && up, bridge })
        }
        // struct ifaddrmsg, 8 bytes.
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(Change::Address { index: word(body, 4)? }),
        // struct rtmsg, 12 bytes.
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE if family == AF_INET => {
            let destination = attribute(body.get(12..)?, RTA_DST).and_then(address)?;
            Some(Change::Route { destination, prefix_len: *body.get(1)? })
        }
        // struct ndmsg, 12 bytes.
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let (index, attributes) = (word(body, 4)?, body.get(12..)?);
            if family == AF_INET {
                let address = attribute(attributes, NDA_DST).and_then(address)?;
                return Some(Change::Neighbour { index, address });
            }
            if family != AF_BRIDGE || kind == libc::RTM_NEWNEIGH {
                return None;
            }
            let mac: [u8; 6] = *attribute(attributes, NDA_LLADDR)?.first_chunk()?;
            Some(Change::ForwardingGone { index, mac: Mac::try_from(mac).ok()? })
        }
        // struct tcmsg, 20 bytes.
        libc::RTM_DELQDISC => Some(Change::Queue { index: word(body, 4)? }),
        // Comes too whenever somebody asks for one device's counters: it says what stands.
        libc::RTM_NEWQDISC if word(body, 12)? == TC_H_ROOT => {
            let attributes = body.get(20..)?;
            let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
            let limit = tc::limit(attribute(attributes, TCA_KIND)?, options);
            Some(Change::Limit { index: word(body, 4)?, limit })
        }
        _ => None,
    }
}

// linux/netfilter/nf_tables.h
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

/// A message of nf_tables; `None` for what tells nothing here. The table's name is attribute 1 of all of them.
fn of_rules(kind: u16, body: &[u8]) -> Option<Change> {
    let family = match *body.first()? {
        1 => RulesFamily::Inet,
        2 => RulesFamily::Ipv4,
        7 => RulesFamily::Bridge,
        _ => RulesFamily::Other,
    };
    // struct nfgenmsg, 4 bytes.
    let attributes = body.get(4..)?;
    let text = |kind| {
        let bytes = attribute(attributes, kind)?;
        Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned())
    };
    let big = |bytes: &[u8]| Some(u32::from_be_bytes(*bytes.first_chunk()?));
    let table = text(1)?;
    // Upper byte: the subsystem.
    let kind = kind & 0xff;
    let chain = match kind {
        NEWTABLE | DELTABLE => None,
        NEWCHAIN | DELCHAIN => Some(text(3)?),
        NEWRULE | DELRULE => Some(text(2)?),
        _ => return None,
    };
    let mut forward_drops = None;
    if kind == NEWCHAIN {
        let hook = attribute(attributes, 4).and_then(|hook| attribute(hook, 1)).and_then(big);
        let policy = attribute(attributes, 5).and_then(big);
        forward_drops = policy.filter(|_| hook == Some(NF_INET_FORWARD)).map(|policy| policy == NF_DROP);
    }
    // Of the bridge family what is forwarded between ports of one bridge: no guest's way.
    let forward_drops = forward_drops.filter(|_| matches!(family, RulesFamily::Inet | RulesFamily::Ipv4));
    let gone = matches!(kind, DELTABLE | DELCHAIN);
    Some(Change::Rules(Rules { family, table, chain, forward_drops, gone }))
}

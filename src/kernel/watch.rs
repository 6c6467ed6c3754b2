//! What others change in the kernel's network, as the kernel tells it: a multicast socket for links, addresses, routes,
//! neighbours and queues, one for TAPs inside slots, one for nf_tables. What we did ourselves is left out by a filter in the kernel.
//! Of iptables-legacy it tells nothing: where that is in use, its tables are glanced at.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockFilter, SockRef};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::warn;

use super::error::{Doing, KernelError};
use super::legacy::{self, Glance};
use super::observe::port_of_mark;
use super::raw::{BUFFER, Messages, attribute};
use super::{TAP_INDEX, tc};
use crate::model::Mac;
use crate::plan::drift::{Change, Rules, RulesFamily};

const NETLINK_NETFILTER: isize = 12;
const RTNLGRP_LINK: u32 = 1;
/// RTNLGRP_LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE (linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 5] = [RTNLGRP_LINK, 3, 4, 5, 7];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 7;
/// A bridge that goes with all its ports is some thousand messages.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Datagrams of one look: what waits behind them is for the next.
const AT_ONCE: usize = 1_024;
/// From one glance at iptables-legacy to the next: two system calls, where it is in use.
const GLANCE: Duration = Duration::from_millis(500);

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
    taps: Option<AsyncFd<Socket>>,
    glances: Interval,
    legacy: BTreeMap<&'static str, Glance>,
}

impl Watch {
    /// In the calling thread's network namespace. `own_route` and `own_rules` are the ports of the sockets by which we change
    /// things. Needs a tokio runtime.
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
        let taps = match open(NETLINK_ROUTE, &[RTNLGRP_LINK], &taps_that_go(), true) {
            // Bounded to less than it asks for, as in a container: nothing else depends on it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                warn!(
                    "without CAP_NET_BROADCAST a TAP that somebody deletes alone is noticed at the next start only"
                );
                None
            }
            opened => Some(opened.doing(doing)?),
        };
        let mut glances = tokio::time::interval(GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            route: open(NETLINK_ROUTE, &ROUTE_GROUPS, &by_others(own_route), false).doing(doing)?,
            rules: open(NETLINK_NETFILTER, &[NFTABLES_GROUP], &by_others(&[own_rules]), false)
                .doing(doing)?,
            taps,
            glances,
            legacy: legacy::tables().doing(doing)?,
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

    async fn more(&mut self, changes: &mut Vec<Change>) {
        tokio::select! {
            ready = self.route.readable() => drain(ready, changes, of_route),
            ready = self.rules.readable() => drain(ready, changes, of_rules),
            ready = readable(self.taps.as_ref()) => drain(ready, changes, of_taps),
            _ = self.glances.tick() => self.glance(changes),
        }
    }

    fn glance(&mut self, changes: &mut Vec<Change>) {
        // What cannot be read now is at the next glance.
        let Ok(now) = legacy::tables() else { return };
        for table in ["filter", "nat"] {
            if now.get(table) != self.legacy.get(table) {
                let (family, table) = (RulesFamily::Ipv4, table.to_owned());
                changes.push(Change::Rules(Rules {
                    family,
                    table,
                    chain: None,
                    forward_drops: None,
                    gone: false,
                }));
            }
        }
        self.legacy = now;
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

/// Lets through the deletion of a device that has the index of a slot's TAP: nlmsg_type, at 4, and ifi_index, at 20.
fn taps_that_go() -> Vec<SockFilter> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    vec![
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(JUMP_EQUAL, 0, 3, u32::from(libc::RTM_DELLINK.to_be())),
        SockFilter::new(LOAD_WORD, 0, 0, 20),
        SockFilter::new(JUMP_EQUAL, 0, 1, TAP_INDEX.to_be()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// A message of the links of any namespace: of a TAP with our mark.
fn of_taps(kind: u16, body: &[u8]) -> Option<Change> {
    // struct ifinfomsg, 16 bytes.
    let alias = attribute(body.get(16..)?, IFLA_IFALIAS).filter(|_| kind == libc::RTM_DELLINK)?;
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
                let found = Messages(&buffer).filter_map(|(kind, _, body)| read(kind, body));
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
        // Comes too whenever somebody, we too, asks for one device's counters: it says what stands.
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

//! Counters of bridge ports: all of them in one dump of each kind (RTM_GETSTATS, RTM_GETQDISC), or one port's. Read
//! straight from the socket, many answers to a buffer: RTM_GETLINK says the same in twenty times the time.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::raw::{attribute, dump, one, open};
use super::tc;
use crate::model::{Counter, Reading};
use crate::plan::ObservedLimit;

// include/uapi/linux/rtnetlink.h, if_link.h, pkt_sched.h
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TC_H_ROOT: u32 = u32::MAX;

/// What every device of the calling thread's namespace has counted, by ifindex, in the view of a guest behind it.
pub(super) fn all() -> io::Result<HashMap<u32, Reading>> {
    let mut socket = open(NETLINK_ROUTE)?;
    let mut readings = HashMap::new();
    dump(&mut socket, RTM_GETSTATS, &stats_request(0), RTM_NEWSTATS, |message| {
        readings.extend(link_counters(message));
    })?;
    let mut limited = Vec::new();
    dump(&mut socket, RTM_GETQDISC, &queue_request(0), RTM_NEWQDISC, |message| {
        limited.extend(dropped_at_root(message));
    })?;
    for (device, dropped) in limited {
        if let Some(reading) = readings.get_mut(&device) {
            reading.0[Counter::RxLimited as usize] = dropped;
        }
    }
    Ok(readings)
}

/// Asks about one device, by a socket of a known port: the kernel tells everybody of a queue that was asked for, and that it was us is no
/// news to the watch. Clones share the socket.
#[derive(Clone)]
pub(super) struct Questions {
    /// With the number of the last question.
    socket: Arc<Mutex<(Socket, u32)>>,
    port: u32,
}

impl Questions {
    /// In the calling thread's network namespace, whoever asks.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = open(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        Ok(Self { socket: Arc::new(Mutex::new((socket, 0))), port })
    }

    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// What the device has counted; `None` when there is none of that index.
    pub(super) fn counters(&self, device: u32) -> io::Result<Option<Reading>> {
        let counted = self.one(RTM_GETSTATS, &stats_request(device), RTM_NEWSTATS, link_counters);
        let Some((_, mut reading)) = none_if(&[libc::ENODEV], counted)? else { return Ok(None) };
        let dropped = self.one(RTM_GETQDISC, &queue_request(device), RTM_NEWQDISC, dropped_at_root);
        // Nothing is to be said about a root without a queue of its own: EINVAL.
        if let Some((_, dropped)) = none_if(&[libc::ENODEV, libc::ENOENT, libc::EINVAL], dropped)? {
            reading.0[Counter::RxLimited as usize] = dropped;
        }
        Ok(Some(reading))
    }

    /// Whether something waits in a device's root queue, and what that limits it to.
    pub(super) fn root_queue(&self, device: u32) -> io::Result<(bool, Option<ObservedLimit>)> {
        let read = |message: &[u8]| {
            Some((waiting_at_root(message).is_some_and(|waiting| waiting > 0), tc::limit_in(message)))
        };
        let queue = self.one(RTM_GETQDISC, &queue_request(device), RTM_NEWQDISC, read);
        // A root without a queue of its own: EINVAL.
        Ok(none_if(&[libc::ENOENT, libc::EINVAL], queue)?.unwrap_or_default())
    }

    fn one<T>(
        &self,
        request_kind: u16,
        request: &[u8],
        answer_kind: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut asked = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, sequence) = &mut *asked;
        *sequence = sequence.wrapping_add(1);
        one(socket, *sequence, request_kind, request, answer_kind, read)
    }
}

fn none_if<T>(numbers: &[i32], result: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|number| numbers.contains(&number)) => Ok(None),
        other => other,
    }
}

/// struct if_stats_msg.
fn stats_request(device: u32) -> Vec<u8> {
    let filter = 1_u32 << (IFLA_STATS_LINK_64 - 1);
    [[0; 4], device.to_ne_bytes(), filter.to_ne_bytes()].concat()
}

/// struct tcmsg, for the root.
fn queue_request(device: u32) -> Vec<u8> {
    [[0; 4], device.to_ne_bytes(), [0; 4], TC_H_ROOT.to_ne_bytes(), [0; 4]].concat()
}

/// A device's counters from struct rtnl_link_stats64. The device is the host's end: what it sends, the guest receives.
fn link_counters(message: &[u8]) -> Option<(u32, Reading)> {
    let device = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let counters = attribute(message.get(12..)?, IFLA_STATS_LINK_64)?;
    let at = |place: usize| Some(u64::from_ne_bytes(*counters.get(place * 8..)?.first_chunk()?));
    let [rx_packets, tx_packets, rx_bytes, tx_bytes] = [at(0)?, at(1)?, at(2)?, at(3)?];
    let [rx_errors, tx_errors, rx_dropped, tx_dropped] = [at(4)?, at(5)?, at(6)?, at(7)?];
    let mut reading = Reading::default();
    for (counter, value) in [
        (Counter::RxBytes, tx_bytes),
        (Counter::TxBytes, rx_bytes),
        (Counter::RxPackets, tx_packets),
        (Counter::TxPackets, rx_packets),
        (Counter::RxDropped, tx_dropped),
        (Counter::TxDropped, rx_dropped),
        (Counter::RxErrors, tx_errors),
        (Counter::TxErrors, rx_errors),
    ] {
        reading.0[counter as usize] = value;
    }
    Some((device, reading))
}

/// Hands every root queue of the socket's namespace to `each`, with its device.
pub(super) fn root_queues(socket: &mut Socket, mut each: impl FnMut(u32, &[u8])) -> io::Result<()> {
    dump(socket, RTM_GETQDISC, &queue_request(0), RTM_NEWQDISC, |message| {
        let word = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
        // struct tcmsg: the device, and what the queue hangs on.
        if let (Some(device), Some(TC_H_ROOT)) = (word(4), word(12)) {
            each(device, message);
        }
    })
}

/// Packets in a root queue, from struct gnet_stats_queue.
pub(super) fn waiting_at_root(message: &[u8]) -> Option<u32> {
    let queue = attribute(attribute(message.get(20..)?, TCA_STATS2)?, TCA_STATS_QUEUE)?;
    Some(u32::from_ne_bytes(*queue.first_chunk()?))
}

/// Packets that a device's root queue has dropped, from struct tcmsg and struct gnet_stats_queue.
fn dropped_at_root(message: &[u8]) -> Option<(u32, u64)> {
    let device = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let parent = u32::from_ne_bytes(*message.get(12..)?.first_chunk()?);
    let queue = attribute(attribute(message.get(20..)?, TCA_STATS2)?, TCA_STATS_QUEUE)?;
    let dropped = u32::from_ne_bytes(*queue.get(8..)?.first_chunk()?);
    (parent == TC_H_ROOT).then_some((device, dropped.into()))
}

//! Counters of bridge ports: all of them in one dump of each kind (RTM_GETSTATS, RTM_GETQDISC), or one port's. Read
//! straight from the socket, many answers to a buffer: RTM_GETLINK says the same in twenty times the time.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use crate::model::{Counter, Reading};

// include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, pkt_sched.h
const HEADER: usize = 16;
const NLM_F_ECHO: u16 = 8;
const NLM_F_DUMP_INTR: u16 = 0x10;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TC_H_ROOT: u32 = u32::MAX;

/// The kernel fills at most 32 KiB at a time.
const BUFFER: usize = 64 << 10;
/// A dump that devices come and go under is interrupted; one that always is still beats none.
const TRIES: usize = 8;
/// The kernel answers at once; a call that it does not answer must not hang for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every device of the calling thread's namespace has counted, by ifindex, in the view of a guest behind it.
pub(super) fn all() -> io::Result<HashMap<u32, Reading>> {
    let mut socket = open()?;
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

/// The same of one device; `None` when there is none of that index.
pub(super) fn of(device: u32) -> io::Result<Option<Reading>> {
    let mut socket = open()?;
    let counted = one(&mut socket, RTM_GETSTATS, &stats_request(device), RTM_NEWSTATS, link_counters);
    let Some((_, mut reading)) = none_if(&[libc::ENODEV], counted)? else { return Ok(None) };
    let dropped = one(&mut socket, RTM_GETQDISC, &queue_request(device), RTM_NEWQDISC, dropped_at_root);
    // Nothing is to be said about a root without a queue of its own: EINVAL.
    if let Some((_, dropped)) = none_if(&[libc::ENODEV, libc::ENOENT, libc::EINVAL], dropped)? {
        reading.0[Counter::RxLimited as usize] = dropped;
    }
    Ok(Some(reading))
}

fn none_if<T>(numbers: &[i32], result: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|number| numbers.contains(&number)) => Ok(None),
        other => other,
    }
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))?;
    Ok(socket)
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

fn send(socket: &Socket, kind: u16, flags: u16, request: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request at a time on a socket of its own
    message.extend(request);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    Ok(())
}

/// Hands every answer of a dump to `each`; again from the start when the kernel says that it was interrupted, so `each`
/// has to bear a repetition.
fn dump(
    socket: &mut Socket,
    request_kind: u16,
    request: &[u8],
    answer_kind: u16,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    for _ in 0..TRIES {
        send(socket, request_kind, libc::NLM_F_DUMP as u16, request)?;
        let (mut done, mut interrupted) = (false, false);
        while !done {
            buffer.clear();
            socket.recv(&mut buffer, 0)?;
            for (kind, flags, message) in Messages(&buffer) {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match i32::from(kind) {
                    libc::NLMSG_DONE => done = true,
                    libc::NLMSG_ERROR => return Err(refusal(message)),
                    _ if kind == answer_kind => each(message),
                    _ => {}
                }
            }
        }
        if !interrupted {
            break;
        }
    }
    Ok(())
}

/// The answer about one device.
fn one<T>(
    socket: &mut Socket,
    request_kind: u16,
    request: &[u8],
    answer_kind: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    // With ECHO, kernels that answer a queue's request as a notification send it to us too.
    send(socket, request_kind, NLM_F_ECHO | libc::NLM_F_ACK as u16, request)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut found = None;
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for (kind, _, message) in Messages(&buffer) {
            if kind == answer_kind {
                found = read(message);
            } else if i32::from(kind) == libc::NLMSG_ERROR {
                // Number 0 acknowledges: the answer, if there is one, has come before it.
                let refusal = refusal(message);
                return if refusal.raw_os_error() == Some(0) { Ok(found) } else { Err(refusal) };
            }
        }
    }
}

/// struct nlmsgerr: a negative error number first.
fn refusal(message: &[u8]) -> io::Error {
    let number = message.first_chunk().map_or(-libc::EPROTO, |number| i32::from_ne_bytes(*number));
    io::Error::from_raw_os_error(-number)
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

/// Packets that a device's root queue has dropped, from struct tcmsg and struct gnet_stats_queue.
fn dropped_at_root(message: &[u8]) -> Option<(u32, u64)> {
    let device = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let parent = u32::from_ne_bytes(*message.get(12..)?.first_chunk()?);
    let queue = attribute(attribute(message.get(20..)?, TCA_STATS2)?, TCA_STATS_QUEUE)?;
    let dropped = u32::from_ne_bytes(*queue.get(8..)?.first_chunk()?);
    (parent == TC_H_ROOT).then_some((device, dropped.into()))
}

/// The payload of the first attribute of that kind, nested flag and all.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & 0x3fff;
        let payload = attributes.get(4..length)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// The messages of a buffer: kind, flags, payload. Ends at the first that is not whole.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*self.0.get(6..)?.first_chunk()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, payload))
    }
}

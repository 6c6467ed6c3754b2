//! Connections that the kernel tracks, by ctnetlink: those of a guest that is gone are forgotten before its address is given to
//! another, whose packets would be taken for answers of the old. One dump for any number of addresses.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::raw::{Message, Messages, attribute};

// include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;

/// struct nfgenmsg: IPv4, version 0, no resource.
const GENERAL: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
const HEADER: usize = 16;
const BUFFER: usize = 64 << 10;

/// Forgets every connection of these guests: those they opened, and those that were opened to them. How many there were.
pub(super) fn forget(guests: &HashSet<Ipv4Addr>) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    send(&socket, GET, libc::NLM_F_DUMP as u16, &[])?;
    let (mut found, mut buffer) = (Vec::new(), Vec::with_capacity(BUFFER));
    let mut done = false;
    while !done {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for Message { kind, payload: message, .. } in Messages(&buffer) {
            match i32::from(kind) {
                libc::NLMSG_DONE => done = true,
                libc::NLMSG_ERROR => return Err(refusal(message)),
                _ if kind == NEW => {
                    let attributes = message.get(GENERAL.len()..).unwrap_or_default();
                    found.extend(is_of(attributes, guests).then(|| names(attributes)));
                }
                _ => {}
            }
        }
    }
    for name in &found {
        send(&socket, DELETE, libc::NLM_F_ACK as u16, name)?;
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let errors = Messages(&buffer).filter(|message| i32::from(message.kind) == libc::NLMSG_ERROR);
        for Message { payload: message, .. } in errors {
            let refusal = refusal(message);
            // It may have ended by itself meanwhile.
            if !matches!(refusal.raw_os_error(), Some(0 | libc::ENOENT)) {
                return Err(refusal);
            }
        }
    }
    Ok(found.len())
}

/// The guest is who opened it, or who answers: behind a port forward, too, where the opener named the host.
fn is_of(attributes: &[u8], guests: &HashSet<Ipv4Addr>) -> bool {
    [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].into_iter().any(|tuple| {
        let source = attribute(attributes, tuple)
            .and_then(|tuple| attribute(attribute(tuple, CTA_TUPLE_IP)?, CTA_IP_V4_SRC)?.first_chunk::<4>());
        source.is_some_and(|source| guests.contains(&Ipv4Addr::from(*source)))
    })
}

/// What a deletion says of the connection: as the dump said it.
fn names(attributes: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        let Some(payload) = attribute(attributes, kind) else { continue };
        let flags = if kind == CTA_TUPLE_ORIG { NLA_F_NESTED } else { 0 };
        // An attribute's length is one that the kernel has written into 16 bits.
        name.extend(((payload.len() + 4) as u16).to_ne_bytes());
        name.extend((kind | flags).to_ne_bytes());
        name.extend(payload);
        name.resize(name.len().next_multiple_of(4), 0);
    }
    name
}

fn send(socket: &Socket, kind: u16, flags: u16, attributes: &[u8]) -> io::Result<()> {
    super::fault::operation()?;
    let length = HEADER + GENERAL.len() + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request at a time on a socket of its own
    message.extend(GENERAL);
    message.extend(attributes);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    Ok(())
}

/// struct nlmsgerr: a negative error number first.
fn refusal(message: &[u8]) -> io::Error {
    let number = message.first_chunk().map_or(-libc::EPROTO, |number| i32::from_ne_bytes(*number));
    io::Error::from_raw_os_error(-number)
}

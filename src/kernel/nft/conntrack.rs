//! Live connections by ctnetlink (linux/netfilter/nfnetlink_conntrack.h): those of an address are listed, and ended; those of guests
//! that are gone are forgotten before their addresses are given to others, whose packets would be taken for answers of the old.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

use super::socket::Socket;
use super::wire::{Buffer, attribute, number};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// CTA_FILTER_F_CTA_IP_SRC, of the tuple in question.
const BY_SOURCE: u32 = 1;
/// IPS_DST_NAT.
const DESTINATION_NAT: u64 = 1 << 5;

/// A connection as its first packet had it, and where it really goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub source: Ipv4Addr,
    /// After port forwarding: who answers.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// After port forwarding; 0 for protocols without.
    pub port: u16,
    /// It came by a port forward.
    pub forwarded: bool,
    /// To name it to the kernel.
    tuple: Vec<u8>,
    id: Vec<u8>,
    /// By somebody's rules it is in another zone than the kernel takes for granted.
    zone: Option<Vec<u8>>,
}

/// The connections that `address` has opened or answers.
pub(super) fn of(socket: &Socket, address: Ipv4Addr) -> io::Result<Vec<Connection>> {
    let mut found = by_source(socket, address, TUPLE_ORIG)?;
    // One with itself, by a port forward, is both.
    let answered = by_source(socket, address, TUPLE_REPLY)?;
    found.extend(answered.into_iter().filter(|connection| connection.source != address));
    Ok(found)
}

/// Every IPv4 connection.
pub(super) fn all(socket: &Socket) -> io::Result<Vec<Connection>> {
    socket.dump(GET, libc::AF_INET as u8, |_| {}, |_, body| read(body))
}

/// Ends a connection; one that is gone is fine.
pub(super) fn end(socket: &Socket, connection: &Connection) -> io::Result<()> {
    let family = libc::AF_INET as u8;
    let done = socket.ask(DELETE, family, |buffer| {
        buffer.nested(TUPLE_ORIG, |buffer| buffer.0.extend(&connection.tuple));
        buffer.bytes(ID, &connection.id);
        if let Some(zone) = &connection.zone {
            buffer.bytes(ZONE, zone);
        }
    });
    match done {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Ends every connection of these guests, by one dump for any number of them: those they opened, and those that were opened to them, behind
/// a port forward, too, where the opener named the host. How many there were.
pub(super) fn forget(socket: &Socket, guests: &HashSet<Ipv4Addr>) -> io::Result<usize> {
    let found = socket.dump(
        GET,
        libc::AF_INET as u8,
        |_| {},
        |_, body| {
            // Most are others': no more is read of these.
            let source = |tuple| source(attribute(body, tuple)?);
            let of = |tuple| source(tuple).is_some_and(|source| guests.contains(&source));
            (of(TUPLE_ORIG) || of(TUPLE_REPLY)).then(|| read(body))?
        },
    )?;
    found.iter().try_for_each(|connection| end(socket, connection))?;
    Ok(found.len())
}

/// The kernel filters (Linux 5.8); what one that does not sends on is left out here.
fn by_source(socket: &Socket, address: Ipv4Addr, tuple: u16) -> io::Result<Vec<Connection>> {
    let write = |buffer: &mut Buffer| {
        buffer.nested(tuple, |buffer| {
            buffer.nested(1, |buffer| buffer.bytes(1, &address.octets()));
        });
        buffer.nested(FILTER, |buffer| {
            let (orig, reply) = if tuple == TUPLE_ORIG { (BY_SOURCE, 0) } else { (0, BY_SOURCE) };
            buffer.bytes(1, &orig.to_ne_bytes());
            buffer.bytes(2, &reply.to_ne_bytes());
        });
    };
    socket.dump(GET, libc::AF_INET as u8, write, |_, body| {
        let connection = read(body)?;
        let source = if tuple == TUPLE_ORIG { connection.source } else { connection.destination };
        (source == address).then_some(connection)
    })
}

fn read(body: &[u8]) -> Option<Connection> {
    let (orig, reply) = (attribute(body, TUPLE_ORIG)?, attribute(body, TUPLE_REPLY)?);
    let in_protocol = |tuple: &[u8], kind: u16| number(attribute(attribute(tuple, 2)?, kind)?);
    Some(Connection {
        source: source(orig)?,
        destination: source(reply)?,
        protocol: in_protocol(orig, 1)?.try_into().ok()?,
        // Where the answers come from: the reply's source port.
        port: in_protocol(reply, 2).and_then(|port| port.try_into().ok()).unwrap_or_default(),
        forwarded: number(attribute(body, STATUS)?)? & DESTINATION_NAT != 0,
        tuple: orig.to_vec(),
        id: attribute(body, ID)?.to_vec(),
        zone: attribute(body, ZONE).map(<[u8]>::to_vec),
    })
}

/// CTA_IP_V4_SRC of a tuple's CTA_TUPLE_IP.
fn source(tuple: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = attribute(attribute(tuple, 1)?, 1)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

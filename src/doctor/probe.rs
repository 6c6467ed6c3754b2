//! Questions over the network that a doctor asks: does a DNS server answer, does a guest answer a ping.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::model::{Upstream, UpstreamTransport};

/// As long as a guest waits before it asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a DNS server answers a query, whatever the answer; one behind TLS, whether it takes a connection.
pub(super) fn answers(server: &Upstream) -> bool {
    match server.transport {
        UpstreamTransport::Plain => ask(server.address).unwrap_or(false),
        UpstreamTransport::Tls { .. } | UpstreamTransport::Https { .. } => {
            TcpStream::connect_timeout(&server.address, PATIENCE).is_ok()
        }
    }
}

fn ask(server: SocketAddr) -> io::Result<bool> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE / 2))?;
    socket.connect(server)?;
    // RFC 1035 section 4.1: id, recursion desired, one question. A of localhost: every server has it itself (RFC 6761
    // section 6.3), so that a resolver is not blamed for its upstreams.
    let query = b"\x67\x6e\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    let mut answer = [0; 1_232];
    // Asked twice: one lost packet is no dead server.
    for _ in 0..2 {
        socket.send(query)?;
        match socket.recv(&mut answer) {
            Ok(length) => return Ok(length >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether `address` answers an echo request.
pub(super) fn answers_ping(address: Ipv4Addr) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(PATIENCE / 4))?;
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    for sequence in 1..=4u16 {
        socket.send_to(&echo_request(id, sequence), &SocketAddr::from((address, 0)).into())?;
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE / 4 && Instant::now() < deadline {
            let mut buffer = [MaybeUninit::<u8>::uninit(); 256];
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
            // SAFETY: recv_from has written the first `length` bytes.
            let packet: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            let header = usize::from(packet.first().copied().unwrap_or_default() & 0x0f) * 4;
            let reply = packet.get(header..).unwrap_or_default();
            let ours = reply.len() >= 8 && reply[0] == 0 && reply[4..6] == id.to_be_bytes();
            if ours && from.as_socket_ipv4().is_some_and(|from| *from.ip() == address) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// RFC 792: type 8, checksum over all of it.
fn echo_request(id: u16, sequence: u16) -> [u8; 8] {
    let mut packet = [8, 0, 0, 0, 0, 0, 0, 0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "folded: two words fit into 17 bits, and the carry is added"
    )]
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_up_to_all_ones() {
        let packet = echo_request(0xfffe, 0x1234);
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

//! Who listens on a port of UDP, and on which device only: what `ss` asks the kernel (sock_diag(7)). /proc/net/udp does not say the
//! device, so that a server of one bridge looks as if it were one of all.

use std::io;
use std::net::Ipv4Addr;

use super::raw;

const NETLINK_SOCK_DIAG: isize = 4;
// include/uapi/linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// A socket of UDP over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpSocket {
    pub address: Ipv4Addr,
    pub port: u16,
    /// The index of the device that it is bound to (SO_BINDTODEVICE), if to one.
    pub device: Option<u32>,
}

/// All on `port` in the calling thread's network namespace.
pub fn udp_on(port: u16) -> io::Result<Vec<UdpSocket>> {
    // struct inet_diag_req_v2: family, protocol, two bytes of what is not asked for, every state; then struct inet_diag_sockid.
    let mut request = vec![libc::AF_INET as u8, libc::IPPROTO_UDP as u8, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend([0; 48]);
    let mut found = Vec::new();
    let mut socket = raw::open(NETLINK_SOCK_DIAG)?;
    raw::dump(&mut socket, SOCK_DIAG_BY_FAMILY, &request, SOCK_DIAG_BY_FAMILY, |answer| {
        found.extend(read(answer).filter(|socket| socket.port == port && !found.contains(socket)));
    })?;
    Ok(found)
}

/// struct inet_diag_msg: four bytes, then struct inet_diag_sockid (ports, 16 bytes for each address, the device).
fn read(answer: &[u8]) -> Option<UdpSocket> {
    let port = answer.get(4..6)?.try_into().ok()?;
    let address: [u8; 4] = answer.get(8..12)?.try_into().ok()?;
    let device = u32::from_ne_bytes(answer.get(40..44)?.try_into().ok()?);
    let device = Some(device).filter(|device| *device != 0);
    Some(UdpSocket { address: address.into(), port: u16::from_be_bytes(port), device })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_too_short_says_nothing() {
        let mut answer = vec![libc::AF_INET as u8, 7, 0, 0, 0, 67, 0, 0, 192, 0, 2, 1];
        answer.resize(40, 0);
        assert_eq!(read(&answer), None);
        answer.extend(9u32.to_ne_bytes());
        let bound = UdpSocket { address: [192, 0, 2, 1].into(), port: 67, device: Some(9) };
        assert_eq!(read(&answer), Some(bound));
    }

    #[test]
    fn a_socket_of_this_process_is_found_with_what_it_is_bound_to() {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(udp_on(port).unwrap(), [UdpSocket { address: Ipv4Addr::LOCALHOST, port, device: None }]);
    }
}

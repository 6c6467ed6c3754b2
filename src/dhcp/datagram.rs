//! The UDP datagram in a frame, proven on the raw bytes: lengths, checksums, no fragment. PURE. In: a frame. Out: its sender
//! and its datagram, or why it has none.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;

use super::{Silence, checksum};
use crate::model::Mac;

/// Whether the frame's UDP checksum is complete. A guest's kernel leaves it to virtio-net's offload; such a frame never
/// crossed a wire, and the kernel marks it (TP_STATUS_CSUMNOTREADY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Checksum {
    Complete,
    LeftToOffload,
}

/// The frame's source and its IPv4 packet.
pub(super) fn ethernet(frame: &[u8]) -> Result<(Mac, &[u8]), Silence> {
    let (header, packet) = frame.split_first_chunk::<14>().ok_or(Silence::Malformed)?;
    if header[12..] != [0x08, 0x00] {
        return Err(Silence::Malformed);
    }
    Ok((mac(&header[6..12])?, packet))
}

pub(super) fn mac(bytes: &[u8]) -> Result<Mac, Silence> {
    let octets: [u8; 6] = bytes.try_into().map_err(|_| Silence::Malformed)?;
    Mac::try_from(octets).map_err(|_| Silence::Malformed)
}

pub(super) struct Datagram<'a> {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    /// Where it is sent to.
    pub(super) port: u16,
    pub(super) payload: &'a [u8],
}

/// A whole UDP datagram. Bytes after the IP packet are Ethernet padding.
pub(super) fn udp(packet: &[u8], l4: L4Checksum) -> Result<Datagram<'_>, Silence> {
    let header = packet.first_chunk::<20>().ok_or(Silence::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_length < 20 || header[9] != 17 {
        return Err(Silence::Malformed);
    }
    if fragment {
        return Err(Silence::Fragment);
    }
    let datagram = packet.get(header_length..total_length).ok_or(Silence::Malformed)?;
    if checksum::internet(&[&packet[..header_length]]) != 0 {
        return Err(Silence::BadChecksum);
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);

    let [_, _, port_high, port_low, length_high, length_low, sum_high, sum_low, ..] = *datagram else {
        return Err(Silence::Malformed);
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let datagram = datagram.get(..length).ok_or(Silence::Malformed)?;
    let payload = datagram.get(8..).ok_or(Silence::Malformed)?;
    // RFC 768: zero says that the sender made no checksum.
    let summed = l4 == L4Checksum::Complete && [sum_high, sum_low] != [0, 0];
    if summed && checksum::udp(source, destination, datagram) != 0 {
        return Err(Silence::BadChecksum);
    }
    Ok(Datagram { source, destination, port: u16::from_be_bytes([port_high, port_low]), payload })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{broadcast, discover, parse};
    use super::super::{Kind, Request};
    use super::*;

    #[test]
    fn ethernet_padding_is_not_part_of_the_request() {
        let mut frame = broadcast(&discover(&[]));
        frame.extend([0xff; 18]);
        assert_eq!(parse(&frame).unwrap().kind, Kind::Discover);
    }

    #[test]
    fn checksums_are_held_to_where_they_are_there() {
        let good = broadcast(&discover(&[]));
        let mut ip = good.clone();
        ip[22] = 63; // TTL
        assert_eq!(parse(&ip), Err(Silence::BadChecksum));
        let mut udp = good.clone();
        udp[42 + 8] ^= 1; // secs
        assert_eq!(parse(&udp), Err(Silence::BadChecksum));
        // A guest that leaves it to virtio-net.
        assert!(Request::parse(&udp, L4Checksum::LeftToOffload).is_ok());
        // A guest that makes none.
        udp[40..42].copy_from_slice(&[0, 0]);
        assert!(parse(&udp).is_ok());
    }

    #[test]
    fn fragments_other_ports_and_other_protocols_are_no_requests() {
        use Silence::{Fragment, Malformed};
        let good = broadcast(&discover(&[]));
        for (what, at, value, silence) in [
            ("IPv6", 14, 0x65, Malformed),
            ("short IP header", 14, 0x44, Malformed),
            ("more fragments", 20, 0x20, Fragment),
            ("fragment offset", 21, 1, Fragment),
            ("TCP", 23, 6, Malformed),
            ("port 68", 37, 68, Malformed),
            ("ARP", 13, 6, Malformed),
            ("UDP shorter than its header", 39, 7, Malformed),
        ] {
            let mut frame = good.clone();
            frame[at] = value;
            if at == 39 {
                frame[38] = 0;
            }
            let sum = checksum::internet(&[&frame[14..24], &frame[26..34]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(Request::parse(&frame, L4Checksum::LeftToOffload), Err(silence), "{what}");
        }
    }
}

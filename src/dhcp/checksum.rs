//! The internet checksum (RFC 1071), which a TAP leaves to us: no hardware completes it. PURE. In: bytes. Out: the sum.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;

/// Checksum of `parts` as if joined. Zero over bytes that already hold their right checksum. Each part but the last has
/// an even length.
pub(super) fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        let (words, rest) = part.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Checksum of a UDP datagram with its pseudo-header (RFC 768).
pub(super) fn udp(source: Ipv4Addr, destination: Ipv4Addr, datagram: &[u8]) -> u16 {
    const UDP: [u8; 2] = [0, 17];
    let length = (datagram.len() as u16).to_be_bytes();
    internet(&[&source.octets(), &destination.octets(), &UDP, &length, datagram])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet(&[&bytes]), !0xddf2);
        assert_eq!(internet(&[&bytes[..4], &bytes[4..]]), !0xddf2);
        assert_eq!(internet(&[&[0xff, 0xff, 0x01]]), !0x0100);
    }
}

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// A unicast, non-zero Ethernet address. Written lowercase with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// `06:00:` and the address in hex: the convention of Firecracker's images, which read their address from it.
    pub fn for_address(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x06, 0x00, a, b, c, d])
    }

    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for Mac {
    type Error = Invalid;
    fn try_from(octets: [u8; 6]) -> Result<Self, Invalid> {
        let mac = Self(octets);
        if octets[0] & 1 == 0 && octets != [0; 6] {
            Ok(mac)
        } else {
            Err(Invalid::new(mac, "a unicast MAC address: an even first octet, not all zero"))
        }
    }
}

impl FromStr for Mac {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shape = || Invalid::new(text, "a MAC address: six pairs of hex digits with colons");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = u8::from_str_radix(part.ok_or_else(shape)?, 16).map_err(|_| shape())?;
        }
        if parts.next().is_some() {
            return Err(shape());
        }
        Self::try_from(octets)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
serde_as_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_mac_spells_the_address() {
        assert_eq!(Mac::for_address(Ipv4Addr::new(10, 100, 1, 2)).to_string(), "06:00:0a:64:01:02");
    }

    #[test]
    fn only_unicast_macs_parse() {
        assert_eq!("06:00:0A:64:01:02".parse::<Mac>().unwrap().to_string(), "06:00:0a:64:01:02");
        for bad in [
            "",
            "06:00:0a:64:01",
            "06:00:0a:64:01:02:03",
            "6:0:a:64:1:2",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+6:00:0a:64:01:02",
            "06-00-0a-64-01-02",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;

use super::{Invalid, serde_as_text};

/// An IPv4 subnet of guests, /8 to /30, host bits clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(Ipv4Network);

impl Subnet {
    pub fn prefix_len(self) -> u8 {
        self.0.prefix()
    }

    pub fn netmask(self) -> Ipv4Addr {
        self.0.mask()
    }

    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    pub fn broadcast(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(address)
    }

    /// Whether `address` can be a host's: inside, and neither the network's own address nor the broadcast address.
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }

    pub fn overlaps(self, other: Ipv4Network) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }

    pub fn as_network(self) -> Ipv4Network {
        self.0
    }
}

const EXPECTED: &str =
    "an IPv4 subnet with a prefix length of 8 to 30 and no host bits set, like 10.100.0.0/16";

impl TryFrom<Ipv4Network> for Subnet {
    type Error = Invalid;
    fn try_from(network: Ipv4Network) -> Result<Self, Invalid> {
        if (8..=30).contains(&network.prefix()) && network.ip() == network.network() {
            Ok(Self(network))
        } else {
            Err(Invalid::new(network, EXPECTED))
        }
    }
}

impl FromStr for Subnet {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let network = text.parse::<Ipv4Network>().ok().filter(|_| text.contains('/'));
        network.and_then(|network| Self::try_from(network).ok()).ok_or_else(|| Invalid::new(text, EXPECTED))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
serde_as_text!(Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_room_and_no_host_bits() {
        let subnet: Subnet = "10.100.0.0/16".parse().unwrap();
        assert_eq!(subnet.netmask(), Ipv4Addr::new(255, 255, 0, 0));
        assert!(subnet.has_host(Ipv4Addr::new(10, 100, 255, 254)));
        assert!(!subnet.has_host(Ipv4Addr::new(10, 100, 255, 255)));
        assert!(!subnet.has_host(Ipv4Addr::new(10, 101, 0, 1)));
        for bad in ["10.100.0.1/16", "10.0.0.0/7", "10.0.0.0/31", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "x"]
        {
            assert!(bad.parse::<Subnet>().unwrap_err().to_string().contains("8 to 30"), "{bad}");
        }
    }

    #[test]
    fn overlap_is_either_way() {
        let subnet: Subnet = "10.100.0.0/16".parse().unwrap();
        assert!(subnet.overlaps("10.0.0.0/8".parse().unwrap()));
        assert!(subnet.overlaps("10.100.7.0/24".parse().unwrap()));
        assert!(!subnet.overlaps("10.101.0.0/16".parse().unwrap()));
    }
}

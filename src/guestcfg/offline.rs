//! A guest from flags, without a daemon, for image builders and their CI. In: typed flags, each refused by its own
//! type. Out: the `GuestNet` every generator takes, or a refusal of facts that do not fit together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnetwork::Ipv4Network;

use super::Refusal;
use super::check::check;
use crate::model::{DhcpOptions, Domain, GuestNet, Hostname, Invalid, Mac, Subnet};

/// A subnet (`10.100.0.0/16`) or just its length (`16`, `/16`), which is taken around the guest's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    Subnet(Subnet),
    Length(u8),
}

impl FromStr for Prefix {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let expected = "a prefix: a subnet like 10.100.0.0/16 or a length, 8 to 30, host bits clear";
        let length = text.strip_prefix('/').unwrap_or(text);
        if !length.is_empty() && length.len() <= 2 && length.bytes().all(|b| b.is_ascii_digit()) {
            let length = length.parse().map_err(|_| Invalid::new(text, expected))?;
            return if (8..=30).contains(&length) {
                Ok(Self::Length(length))
            } else {
                Err(Invalid::new(text, expected))
            };
        }
        text.parse().map(Self::Subnet).map_err(|_| Invalid::new(text, expected))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subnet(subnet) => subnet.fmt(f),
            Self::Length(length) => length.fmt(f),
        }
    }
}

/// The flags `--ip --prefix --gateway --dns --hostname --mac --domain --mtu`, and `--search --ntp --route` as options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineArgs {
    pub ip: Ipv4Addr,
    pub prefix: Prefix,
    pub gateway: Ipv4Addr,
    /// The gateway answers, as guestnet does, where none is given.
    pub dns: Vec<IpAddr>,
    /// `ip-` and the address when none is given.
    pub hostname: Option<Hostname>,
    /// `06:00:` and the address in hex when none is given, as guestnet assigns it.
    pub mac: Option<Mac>,
    /// `vm.internal` when none is given.
    pub domain: Option<Domain>,
    /// 1500 when none is given.
    pub mtu: Option<u16>,
    pub options: DhcpOptions,
}

/// The guest that the flags describe, checked.
pub fn offline(args: OfflineArgs) -> Result<GuestNet, Refusal> {
    let guest = GuestNet {
        mac: args.mac.unwrap_or_else(|| Mac::for_address(args.ip)),
        address: args.ip,
        subnet: subnet_of(args.prefix, args.ip)?,
        gateway: args.gateway,
        dns_servers: if args.dns.is_empty() { vec![IpAddr::V4(args.gateway)] } else { args.dns },
        hostname: args.hostname.unwrap_or_else(|| Hostname::for_address(args.ip)),
        domain: args.domain.unwrap_or_default(),
        mtu: args.mtu.unwrap_or(1500),
        options: args.options,
    };
    check(&guest)?;
    Ok(guest)
}

fn subnet_of(prefix: Prefix, ip: Ipv4Addr) -> Result<Subnet, Refusal> {
    match prefix {
        Prefix::Subnet(subnet) => Ok(subnet),
        Prefix::Length(length) => Ipv4Network::new(ip, length)
            .and_then(|around| Ipv4Network::new(around.network(), length))
            .ok()
            .and_then(|network| Subnet::try_from(network).ok())
            .ok_or(Refusal::PrefixLength(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(ip: &str, prefix: Prefix, gateway: &str) -> OfflineArgs {
        OfflineArgs {
            ip: ip.parse().unwrap(),
            prefix,
            gateway: gateway.parse().unwrap(),
            dns: vec![],
            hostname: None,
            mac: None,
            domain: None,
            mtu: None,
            options: DhcpOptions::default(),
        }
    }

    #[test]
    fn a_prefix_is_a_subnet_or_its_length() {
        let whole = offline(args("10.100.1.2", "10.100.0.0/16".parse().unwrap(), "10.100.0.1")).unwrap();
        for length in ["16", "/16"] {
            let short = offline(args("10.100.1.2", length.parse().unwrap(), "10.100.0.1")).unwrap();
            assert_eq!(short, whole);
        }
        assert_eq!(whole.mac.to_string(), "06:00:0a:64:01:02");
        assert_eq!(whole.dns_servers, ["10.100.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((whole.hostname.as_str(), whole.domain.as_str()), ("ip-10-100-1-2", "vm.internal"));
    }

    #[test]
    fn prefixes_without_room_for_a_gateway_are_refused() {
        for bad in
            ["10.0.0.2/31", "10.0.0.0/31", "10.0.0.1/32", "31", "/32", "7", "0", "", "/", "255.255.0.0", "a"]
        {
            let error = bad.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains("8 to 30") && error.contains(&format!("{bad:?}")), "{error}");
        }
        assert!(
            offline(args("10.0.0.2", Prefix::Length(31), "10.0.0.3")).unwrap_err().to_string().contains("31")
        );
        assert!(
            offline(args("10.0.0.2", Prefix::Length(99), "10.0.0.3")).unwrap_err().to_string().contains("99")
        );
    }

    #[test]
    fn a_gateway_or_an_address_outside_the_subnet_is_refused() {
        let subnet: Prefix = "10.100.0.0/16".parse().unwrap();
        let error = offline(args("10.100.1.2", subnet, "10.200.0.1")).unwrap_err().to_string();
        assert!(error.contains("10.200.0.1") && error.contains("10.100.0.0/16"), "{error}");
        let error = offline(args("10.200.1.2", subnet, "10.100.0.1")).unwrap_err().to_string();
        assert!(error.contains("10.200.1.2"), "{error}");
    }
}

//! Guests that the generators' tests share: one plain, one that says everything, and any.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::HostSide;
use crate::model::{GuestNet, Mac, Subnet};

/// The seed's example guest, with the mask it should have had.
pub(crate) fn guest() -> GuestNet {
    GuestNet {
        mac: "06:00:0a:64:01:02".parse().unwrap(),
        address: "10.100.1.2".parse().unwrap(),
        subnet: "10.100.0.0/16".parse().unwrap(),
        gateway: "10.100.0.1".parse().unwrap(),
        dns_servers: vec!["8.8.8.8".parse().unwrap(), "8.8.4.4".parse().unwrap()],
        hostname: "vm1".parse().unwrap(),
        domain: "vm.internal".parse().unwrap(),
        mtu: 1500,
    }
}

/// What is hard to say: a /30, jumbo frames, three DNS servers and one of IPv6, a MAC of digits only.
pub(crate) fn demanding_guest() -> GuestNet {
    GuestNet {
        mac: "02:00:10:20:30:40".parse().unwrap(),
        address: "192.0.2.6".parse().unwrap(),
        subnet: "192.0.2.4/30".parse().unwrap(),
        gateway: "192.0.2.5".parse().unwrap(),
        dns_servers: ["192.0.2.5", "198.51.100.1", "2001:db8::53", "198.51.100.2"]
            .map(|server| server.parse().unwrap())
            .to_vec(),
        hostname: "db-7".parse().unwrap(),
        domain: "7.example".parse().unwrap(),
        mtu: 9000,
    }
}

pub(crate) fn host_side() -> HostSide {
    HostSide { vm_id: "web-1".parse().unwrap(), tap_device: "tap0".parse().unwrap() }
}

/// Any guest whose facts fit together.
pub(crate) fn any_guest() -> impl Strategy<Value = GuestNet> {
    let link = (8u8..=30, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(length, network, a, b)| {
        let mask = u32::MAX << (32 - length);
        let network = (network & mask) & 0x7fff_ffff | 0x0100_0000 & mask;
        let hosts = !mask - 1;
        let address = network + 1 + a % hosts;
        let gateway = network + 1 + (a % hosts + 1 + b % (hosts - 1)) % hosts;
        let subnet: Subnet = format!("{}/{length}", Ipv4Addr::from(network)).parse().unwrap();
        (subnet, Ipv4Addr::from(address), Ipv4Addr::from(gateway))
    });
    let server = prop_oneof![
        3 => (0x0100_0000u32..0xe000_0000).prop_map(|v4| IpAddr::V4(v4.into())),
        1 => (1u128..1 << 120).prop_map(|v6| IpAddr::V6(v6.into())),
    ];
    let label = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
    (
        link,
        any::<[u8; 6]>(),
        proptest::collection::vec(server, 0..6),
        label.prop_filter("not digits alone", |name| name.bytes().any(|b| !b.is_ascii_digit())),
        proptest::collection::vec(label, 1..4),
        68u16..,
    )
        .prop_map(|((subnet, address, gateway), mut mac, dns_servers, hostname, domain, mtu)| {
            mac[0] = mac[0] & 0xfc | 2;
            GuestNet {
                mac: Mac::try_from(mac).unwrap(),
                address,
                subnet,
                gateway,
                dns_servers,
                hostname: hostname.parse().unwrap(),
                domain: domain.join(".").parse().unwrap(),
                mtu,
            }
        })
}

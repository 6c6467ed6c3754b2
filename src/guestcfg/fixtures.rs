//! Guests that the generators' tests share: one plain, one that says everything, and any.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use proptest::prelude::*;

use super::HostSide;
use crate::model::{DhcpOptions, GuestNet, Mac, StaticRoute, Subnet};

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
        options: DhcpOptions::default(),
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
        options: DhcpOptions::default(),
    }
}

/// What its network adds: two time servers, routes by a gateway and on the link, two more search domains.
pub(crate) fn guest_with_options() -> GuestNet {
    let options = r#"
        ntp_servers = ["10.100.0.1", "10.100.0.2"]
        static_routes = ["10.1.0.0/16 via 10.100.0.9", "10.2.3.0/24 via 0.0.0.0"]
        domain_search = ["corp.example", "7.example"]
    "#;
    GuestNet { options: toml::from_str(options).unwrap(), ..guest() }
}

/// Options of any guest; its routes go by its gateway or are on the link.
fn any_options(gateway: Ipv4Addr) -> impl Strategy<Value = DhcpOptions> {
    let domain = "[a-z][a-z0-9]{0,9}(\\.[a-z0-9]{1,9}){0,2}".prop_map(|name| name.parse().unwrap());
    let route = (any::<u32>(), 1u8..=32, any::<bool>()).prop_map(move |(to, length, on_link)| StaticRoute {
        destination: Ipv4Network::new((to & u32::MAX << (32 - length)).into(), length).unwrap(),
        via: if on_link { Ipv4Addr::UNSPECIFIED } else { gateway },
    });
    (
        proptest::collection::vec((0x0100_0000u32..0xe000_0000).prop_map(Ipv4Addr::from), 0..4),
        proptest::collection::vec(domain, 0..3),
        proptest::collection::vec(route, 0..4),
    )
        .prop_map(|(ntp_servers, domain_search, static_routes)| DhcpOptions {
            ntp_servers,
            domain_search,
            static_routes,
            ..DhcpOptions::default()
        })
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
    let link = link.prop_flat_map(|link| any_options(link.2).prop_map(move |options| (link, options)));
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
        .prop_map(
            |(((subnet, address, gateway), options), mut mac, dns_servers, hostname, domain, mtu)| {
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
                    options,
                }
            },
        )
}

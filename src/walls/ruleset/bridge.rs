//! The table at the ports: who sends.

use std::net::Ipv4Addr;

use super::{BRIDGE, DHCP_CLIENT, DHCP_SERVER, IDLE_MS, PORT_REASONS, burst, dynamic, id};
use crate::model::{Mac, Network};
use crate::walls::matching::*;
use crate::walls::nft::{Chain, Data, Element, Expr, Field, HookKind, HookPoint, Key, Set, Table, Verdict};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];
/// ARP is answered by the host's own processor: what a guest that means well never sends in a second.
const ARP_PER_SECOND: u64 = 200;

/// The table at the ports: a frame passes if its addresses are those of the port's guest, and if a guest has any business
/// to send it; all else is dropped. Before everything else, br_netfilter included.
pub fn table<'a>(networks: impl Iterator<Item = &'a Network> + Clone) -> Table {
    let mine = |mac: fn(u32) -> Expr| vec![input_name(0), mac(4)];
    // No network has the number that is compared with: whatever is in the map passes.
    let in_macs = || {
        vec![
            Expr::Map { map: "macs", key: 0, to: 8 },
            Expr::NotEqual { register: 8, value: u32::MAX.to_ne_bytes().to_vec() },
        ]
    };
    let is_mine = || [mine(ether_source), in_macs()].concat();
    let bound = |parts: [Expr; 3]| [parts.to_vec(), vec![Expr::In { set: "bindings", key: 0 }]].concat();
    let dhcp_request = || {
        let ports = [source_port(DHCP_CLIENT), destination_port(DHCP_SERVER)].concat();
        [not_a_fragment(), protocol(UDP), ports].concat()
    };
    let to_the_gateway = || vec![ether_destination(0), Expr::NotIn { set: "gateway_macs", key: 0 }];
    let multicast = || {
        vec![
            ether_destination(0),
            Expr::Mask { register: 0, mask: vec![1, 0, 0, 0, 0, 0] },
            Expr::NotEqual { register: 0, value: vec![0; 6] },
        ]
    };

    let port = vec![
        rule(
            "its guest's MAC and address",
            [ether_type(IPV4), bound([input_name(0), ether_source(4), source(6)]), goto("own_address")],
        ),
        rule(
            "ARP with its guest's MAC and address, in the frame and in the packet",
            [
                ether_type(ARP),
                bound([input_name(0), ether_source(4), arp_sender(6)]),
                bound([input_name(0), arp_sender_mac(4), arp_sender(6)]),
                goto("own_arp"),
            ],
        ),
        rule(
            "ARP probe (RFC 5227): a sender that has no address yet",
            [
                ether_type(ARP),
                arp_sender_is_nobody(),
                is_mine(),
                [mine(arp_sender_mac), in_macs()].concat(),
                goto("own_arp"),
            ],
        ),
        rule(
            "DHCP client that has no address yet",
            [
                ether_type(IPV4),
                source_is([0; 4]),
                destination_is([255; 4]),
                dhcp_request(),
                is_mine(),
                goto("dhcp"),
            ],
        ),
        rule(
            "DHCP client that believes in another address, which the server refuses it",
            [
                ether_type(IPV4),
                dhcp_request(),
                vec![destination(0), Expr::In { set: "dhcp_servers", key: 0 }],
                is_mine(),
                goto("dhcp"),
            ],
        ),
        rule("else its guest may say nothing, but is told apart", [is_mine(), goto("foreign_address")]),
        rule("foreign MAC", [deny("spoofed_mac")]),
    ];

    let own_address = vec![
        rule("DHCP server", [protocol(UDP), source_port(DHCP_SERVER), deny("dhcp_server")]),
        rule("DHCP to every server", [ether_destination_is(BROADCAST), dhcp_request(), goto("dhcp")]),
        rule("broadcast and multicast", [multicast(), deny("multicast")]),
        rule("past the gateway", [to_the_gateway(), deny("not_to_gateway")]),
        rule("to loopback", [destination_in(127), deny("martian")]),
        rule("to this network", [destination_in(0), deny("martian")]),
        rule("to multicast, reserved and broadcast", [destination_is_no_unicast(), deny("martian")]),
        rule("DHCP to a server", [dhcp_request(), goto("dhcp")]),
        rule("all else of its guest", [accept()]),
    ];

    let over = |rate: u64, set: &'static str| {
        vec![input_name(0), Expr::RateOver { set, key: 0, rate, burst: burst(rate) }]
    };
    let own_arp = vec![
        rule("not of IPv4 over Ethernet", [not_arp_of_ipv4(), deny("spoofed_arp")]),
        rule("more ARP than any guest needs", [over(ARP_PER_SECOND, "arp_rate"), deny("arp_rate")]),
        rule("who has", [ether_destination_is(BROADCAST), accept()]),
        rule("past the gateway", [to_the_gateway(), deny("not_to_gateway")]),
        rule("to the gateway", [accept()]),
    ];

    let link_local = vec![
        ether_destination(0),
        Expr::Mask { register: 0, mask: vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xf0] },
        Expr::Equal { register: 0, value: vec![0x01, 0x80, 0xc2, 0, 0, 0] },
    ];
    let mut chains = vec![
        Chain::new(
            "denied",
            vec![
                rule("count it for the port", [vec![input_name(0), Expr::In { set: "drops", key: 0 }]]),
                rule("drop", [vec![Expr::Verdict(Verdict::Drop)]]),
            ],
        ),
        Chain::new(
            "foreign_address",
            vec![
                rule("foreign ARP sender", [ether_type(ARP), deny("spoofed_arp")]),
                rule("foreign source address", [ether_type(IPV4), deny("spoofed_address")]),
                rule("no IPv4 and no ARP, tagged frames included", [deny("other_ethertype")]),
            ],
        ),
        Chain::new("own_address", own_address),
        Chain::new("own_arp", own_arp),
        Chain::new("port", port),
        Chain::base(
            "from_ports",
            HookKind::Filter,
            HookPoint::Prerouting,
            -300,
            vec![rule("every frame of a guest", [from_a_port(), goto("port")])],
        ),
        Chain::base(
            "to_host",
            HookKind::Filter,
            HookPoint::Input,
            -300,
            vec![rule(
                "LLDP and the like, which pass by prerouting",
                [from_a_port(), link_local, deny("link_local")],
            )],
        ),
        Chain::base(
            "between_ports",
            HookKind::Filter,
            HookPoint::Forward,
            -300,
            vec![rule("nothing is switched between guests", [from_a_port(), deny("not_to_gateway")])],
        ),
    ];
    let mut dhcp = Vec::new();
    for (at, network) in networks.clone().enumerate() {
        let rate = network.walls.caps.dhcp_per_second.into();
        let of_network = Expr::Equal { register: 8, value: id(at).0 };
        let map = Expr::Map { map: "macs", key: 0, to: 8 };
        dhcp.push(rule(
            format!("more DHCP than any client of network {} needs", network.name),
            [
                [mine(ether_source), vec![map, of_network]].concat(),
                over(rate, "dhcp_rate"),
                deny("dhcp_rate"),
            ],
        ));
    }
    dhcp.push(rule("DHCP", [accept()]));
    chains.insert(0, Chain::new("dhcp", dhcp));
    let mut gateway_macs = Set::of("gateway_macs", &[Field::Mac]);
    gateway_macs.elements = networks.clone().map(|network| Element::of(mac_key(network))).collect();
    // And who is asked by broadcast.
    let servers = networks.map(|network| network.gateway).chain([Ipv4Addr::BROADCAST]);
    let mut dhcp_servers = Set::of("dhcp_servers", &[Field::Address]);
    dhcp_servers.elements = servers.map(|address| Element::of(Key::new().address(address))).collect();
    let rate_of = |name| Set { dynamic: Some(dynamic(Some(IDLE_MS))), ..Set::of(name, &[Field::IfName]) };
    Table {
        family: BRIDGE.family,
        name: BRIDGE.name,
        counters: PORT_REASONS.to_vec(),
        sets: vec![
            Set::of("bindings", &[Field::IfName, Field::Mac, Field::Address]),
            Set::map("macs", &[Field::IfName, Field::Mac], Data::Fields(vec![Field::Id])),
            Set { counted: true, ..Set::of("drops", &[Field::IfName]) },
            gateway_macs,
            dhcp_servers,
            rate_of("dhcp_rate"),
            rate_of("arp_rate"),
        ],
        chains,
    }
}

/// A bridge has the MAC of its gateway's address.
fn mac_key(network: &Network) -> Key {
    let mut key = Key::new().mac(Mac::for_address(network.gateway));
    // A set of one field takes the field's own length.
    key.0.truncate(6);
    key
}

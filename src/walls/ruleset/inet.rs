//! The table of the host: what gets where.

use std::net::Ipv4Addr;

use super::{DHCP_CLIENT, DHCP_SERVER, HOST_REASONS, IDLE_MS, INET, burst, dynamic};
use crate::model::{Action, Caps, DnsMode, IfName, Metadata, Network};
use crate::walls::matching::*;
use crate::walls::nft::{
    Chain, Data, Element, Expr, Field, HookKind, HookPoint, Key, Meta, Set, Table, Verdict,
};

const DNS: u16 = 53;

/// The guests that have, or had, a connection: of all others none needs to be looked for, which takes the kernel a walk
/// through its whole table.
pub const CONNECTED: &str = "connected";

/// The table of the host: what of guests' packets reaches the host, another guest, the world, and what reaches a guest.
pub fn table<'a>(networks: impl Iterator<Item = &'a Network> + Clone) -> Table {
    let opens = || {
        [
            rule("no IPv4", [not_ipv4(), deny("not_ipv4")]),
            rule("answers, and errors about them", [of_a_live_connection(), accept()]),
            rule("of no connection", [of_no_connection(), deny("invalid")]),
            rule("TCP that does not begin a connection", [tcp_without_a_beginning(), deny("stray_tcp")]),
        ]
    };
    let capped =
        || rule("what one guest may take", [vec![input_name(0), Expr::VerdictOf { map: "caps", key: 0 }]]);
    // nft(8) ends when it lists a lookup of what a map gave: that goes by way of the packet's priority, which is put back
    // before it leaves. Nothing but these rules reads it in between.
    let by_map = |address: fn(u32) -> Expr, map: &'static str| {
        let found = Expr::Map { map, key: 0, to: 0 };
        let back = Expr::Meta { key: Meta::Priority, to: 0 };
        [ipv4(), vec![address(0), found, Expr::SetPriority { from: 0 }, back]].concat()
    };
    // Two lookups, between which the policy may be changed: the kernel has each look at what is in force by then, and the second finds
    // nothing under the number that went. So a packet that came by is asked about once more.
    let policy = |address: fn(u32) -> Expr, map: &'static str| {
        let chain = || [by_map(address, "policy_of"), vec![Expr::VerdictOf { map, key: 0 }]].concat();
        [rule("its policy", [chain()]), rule("its policy, if it was being changed", [chain()])]
    };
    let no_priority = || vec![Expr::Number { to: 0, value: 0 }, Expr::SetPriority { from: 0 }];
    let to_a_forward = |keys: Vec<Expr>, map: &'static str, registers: u32| {
        let found = Expr::Map { map, key: 0, to: registers };
        [
            to_this_host(),
            ipv4(),
            keys,
            vec![found, Expr::Redirect { address: registers, port: registers + 1 }],
        ]
        .concat()
    };
    let is_dhcp = || [protocol(UDP), source_port(DHCP_CLIENT), destination_port(DHCP_SERVER)].concat();
    let forward_any = || to_a_forward(vec![protocol_to(0), destination_port_to(1)], "forwards", 2);
    let forward_at =
        || to_a_forward(vec![destination(0), protocol_to(1), destination_port_to(2)], "forwards_at", 3);

    let [not_ipv4_rule, live, invalid, stray] = opens();
    let host_wall = vec![
        not_ipv4_rule,
        rule(
            "DHCP, which the server has taken from the bridge",
            [is_dhcp(), vec![Expr::Verdict(Verdict::Drop)]],
        ),
        rule(
            "DNS questions, answered or not",
            [
                protocol(UDP),
                destination_port(DNS),
                vec![input_name(0), Expr::VerdictOf { map: "dns_caps", key: 0 }],
            ],
        ),
        live,
        invalid,
        stray,
        capped(),
        rule(
            "echo",
            [
                ipv4(),
                echo_request(),
                vec![input_name(0), destination(4), Expr::In { set: "gateways", key: 0 }],
                accept(),
            ],
        ),
        rule(
            "what the host offers guests",
            [
                ipv4(),
                vec![
                    input_name(0),
                    destination(4),
                    protocol_to(5),
                    destination_port_to(6),
                    Expr::In { set: "services", key: 0 },
                ],
                accept(),
            ],
        ),
        rule(
            "what was sent elsewhere and redirected here",
            [
                ipv4(),
                forwarded_to_a_port(),
                vec![
                    input_name(0),
                    destination(4),
                    protocol_to(5),
                    destination_port_to(6),
                    Expr::In { set: "redirected", key: 0 },
                ],
                accept(),
            ],
        ),
        rule("nothing else of the host", [deny("host")]),
    ];

    let mut from_guest = opens().to_vec();
    from_guest.extend([
        rule("DHCP server", [protocol(UDP), source_port(DHCP_SERVER), deny("dhcp_server")]),
        rule("to a DHCP client", [protocol(UDP), destination_port(DHCP_CLIENT), deny("dhcp_server")]),
        capped(),
        rule("to another guest", [leaves_by("bridges"), goto("guest_to_guest")]),
        rule(
            "where no guest gets to",
            [
                ipv4(),
                vec![input_name(0), destination(4), Expr::In { set: "blocked_egress", key: 0 }],
                deny("blocked_egress"),
            ],
        ),
    ]);
    from_guest.extend(policy(source, "egress"));
    from_guest.extend([
        rule("networks closed to the world", [enters_by("egress_closed"), deny("egress_closed")]),
        rule("to the world", [no_priority(), accept()]),
    ]);
    let mut to_guest = opens().to_vec();
    to_guest.push(rule("a new connection to a guest", [goto("inbound")]));

    let remember = || Expr::Remember { set: CONNECTED, key: 0 };
    let [now_in, then_in] = policy(destination, "ingress");
    let inbound = vec![
        rule("a guest has a connection", [ipv4(), vec![destination(0), remember()]]),
        now_in,
        then_in,
        rule("by a port forward", [forwarded_to_a_port(), accept()]),
        rule(
            "of its own workspace",
            [by_map(source, "sharing"), vec![destination(1), Expr::In { set: "members", key: 0 }], accept()],
        ),
        rule("closed", [deny("closed")]),
    ];

    // Its guest speaks to the host itself then, and nothing at the bridge looks at what it sends.
    let bare = || {
        let drop = vec![Expr::Verdict(Verdict::Drop)];
        rule("from a port whose bridge somebody has removed", [enters_by_a_bare_port(), drop])
    };
    let mut chains = vec![
        Chain::new(
            "denied",
            vec![
                rule("count it for the guest", [ipv4(), vec![source(0), Expr::In { set: "drops", key: 0 }]]),
                rule("drop", [vec![Expr::Verdict(Verdict::Drop)]]),
            ],
        ),
        Chain::new("denied_by_policy", vec![rule("a policy denies it", [deny("policy")])]),
        Chain::new("host_wall", host_wall),
        Chain::new("inbound", inbound),
        Chain::new(
            "egress_allowed",
            vec![
                rule("and may it come in there?", [leaves_by("bridges"), goto("inbound")]),
                rule("to the world", [no_priority(), accept()]),
            ],
        ),
        Chain::new(
            "guest_to_guest",
            policy(source, "egress")
                .into_iter()
                .chain([rule("and may it come in there?", [goto("inbound")])])
                .collect(),
        ),
        Chain::new("from_guest", from_guest),
        Chain::new("to_guest", to_guest),
        Chain::base(
            "input",
            HookKind::Filter,
            HookPoint::Input,
            -10,
            vec![rule("from guests to the host", [enters_by("bridges"), goto("host_wall")]), bare()],
        ),
        Chain::base(
            "forward",
            HookKind::Filter,
            HookPoint::Forward,
            -10,
            vec![
                rule("from guests", [enters_by("bridges"), goto("from_guest")]),
                bare(),
                rule("to guests", [leaves_by("bridges"), goto("to_guest")]),
            ],
        ),
        Chain::base(
            "untracked",
            HookKind::Filter,
            HookPoint::Prerouting,
            -300,
            // A neighbour's connections are counted by its address: a guest that believes in it makes none there.
            vec![
                rule(
                    "DHCP to the host is no connection",
                    [enters_by("bridges"), ipv4(), is_dhcp(), to_this_host(), vec![Expr::NoTrack]],
                ),
                rule(
                    "DHCP to all is no connection",
                    [enters_by("bridges"), ipv4(), is_dhcp(), destination_is([255; 4]), vec![Expr::NoTrack]],
                ),
            ],
        ),
        Chain::base(
            "port_forwards",
            HookKind::Nat,
            HookPoint::Prerouting,
            -105,
            vec![
                rule("at an address", [forward_at()]),
                rule(
                    "at an uplink",
                    [to_a_forward(
                        vec![input_name(0), protocol_to(4), destination_port_to(5)],
                        "forwards_by",
                        6,
                    )],
                ),
                rule("at every address", [forward_any()]),
            ],
        ),
        Chain::base(
            "own_port_forwards",
            HookKind::Nat,
            HookPoint::Output,
            -105,
            vec![rule("at an address", [forward_at()]), rule("at every address", [forward_any()])],
        ),
        Chain::base(
            "way_back",
            HookKind::Nat,
            HookPoint::Postrouting,
            95,
            vec![
                // With one of the host's own; a chain of this kind sees the first packet of a connection alone.
                rule(
                    "a guest has a connection",
                    [leaves_by("bridges"), ipv4(), vec![destination(0), remember()]],
                ),
                rule(
                    "from this host's loopback",
                    [
                        ipv4(),
                        source_in(127),
                        leaves_by("bridges"),
                        forwarded_to_a_port(),
                        vec![Expr::Masquerade],
                    ],
                ),
                rule(
                    "from a guest to itself",
                    [
                        ipv4(),
                        vec![source(0), destination(1), Expr::In { set: "hairpin", key: 0 }],
                        forwarded_to_a_port(),
                        vec![Expr::Masquerade],
                    ],
                ),
            ],
        ),
    ];

    for (at, network) in networks.enumerate() {
        let Caps { new_connections_per_second, live_connections, dns_per_second, .. } = network.walls.caps;
        let over = |set: &'static str, rate: u32| {
            let rate = rate.into();
            [ipv4(), vec![source(0), Expr::RateOver { set, key: 0, rate, burst: burst(rate) }]].concat()
        };
        let live = Expr::ConnectionsOver { set: "live", key: 0, count: live_connections };
        chains.push(Chain::new(
            caps_chain(at),
            vec![
                // UDP that nobody answers is of state new for as long as it goes on, but one connection.
                rule("counted already", [of_a_known_connection(), vec![Expr::Verdict(Verdict::Return)]]),
                rule("a guest has a connection", [ipv4(), vec![source(0), remember()]]),
                rule(
                    "new connections",
                    [over("new_rate", new_connections_per_second), deny("new_connections")],
                ),
                rule("live connections", [ipv4(), vec![source(0), live], deny("live_connections")]),
            ],
        ));
        chains.push(Chain::new(
            dns_chain(at),
            vec![rule("questions", [over("dns_rate", dns_per_second), deny("dns_rate")])],
        ));
    }
    let of_address = |name| Set::of(name, &[Field::Address]);
    let id_of_address = |name| Set::map(name, &[Field::Address], Data::Fields(vec![Field::Id]));
    let leads_to_a_port =
        |name, key: &[Field]| Set::map(name, key, Data::Fields(vec![Field::Address, Field::Port]));
    Table {
        family: INET.family,
        name: INET.name,
        counters: HOST_REASONS.to_vec(),
        sets: vec![
            Set::of("bridges", &[Field::IfName]),
            Set::of("gateways", &[Field::IfName, Field::Address]),
            Set::of("services", &[Field::IfName, Field::Address, Field::Protocol, Field::Port]),
            Set::of("redirected", &[Field::IfName, Field::Address, Field::Protocol, Field::Port]),
            Set { ranges: true, ..Set::of("blocked_egress", &[Field::IfName, Field::Address]) },
            Set::of("egress_closed", &[Field::IfName]),
            Set::map("caps", &[Field::IfName], Data::Verdict),
            Set::map("dns_caps", &[Field::IfName], Data::Verdict),
            Set { counted: true, ..of_address("drops") },
            Set::map("policy_of", &[Field::Address], Data::Fields(vec![Field::Priority])),
            Set::map("egress", &[Field::Priority], Data::Verdict),
            Set::map("ingress", &[Field::Priority], Data::Verdict),
            id_of_address("workspace_of"),
            Set::map("sharing", &[Field::Address], Data::Fields(vec![Field::Priority])),
            Set::of("members", &[Field::Priority, Field::Address]),
            leads_to_a_port("forwards", &[Field::Protocol, Field::Port]),
            leads_to_a_port("forwards_at", &[Field::Address, Field::Protocol, Field::Port]),
            leads_to_a_port("forwards_by", &[Field::IfName, Field::Protocol, Field::Port]),
            Set::of("hairpin", &[Field::Address, Field::Address]),
            Set { dynamic: Some(dynamic(Some(IDLE_MS))), ..of_address("new_rate") },
            Set { dynamic: Some(dynamic(Some(IDLE_MS))), ..of_address("dns_rate") },
            Set { dynamic: Some(dynamic(None)), ..of_address("live") },
            Set { dynamic: Some(dynamic(None)), ..of_address(CONNECTED) },
        ],
        chains,
    }
}

/// What the table holds for a bridge of the network that is the `at`th.
pub fn of_bridge(at: usize, network: &Network, bridge: &IfName) -> Vec<(&'static str, Element)> {
    let bridge = || Key::new().if_name(bridge.as_str());
    let mut elements = vec![
        ("gateways", Element::of(bridge().address(network.gateway))),
        ("caps", Element::to_verdict(bridge(), Verdict::Jump(caps_chain(at)))),
        ("dns_caps", Element::to_verdict(bridge(), Verdict::Jump(dns_chain(at)))),
    ];
    let offered = services(network).into_iter().map(|(protocol, port)| (network.gateway, protocol, port));
    // The DHCP server takes its frames before this; nobody else has this port.
    let broadcast = (Ipv4Addr::BROADCAST, UDP, DHCP_SERVER);
    elements.extend(offered.chain([broadcast]).map(|(address, protocol, port)| {
        ("services", Element::of(bridge().address(address).protocol(protocol).port(port)))
    }));
    if network.metadata.is_some() {
        // Only what was sent to the service's own address comes by this way (`kernel::metadata`).
        let service = bridge().address(network.gateway).protocol(TCP).port(Metadata::PORT);
        elements.push(("redirected", Element::of(service)));
    }
    elements.extend(network.walls.blocked_egress.iter().map(|prefix| {
        let end = Some(bridge().address(prefix.broadcast()));
        ("blocked_egress", Element { end, ..Element::of(bridge().address(prefix.network())) })
    }));
    if network.walls.egress == Action::Deny {
        elements.push(("egress_closed", Element::of(bridge())));
    }
    // Last: with it the walls stand.
    elements.push(("bridges", Element::of(bridge())));
    elements
}

/// What the gateway offers its guests besides echo.
fn services(network: &Network) -> Vec<(u8, u16)> {
    let mut services = vec![(UDP, DHCP_SERVER)];
    if network.dns == DnsMode::On {
        services.extend([(UDP, DNS), (TCP, DNS)]);
    }
    services
}

fn caps_chain(at: usize) -> String {
    format!("caps_{at}")
}

fn dns_chain(at: usize) -> String {
    format!("dns_{at}")
}

//! Hosts at random for `agree`: networks, guests' workspaces, forwards and policies, and the packets that are tried on them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use guestnet::config::Config;
use guestnet::model::{HostSide, PortForward, Transport};
use guestnet::policy::{Policy, PolicySpec, RuleSpec};
use guestnet::walls::Guest;
use guestnet::walls::book::{Book, carry_out};
use proptest::prelude::*;
use proptest::sample::select;

use super::scene::web;
use crate::lab::attacker::Attacker;
use crate::lab::frames::Mac;

/// The guests: three of the first network, one of the second.
pub(super) const GUESTS: usize = 4;
/// A forward of guest n is at this port and the n above it.
pub(super) const FORWARDED: u16 = 8_000;
/// Experimental (RFC 3692): has no ports.
pub(super) const OTHER: u8 = 253;

#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Of each network.
    pub(super) egress: [&'static str; 2],
    pub(super) intra_workspace: [&'static str; 2],
    pub(super) blocked: &'static str,
    /// Of each guest.
    pub(super) workspaces: [&'static str; GUESTS],
    /// Port that its forward leads to, if it has one.
    pub(super) forwards: [Option<u16>; GUESTS],
    pub(super) policies: Vec<PolicySpec>,
    pub(super) flows: Vec<Sent>,
}

#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// A guest, or the world.
    pub(super) from: Option<usize>,
    pub(super) to: To,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum To {
    Guest(usize),
    /// By the host's port that is forwarded to it.
    Forward(usize),
    World(Ipv4Addr),
}

fn action() -> impl Strategy<Value = String> {
    select(vec!["allow", "deny"]).prop_map(str::to_owned)
}

fn or_nothing() -> impl Strategy<Value = String> {
    select(vec!["", "", "allow", "deny"]).prop_map(str::to_owned)
}

fn prefix() -> impl Strategy<Value = String> {
    let some = [
        "",
        "",
        "",
        "0.0.0.0/0",
        "10.100.0.0/16",
        "10.101.0.0/16",
        "10.100.0.2",
        "10.100.0.2/31",
        "10.100.0.4",
        "10.101.0.2",
        "198.51.100.0/24",
        "198.51.100.10",
        "8.8.0.0/16",
    ];
    select(some.to_vec()).prop_map(str::to_owned)
}

fn rule() -> impl Strategy<Value = RuleSpec> {
    let direction = select(vec!["ingress", "egress"]);
    let protocol = select(vec!["", "any", "tcp", "udp", "icmp"]);
    let ports = select(vec!["", "", "80", "81", "7000", "80-81", "81-7000", "1-65535"]);
    let peer = select(vec!["", "", "", "w1", "w2"]);
    (direction, protocol, ports, prefix(), prefix(), peer, action(), 0..4_u32).prop_map(
        |(direction, protocol, ports, source, destination, peer, action, priority)| {
            let ports = if matches!(protocol, "tcp" | "udp") { ports } else { "" };
            RuleSpec {
                direction: direction.into(),
                protocol: protocol.into(),
                port: ports.parse().ok(),
                port_range: if ports.contains('-') { ports.into() } else { String::new() },
                source,
                destination,
                peer_workspace: peer.into(),
                action,
                priority,
                ..RuleSpec::default()
            }
        },
    )
}

fn policy(vm_id: &'static str, workspace_id: &'static str) -> impl Strategy<Value = PolicySpec> {
    (or_nothing(), or_nothing(), or_nothing(), prop::collection::vec(rule(), 0..6)).prop_map(
        move |(default_action, default_ingress, default_egress, rules)| PolicySpec {
            vm_id: vm_id.into(),
            workspace_id: workspace_id.into(),
            default_action,
            default_ingress,
            default_egress,
            rules,
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<PolicySpec>> {
    let scopes = [("g0", ""), ("g1", ""), ("g2", ""), ("g3", ""), ("", "w1"), ("", "w2")];
    let each = scopes.map(|(vm_id, workspace)| prop::option::of(policy(vm_id, workspace)));
    each.prop_map(|policies| policies.into_iter().flatten().collect())
}

fn flow() -> impl Strategy<Value = Sent> {
    let world = select(vec![web(), Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(192, 0, 2, 1)]);
    let to = prop_oneof![
        3 => (0..GUESTS).prop_map(To::Guest),
        1 => (0..GUESTS).prop_map(To::Forward),
        2 => world.prop_map(To::World),
    ];
    let protocol = select(vec![1, 6, 6, 17, 17, OTHER]);
    (prop::option::weighted(0.8, 0..GUESTS), to, protocol, select(vec![80_u16, 81, 82, 7000]))
        .prop_map(|(from, to, protocol, port)| Sent { from, to, protocol, port })
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let either = || [select(vec!["allow", "deny"]), select(vec!["allow", "deny"])];
    let workspace = || select(vec!["", "w1", "w1", "w2"]);
    let forward = || prop::option::of(select(vec![80_u16, 7000]));
    let blocked = select(vec!["", "\"192.0.2.0/24\"", "\"8.8.0.0/16\", \"192.0.2.0/24\""]);
    (
        (either(), either(), blocked),
        [workspace(), workspace(), workspace(), workspace()],
        [forward(), forward(), forward(), forward()],
        policies(),
        prop::collection::vec(flow(), 24),
    )
        .prop_map(|((egress, intra_workspace, blocked), workspaces, forwards, policies, flows)| Case {
            egress,
            intra_workspace,
            blocked,
            workspaces,
            forwards,
            policies,
            flows,
        })
}

impl Case {
    /// The host as it would be with the guests' ports.
    pub(super) fn book(&self, guests: &[Attacker; GUESTS]) -> (Book, [guestnet::walls::nft::Table; 2]) {
        let network = |n: usize| {
            let (name, bridge) = [("one", "br-vms"), ("two", "br-two")][n];
            format!(
                "[[network]]\nname = \"{name}\"\nbridge_name = \"{bridge}\"\nbridge_ip = \"10.10{n}.0.1/16\"\n\
                 vm_subnet = \"10.10{n}.0.0/16\"\negress_default = \"{}\"\nintra_workspace = \"{}\"\n\
                 blocked_egress = [{}]\nnew_connections_per_second = 10000000\nlive_connections = 10000000\n",
                self.egress[n], self.intra_workspace[n], self.blocked
            )
        };
        let config = Config::from_parts(Some(&format!("{}{}", network(0), network(1))), |_| None).unwrap();
        let mut book = Book::new(&config.networks);
        let mut tables = book.empty_tables();
        let mut changes = Vec::new();
        for network in &config.networks {
            changes.extend(book.open_bridge(&network.name, network.bridge.as_if_name()));
        }
        for spec in &self.policies {
            let policy = Policy::try_from(spec.clone()).unwrap();
            changes.extend(book.set_policy(&policy.scope.clone(), Some(Arc::new(policy))));
        }
        for (n, guest) in guests.iter().enumerate() {
            changes.extend(book.bind(Guest {
                vm_id: format!("g{n}").parse().unwrap(),
                port: guest.port.parse().unwrap(),
                mac: text_of(guest.mac).parse().unwrap(),
                address: guest.ip,
                network: config.networks[usize::from(n == 3)].clone(),
                workspace: self.workspaces[n].parse().ok(),
            }));
            for protocol in [Transport::Tcp, Transport::Udp] {
                let Some(vm_port) = self.forwards[n] else { continue };
                changes.extend(book.add_forward(PortForward {
                    protocol,
                    at: HostSide::Everywhere,
                    host_port: FORWARDED + n as u16,
                    vm_id: format!("g{n}").parse().unwrap(),
                    vm_port,
                }));
            }
        }
        carry_out(&mut tables, changes);
        (book, tables)
    }
}

fn text_of(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Without what no packet can be: to a forward that is not, or of a protocol that is not forwarded; from the world to itself;
/// and, as there are no ports to tell its flows apart by, more than one flow of a protocol without for each pair of
/// addresses, or to one address, where NAT gives them one source. With br_netfilter on, a guest gets by no forward to
/// another of its bridge: the kernel switches what it has translated, and ports are isolated.
pub(super) fn possible(mut case: Case, br_netfilter: bool) -> Case {
    let (mut pairs, mut ends) = (BTreeSet::new(), BTreeSet::new());
    case.flows.retain(|flow| {
        let fits = match flow.to {
            To::Forward(n) if br_netfilter && flow.from.is_some_and(|from| (from == 3) == (n == 3)) => false,
            To::Forward(n) => case.forwards[n].is_some() && [6, 17].contains(&flow.protocol),
            To::World(_) => flow.from.is_some(),
            To::Guest(n) => flow.from != Some(n),
        };
        let end = match flow.to {
            To::Guest(n) | To::Forward(n) => n,
            To::World(to) => usize::from(to.octets()[0]),
        };
        let from = flow.from.unwrap_or(198);
        fits && (flow.protocol != OTHER || (pairs.insert((from.min(end), from.max(end))) && ends.insert(end)))
    });
    case
}

//! A policy's rules as chains of nf_tables, one for each direction: what is allowed, denied, or left to the network. Pure.
//! Policies with equal rules have equal chains, and share them.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::matching::{Match, destination, destination_port_to, ipv4, protocol, rule, source};
use super::nft::{Chain, Expr, Rule as NftRule, Verdict};
use crate::model::{Action, WorkspaceId};
use crate::policy::{Direction, Policy, Rule};

/// The rules of both directions, in the order they are looked at; what is no rule has a default at the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Compiled {
    pub egress: Vec<NftRule>,
    pub ingress: Vec<NftRule>,
}

/// Names of the chains of the policy that has this number.
pub fn egress_chain(id: u32) -> String {
    format!("policy_{id}_egress")
}

pub fn ingress_chain(id: u32) -> String {
    format!("policy_{id}_ingress")
}

impl Compiled {
    pub fn chains(&self, id: u32) -> [Chain; 2] {
        [
            Chain::new(egress_chain(id), self.egress.clone()),
            Chain::new(ingress_chain(id), self.ingress.clone()),
        ]
    }
}

/// `workspace_id` numbers workspaces as the map `workspace_of` does.
pub fn compile(policy: &Policy, mut workspace_id: impl FnMut(&WorkspaceId) -> u32) -> Compiled {
    let mut of =
        |direction: Direction, default: Option<Action>| {
            let mut rules: Vec<NftRule> = policy
                .rules
                .iter()
                .filter(|rule| rule.direction == direction)
                .map(|rule| one(rule, &mut workspace_id))
                .collect();
            rules.extend(default.map(|action| {
                super::matching::rule("default", [vec![Expr::Counter], then(direction, action)])
            }));
            rules
        };
    Compiled {
        egress: of(Direction::Egress, policy.default_egress),
        ingress: of(Direction::Ingress, policy.default_ingress),
    }
}

fn one(of: &Rule, workspace_id: &mut impl FnMut(&WorkspaceId) -> u32) -> NftRule {
    let mut matches: Vec<Match> = vec![ipv4()];
    matches.extend(of.protocol.number().map(protocol));
    if let Some(ports) = of.ports {
        let (from, to) = (ports.first.to_be_bytes().to_vec(), ports.last.to_be_bytes().to_vec());
        matches.push(vec![destination_port_to(0), Expr::Between { register: 0, from, to }]);
    }
    matches.extend(of.source.and_then(|prefix| within(source, prefix)));
    matches.extend(of.destination.and_then(|prefix| within(destination, prefix)));
    if let Some(workspace) = &of.peer_workspace {
        let other = if of.direction == Direction::Ingress { source } else { destination };
        matches.push(vec![
            other(0),
            Expr::Map { map: "workspace_of", key: 0, to: 1 },
            Expr::Equal { register: 1, value: workspace_id(workspace).to_ne_bytes().to_vec() },
        ]);
    }
    matches.push(vec![Expr::Counter]);
    matches.push(then(of.direction, of.action));
    let name = if of.name.is_empty() { format!("rule {}", of.index) } else { of.name.clone() };
    rule(name, matches)
}

/// `None` for a prefix that every address is in.
fn within(address: fn(u32) -> Expr, prefix: Ipv4Network) -> Option<Match> {
    let octets = |address: Ipv4Addr| address.octets().to_vec();
    let equal = Expr::Equal { register: 0, value: octets(prefix.network()) };
    match prefix.prefix() {
        0 => None,
        32 => Some(vec![address(0), equal]),
        _ => Some(vec![address(0), Expr::Mask { register: 0, mask: octets(prefix.mask()) }, equal]),
    }
}

/// What is allowed out has still to be let in at the other end.
fn then(direction: Direction, action: Action) -> Match {
    vec![Expr::Verdict(match (direction, action) {
        (_, Action::Deny) => Verdict::Goto("denied_by_policy".into()),
        (Direction::Egress, Action::Allow) => Verdict::Goto("egress_allowed".into()),
        (Direction::Ingress, Action::Allow) => Verdict::Accept,
    })]
}

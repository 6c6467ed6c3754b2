use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::check::{Policy, Protocol, Rule, rule_label};
use super::spec::{Direction, Scope};
use crate::model::{Action, Network, NetworkName, VmId, WorkspaceId};

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub source: Ipv4Addr,
    /// After port forwarding: where it ends.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Of protocols that have ports.
    pub port: Option<u16>,
    /// It came by a port forward.
    pub forwarded: bool,
}

/// A guest at one end of a flow, with what is set for it.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    pub vm_id: &'a VmId,
    pub network: &'a Network,
    pub workspace: Option<&'a WorkspaceId>,
    pub policy: Option<&'a Policy>,
}

/// Allowed or not, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule of a policy.
    Rule { scope: Scope, direction: Direction, index: usize, name: String },
    /// No rule, but a default of the policy.
    PolicyDefault { scope: Scope, direction: Direction },
    /// `blocked_egress` of the network.
    BlockedEgress { network: NetworkName, prefix: Ipv4Network },
    /// `egress_default` of the network.
    NetworkEgress { network: NetworkName },
    /// A port forward leads there, and no policy says otherwise.
    Forward,
    /// Both share a workspace, and `intra_workspace` of their network is "allow".
    SharedWorkspace { network: NetworkName },
    /// Nothing opens the guest to it.
    Closed { vm_id: VmId },
    /// What the gateway offers its guests, or not.
    Host { network: NetworkName },
    /// Neither end is a guest.
    NoGuest,
}

impl Decision {
    fn of(action: Action, reason: Reason) -> Self {
        Self { action, reason }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { scope, direction, index, name } => {
                write!(f, "{direction} {} of the policy of {scope}", rule_label(*index, name))
            }
            Self::PolicyDefault { scope, direction } => {
                write!(f, "the {direction} default of the policy of {scope}")
            }
            Self::BlockedEgress { network, prefix } => {
                write!(f, "blocked_egress {prefix} of network {network}")
            }
            Self::NetworkEgress { network } => write!(f, "egress_default of network {network}"),
            Self::Forward => f.write_str("a port forward"),
            Self::SharedWorkspace { network } => {
                write!(f, "their common workspace (intra_workspace of network {network})")
            }
            Self::Closed { vm_id } => write!(f, "nothing that opens VM {vm_id} to it: guests are closed"),
            Self::Host { network } => write!(f, "what the gateway of network {network} offers its guests"),
            Self::NoGuest => f.write_str("no wall: neither end is a guest"),
        }
    }
}

/// The verdict on a flow between guests, or between a guest and the world beyond the uplink: `None` is the world. The
/// kernel's rules (`walls::ruleset`, `walls::compile`) decide the same in the same order.
pub fn decide(flow: &Flow, from: Option<Peer<'_>>, to: Option<Peer<'_>>) -> Decision {
    let peer_of = |peer: Option<Peer<'_>>| peer.and_then(|peer| peer.workspace.cloned());
    let mut allowed = Decision::of(Action::Allow, Reason::NoGuest);
    if let Some(guest) = from {
        if to.is_none()
            && let Some(prefix) =
                guest.network.walls.blocked_egress.iter().find(|p| p.contains(flow.destination))
        {
            let network = guest.network.name.clone();
            return Decision::of(Action::Deny, Reason::BlockedEgress { network, prefix: *prefix });
        }
        match by_policy(flow, guest.policy, Direction::Egress, peer_of(to).as_ref()) {
            Some(decision) if decision.action == Action::Deny => return decision,
            Some(decision) => allowed = decision,
            None => {
                let reason = Reason::NetworkEgress { network: guest.network.name.clone() };
                let decision = Decision::of(guest.network.walls.egress, reason);
                if to.is_none() && decision.action == Action::Deny {
                    return decision;
                }
                allowed = decision;
            }
        }
    }
    let Some(guest) = to else { return allowed };
    if let Some(decision) = by_policy(flow, guest.policy, Direction::Ingress, peer_of(from).as_ref()) {
        return decision;
    }
    if flow.forwarded {
        return Decision::of(Action::Allow, Reason::Forward);
    }
    if from.is_some_and(|from| shares(from, guest)) {
        let network = guest.network.name.clone();
        return Decision::of(Action::Allow, Reason::SharedWorkspace { network });
    }
    Decision::of(Action::Deny, Reason::Closed { vm_id: guest.vm_id.clone() })
}

/// Whether two guests may reach each other by their workspace: on one network, which allows it.
fn shares(a: Peer<'_>, b: Peer<'_>) -> bool {
    let common = a.workspace.is_some() && a.workspace == b.workspace;
    common && a.network.name == b.network.name && a.network.walls.intra_workspace == Action::Allow
}

/// The first rule that is about the flow, else the policy's default, else nothing.
fn by_policy(
    flow: &Flow,
    policy: Option<&Policy>,
    direction: Direction,
    peer: Option<&WorkspaceId>,
) -> Option<Decision> {
    let policy = policy?;
    let mut rules = policy.rules.iter().filter(|rule| rule.direction == direction);
    let scope = policy.scope.clone();
    if let Some(rule) = rules.find(|rule| is_about(rule, flow, peer)) {
        let reason = Reason::Rule { scope, direction, index: rule.index, name: rule.name.clone() };
        return Some(Decision::of(rule.action, reason));
    }
    let default = match direction {
        Direction::Ingress => policy.default_ingress,
        Direction::Egress => policy.default_egress,
    };
    default.map(|action| Decision::of(action, Reason::PolicyDefault { scope, direction }))
}

fn is_about(rule: &Rule, flow: &Flow, peer: Option<&WorkspaceId>) -> bool {
    let protocol = rule.protocol == Protocol::Any || rule.protocol.number() == Some(flow.protocol);
    let port = rule.ports.is_none_or(|ports| flow.port.is_some_and(|port| ports.contains(port)));
    let within = |prefix: Option<Ipv4Network>, address| prefix.is_none_or(|prefix| prefix.contains(address));
    protocol
        && port
        && within(rule.source, flow.source)
        && within(rule.destination, flow.destination)
        && rule.peer_workspace.as_ref().is_none_or(|workspace| Some(workspace) == peer)
}

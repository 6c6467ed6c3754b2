use std::fmt;
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::spec::{Direction, PolicySpec, RuleSpec, Scope};
use crate::model::{Action, Invalid, WorkspaceId};

/// Rules of one policy; each is looked at for a new connection.
pub const MOST_RULES: usize = 1000;

/// A checked policy: its rules in the order they are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub scope: Scope,
    pub rules: Vec<Rule>,
    /// What is done with what no rule is about; the network decides where there is none.
    pub default_ingress: Option<Action>,
    pub default_egress: Option<Action>,
    /// As it was written.
    pub spec: PolicySpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Its place in what was written.
    pub index: usize,
    pub name: String,
    pub direction: Direction,
    pub protocol: Protocol,
    pub ports: Option<Ports>,
    pub source: Option<Ipv4Network>,
    pub destination: Option<Ipv4Network>,
    /// The workspace of the other guest.
    pub peer_workspace: Option<WorkspaceId>,
    pub action: Action,
    pub priority: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Any,
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    /// Its number in an IP header; `Any` has none.
    pub fn number(self) -> Option<u8> {
        match self {
            Self::Any => None,
            Self::Icmp => Some(1),
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
        }
    }

    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl FromStr for Protocol {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "" | "any" => Ok(Self::Any),
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            _ => Err(Invalid::new(text, "a protocol: tcp, udp, icmp or any")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Destination ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// What does not fit, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("a policy is for a vm_id or for a workspace_id: name one of them")]
    NoScope,
    #[error("a policy is for one vm_id or one workspace_id, not for both")]
    TwoScopes,
    #[error("{field}: {invalid}")]
    Field { field: &'static str, invalid: Invalid },
    #[error("{}: {what}", rule_label(*index, name))]
    Rule { index: usize, name: String, what: String },
    #[error("{}: a policy has at most {MOST_RULES} rules, this one {count}", rule_label(MOST_RULES, name))]
    TooMany { count: usize, name: String },
}

/// How a message names a rule.
pub(super) fn rule_label(index: usize, name: &str) -> String {
    if name.is_empty() { format!("rules[{index}]") } else { format!("rules[{index}] \"{}\"", shown(name)) }
}

/// A name as it may be shown anywhere: short, and in one line.
fn shown(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl TryFrom<PolicySpec> for Policy {
    type Error = PolicyError;
    fn try_from(spec: PolicySpec) -> Result<Self, PolicyError> {
        let scope = scope(&spec)?;
        let action = |field: &'static str, text: &str| -> Result<Option<Action>, PolicyError> {
            let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
            parsed.map_err(|invalid| PolicyError::Field { field, invalid: brief(invalid) })
        };
        let both = action("default_action", &spec.default_action)?;
        let default_ingress = action("default_ingress", &spec.default_ingress)?.or(both);
        let default_egress = action("default_egress", &spec.default_egress)?.or(both);
        if let Some(first_too_many) = spec.rules.get(MOST_RULES) {
            let (count, name) = (spec.rules.len(), first_too_many.name.clone());
            return Err(PolicyError::TooMany { count, name });
        }
        let mut rules: Vec<Rule> = spec
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| check(index, rule))
            .collect::<Result<_, _>>()?;
        // Stable: among equals the first written stays first.
        rules.sort_by_key(|rule| rule.priority);
        Ok(Self { scope, rules, default_ingress, default_egress, spec })
    }
}

fn scope(spec: &PolicySpec) -> Result<Scope, PolicyError> {
    let field = |field| move |invalid| PolicyError::Field { field, invalid: brief(invalid) };
    match (spec.vm_id.as_str(), spec.workspace_id.as_str()) {
        ("", "") => Err(PolicyError::NoScope),
        (vm_id, "") => vm_id.parse().map(Scope::Vm).map_err(field("vm_id")),
        ("", workspace) => workspace.parse().map(Scope::Workspace).map_err(field("workspace_id")),
        _ => Err(PolicyError::TwoScopes),
    }
}

/// An error names the value, but does not send a megabyte of it back.
fn brief(mut invalid: Invalid) -> Invalid {
    invalid.value = shown(&invalid.value);
    invalid
}

fn check(index: usize, spec: &RuleSpec) -> Result<Rule, PolicyError> {
    let wrong = |what: String| PolicyError::Rule { index, name: spec.name.clone(), what };
    let field = |field: &'static str| {
        move |invalid: Invalid| PolicyError::Rule {
            index,
            name: spec.name.clone(),
            what: format!("{field}: {}", brief(invalid)),
        }
    };
    let direction = spec.direction.parse().map_err(field("direction"))?;
    let action = spec.action.parse().map_err(field("action"))?;
    let protocol: Protocol = spec.protocol.parse().map_err(field("protocol"))?;
    let ports = ports(spec).map_err(wrong)?;
    if ports.is_some() && !protocol.has_ports() {
        return Err(wrong(format!(
            "protocol {protocol} has no ports: set protocol to tcp or udp, or no port"
        )));
    }
    let source = prefix("source", &spec.source).map_err(wrong)?;
    let destination = prefix("destination", &spec.destination).map_err(wrong)?;
    let peer_workspace = (!spec.peer_workspace.is_empty())
        .then(|| spec.peer_workspace.parse())
        .transpose()
        .map_err(field("peer_workspace"))?;
    let (name, priority) = (shown(&spec.name), spec.priority);
    Ok(Rule {
        index,
        name,
        direction,
        protocol,
        ports,
        source,
        destination,
        peer_workspace,
        action,
        priority,
    })
}

fn ports(spec: &RuleSpec) -> Result<Option<Ports>, String> {
    const FITS: &str = "a port is 1 to 65535";
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (spec.port, spec.port_range.as_str()) {
        (None, "") => Ok(None),
        (Some(_), range) if !range.is_empty() => Err("port and port_range are both set: choose one".into()),
        (Some(number), _) => {
            let number = u16::try_from(number).ok().filter(|port| *port > 0);
            let number =
                number.ok_or_else(|| format!("port {} does not fit: {FITS}", spec.port.unwrap_or(0)))?;
            Ok(Some(Ports { first: number, last: number }))
        }
        (None, range) => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let wrong =
                || format!("port_range \"{}\" does not fit: two ports like 8000-8080, {FITS}", shown(range));
            let (first, last) = (port(first).ok_or_else(wrong)?, port(last).ok_or_else(wrong)?);
            if first > last {
                return Err(format!("port_range {first}-{last} is reversed: {last}-{first} would fit"));
            }
            Ok(Some(Ports { first, last }))
        }
    }
}

/// An address is its own /32. Host bits are cleared: 10.0.0.5/8 means 10.0.0.0/8.
fn prefix(field: &str, text: &str) -> Result<Option<Ipv4Network>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpNetwork>() {
        Ok(IpNetwork::V4(network)) => {
            let cleared = Ipv4Network::new(network.network(), network.prefix());
            cleared.map(Some).map_err(|error| format!("{field} {}: {error}", shown(text)))
        }
        Ok(IpNetwork::V6(network)) => Err(format!(
            "{field} {network} is an IPv6 prefix, and guests have IPv4 only: leave the rule out, no IPv6 passes"
        )),
        Err(_) => Err(format!(
            "{field} \"{}\" does not fit: an IPv4 prefix like 10.0.0.0/8, or an address",
            shown(text)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(change: impl FnOnce(&mut RuleSpec)) -> RuleSpec {
        let mut rule = RuleSpec {
            name: "web".into(),
            direction: "ingress".into(),
            action: "allow".into(),
            ..RuleSpec::default()
        };
        change(&mut rule);
        rule
    }

    fn policy(rules: Vec<RuleSpec>) -> Result<Policy, PolicyError> {
        Policy::try_from(PolicySpec { vm_id: "web-1".into(), rules, ..PolicySpec::default() })
    }

    #[test]
    fn the_seeds_policy_fits() {
        let text = r#"{"vm_id": "web-1", "rules": [
            {"name": "allow-http", "direction": "ingress", "protocol": "tcp", "port": 80, "source": "0.0.0.0/0", "action": "allow"},
            {"name": "deny-all", "direction": "ingress", "source": "0.0.0.0/0", "action": "deny", "priority": 1000}]}"#;
        let policy = Policy::try_from(serde_json::from_str::<PolicySpec>(text).unwrap()).unwrap();
        assert_eq!(policy.scope.to_string(), "VM web-1");
        assert_eq!(policy.rules[0].ports, Some(Ports { first: 80, last: 80 }));
        assert_eq!((policy.rules[1].action, policy.rules[1].protocol), (Action::Deny, Protocol::Any));
        let of_customer: PolicySpec = toml::from_str("customer_id = \"acme\"").unwrap();
        assert_eq!(Policy::try_from(of_customer).unwrap().scope.to_string(), "workspace acme");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_the_rules_name() {
        type Change = fn(&mut RuleSpec);
        let wrong: [(Change, &str); 13] = [
            (|r| r.port = Some(0), "port 0 does not fit"),
            (|r| r.port = Some(65_536), "port 65536 does not fit"),
            (|r| (r.protocol, r.port_range) = ("tcp".into(), "90-80".into()), "reversed: 80-90 would fit"),
            (|r| (r.protocol, r.port_range) = ("tcp".into(), "0-80".into()), "port_range \"0-80\""),
            (|r| (r.protocol, r.port_range) = ("tcp".into(), "http".into()), "port_range \"http\""),
            (|r| (r.port, r.port_range) = (Some(1), "1-2".into()), "both set"),
            (|r| (r.protocol, r.port) = ("icmp".into(), Some(80)), "icmp has no ports"),
            (|r| r.port = Some(80), "any has no ports"),
            (|r| r.protocol = "sctp".into(), "protocol: \"sctp\""),
            (|r| r.source = "fd00::/8".into(), "source fd00::/8 is an IPv6 prefix"),
            (|r| r.destination = "10.0.0.0/33".into(), "destination \"10.0.0.0/33\""),
            (|r| r.action = "reject".into(), "action: \"reject\""),
            (|r| r.direction.clear(), "direction: \"\""),
        ];
        for (change, expected) in wrong {
            let error = policy(vec![rule(|_| {}), rule(change)]).unwrap_err().to_string();
            assert!(error.starts_with("rules[1] \"web\": ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn too_many_rules_and_a_missing_scope_are_refused() {
        let error = policy(vec![rule(|_| {}); 10_000]).unwrap_err().to_string();
        assert_eq!(error, "rules[1000] \"web\": a policy has at most 1000 rules, this one 10000");
        assert_eq!(Policy::try_from(PolicySpec::default()), Err(PolicyError::NoScope));
        let both = PolicySpec { vm_id: "a".into(), workspace_id: "b".into(), ..PolicySpec::default() };
        assert_eq!(Policy::try_from(both), Err(PolicyError::TwoScopes));
        let error =
            Policy::try_from(PolicySpec { vm_id: "a b".into(), ..PolicySpec::default() }).unwrap_err();
        assert!(error.to_string().starts_with("vm_id: "), "{error}");
    }

    #[test]
    fn rules_are_looked_at_by_priority_then_as_written() {
        let named = |name: &str, priority| rule(|r| (r.name, r.priority) = (name.into(), priority));
        let policy = policy(vec![named("c", 7), named("a", 1), named("d", 7), named("b", 1)]).unwrap();
        let names: Vec<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }
}

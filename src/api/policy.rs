//! Policies and port forwards over the API: wire types to specs and back, errors to codes.

use connectrpc::{ConnectError, ErrorCode};

use super::errors::{refusal_at, store_facts};
use super::wire::FieldError;
use crate::kernel::nft::Count;
use crate::model::{HostSide, Invalid, PortForward, Transport};
use crate::policy::{Policy, PolicyError, PolicySpec, Reason, RuleSpec, Scope};
use crate::proto::guestnet::v1;
use crate::walls::{Applied, Drops, RuleCount, Tested, Walls, WallsError};

pub(super) fn failed(error: WallsError) -> ConnectError {
    let (code, reason, field) = match &error {
        WallsError::Policy(_) => (ErrorCode::InvalidArgument, "INVALID_POLICY", Some("policy")),
        WallsError::NoPorts { .. } | WallsError::PortMissing { .. } => {
            (ErrorCode::InvalidArgument, "INVALID_FIELD", Some("port"))
        }
        WallsError::Ephemeral { .. } => (ErrorCode::InvalidArgument, "EPHEMERAL_PORT", Some("host_port")),
        WallsError::NotOurs { .. } => (ErrorCode::InvalidArgument, "NOT_OF_THIS_HOST", Some("host_address")),
        WallsError::NoDevice { .. } => (ErrorCode::InvalidArgument, "NOT_OF_THIS_HOST", Some("uplink")),
        WallsError::NoVm { .. } => (ErrorCode::NotFound, "NO_SUCH_VM", Some("vm_id")),
        WallsError::NoEndpoint { .. } => (ErrorCode::NotFound, "NO_SUCH_VM", None),
        WallsError::NoPolicy { .. } => (ErrorCode::NotFound, "NO_POLICY", None),
        WallsError::NoForward { .. } => (ErrorCode::NotFound, "NO_FORWARD", Some("host_port")),
        WallsError::ForwardTaken { .. } => (ErrorCode::AlreadyExists, "PORT_TAKEN", Some("host_port")),
        WallsError::PortInUse { .. } => (ErrorCode::FailedPrecondition, "PORT_IN_USE", Some("host_port")),
        WallsError::Stopping => (ErrorCode::Unavailable, "STOPPING", None),
        WallsError::Store(error) => {
            let (code, reason) = store_facts(error);
            (code, reason, None)
        }
        WallsError::Kernel(_) => (ErrorCode::Internal, "KERNEL_REFUSED", None),
    };
    refusal_at(code, reason, field, vec![], &error.to_string())
}

fn policy_error(error: PolicyError) -> ConnectError {
    failed(WallsError::Policy(error))
}

fn field(name: &'static str, invalid: Invalid) -> ConnectError {
    FieldError::new(name, invalid).into()
}

pub(super) fn spec(policy: Option<&v1::NetworkPolicyView<'_>>) -> Result<PolicySpec, ConnectError> {
    let policy = policy.ok_or_else(|| policy_error(PolicyError::NoScope))?;
    let rule = |rule: &v1::FirewallRuleView<'_>| RuleSpec {
        name: rule.name.to_owned(),
        direction: rule.direction.to_owned(),
        protocol: rule.protocol.to_owned(),
        port: rule.port,
        port_range: rule.port_range.to_owned(),
        source: rule.source.to_owned(),
        destination: rule.destination.to_owned(),
        peer_workspace: rule.peer_workspace.to_owned(),
        action: rule.action.to_owned(),
        priority: rule.priority,
    };
    Ok(PolicySpec {
        vm_id: policy.vm_id.to_owned(),
        workspace_id: policy.workspace_id.to_owned(),
        default_action: policy.default_action.to_owned(),
        default_ingress: policy.default_ingress.to_owned(),
        default_egress: policy.default_egress.to_owned(),
        rules: policy.rules.iter().map(rule).collect(),
    })
}

pub(super) fn scope(vm_id: &str, workspace_id: &str) -> Result<Scope, ConnectError> {
    let named =
        PolicySpec { vm_id: vm_id.to_owned(), workspace_id: workspace_id.to_owned(), ..Default::default() };
    Policy::try_from(named).map(|policy| policy.scope).map_err(policy_error)
}

pub(super) fn policy(policy: &Policy, counts: &[RuleCount]) -> v1::NetworkPolicy {
    let spec = &policy.spec;
    let counted =
        |index| counts.iter().find(|count| count.index == index).map(|c| c.count).unwrap_or_default();
    let rule = |(index, rule): (usize, &RuleSpec)| {
        let Count { packets, bytes } = counted(index);
        v1::FirewallRule {
            name: rule.name.clone(),
            direction: rule.direction.clone(),
            protocol: rule.protocol.clone(),
            port: rule.port,
            port_range: rule.port_range.clone(),
            source: rule.source.clone(),
            destination: rule.destination.clone(),
            action: rule.action.clone(),
            priority: rule.priority,
            peer_workspace: rule.peer_workspace.clone(),
            packets,
            bytes,
            ..Default::default()
        }
    };
    v1::NetworkPolicy {
        vm_id: spec.vm_id.clone(),
        workspace_id: spec.workspace_id.clone(),
        rules: spec.rules.iter().enumerate().map(rule).collect(),
        default_action: spec.default_action.clone(),
        default_ingress: spec.default_ingress.clone(),
        default_egress: spec.default_egress.clone(),
        ..Default::default()
    }
}

pub(super) fn applied(applied: Applied) -> v1::ApplyNetworkPolicyResponse {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    v1::ApplyNetworkPolicyResponse {
        policy: policy(&applied.policy, &[]).into(),
        changes: applied.changes,
        findings: applied.findings,
        vm_count: number(applied.governed),
        ended_connections: number(applied.ended),
        ..Default::default()
    }
}

pub(super) fn test(
    walls: &Walls,
    request: &v1::TestNetworkPolicyRequestView<'_>,
) -> Result<v1::TestNetworkPolicyResponse, ConnectError> {
    let protocol = Some(request.protocol).filter(|text| !text.is_empty());
    let protocol = protocol.map(str::parse).transpose().map_err(|invalid| field("protocol", invalid))?;
    let port = request.port.map(|number| port("port", number)).transpose()?;
    let tested = walls.test(request.from, request.to, protocol, port).map_err(failed)?;
    let Tested { flow, decision } = tested;
    let rule = match &decision.reason {
        Reason::Rule { name, index, .. } if name.is_empty() => format!("rules[{index}]"),
        Reason::Rule { name, .. } => name.clone(),
        _ => String::new(),
    };
    Ok(v1::TestNetworkPolicyResponse {
        action: decision.action.to_string(),
        rule,
        reason: decision.reason.to_string(),
        source: flow.source.to_string(),
        destination: flow.destination.to_string(),
        ..Default::default()
    })
}

fn port(name: &'static str, number: u32) -> Result<u16, ConnectError> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| field(name, Invalid::new(number, "a port: 1 to 65535")))
}

fn transport(text: &str) -> Result<Transport, ConnectError> {
    if text.is_empty() {
        Ok(Transport::Tcp)
    } else {
        text.parse().map_err(|invalid| field("protocol", invalid))
    }
}

fn side(address: &str, uplink: &str) -> Result<HostSide, ConnectError> {
    match (address, uplink) {
        ("", "") => Ok(HostSide::Everywhere),
        (address, "") => match address.parse::<std::net::Ipv4Addr>() {
            Ok(address) if address.is_unspecified() => Ok(HostSide::Everywhere),
            Ok(address) => Ok(HostSide::Address(address)),
            Err(_) => Err(field("host_address", Invalid::new(address, "an IPv4 address of the host"))),
        },
        ("", uplink) => uplink.parse().map(HostSide::Uplink).map_err(|invalid| field("uplink", invalid)),
        _ => Err(field("uplink", Invalid::new(uplink, "unset where host_address is set"))),
    }
}

pub(super) fn forward(asked: Option<&v1::PortForwardView<'_>>) -> Result<PortForward, ConnectError> {
    let asked =
        asked.ok_or_else(|| field("forward", Invalid::new("", "a forward: vm_id, host_port and vm_port")))?;
    let host_port = port("host_port", asked.host_port)?;
    Ok(PortForward {
        protocol: transport(asked.protocol)?,
        at: side(asked.host_address, asked.uplink)?,
        host_port,
        vm_id: super::wire::vm_id(asked.vm_id)?,
        vm_port: if asked.vm_port == 0 { host_port } else { port("vm_port", asked.vm_port)? },
    })
}

/// Which forward is meant.
pub(super) fn named(
    request: &v1::DeletePortForwardRequestView<'_>,
) -> Result<(Transport, HostSide, u16), ConnectError> {
    let at = side(request.host_address, request.uplink)?;
    Ok((transport(request.protocol)?, at, port("host_port", request.host_port)?))
}

pub(super) fn port_forward(forward: &PortForward) -> v1::PortForward {
    let (host_address, uplink) = match &forward.at {
        HostSide::Everywhere => (String::new(), String::new()),
        HostSide::Address(address) => (address.to_string(), String::new()),
        HostSide::Uplink(device) => (String::new(), device.to_string()),
    };
    v1::PortForward {
        vm_id: forward.vm_id.to_string(),
        protocol: forward.protocol.to_string(),
        host_port: forward.host_port.into(),
        vm_port: forward.vm_port.into(),
        host_address,
        uplink,
        ..Default::default()
    }
}

pub(super) fn drops(drops: Drops) -> v1::GetWallDropsResponse {
    let reasons = |reasons: Vec<(String, Count)>| {
        let of = |(reason, Count { packets, bytes })| v1::WallReason {
            reason,
            packets,
            bytes,
            ..Default::default()
        };
        reasons.into_iter().map(of).collect()
    };
    let guest = |(vm_id, at_port, in_host): (crate::model::VmId, Count, Count)| v1::WallGuest {
        vm_id: vm_id.to_string(),
        port_packets: at_port.packets,
        host_packets: in_host.packets,
        ..Default::default()
    };
    v1::GetWallDropsResponse {
        at_ports: reasons(drops.at_ports),
        in_host: reasons(drops.in_host),
        by_vm: drops.by_guest.into_iter().map(guest).collect(),
        ..Default::default()
    }
}

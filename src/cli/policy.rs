//! `guestnet policy` and `guestnet forward`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::output::{self, Format};
use crate::model::{IfName, Transport, VmId, WorkspaceId};
use crate::policy::{PolicySpec, RuleSpec};
use crate::proto::guestnet::v1;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Set the policy of a VM or of a workspace, in the place of the one before.
    Apply {
        /// The policy, in TOML or JSON; - is standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print a policy, with what its rules have counted.
    Show(Of),
    /// Print every policy.
    List,
    /// Take a policy away. One that is not there is fine.
    Delete(Of),
    /// Say whether a connection would be allowed, and by which rule.
    Test {
        /// A VM or an IPv4 address.
        #[arg(long, value_name = "VM|ADDRESS")]
        from: String,
        #[arg(long, value_name = "VM|ADDRESS")]
        to: String,
        #[arg(long)]
        port: Option<u16>,
        /// tcp, udp or icmp [default: tcp with a port, icmp without].
        #[arg(long)]
        protocol: Option<String>,
    },
    /// Print what the walls have dropped, by reason and by VM.
    Drops,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Of {
    vm_id: Option<VmId>,
    /// The policy of a workspace.
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
}

impl Of {
    fn ids(&self) -> (String, String) {
        let text = |value: Option<String>| value.unwrap_or_default();
        (
            text(self.vm_id.as_ref().map(ToString::to_string)),
            text(self.workspace.as_ref().map(ToString::to_string)),
        )
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ForwardCommand {
    /// Lead a port of the host to a port of a VM.
    Add {
        vm_id: VmId,
        #[command(flatten)]
        at: At,
        /// The VM's port [default: the same].
        #[arg(long, value_name = "PORT")]
        vm_port: Option<u16>,
    },
    /// Print every forward.
    List {
        /// Only this VM's.
        vm_id: Option<VmId>,
    },
    /// Take a forward away; its connections end.
    Delete(At),
}

#[derive(Debug, Args)]
pub(super) struct At {
    /// The host's port, outside its ephemeral ports.
    #[arg(long, value_name = "PORT")]
    host_port: u16,
    /// tcp or udp.
    #[arg(long, default_value = "tcp")]
    protocol: Transport,
    /// Only at this address of the host.
    #[arg(long, value_name = "ADDRESS")]
    host_address: Option<Ipv4Addr>,
    /// Only what enters by this device.
    #[arg(long, value_name = "DEVICE", conflicts_with = "host_address")]
    uplink: Option<IfName>,
}

pub(super) async fn policy(
    client: &Client,
    format: Format,
    command: PolicyCommand,
) -> Result<String, CliError> {
    match command {
        PolicyCommand::Apply { file, dry_run } => {
            let policy = message(read(&file)?);
            let request =
                v1::ApplyNetworkPolicyRequest { policy: policy.into(), dry_run, ..Default::default() };
            Ok(applied(format, dry_run, &client.apply_policy(request).await?))
        }
        PolicyCommand::Show(of) => {
            let (vm_id, workspace_id) = of.ids();
            let request = v1::GetNetworkPolicyRequest { vm_id, workspace_id, ..Default::default() };
            Ok(show(format, &client.policy(request).await?))
        }
        PolicyCommand::List => {
            let policies = client.policies().await?;
            let row = |policy: &v1::NetworkPolicy| {
                let mut row = policy_json(policy);
                if format == Format::Table {
                    row["rules"] = policy.rules.len().into();
                }
                row
            };
            let columns =
                ["vm_id", "workspace_id", "rules", "default_action", "default_ingress", "default_egress"];
            Ok(output::list(format, &columns, policies.iter().map(row).collect()))
        }
        PolicyCommand::Delete(of) => {
            let (vm_id, workspace_id) = of.ids();
            let gone = json!({"vm_id": vm_id, "workspace_id": workspace_id});
            let request = v1::DeleteNetworkPolicyRequest { vm_id, workspace_id, ..Default::default() };
            client.delete_policy(request).await?;
            Ok(output::deleted(format, &[gone]))
        }
        PolicyCommand::Test { from, to, port, protocol } => {
            let (port, protocol) = (port.map(u32::from), protocol.unwrap_or_default());
            let request = v1::TestNetworkPolicyRequest { from, to, protocol, port, ..Default::default() };
            let answer = client.test_policy(request).await?;
            let value = json!({
                "action": answer.action,
                "rule": answer.rule,
                "reason": answer.reason,
                "source": answer.source,
                "destination": answer.destination,
            });
            Ok(match format {
                Format::Json => output::pretty(&value),
                Format::Table => format!("{}: {}\n", answer.action, answer.reason),
            })
        }
        PolicyCommand::Drops => Ok(drops(format, &client.wall_drops().await?)),
    }
}

pub(super) async fn forward(
    client: &Client,
    format: Format,
    command: ForwardCommand,
) -> Result<String, CliError> {
    const COLUMNS: [&str; 6] = ["protocol", "host_port", "vm_id", "vm_port", "host_address", "uplink"];
    let text = |value: Option<String>| value.unwrap_or_default();
    match command {
        ForwardCommand::Add { vm_id, at, vm_port } => {
            let forward = v1::PortForward {
                vm_id: vm_id.to_string(),
                protocol: at.protocol.to_string(),
                host_port: at.host_port.into(),
                vm_port: vm_port.unwrap_or_default().into(),
                host_address: text(at.host_address.map(|address| address.to_string())),
                uplink: text(at.uplink.map(|device| device.to_string())),
                ..Default::default()
            };
            let request = v1::AddPortForwardRequest { forward: forward.into(), ..Default::default() };
            let row = forward_json(&client.add_forward(request).await?);
            Ok(match format {
                Format::Json => output::pretty(&row),
                Format::Table => output::list(format, &COLUMNS, vec![row]),
            })
        }
        ForwardCommand::List { vm_id } => {
            let vm_id = vm_id.map(|vm_id| vm_id.to_string());
            let request = v1::ListPortForwardsRequest { vm_id, ..Default::default() };
            let forwards = client.forwards(request).await?;
            Ok(output::list(format, &COLUMNS, forwards.iter().map(forward_json).collect()))
        }
        ForwardCommand::Delete(at) => {
            let request = v1::DeletePortForwardRequest {
                protocol: at.protocol.to_string(),
                host_port: at.host_port.into(),
                host_address: text(at.host_address.map(|address| address.to_string())),
                uplink: text(at.uplink.map(|device| device.to_string())),
                ..Default::default()
            };
            let gone = json!({
                "protocol": request.protocol,
                "host_port": request.host_port,
                "host_address": request.host_address,
                "uplink": request.uplink,
            });
            client.delete_forward(request).await?;
            Ok(output::deleted(format, &[gone]))
        }
    }
}

/// A file that begins with `{` is JSON, any other TOML.
fn read(file: &Path) -> Result<PolicySpec, CliError> {
    let what = || format!("reading {}", file.display());
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|source| CliError::Io { what: what(), source })?;
    let parsed = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    parsed.map_err(|error| CliError::File { file: file.to_owned(), error })
}

fn message(spec: PolicySpec) -> v1::NetworkPolicy {
    let rule = |rule: RuleSpec| v1::FirewallRule {
        name: rule.name,
        direction: rule.direction,
        protocol: rule.protocol,
        port: rule.port,
        port_range: rule.port_range,
        source: rule.source,
        destination: rule.destination,
        action: rule.action,
        priority: rule.priority,
        peer_workspace: rule.peer_workspace,
        ..Default::default()
    };
    v1::NetworkPolicy {
        vm_id: spec.vm_id,
        workspace_id: spec.workspace_id,
        rules: spec.rules.into_iter().map(rule).collect(),
        default_action: spec.default_action,
        default_ingress: spec.default_ingress,
        default_egress: spec.default_egress,
        ..Default::default()
    }
}

fn rule_json(rule: &v1::FirewallRule) -> Value {
    json!({
        "name": rule.name,
        "direction": rule.direction,
        "protocol": rule.protocol,
        "port": rule.port,
        "port_range": rule.port_range,
        "source": rule.source,
        "destination": rule.destination,
        "peer_workspace": rule.peer_workspace,
        "action": rule.action,
        "priority": rule.priority,
        "packets": rule.packets,
        "bytes": rule.bytes,
    })
}

fn policy_json(policy: &v1::NetworkPolicy) -> Value {
    json!({
        "vm_id": policy.vm_id,
        "workspace_id": policy.workspace_id,
        "default_action": policy.default_action,
        "default_ingress": policy.default_ingress,
        "default_egress": policy.default_egress,
        "rules": policy.rules.iter().map(rule_json).collect::<Vec<_>>(),
    })
}

fn forward_json(forward: &v1::PortForward) -> Value {
    json!({
        "vm_id": forward.vm_id,
        "protocol": forward.protocol,
        "host_port": forward.host_port,
        "vm_port": forward.vm_port,
        "host_address": forward.host_address,
        "uplink": forward.uplink,
    })
}

fn show(format: Format, policy: &v1::NetworkPolicy) -> String {
    const COLUMNS: [&str; 11] = [
        "priority",
        "direction",
        "action",
        "protocol",
        "port",
        "port_range",
        "source",
        "destination",
        "peer_workspace",
        "name",
        "packets",
    ];
    if format == Format::Json {
        return output::pretty(&policy_json(policy));
    }
    let mut rules: Vec<&v1::FirewallRule> = policy.rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    let defaults = [
        ("default_action", &policy.default_action),
        ("default_ingress", &policy.default_ingress),
        ("default_egress", &policy.default_egress),
    ];
    let set = defaults.into_iter().filter(|(_, value)| !value.is_empty());
    let set: String = set.map(|(key, value)| format!("{key} {value}\n")).collect();
    set + &output::list(format, &COLUMNS, rules.into_iter().map(rule_json).collect())
}

fn applied(format: Format, dry_run: bool, answer: &v1::ApplyNetworkPolicyResponse) -> String {
    if format == Format::Json {
        return output::pretty(&json!({
            "dry_run": dry_run,
            "policy": answer.policy.as_option().map(policy_json),
            "changes": answer.changes,
            "findings": answer.findings,
            "vm_count": answer.vm_count,
            "ended_connections": answer.ended_connections,
        }));
    }
    let (tense, ended) = if dry_run { ("would decide", "would end") } else { ("decides", "ended") };
    let mut lines = answer.changes.clone();
    if lines.is_empty() {
        lines.push("nothing changes".into());
    }
    lines.extend(answer.findings.iter().map(|finding| format!("note: {finding}")));
    lines.push(format!(
        "{tense} for {} VMs; live connections that it denies and {ended}: {}",
        answer.vm_count, answer.ended_connections
    ));
    lines.into_iter().map(|line| output::text(&line.into()) + "\n").collect()
}

fn drops(format: Format, answer: &v1::GetWallDropsResponse) -> String {
    let reason = |at: &'static str| move |of: &v1::WallReason| json!({"at": at, "reason": of.reason, "packets": of.packets, "bytes": of.bytes});
    let reasons: Vec<Value> =
        answer.at_ports.iter().map(reason("port")).chain(answer.in_host.iter().map(reason("host"))).collect();
    let guest = |of: &v1::WallGuest| json!({"vm_id": of.vm_id, "port_packets": of.port_packets, "host_packets": of.host_packets});
    let guests: Vec<Value> = answer.by_vm.iter().map(guest).collect();
    if format == Format::Json {
        return output::pretty(&json!({"reasons": reasons, "vms": guests}));
    }
    let busy = |row: &Value| row["port_packets"] != 0 || row["host_packets"] != 0;
    output::list(format, &["at", "reason", "packets", "bytes"], reasons)
        + "\n"
        + &output::list(
            format,
            &["vm_id", "port_packets", "host_packets"],
            guests.into_iter().filter(busy).collect(),
        )
}

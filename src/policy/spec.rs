use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{Invalid, VmId, WorkspaceId};

/// A policy as people write it: the shape of `guestnet policy apply -f FILE`, of the API's message, and of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The VM it is for,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vm_id: String,
    /// or the workspace, all of whose VMs without a policy of their own it is for.
    #[serde(default, alias = "customer_id", skip_serializing_if = "String::is_empty")]
    pub workspace_id: String,
    /// What happens to a connection that no rule is about, in both directions; the network decides when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_action: String,
    /// The same for one direction, before `default_action`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_ingress: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_egress: String,
    #[serde(default)]
    pub rules: Vec<RuleSpec>,
}

/// A rule, with the names of metald's `FirewallRule`. What is empty is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub direction: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub port_range: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer_workspace: String,
    #[serde(default)]
    pub action: String,
    /// Lower is looked at first; among equals the first written.
    #[serde(default)]
    pub priority: u32,
}

/// What a policy is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Vm(VmId),
    Workspace(WorkspaceId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm_id) => write!(f, "VM {vm_id}"),
            Self::Workspace(workspace) => write!(f, "workspace {workspace}"),
        }
    }
}

/// As seen from the VM: ingress comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl FromStr for Direction {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "egress" => Ok(Self::Egress),
            _ => Err(Invalid::new(text, "a direction: ingress or egress")),
        }
    }
}

use ipnetwork::Ipv4Network;

use super::{Invalid, serde_as_text};

/// What is done with a packet that opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl std::str::FromStr for Action {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(Invalid::new(text, "an action: allow or deny")),
        }
    }
}
serde_as_text!(Action);

/// What a network lets its guests do before any policy says more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWalls {
    /// Guests of the network that share a workspace may reach each other.
    pub intra_workspace: Action,
    /// Guests may open connections to the uplink.
    pub egress: Action,
    /// Where no guest gets to by the uplink, whatever its policy says.
    pub blocked_egress: Vec<Ipv4Network>,
    pub caps: Caps,
}

/// What one guest may take of what all share: far above what a guest that means well needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caps {
    pub new_connections_per_second: u32,
    /// Live entries of the host's connection tracking.
    pub live_connections: u32,
    pub dhcp_per_second: u32,
    pub dns_per_second: u32,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            new_connections_per_second: 1000,
            live_connections: 16_384,
            dhcp_per_second: 20,
            dns_per_second: 1000,
        }
    }
}

impl Default for NetworkWalls {
    fn default() -> Self {
        let link_local = Ipv4Network::new([169, 254, 0, 0].into(), 16);
        Self {
            intra_workspace: Action::Deny,
            egress: Action::Allow,
            blocked_egress: link_local.into_iter().collect(),
            caps: Caps::default(),
        }
    }
}

//! The nouns of a guest network, each a type that carries its own proof: once there is a `VmId`, an `IfName`, a `Mac`,
//! nobody checks it again. Pure: no socket, clock, file, task or global.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod account;
mod counters;
mod dhcp_options;
mod guest_net;
mod hostname;
mod if_name;
mod lease;
mod mac;
mod network;
mod place;
mod port_forward;
mod rate;
mod reservation;
mod resolver;
mod subnet;
mod upstream;
mod vm;
mod vm_id;
mod walls;

#[cfg(test)]
pub(crate) mod testing;

pub use account::Account;
pub use counters::{Counter, Counters, Reading};
pub use dhcp_options::{DhcpOptions, OptionBytes, OptionText, RawCode, StaticRoute};
pub use guest_net::GuestNet;
pub use hostname::{Domain, Hostname};
pub use if_name::{BridgeName, IfName};
pub use lease::{LastExchange, LeaseState, LeaseView};
pub use mac::Mac;
pub use network::{DnsMode, Metadata, Network, NetworkName, Plumbing, Relays};
pub use place::{IndexRange, PORTS, Place, Shard, Slot};
pub use port_forward::{HostSide, PortForward, Transport};
pub use rate::{BurstKib, Rate, RateLimit, RateMbps, RateRequest};
pub use reservation::Reservation;
pub use resolver::{DnsAction, DnsName, DnsRecord, DnsRule, ForwardZone, ResolverSettings};
pub use subnet::Subnet;
pub use upstream::{Upstream, UpstreamTransport};
pub use vm::{TapOptions, TapRequest, Vm};
pub use vm_id::{VmId, WorkspaceId};
pub use walls::{Action, Caps, NetworkWalls};

/// A value that is not what its type promises: which value, and what would fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct Invalid {
    /// The value as it was given.
    pub value: String,
    /// What would have fitted, as a noun phrase.
    pub expected: &'static str,
}

impl Invalid {
    pub(crate) fn new(value: impl ToString, expected: &'static str) -> Self {
        Self { value: value.to_string(), expected }
    }
}

/// Text in, text out, for a newtype that has `FromStr` and `Display`: serde sees a string.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

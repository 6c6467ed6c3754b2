//! guestnet gives every microVM on a host a network: a port on a bridge, a reserved address handed out by DHCP, DNS, a
//! way out through NAT, and ready-made guest configuration. ARCHITECTURE.md is the map.

pub mod guestcfg;
pub mod model;
pub mod registry;

/// Messages, service and client generated from `proto/guestnet/v1/guestnet.proto`.
#[allow(clippy::all, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]
pub mod proto {
    connectrpc::include_generated!();
}

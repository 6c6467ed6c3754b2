//! guestnet gives every microVM on a host a network: a port on a bridge, a reserved address handed out by DHCP, DNS, a
//! way out through NAT, and ready-made guest configuration. ARCHITECTURE.md is the map.

pub mod api;
pub mod app;
pub mod bridges;
pub mod cli;
pub mod config;
pub mod dhcp;
pub mod dns;
pub mod doctor;
pub mod drift;
pub mod events;
pub mod guestcfg;
pub mod host;
pub mod ipam;
pub mod kernel;
pub mod logging;
pub mod manager;
pub mod memory;
pub mod metadata;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod policy;
pub mod privileges;
pub mod registry;
pub mod reload;
pub mod reservations;
pub mod stats;
pub mod store;
pub mod telemetry;
pub mod walls;

/// Messages, service and client generated from `proto/guestnet/v1/guestnet.proto`.
#[allow(clippy::all, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]
pub mod proto {
    connectrpc::include_generated!();
}

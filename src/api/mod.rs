//! The API that VM managers and our own command line call: Connect, gRPC and gRPC-Web on a unix socket. In: requests of
//! anybody who may open the socket, so any bytes at all. Out: calls of the manager, answers with Connect codes.

mod answer;
mod caller;
mod connections;
mod deadline;
mod dns;
mod errors;
mod events;
mod guest_config;
mod leases;
mod listener;
mod networks;
mod paging;
mod policy;
mod reservations;
mod rooms;
mod seats;
mod server;
mod service;
mod socket;
mod stats;
mod status;
mod streams;
mod tls;
mod trace;
mod vms;
pub mod wire;

pub use caller::{Access, Caller, Peer};
pub use leases::LeaseSources;
pub use reservations::{options as dhcp_options_from_wire, wire_options as dhcp_options_to_wire};
pub use server::{ApiServer, Bounds, Entrances};
pub use socket::{ApiSocket, SocketError};
pub(crate) use socket::{SocketFile, SocketGroup};
pub use status::Sources;
pub use tls::TlsError;

/// Where the API listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/guestnet/guestnet.sock";

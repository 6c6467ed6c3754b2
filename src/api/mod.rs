//! The API that VM managers and our own command line call: Connect, gRPC and gRPC-Web on a unix socket. In: requests of
//! anybody who may open the socket, so any bytes at all. Out: calls of the manager, answers with Connect codes.

mod connections;
mod guest_config;
mod server;
mod service;
mod socket;
mod stats;
pub mod wire;

pub use server::{ApiServer, Bounds};
pub use socket::{ApiSocket, SocketError};

/// Where the API listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/guestnet/guestnet.sock";

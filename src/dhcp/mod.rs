//! The DHCP server: gives each guest the address reserved for its MAC, and nothing to anyone else. In: Ethernet frames
//! from a bridge. Out: whole Ethernet frames, and what each guest made of its reservation. The way of a frame is one
//! straight line, bytes → `packet` → `decide` → `reply` → bytes; those three are PURE, `server` is the shell around them.

mod checksum;
mod counters;
mod decide;
#[cfg(test)]
mod fixture;
mod leases;
mod options;
mod packet;
mod reply;
mod server;
mod socket;

pub use counters::{Counters, Counts};
pub use decide::{Answer, Decision, Outcome, Record, decide};
pub use leases::Leases;
pub use packet::{Kind, L4Checksum, Request, Silence};
pub use reply::write_reply;
pub use server::{DhcpError, DhcpServer};

/// UDP port of servers, RFC 2131 section 4.1.
const SERVER_PORT: u16 = 67;
/// UDP port of clients, RFC 2131 section 4.1.
const CLIENT_PORT: u16 = 68;

//! The DHCP server: gives each guest the address reserved for its MAC, and nothing to anyone else. In: Ethernet frames
//! from a device. Out: whole Ethernet frames, and what each guest made of its reservation. The way of a frame is one
//! straight line, bytes → `packet` → `decide` → `reply` → bytes; those three are PURE, `server` is the shell around them.

mod alarms;
mod areas;
mod arp;
mod checksum;
mod counters;
mod datagram;
mod decide;
#[cfg(any(test, fuzzing))]
mod exercise;
mod expiry;
#[cfg(test)]
mod fixture;
mod journal;
mod leases;
mod log_line;
mod options;
mod packet;
mod record;
mod reply;
mod reply_options;
mod server;
mod share;
mod socket;
mod told;

pub use alarms::Alarms;
pub use counters::{Counters, Counts};
pub use datagram::L4Checksum;
pub use decide::{Answer, Outcome, decide};
#[cfg(fuzzing)]
pub use exercise::exercise;
pub use journal::{Journal, JournalError};
pub use leases::{LeaseChange, LeaseChanges, Leases};
pub use packet::{Kind, Relay, Request, Silence};
pub use record::Record;
pub use reply::write_reply;
pub use server::{Dhcp, DhcpError, DhcpServer};
pub(crate) use socket::dropped;
pub use told::Told;

/// UDP port of servers, RFC 2131 section 4.1.
const SERVER_PORT: u16 = 67;
/// UDP port of clients, RFC 2131 section 4.1.
const CLIENT_PORT: u16 = 68;

//! The metadata service of a network whose configuration says `metadata = true`: what a guest may ask of 169.254.169.254.
//! In: HTTP of a guest, so any bytes at all. Out: facts of that guest and no other, told by the address that the
//! connection came from, which only its own port can send from and be answered at.
//!
//! The address is on no interface: what guests send to it is redirected to the gateway (`kernel::metadata`), so that a
//! host that is a cloud's machine itself keeps the metadata service of that cloud.

mod answer;
mod limits;
mod server;
mod token;

pub use server::{MetadataError, MetadataServer};

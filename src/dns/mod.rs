//! The resolver guests ask: names of VMs from the live bindings, everything else from upstreams through a cache. In: queries on a
//! network's gateway address. Out: an answer to each within 4 s, SERVFAIL with a reason at the latest.
//!
//! ```text
//! bytes ─ query ─ route ─┬─ zone ──────────────────────────┬─ reply ─ bytes
//!                        ├─ refusal ───────────────────────┘
//!                        └─ cache ─┬──────────────────────── answer ─ bytes
//!                                  └─ fair ─ resolve ─ forward ┘
//! ```
//!
//! Messages are read and written with hickory (`hickory_server`'s requests and responses, `hickory_proto`'s records). Its
//! `Server` is not what listens, because what a guest can make it do has no bound: it spawns a task per datagram and accepts
//! any number of TCP connections, with no hook before either; it reserves memory by the question count of the header (65,535
//! for twelve bytes) before it reads a question; and it logs every name at INFO. `server` has the loops, each with a cap.

mod admin;
mod alias;
mod answer;
mod batch;
mod cache;
mod chain;
mod control;
mod counters;
mod exchanges;
#[cfg(any(test, fuzzing))]
mod exercise;
mod fair;
mod file;
mod flights;
mod forward;
mod guests;
mod histogram;
mod judge;
mod local;
mod name;
mod policy;
mod query;
mod records;
mod reply;
mod resolve;
mod route;
mod server;
mod setup;
mod suffixes;
mod tcp;
#[cfg(test)]
mod tests;
mod told;
mod udp;
mod unsigned;
mod validate;
mod zone;

pub use admin::{DnsAdmin, DnsAdminError};
pub use cache::CacheUse;
pub use control::{DnsControl, Explained, Prepared, TopName};
pub use counters::DnsCounters;
#[cfg(fuzzing)]
pub use exercise::{exercise_answer, exercise_query};
pub use forward::UpstreamReport;
pub use guests::GuestReport;
pub use histogram::Latencies;
pub use local::{HostsError, check_record};
pub use policy::RuleReport;
pub use server::{DnsEndpoints, DnsError, DnsServer};

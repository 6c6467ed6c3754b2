//! What an operator's monitoring reads: Prometheus metrics over HTTP, on a unix socket and if asked for on a loopback port.
//! In: counters that the parts keep anyway, read when somebody asks. Out: text.

mod by_network;
mod histogram;
mod render;
mod server;

pub use histogram::{Histogram, Latency};
pub use render::{Networks, Source};
pub use server::{MetricsError, MetricsServer};

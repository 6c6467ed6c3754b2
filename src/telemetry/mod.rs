//! Traces and metrics for an OpenTelemetry collector on this host, in the feature `otlp`. In: spans of calls, and the page that
//! Prometheus reads. Out: OTLP over HTTP. What waits to be sent is bounded; a collector that is gone slows nobody down.

mod parent;

#[cfg(feature = "otlp")]
mod collector;
#[cfg(feature = "otlp")]
mod points;
#[cfg(feature = "otlp")]
mod sender;
#[cfg(not(feature = "otlp"))]
mod without;

use tracing_subscriber::{Layer, Registry};

pub use parent::TraceParent;
#[cfg(feature = "otlp")]
pub use sender::{Telemetry, follow, trace_id};
#[cfg(not(feature = "otlp"))]
pub use without::{Telemetry, follow, trace_id};

/// What spans go to.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

//! `[telemetry]`: where traces and metrics are sent to. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::section::{Problem, Section};
use super::service::unless_empty;
use super::socket_path;

/// What is sent where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// None: nothing is sent.
    pub collector: Option<Collector>,
    /// From one sending of metrics to the next.
    pub metrics_interval: Duration,
}

/// An OpenTelemetry collector on this host, which takes OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collector {
    /// A loopback address.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(super) fn read(file: &mut Table, problems: &mut Vec<Problem>) -> Option<TelemetryConfig> {
    let mut section = Section::of(file, "telemetry", problems);
    let collector = section.take("endpoint", "", unless_empty(collector));
    let every = section.take("metrics_interval_seconds", 15, |value| {
        let seconds = value.as_integer().and_then(|seconds| u64::try_from(seconds).ok());
        seconds.filter(|seconds| (1..=3_600).contains(seconds)).ok_or("1 to 3600 seconds".into())
    });
    if !cfg!(feature = "otlp") && matches!(collector, Some(Some(_))) {
        section
            .problem("endpoint", "this guestnet is built without it: cargo build --release --features otlp");
    }
    section.finish();
    Some(TelemetryConfig { collector: collector?, metrics_interval: Duration::from_secs(every?) })
}

fn collector(value: &Value) -> Result<Collector, String> {
    let expected = "a collector on this host, over HTTP: http://127.0.0.1:4318, or unix:/PATH";
    let text = value.as_str().ok_or(expected)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(&Value::String(path.into())).map(Collector::Unix);
    }
    let address =
        text.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse::<SocketAddr>().ok());
    let address = address.filter(|address| address.ip().is_loopback());
    address.map(Collector::Tcp).ok_or_else(|| expected.into())
}

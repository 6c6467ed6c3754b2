//! Where log lines and spans go. To the journal where systemd gave us one, else to standard error: for people on a terminal, as
//! JSON otherwise. GUESTNET_LOG, or [log] of the configuration, sets the level; GUESTNET_LOG_FORMAT human, json or journald.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::telemetry::SpanLayer;

const VARIABLE: &str = "GUESTNET_LOG";

/// What is logged, while the process runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// From here on, once in a process. `filter` is what is logged unless GUESTNET_LOG says otherwise; `spans` takes what is traced; the log has events only, with the trace's id where it counts.
pub fn start(filter: &str, spans: Option<SpanLayer>) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(filter));
    let (filter, handle) = reload::Layer::new(filter);
    let _ = FILTER.set(handle);
    let filter = filter.and(filter_fn(|of| of.is_event()));
    let log: SpanLayer = lines().with_filter(filter).boxed();
    tracing_subscriber::registry().with(spans.into_iter().chain([log]).collect::<Vec<_>>()).init();
}

/// Whether the environment says what is logged, before any configuration.
pub fn is_set_by_environment() -> bool {
    EnvFilter::try_from_env(VARIABLE).is_ok()
}

/// Logs by another filter from now on; one that was checked before.
pub fn follow(filter: &str) {
    if let Some(handle) = FILTER.get().filter(|_| !is_set_by_environment()) {
        // An error says that logging has ended.
        let _ = handle.reload(EnvFilter::new(filter));
    }
}

fn lines() -> Box<dyn Layer<Registry> + Send + Sync> {
    let format = std::env::var("GUESTNET_LOG_FORMAT").unwrap_or_default();
    let to_journal =
        format == "journald" || (format.is_empty() && std::env::var_os("JOURNAL_STREAM").is_some());
    if to_journal && let Ok(journal) = tracing_journald::layer() {
        return journal.boxed();
    }
    // A log that cannot be written (a full disk) is lost, and nothing else: fmt passes over errors of its writer.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    match format.as_str() {
        "human" => lines.boxed(),
        "json" => lines.json().boxed(),
        _ if std::io::stderr().is_terminal() => lines.boxed(),
        _ => lines.json().boxed(),
    }
}

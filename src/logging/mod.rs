//! Where log lines and spans go. To the journal where systemd gave us one, else to standard error: for people on a terminal, as
//! JSON otherwise; nobody waits for that. GUESTNET_LOG, or [log] of the configuration, sets the level; GUESTNET_LOG_FORMAT human, json or journald.

mod journal;
mod outlet;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::telemetry::SpanLayer;
pub use outlet::lost;
use outlet::{Outlet, Sink};

const VARIABLE: &str = "GUESTNET_LOG";

/// What is logged, while the process runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Where lines go, while the process runs.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// At the end of the process, for what waits to be written.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// Before the process ends: what waits is written, unless nobody takes it.
pub fn finish() {
    if let Some(outlet) = OUTLET.get() {
        outlet.drain(PATIENCE);
    }
}

fn lines() -> Box<dyn Layer<Registry> + Send + Sync> {
    let format = std::env::var("GUESTNET_LOG_FORMAT").unwrap_or_default();
    let to_journal =
        format == "journald" || (format.is_empty() && std::env::var_os("JOURNAL_STREAM").is_some());
    if to_journal && let Ok(outlet) = journal::sink().and_then(opened) {
        return journal::Journal(outlet).boxed();
    }
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let stderr = stderr.and_then(|stderr| opened(Sink::Stream(stderr.into())));
    // A log that cannot be written (a full disk) is lost, and nothing else: fmt passes over errors of its writer.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false);
    let lines = lines.with_writer(move || -> Box<dyn io::Write> {
        match &stderr {
            Ok(outlet) => Box::new(outlet.clone()),
            // There was no file or no thread for it.
            Err(_) => Box::new(io::stderr()),
        }
    });
    match format.as_str() {
        "human" => lines.boxed(),
        "json" => lines.json().boxed(),
        _ if io::stderr().is_terminal() => lines.boxed(),
        _ => lines.json().boxed(),
    }
}

fn opened(sink: Sink) -> io::Result<Outlet> {
    let outlet = Outlet::open(sink)?;
    let _ = OUTLET.set(outlet.clone());
    Ok(outlet)
}

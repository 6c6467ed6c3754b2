//! The `guestnet` program: logging, a runtime, and the exit code of what the command line asked for.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

fn main() -> anyhow::Result<ExitCode> {
    log();
    // Before there are threads, each of which would keep its own.
    if std::env::args_os().any(|argument| argument == "serve") {
        guestnet::privileges::confine().context("giving up what the service does not need")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime's threads")?;
    Ok(ExitCode::from(runtime.block_on(guestnet::cli::run())))
}

/// To the journal where systemd gave us one, else to standard error: for people on a terminal, as JSON otherwise.
/// GUESTNET_LOG sets the level (default: info), GUESTNET_LOG_FORMAT human, json or journald.
fn log() {
    let filter = EnvFilter::try_from_env("GUESTNET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let format = std::env::var("GUESTNET_LOG_FORMAT").unwrap_or_default();
    let to_journal =
        format == "journald" || (format.is_empty() && std::env::var_os("JOURNAL_STREAM").is_some());
    if to_journal && let Ok(journal) = tracing_journald::layer() {
        return tracing_subscriber::registry().with(filter).with(journal).init();
    }
    // A log that cannot be written (a full disk) is lost, and nothing else: fmt passes over errors of its writer.
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format.as_str() {
        "human" => logger.init(),
        "json" => logger.json().init(),
        _ if std::io::stderr().is_terminal() => logger.init(),
        _ => logger.json().init(),
    }
}

//! The `guestnet` program: logging, a runtime, and the exit code of what the command line asked for.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

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

/// To standard error: for people on a terminal, as JSON otherwise. GUESTNET_LOG sets the level (default: info).
fn log() {
    let filter = EnvFilter::try_from_env("GUESTNET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() { logger.init() } else { logger.json().init() }
}

//! The `guestnet` program: a runtime, and the exit code of what the command line asked for.

use std::process::ExitCode;

use anyhow::Context;

fn main() -> anyhow::Result<ExitCode> {
    if std::env::args_os().any(|argument| argument == "serve") {
        // Before there are threads, each of which would keep its own. It logs when it has read where to.
        guestnet::privileges::confine().context("giving up what the service does not need")?;
    } else {
        guestnet::logging::start("info", None);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime's threads")?;
    let code = runtime.block_on(guestnet::cli::run());
    guestnet::logging::finish();
    Ok(ExitCode::from(code))
}

//! The command line: every command but `serve` and `uninstall` is a client of the API. In: arguments. Out: a table or
//! JSON on standard output, one line on standard error when it fails, and an exit code: 0 done, 1 failed, 2 usage or
//! configuration.

mod arguments;
mod client;
mod gen_arguments;
mod generate;
mod output;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;
use connectrpc::{ConnectError, ErrorCode};

use crate::app::{self, AppError};
use crate::guestcfg::Refusal;
use crate::model::Invalid;
use arguments::{Arguments, Command, LeaseCommand, NetworkCommand, VmCommand};
use client::Client;
use output::Format;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Refusal(#[from] Refusal),
    #[error("{}", .0.message.as_deref().unwrap_or(.0.code.as_str()))]
    Call(ConnectError),
    #[error(
        "no answer on {socket}: is the service running? (systemctl status guestnet, or: guestnet serve); {detail}"
    )]
    Unreachable { socket: String, detail: String },
    #[error("the service's answer does not fit: {0}; are client and service of the same version?")]
    Answer(String),
    #[error("{} exists: name a folder that does not, what is in it may be another guest's", .0.display())]
    Exists(PathBuf),
    #[error("{0} is binary: have it written with --out DIRECTORY")]
    Binary(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl CliError {
    fn exit_code(&self) -> u8 {
        let usage = match self {
            Self::App(error) => error.is_config(),
            Self::Invalid(_) | Self::Refusal(_) | Self::Exists(_) | Self::Binary(_) => true,
            Self::Call(error) => error.code == ErrorCode::InvalidArgument,
            _ => false,
        };
        if usage { 2 } else { 1 }
    }
}

/// Runs the command that the process was started with; its exit code.
pub async fn run() -> u8 {
    let arguments = Arguments::parse();
    match execute(arguments).await {
        Ok(output) => write(&mut io::stdout().lock(), &output),
        Err(error) => {
            // Nothing more can be done if standard error is closed.
            let _ = writeln!(io::stderr().lock(), "error: {error}");
            error.exit_code()
        }
    }
}

/// A reader that has gone, as in `guestnet vm list | head -1`, has seen what it wanted.
fn write(stdout: &mut impl Write, output: &[u8]) -> u8 {
    match stdout.write_all(output).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => 1,
        _ => 0,
    }
}

async fn execute(Arguments { global, command }: Arguments) -> Result<Vec<u8>, CliError> {
    let client = Client::new(&global.socket);
    let format = global.format();
    match command {
        Command::Serve { config } => {
            app::serve(config.as_deref()).await?;
            Ok(Vec::new())
        }
        Command::Uninstall { config } => {
            app::uninstall(config.as_deref()).await?;
            Ok(Vec::new())
        }
        Command::Vm(command) => vm(&client, format, command).await.map(String::into_bytes),
        Command::Lease(LeaseCommand::List { network }) => {
            Ok(output::leases(format, &client.list_leases(network).await?).into_bytes())
        }
        Command::Network(NetworkCommand::List) => {
            Ok(output::networks(format, &client.list_networks().await?).into_bytes())
        }
        Command::Gen(command) => generate::run(&client, format, command).await,
    }
}

async fn vm(client: &Client, format: Format, command: VmCommand) -> Result<String, CliError> {
    match command {
        VmCommand::Create(request) => Ok(output::vm(format, &client.create(request.into()).await?)),
        VmCommand::Show { vm_id } => Ok(output::vm(format, &client.get(&vm_id).await?)),
        VmCommand::List { network } => Ok(output::vms(format, &client.list(network).await?)),
        VmCommand::Delete { vm_ids } => {
            for vm_id in &vm_ids {
                client.delete(vm_id).await?;
            }
            Ok(String::new())
        }
    }
}

#[cfg(test)]
mod tests;

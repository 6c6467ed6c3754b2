//! The command line: every command but `serve` and `uninstall` is a client of the API. In: arguments. Out: a table or
//! JSON on standard output, one line on standard error when it fails, and an exit code: 0 done, 1 failed, 2 usage or
//! configuration.

mod arguments;
mod capture;
mod client;
mod dns;
mod dns_client;
mod dns_top;
mod doctor;
mod events;
mod gc;
mod gen_arguments;
mod gen_dhcp;
mod generate;
mod lease;
mod manual;
mod output;
mod policy;
mod progress;
mod reload;
mod reservation;
mod reservation_file;
mod stats;
mod status;
mod top;
mod user_data;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use connectrpc::{ConnectError, ErrorCode};

use crate::app::{self, AppError};
use crate::guestcfg::Refusal;
use crate::model::{Invalid, VmId};
use arguments::{Arguments, Command, CreateVm, NetworkCommand, VmCommand};
use client::Client;
use output::Format;
use progress::Progress;

/// VMs asked for in one call of many: enough to be fast, few enough to see them come.
const BATCH: usize = 50;

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
    #[error("VM {vm_id} has no network: make it with guestnet vm create {vm_id}")]
    NoNetwork { vm_id: VmId },
    #[error("no answer on {socket}: is the service running? systemctl status guestnet, or: guestnet serve")]
    Unreachable { socket: String },
    #[error(
        "no answer on {socket}: is the service running? systemctl status guestnet. One that was started with another socket under [api] \
         keeps it until systemctl restart guestnet; till then: guestnet --socket OLD reload"
    )]
    Moved { socket: String },
    #[error("no permission to open {socket}: run as root or as a member of the socket's group")]
    Forbidden { socket: String },
    #[error("the call to {socket} broke off ({detail}): is that guestnet's socket? journalctl -u guestnet")]
    BrokeOff { socket: String, detail: String },
    #[error(
        "the service at {socket} did not answer in time: journalctl -u guestnet, then repeat the command"
    )]
    TimedOut { socket: String },
    /// All is said already.
    #[error("something is wrong: see above")]
    Unwell,
    #[error("{0} is for one VM only: name one, or leave it out")]
    ForOneOnly(&'static str),
    /// Of several VMs, those that could not be made or deleted.
    #[error("{}", .0.join("; "))]
    Several(Vec<String>),
    #[error("the service's answer does not fit: {0}; are client and service of the same version?")]
    Answer(String),
    #[error("{} exists: name a folder that does not, what is in it may be another guest's", .0.display())]
    Exists(PathBuf),
    #[error("of VM {vm_id}: {error}")]
    OfVm { vm_id: VmId, error: Refusal },
    #[error("{} is there and says something else: look at it, then repeat with --replace", .0.display())]
    Stands(PathBuf),
    #[error("{} leads out of {} by a link: is that an image's root?", path.display(), root.display())]
    LeadsOut { path: PathBuf, root: PathBuf },
    #[error("{} has no udhcpc, dhclient, dhcpcd or systemd-networkd: install one, or name it with --client", .0.display())]
    NoDhcpClient(PathBuf),
    #[error("a tar archive is binary: redirect it, or install it with --root DIRECTORY")]
    Archive,
    #[error("{}: {error}", file.display())]
    File { file: PathBuf, error: String },
    #[error("{0} is binary: have it written with --out DIRECTORY")]
    Binary(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl CliError {
    fn exit_code(&self) -> u8 {
        let usage = match self {
            Self::App(error) => error.is_config(),
            Self::File { .. } => true,
            Self::OfVm { .. } | Self::Stands(_) | Self::LeadsOut { .. } => true,
            Self::NoDhcpClient(_) | Self::Archive => true,
            Self::Invalid(_) | Self::Refusal(_) | Self::Exists(_) | Self::Binary(_) | Self::ForOneOnly(_) => {
                true
            }
            Self::Call(error) => error.code == ErrorCode::InvalidArgument,
            _ => false,
        };
        if usage { 2 } else { 1 }
    }

    /// Whether the service itself refused; for any other reason a further call would fare no better.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Call(_))
    }
}

/// Runs the command that the process was started with; its exit code.
pub async fn run() -> u8 {
    let arguments = match parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let done =
        execute(arguments).await.and_then(|output| write(&mut io::stdout().lock(), &output).map(|_| ()));
    match done {
        Ok(()) => 0,
        Err(error) => {
            // Nothing more can be done if standard error is closed.
            let _ = writeln!(io::stderr().lock(), "error: {error}");
            error.exit_code()
        }
    }
}

/// What is an option of clients only is refused for the service, not passed over.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let matches = Arguments::command().try_get_matches_from(arguments)?;
    let parsed = Arguments::from_arg_matches(&matches)?;
    // Options may stand on either side of the command, so the matches of both may have them.
    let service = matches.subcommand().filter(|(name, _)| ["serve", "uninstall"].contains(name));
    let given = |id| {
        let sources = service.map(|(_, own)| [matches.value_source(id), own.value_source(id)]);
        sources.is_some_and(|sources| sources.contains(&Some(ValueSource::CommandLine)))
    };
    if ["socket", "output", "json"].into_iter().any(given) {
        let why = "serve and uninstall take no --socket, --output or --json: the service's socket is socket under \
                   [api] in its configuration";
        return Err(Arguments::command().error(ErrorKind::ArgumentConflict, why));
    }
    Ok(parsed)
}

/// A reader that has gone, as in `guestnet vm list | head -1`, has seen what it wanted. Whether there still is one.
fn write(stdout: &mut impl Write, output: &[u8]) -> Result<bool, CliError> {
    match stdout.write_all(output).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(CliError::Io { what: "writing the output".into(), source }),
    }
}

async fn execute(Arguments { global, command }: Arguments) -> Result<Vec<u8>, CliError> {
    let config = if let Command::Reload { config } = &command { config.as_deref() } else { None };
    let client = Client::new(&global.socket(config));
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
        Command::Lease(command) => lease::run(&client, format, command).await,
        Command::Reservation(command) => reservation::run(&client, format, command).await,
        Command::Network(NetworkCommand::List) => {
            Ok(output::networks(format, &client.list_networks().await?).into_bytes())
        }
        Command::Stats(command) => stats::run(&client, format, command).await,
        Command::UserData(command) => user_data::run(&client, format, command).await,
        Command::Events(asked) => events::run(&client, format, asked).await.map(|()| Vec::new()),
        Command::Top(asked) => top::run(&client, format, asked).await,
        Command::Capture(asked) => capture::run(&client, asked).await.map(|()| Vec::new()),
        Command::Gc(asked) => {
            let (printed, failed) = gc::print(format, &client.collect_garbage(asked.apply).await?);
            write(&mut io::stdout().lock(), printed.as_bytes())?;
            if failed { Err(CliError::Unwell) } else { Ok(Vec::new()) }
        }
        Command::Reload { config } => {
            let named = global.named_socket().is_some() || config.is_some();
            Ok(reload::print(format, &reload::run(&client, named).await?).into_bytes())
        }
        Command::Completions { shell } => Ok(manual::completions(shell)),
        Command::Man { folder } => manual::pages(&folder).map(|()| Vec::new()),
        Command::Doctor(asked) => {
            let (printed, wrong) = doctor::run(&client, global.named_socket(), format, asked).await?;
            write(&mut io::stdout().lock(), printed.as_bytes())?;
            if wrong { Err(CliError::Unwell) } else { Ok(Vec::new()) }
        }
        Command::Status => Ok(status::print(format, &client.status().await?, SystemTime::now()).into_bytes()),
        Command::Dns(command) => dns::run(&client, format, command).await.map(String::into_bytes),
        Command::Policy(command) => policy::policy(&client, format, command).await.map(String::into_bytes),
        Command::Forward(command) => policy::forward(&client, format, command).await.map(String::into_bytes),
        Command::Gen(command) => generate::run(&client, format, command).await,
    }
}

async fn vm(client: &Client, format: Format, command: VmCommand) -> Result<String, CliError> {
    match command {
        VmCommand::Create(asked) => create(client, format, &asked).await,
        VmCommand::Update(request) => Ok(output::vm(format, &client.update(request.into()).await?)),
        VmCommand::Show { vm_id } => Ok(output::vm(format, &client.get(&vm_id).await?)),
        VmCommand::List(asked) => Ok(output::vms(format, &client.list(asked.into()).await?)),
        VmCommand::Delete { vm_ids } => delete(client, format, &vm_ids).await,
    }
}

/// One VM is printed in full, several as a list. Of several, every one is tried.
async fn create(client: &Client, format: Format, asked: &CreateVm) -> Result<String, CliError> {
    if let Some(option) = asked.for_one_only() {
        return Err(CliError::ForOneOnly(option));
    }
    let requests = asked.requests();
    if let [request] = requests.as_slice() {
        return Ok(output::vm(format, &client.create(request.clone()).await?));
    }
    let progress = Progress::new("made", requests.len());
    let (mut made, mut refused) = (Vec::new(), Vec::new());
    for batch in requests.chunks(BATCH) {
        let results = match client.batch_create(batch.to_vec()).await {
            Ok(results) => results,
            // What was made before is made, and what was refused is refused: it is told.
            Err(error) if !made.is_empty() || !refused.is_empty() => {
                let left = requests.len() - made.len() - refused.len();
                refused.push(format!("{}, of {left} that were left: {error}", batch[0].vm_id));
                break;
            }
            Err(error) => return Err(error),
        };
        for result in results {
            match (result.vm_network.into_option(), result.error.into_option()) {
                (Some(vm), _) => made.push(vm),
                (None, error) => {
                    let why = error.map(|error| error.message).unwrap_or_default();
                    refused.push(format!("{}: {why}", result.vm_id));
                }
            }
        }
        progress.at(made.len() + refused.len());
    }
    drop(progress);
    done(output::vms(format, &made), refused)
}

/// Every VM is tried; what could not be deleted is one error.
async fn delete(client: &Client, format: Format, vm_ids: &[VmId]) -> Result<String, CliError> {
    let progress = Progress::new("deleted", vm_ids.len());
    let (mut gone, mut refused) = (Vec::new(), Vec::new());
    for vm_id in vm_ids {
        match client.delete(vm_id).await {
            Ok(()) => gone.push(vm_id.to_string().into()),
            Err(error) if vm_ids.len() > 1 && error.is_refusal() => refused.push(format!("{vm_id}: {error}")),
            Err(error) if !gone.is_empty() || !refused.is_empty() => {
                let left = vm_ids.len() - gone.len() - refused.len();
                refused.push(format!("{vm_id}, of {left} that were left: {error}"));
                break;
            }
            Err(error) => return Err(error),
        }
        progress.at(gone.len() + refused.len());
    }
    drop(progress);
    done(output::deleted(format, &gone), refused)
}

/// What was done is printed, whatever else was refused; that is one error.
fn done(output: String, refused: Vec<String>) -> Result<String, CliError> {
    if refused.is_empty() {
        return Ok(output);
    }
    write(&mut io::stdout().lock(), output.as_bytes())?;
    Err(CliError::Several(refused))
}

#[cfg(test)]
mod pages;
#[cfg(test)]
mod tests;

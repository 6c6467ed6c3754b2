//! `guestnet gen`. In: what is asked, and for a VM of the service its network from the API. Out: text for standard output,
//! or files in a new folder; what the target cannot say goes to standard error.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::CliError;
use super::client::Client;
use super::gen_arguments::{Asked, GenCommand, Guest};
use super::output::{self, Format};
use crate::api::wire;
use crate::guestcfg::{self, GuestFile, HostSide, OfflineArgs, Options, Warning};
use crate::model::{GuestNet, Invalid};
use crate::proto::guestnet::v1;

pub(super) async fn run(client: &Client, format: Format, command: GenCommand) -> Result<Vec<u8>, CliError> {
    let Asked { target, guest, device, merge, user_data, out } = command.into();
    let (net, host) = facts(client, guest).await?;
    let user_data = user_data.as_deref().map(read).transpose()?;
    let options = Options { device, merge: merge.as_deref(), user_data: user_data.as_deref(), host };
    let generated = guestcfg::generate(target, &net, &options)?;
    if let Some(directory) = &out {
        write(directory, &generated.files)?;
    }
    if format == Format::Json {
        return Ok(output::generated(&generated).into_bytes());
    }
    let text = match out {
        Some(_) => Vec::new(),
        None => printed(&generated.files, io::stdout().is_terminal())?,
    };
    warn(&generated.warnings);
    Ok(text)
}

/// The guest's network, and where it ends on the host if that is this one.
async fn facts(client: &Client, guest: Guest) -> Result<(GuestNet, Option<HostSide>), CliError> {
    if let Some(vm_id) = &guest.vm_id {
        let vm = client.get(vm_id).await?;
        let net = wire::guest_net(&vm).map_err(|error| CliError::Answer(error.to_string()))?;
        let host = host_side(&vm).map_err(|error| CliError::Answer(error.to_string()))?;
        return Ok((net, Some(host)));
    }
    // clap has made sure of these three.
    let (Some(ip), Some(prefix), Some(gateway)) = (guest.ip, guest.prefix, guest.gateway) else {
        return Err(CliError::Answer("--offline without address, subnet or gateway".into()));
    };
    let Guest { dns, hostname, mac, domain, mtu, .. } = guest;
    let net = guestcfg::offline(OfflineArgs { ip, prefix, gateway, dns, hostname, mac, domain, mtu })?;
    Ok((net, None))
}

fn host_side(vm: &v1::VmNetwork) -> Result<HostSide, Invalid> {
    Ok(HostSide { vm_id: vm.vm_id.parse()?, tap_device: vm.tap_device.parse()? })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|source| CliError::Io { what: format!("reading {}", path.display()), source })
}

fn warn(warnings: &[Warning]) {
    for warning in warnings {
        // Nothing more can be done if standard error is closed.
        let _ = writeln!(io::stderr().lock(), "warning: {warning}");
    }
}

/// One file as it is; several, if all are text, each under its path as head(1) shows them.
pub(super) fn printed(files: &[GuestFile], on_terminal: bool) -> Result<Vec<u8>, CliError> {
    if let [only] = files
        && (only.as_text().is_some() || !on_terminal)
    {
        return Ok(only.bytes.clone());
    }
    let shown = |file: &GuestFile| match file.as_text() {
        Some(text) => Ok(format!("==> {} <==\n{text}", file.path)),
        None => Err(CliError::Binary(file.path.clone())),
    };
    let shown: Vec<String> = files.iter().map(shown).collect::<Result<_, _>>()?;
    Ok(shown.join("\n").into_bytes())
}

/// A folder that is there is not written into: what is in it may be another guest's. One that could not be filled is removed,
/// so that the same command may be repeated.
fn write(directory: &Path, files: &[GuestFile]) -> Result<(), CliError> {
    std::fs::create_dir(directory).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::Exists(directory.to_owned()),
        _ => CliError::Io { what: format!("making {}", directory.display()), source },
    })?;
    let written = files.iter().try_for_each(|file| {
        let path = directory.join(&file.path);
        write_file(&path, file)
            .map_err(|source| CliError::Io { what: format!("writing {}", path.display()), source })
    });
    if written.is_err() {
        // The first error is the one that helps.
        let _ = std::fs::remove_dir_all(directory);
    }
    written
}

fn write_file(path: &Path, file: &GuestFile) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(path)?;
    opened.write_all(&file.bytes)
}

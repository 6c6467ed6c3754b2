//! `guestnet gen TARGET`. In: what is asked, and for VMs of the service their networks from the API. Out: text for standard
//! output, or files in a new folder; what the target cannot say goes to standard error.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::CliError;
use super::client::Client;
use super::gen_arguments::{Asked, GenCommand, Guest};
use super::gen_dhcp;
use super::output::{self, Format};
use crate::api::wire;
use crate::guestcfg::{self, GuestFile, HostSide, OfflineArgs, Options, Target, Warning};
use crate::model::{DhcpOptions, GuestNet, Invalid, Vm, VmId};
use crate::proto::guestnet::v1;

/// A warning, and of several VMs the one that it is about.
#[derive(PartialEq, serde::Serialize)]
pub(super) struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_id: Option<VmId>,
    #[serde(flatten)]
    warning: Warning,
}

pub(super) async fn run(client: &Client, format: Format, command: GenCommand) -> Result<Vec<u8>, CliError> {
    match command {
        GenCommand::Dhcp(asked) => gen_dhcp::run(format, &asked),
        GenCommand::Target(command) => generate(client, format, command.into()).await,
    }
}

async fn generate(client: &Client, format: Format, asked: Asked) -> Result<Vec<u8>, CliError> {
    let Asked { target, guest, device, merge, user_data, out } = asked;
    let given = user_data.as_deref().map(read).transpose()?;
    let mut files = Vec::new();
    let mut warnings = Vec::new();
    let all = guest.all;
    for (vm_id, net, host) in guests(client, guest, target).await? {
        let name = |error| match (&vm_id, all) {
            (Some(vm_id), true) => CliError::OfVm { vm_id: vm_id.clone(), error },
            _ => CliError::Refusal(error),
        };
        let stored = match &vm_id {
            Some(vm_id) if given.is_none() && matches!(target, Target::CloudInit(..)) => {
                client.user_data(vm_id).await?
            }
            _ => None,
        };
        let left_out = stored.as_deref().and_then(|stored| target.leaves_out(stored));
        let stored = stored.as_deref().filter(|_| target.takes_user_data());
        let user_data = given.as_deref().or(stored);
        let options = Options { device: device.clone(), merge: merge.as_deref(), user_data, host };
        let mut generated = guestcfg::generate(target, &net, &options).map_err(name)?;
        if let (Some(vm_id), true) = (&vm_id, all) {
            for file in &mut generated.files {
                file.path = format!("{vm_id}/{}", file.path);
            }
        }
        files.extend(generated.files);
        for warning in generated.warnings.into_iter().chain(left_out) {
            let said = Said { vm_id: vm_id.clone().filter(|_| all), warning };
            if !warnings.contains(&said) {
                warnings.push(said);
            }
        }
    }
    if let Some(directory) = &out {
        write(directory, &files)?;
    }
    if format == Format::Json {
        return Ok(output::generated(&files, &warnings).into_bytes());
    }
    let text = match out {
        Some(_) => Vec::new(),
        None => printed(&files, io::stdout().is_terminal())?,
    };
    warn(&warnings);
    Ok(text)
}

/// One guest: its id if the service knows it, what it is told, and where it ends on the host if that is known.
type Facts = (Option<VmId>, GuestNet, Option<HostSide>);

async fn guests(client: &Client, guest: Guest, target: Target) -> Result<Vec<Facts>, CliError> {
    if guest.all {
        return client.list(Default::default()).await?.iter().map(of_service).collect();
    }
    if let Some(vm_id) = &guest.vm_id {
        return Ok(vec![of_service(&client.get(vm_id).await?)?]);
    }
    // clap has made sure of these three.
    let (Some(ip), Some(prefix), Some(gateway)) = (guest.ip, guest.prefix, guest.gateway) else {
        return Err(CliError::Answer("--offline without address, subnet or gateway".into()));
    };
    let Guest { dns, hostname, mac, domain, mtu, search, ntp, route, offline_id, tap_device, .. } = guest;
    let options =
        DhcpOptions { domain_search: search, ntp_servers: ntp, static_routes: route, ..Default::default() };
    let net =
        guestcfg::offline(OfflineArgs { ip, prefix, gateway, dns, hostname, mac, domain, mtu, options })?;
    let asked = offline_id.is_some() || tap_device.is_some();
    let host = (asked || target.needs_host()).then(|| -> Result<HostSide, Invalid> {
        let vm_id = offline_id.map_or_else(|| net.hostname.as_str().parse(), Ok)?;
        Ok(HostSide { vm_id, tap_device: tap_device.map_or_else(|| Vm::TAP.parse(), Ok)? })
    });
    Ok(vec![(None, net, host.transpose()?)])
}

fn of_service(vm: &v1::VmNetwork) -> Result<Facts, CliError> {
    let net = wire::guest_net(vm).map_err(|error| CliError::Answer(error.to_string()))?;
    let host = host_side(vm).map_err(|error| CliError::Answer(error.to_string()))?;
    Ok((Some(host.vm_id.clone()), net, Some(host)))
}

fn host_side(vm: &v1::VmNetwork) -> Result<HostSide, Invalid> {
    Ok(HostSide { vm_id: vm.vm_id.parse()?, tap_device: vm.tap_device.parse()? })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|source| CliError::Io { what: format!("reading {}", path.display()), source })
}

fn warn(warnings: &[Said]) {
    for Said { vm_id, warning } in warnings {
        let of = vm_id.as_ref().map(|vm_id| format!("VM {vm_id}: ")).unwrap_or_default();
        // Nothing more can be done if standard error is closed.
        let _ = writeln!(io::stderr().lock(), "warning: {of}{warning}");
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

/// With its mode whatever the umask: a guest's systemd-networkd reads its units as a user of its own.
pub(super) fn write_file(path: &Path, file: &GuestFile) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_folders(parent)?;
    }
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(path)?;
    opened.set_permissions(Permissions::from_mode(file.mode))?;
    opened.write_all(&file.bytes)
}

/// As create_dir_all, and those that are made can be looked into by everybody.
fn make_folders(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent)?;
    }
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::CliError;
use super::arguments::{Form, GenCommand, Guest};
use super::client::Client;
use crate::api::wire;
use crate::guestcfg::{self, Generated, GuestFile};
use crate::model::{GuestNet, Hostname, Mac};

pub(super) async fn run(client: &Client, command: GenCommand) -> Result<String, CliError> {
    match command {
        GenCommand::Cmdline { guest, device } => {
            let generated = guestcfg::cmdline(&net(client, guest).await?, &device)?;
            warn(&generated.warnings);
            Ok(generated.content + "\n")
        }
        GenCommand::CloudInit { guest, form: Form::BootArgs, .. } => {
            let generated = guestcfg::cloud_init_boot_args(&net(client, guest).await?)?;
            warn(&generated.warnings);
            Ok(generated.content + "\n")
        }
        GenCommand::CloudInit { guest, form: Form::NocloudDir, out } => {
            let generated = guestcfg::nocloud(&net(client, guest).await?)?;
            warn(&generated.warnings);
            match out {
                Some(directory) => write(&directory, &generated).map(|()| String::new()),
                None => Ok(print(&generated.content)),
            }
        }
    }
}

async fn net(client: &Client, guest: Guest) -> Result<GuestNet, CliError> {
    if let Some(vm_id) = &guest.vm_id {
        let vm = client.get(vm_id).await?;
        return wire::guest_net(&vm).map_err(|error| CliError::Answer(error.to_string()));
    }
    // clap has made sure of these three.
    let (Some(address), Some(subnet), Some(gateway)) = (guest.ip, guest.prefix, guest.gateway) else {
        return Err(CliError::Answer("--offline without address, subnet or gateway".into()));
    };
    let mac = guest.mac.unwrap_or_else(|| Mac::for_address(address));
    let hostname = guest.hostname.unwrap_or_else(|| Hostname::for_address(address));
    let net = GuestNet {
        mac,
        address,
        subnet,
        gateway,
        dns_servers: guest.dns,
        hostname,
        domain: guest.domain.unwrap_or_default(),
        mtu: guest.mtu.unwrap_or(1500),
    };
    guestcfg::check(&net)?;
    Ok(net)
}

/// Standard output is the text alone; what it cannot say goes beside it.
fn warn(warnings: &[String]) {
    for warning in warnings {
        // Nothing more can be done if standard error is closed.
        let _ = writeln!(std::io::stderr().lock(), "warning: {warning}");
    }
}

fn print(files: &[GuestFile]) -> String {
    files.iter().map(|file| format!("==> {} <==\n{}\n", file.name, file.content)).collect()
}

/// A folder that is there is not written into: what is in it may be another guest's.
fn write(directory: &Path, generated: &Generated<Vec<GuestFile>>) -> Result<(), CliError> {
    let failed = |path: &Path| {
        let what = format!("writing {}", path.display());
        move |source| CliError::Io { what, source }
    };
    std::fs::create_dir(directory).map_err(failed(directory))?;
    for file in &generated.content {
        let path = directory.join(file.name);
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&path);
        opened.and_then(|mut opened| opened.write_all(file.content.as_bytes())).map_err(failed(&path))?;
    }
    Ok(())
}

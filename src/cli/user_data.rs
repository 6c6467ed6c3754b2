//! `guestnet user-data`: what a VM's cloud-init is given besides its network.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::output::{Format, deleted, pretty};
use crate::model::VmId;

#[derive(Debug, Subcommand)]
pub(super) enum UserDataCommand {
    /// Keep a file as a VM's user-data, at most 256 KiB: for its seed and for the metadata service.
    Set {
        vm_id: VmId,
        /// The file; - is standard input.
        file: PathBuf,
    },
    /// Print a VM's user-data.
    Show { vm_id: VmId },
    /// Remove a VM's user-data.
    Delete { vm_id: VmId },
}

pub(super) async fn run(
    client: &Client,
    format: Format,
    command: UserDataCommand,
) -> Result<Vec<u8>, CliError> {
    match command {
        UserDataCommand::Set { vm_id, file } => {
            let mut content = Vec::new();
            let read = match file.to_str() {
                Some("-") => std::io::stdin().read_to_end(&mut content).map(drop),
                _ => std::fs::read(&file).map(|bytes| content = bytes),
            };
            read.map_err(|source| CliError::Io { what: format!("reading {}", file.display()), source })?;
            let bytes = content.len();
            client.set_user_data(&vm_id, Some(content)).await?;
            Ok(match format {
                Format::Json => pretty(&json!({"vm_id": vm_id.to_string(), "bytes": bytes})).into_bytes(),
                Format::Table => Vec::new(),
            })
        }
        UserDataCommand::Show { vm_id } => Ok(client.user_data(&vm_id).await?.unwrap_or_default()),
        UserDataCommand::Delete { vm_id } => {
            client.set_user_data(&vm_id, None).await?;
            Ok(deleted(format, &[vm_id.to_string().into()]).into_bytes())
        }
    }
}

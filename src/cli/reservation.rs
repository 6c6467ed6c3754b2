//! `guestnet reservation`: addresses for MACs on networks whose plumbing is somebody else's.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::output::{self, Format};
use super::progress::Progress;
use super::reservation_file::{self, Entry};
use crate::api::{dhcp_options_from_wire as read_options, dhcp_options_to_wire as wire_options};
use crate::model::{DhcpOptions, Hostname, Invalid, Mac, NetworkName};
use crate::proto::guestnet::v1;

const COLUMNS: [&str; 5] = ["network_id", "mac_address", "ip_address", "hostname", "configured"];

/// Reservations of one call: a request is no longer than the service takes.
const CHUNK: usize = 5_000;

#[derive(Debug, Subcommand)]
pub(super) enum ReservationCommand {
    /// Reserve an address for a MAC. Repeated with the same arguments it prints the same reservation.
    Add(Box<Add>),
    /// Print every reservation.
    List {
        /// Only those of this network.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Remove reservations. One that is not there is fine.
    Delete {
        /// MAC or IP addresses.
        #[arg(required = true, value_name = "MAC_OR_IP", value_parser = key)]
        keys: Vec<Key>,
        /// The network [default: the first external one].
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Add the reservations of a file: JSON as `list --json` prints it, or lines of MAC, ADDRESS and perhaps HOSTNAME.
    Import {
        /// The file; - is standard input.
        file: PathBuf,
        /// The network of those that name none [default: the first external one].
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The client's MAC.
    mac: Mac,
    /// Its address [default: the next free one].
    #[arg(value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Its host name [default: made from the address].
    #[arg(long, value_name = "NAME")]
    hostname: Option<Hostname>,
    /// The network [default: the first external one].
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// DHCP options of its own, as in the configuration: 'ntp_servers = ["10.0.0.1"], bootfile_name = "a"'.
    #[arg(long, value_name = "TOML", value_parser = dhcp_options)]
    dhcp_options: Option<DhcpOptions>,
}

/// DHCP options as in the configuration, on one line: `ntp_servers = ["10.0.0.1"], bootfile_name = "vmlinuz"`.
pub(super) fn dhcp_options(text: &str) -> Result<DhcpOptions, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        options: DhcpOptions,
    }
    let table = if text.trim_start().starts_with('{') { text.to_owned() } else { format!("{{ {text} }}") };
    let line = toml::from_str(&format!("options = {table}"));
    line.map(|line: Line| line.options).map_err(|error| error.message().to_owned())
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    Mac(Mac),
    Address(Ipv4Addr),
}

fn key(text: &str) -> Result<Key, Invalid> {
    let mac = text.parse().map(Key::Mac);
    mac.or_else(|_| text.parse().map(Key::Address).map_err(|_| Invalid::new(text, "a MAC or IPv4 address")))
}

pub(super) async fn run(
    client: &Client,
    format: Format,
    command: ReservationCommand,
) -> Result<Vec<u8>, CliError> {
    match command {
        ReservationCommand::Add(add) => {
            let new = v1::NewReservation {
                network_id: add.network.map(|name| name.to_string()),
                mac_address: add.mac.to_string(),
                ip_address: add.ip.map(|address| address.to_string()),
                hostname: add.hostname.map(|name| name.to_string()),
                dhcp_options: add.dhcp_options.as_ref().map(wire_options).into(),
                ..Default::default()
            };
            let added = client.add_reservations(vec![new]).await?;
            Ok(print(format, &added).into_bytes())
        }
        ReservationCommand::List { network } => {
            Ok(print(format, &client.list_reservations(network).await?).into_bytes())
        }
        ReservationCommand::Delete { keys, network } => {
            let mut gone = Vec::new();
            let progress = Progress::new("deleted", keys.len());
            for key in keys {
                gone.push(match key {
                    Key::Mac(mac) => json!(mac.to_string()),
                    Key::Address(address) => json!(address.to_string()),
                });
                let key = match key {
                    Key::Mac(mac) => v1::delete_reservation_request::Key::MacAddress(mac.to_string()),
                    Key::Address(address) => {
                        v1::delete_reservation_request::Key::IpAddress(address.to_string())
                    }
                };
                client.delete_reservation(network.as_ref(), key).await?;
                progress.at(gone.len());
            }
            drop(progress);
            Ok(output::deleted(format, &gone).into_bytes())
        }
        ReservationCommand::Import { file, network } => import(client, format, &file, network.as_ref()).await,
    }
}

async fn import(
    client: &Client,
    format: Format,
    file: &Path,
    network: Option<&NetworkName>,
) -> Result<Vec<u8>, CliError> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(file).map(|read| text = read),
    };
    read.map_err(|source| CliError::Io { what: format!("reading {}", file.display()), source })?;
    let entries = reservation_file::read(&text)
        .map_err(|bad| Invalid::new(format!("{}: {bad}", file.display()), "a file of reservations"))?;
    let progress = Progress::new("imported", entries.len());
    let mut count = 0;
    for chunk in entries.chunks(CHUNK) {
        let new = chunk.iter().map(|entry| new(entry, network)).collect();
        count += client.add_reservations(new).await?.len();
        progress.at(count);
    }
    drop(progress);
    Ok(match format {
        Format::Json => format!("{}\n", json!({ "imported": count })),
        Format::Table => format!("{count} reservations\n"),
    }
    .into_bytes())
}

fn new(entry: &Entry, network: Option<&NetworkName>) -> v1::NewReservation {
    v1::NewReservation {
        network_id: entry.network.as_ref().or(network).map(ToString::to_string),
        mac_address: entry.mac.to_string(),
        ip_address: entry.ip_address.map(|address| address.to_string()),
        hostname: entry.hostname.as_ref().map(ToString::to_string),
        dhcp_options: entry.dhcp_options.as_ref().map(wire_options).into(),
        ..Default::default()
    }
}

fn print(format: Format, reservations: &[v1::Reservation]) -> String {
    let row = |reservation: &v1::Reservation| -> Value {
        let options = reservation.dhcp_options.as_option().and_then(|wire| read_options(wire).ok());
        json!({
            "network_id": reservation.network_id,
            "mac_address": reservation.mac_address,
            "ip_address": reservation.ip_address,
            "hostname": reservation.hostname,
            "dhcp_options": options.unwrap_or_default(),
            "configured": reservation.configured,
        })
    };
    output::list(format, &COLUMNS, reservations.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_one_line_of_the_configuration() {
        let options = dhcp_options("ntp_servers = [\"10.0.0.1\"], raw = { 252 = \"00\" }").unwrap();
        assert_eq!((options.ntp_servers.len(), options.raw.len()), (1, 1));
        assert_eq!(dhcp_options("{ bootfile_name = \"a\" }").unwrap().bootfile_name.unwrap().as_str(), "a");
        assert!(dhcp_options("ntp = 1").unwrap_err().contains("ntp_servers"));
    }
}

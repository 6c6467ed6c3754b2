//! `guestnet lease`: reservations, and what guests have made of them.

use std::io;
use std::net::Ipv4Addr;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::output::{self, Format};
use super::{CliError, write};
use crate::model::{Invalid, Mac, NetworkName, VmId};
use crate::proto::guestnet::v1;
use crate::proto::guestnet::v1::get_lease_request::Key;

const COLUMNS: [&str; 9] = [
    "vm_id",
    "ip_address",
    "mac_address",
    "hostname",
    "state",
    "last_seen",
    "expires_at",
    "vendor_class",
    "last_exchange",
];

#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// Print every reservation with its lease.
    List {
        /// Only those of this network.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Print one lease.
    Show {
        /// A VM's id, a MAC or an IP address.
        #[arg(value_name = "VM_ID_MAC_OR_IP", value_parser = key)]
        of: Key,
    },
    /// Print leases as they change, until interrupted; with --json one a line.
    Watch {
        /// Only those of this network.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
}

fn key(text: &str) -> Result<Key, Invalid> {
    if let Ok(mac) = text.parse::<Mac>() {
        return Ok(Key::MacAddress(mac.to_string()));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Key::IpAddress(address.to_string()));
    }
    let vm_id = text.parse::<VmId>();
    vm_id
        .map(|vm_id| Key::VmId(vm_id.to_string()))
        .map_err(|_| Invalid::new(text, "a vm_id, a MAC or an IPv4 address"))
}

pub(super) async fn run(client: &Client, format: Format, command: LeaseCommand) -> Result<Vec<u8>, CliError> {
    match command {
        LeaseCommand::List { network } => {
            Ok(leases(format, &client.list_leases(network).await?).into_bytes())
        }
        LeaseCommand::Show { of } => {
            let lease = lease_json(format, &client.lease(of).await?);
            Ok(match format {
                Format::Json => output::pretty(&lease),
                Format::Table => output::key_values(&lease),
            }
            .into_bytes())
        }
        LeaseCommand::Watch { network } => {
            client
                .watch_leases(network, |answer| {
                    let line = match (answer.lease.into_option(), format) {
                        (Some(lease), Format::Json) => lease_json(format, &lease).to_string() + "\n",
                        (Some(lease), Format::Table) => output::line(&COLUMNS, &lease_json(format, &lease)),
                        (None, Format::Json) => json!({"missed": answer.missed}).to_string() + "\n",
                        (None, Format::Table) => {
                            "(changes were missed here: guestnet lease list says how all leases stand)\n"
                                .to_owned()
                        }
                    };
                    write(&mut io::stdout().lock(), line.as_bytes())
                })
                .await?;
            Ok(Vec::new())
        }
    }
}

pub(super) fn leases(format: Format, leases: &[v1::Lease]) -> String {
    output::list(format, &COLUMNS, leases.iter().map(|lease| lease_json(format, lease)).collect())
}

fn lease_json(format: Format, lease: &v1::Lease) -> Value {
    json!({
        "vm_id": lease.vm_id,
        "network_id": lease.network_id,
        "mac_address": lease.mac_address,
        "ip_address": lease.ip_address,
        "hostname": lease.hostname,
        "state": lease.state,
        "last_seen": output::time(format, lease.last_seen.as_option()),
        "expires_at": output::time(format, lease.expires_at.as_option()),
        "vendor_class": lease.vendor_class,
        "last_exchange": lease.last_exchange,
        "wished_hostname": lease.wished_hostname,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_by_vm_mac_or_address() {
        assert_eq!(key("06:00:0A:64:00:02").unwrap(), Key::MacAddress("06:00:0a:64:00:02".into()));
        assert_eq!(key("10.100.0.2").unwrap(), Key::IpAddress("10.100.0.2".into()));
        assert_eq!(key("web-1").unwrap(), Key::VmId("web-1".into()));
        assert!(key("a b").is_err());
    }

    #[test]
    fn what_a_guest_says_cannot_drive_the_terminal() {
        let lease =
            v1::Lease { vm_id: "a".into(), vendor_class: "\u{1b}[2Jx\n\r".into(), ..Default::default() };
        let table = leases(Format::Table, std::slice::from_ref(&lease));
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("  ?[2Jx??"), "{table:?}");
        assert!(!leases(Format::Json, &[lease]).contains('\u{1b}'));
    }
}

//! What a command prints: aligned tables for people, JSON with the contract's field names for programs.

use std::io::IsTerminal;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use buffa_types::google::protobuf::Timestamp;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::generate::Said;
use crate::api::dhcp_options_from_wire;
use crate::guestcfg::GuestFile;
use crate::proto::guestnet::v1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

pub(super) fn vm(format: Format, vm: &v1::VmNetwork) -> String {
    let value = vm_json(format, vm);
    match format {
        Format::Json => pretty(&value),
        Format::Table => key_values(&value),
    }
}

pub(super) fn vms(format: Format, vms: &[v1::VmNetwork]) -> String {
    let columns =
        ["vm_id", "network_id", "ip_address", "mac_address", "hostname", "namespace", "host_device"];
    list(format, &columns, vms.iter().map(|vm| vm_json(format, vm)).collect())
}

pub(super) fn networks(format: Format, networks: &[v1::Network]) -> String {
    let columns = ["network_id", "bridge_name", "gateway", "vm_subnet", "vm_count", "free_addresses"];
    list(format, &columns, networks.iter().map(network_json).collect())
}

/// JSON only: the mode in octal, what is no text in base64.
pub(super) fn generated(files: &[GuestFile], warnings: &[Said]) -> String {
    let file = |file: &GuestFile| {
        let (key, content) = match file.as_text() {
            Some(text) => ("content", text.to_owned()),
            None => ("content_base64", BASE64.encode(&file.bytes)),
        };
        json!({"path": file.path, "mode": format!("{:04o}", file.mode), key: content})
    };
    let files: Vec<Value> = files.iter().map(file).collect();
    pretty(&json!({"files": files, "warnings": warnings}))
}

fn vm_json(format: Format, vm: &v1::VmNetwork) -> Value {
    let mut shown = json!({
        "vm_id": vm.vm_id,
        "network_id": vm.network_id,
        "workspace_id": vm.workspace_id,
        "namespace": vm.namespace,
        "tap_device": vm.tap_device,
        "ip_address": vm.ip_address,
        "netmask": vm.netmask,
        "prefix_len": vm.prefix_len,
        "gateway": vm.gateway,
        "mac_address": vm.mac_address,
        "dns_servers": vm.dns_servers,
        "hostname": vm.hostname,
        "domain": vm.domain,
        "mtu": vm.mtu,
        "host_device": vm.host_device,
        "rate_limit_mbps": vm.rate_limit_mbps,
        "burst_kib": vm.burst_kib,
        "tap_uid": vm.tap_uid,
        "tap_gid": vm.tap_gid,
        "tap_multi_queue": vm.tap_multi_queue,
        "tap_offload": vm.tap_offload,
        "created_at": time(format, vm.created_at.as_option()),
    });
    // As the configuration has them; most VMs have none.
    if let Some(options) = vm.dhcp_options.as_option().and_then(|wire| dhcp_options_from_wire(wire).ok()) {
        shown["dhcp_options"] = json!(options);
    }
    shown
}

pub(super) fn network_json(network: &v1::Network) -> Value {
    json!({
        "network_id": network.network_id,
        "bridge_name": network.bridge_name,
        "gateway": network.gateway,
        "vm_subnet": network.vm_subnet,
        "dns_servers": network.dns_servers,
        "domain": network.domain,
        "mtu": network.mtu,
        "vm_count": network.vm_count,
        "free_addresses": network.free_addresses,
    })
}

/// RFC 3339 in UTC, in a table to the second; null for a time that is not set, or that no calendar has.
pub(super) fn time(format: Format, timestamp: Option<&Timestamp>) -> Value {
    let nanos = |t: &Timestamp| if format == Format::Json { t.nanos } else { 0 };
    let time = timestamp.and_then(|t| jiff::Timestamp::new(t.seconds, nanos(t)).ok());
    time.map_or(Value::Null, |time| time.to_string().into())
}

pub(super) fn pretty(value: &Value) -> String {
    // Only maps with keys that are no strings cannot be written; these have none.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// A cell as a person reads it: never empty, no control characters, whoever is at the other end of the socket.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

pub(super) fn key_values(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(key, value)| format!("{key:<17}{}\n", text(value))).collect()
}

pub(super) fn list(format: Format, columns: &[&str], rows: Vec<Value>) -> String {
    if format == Format::Json {
        return pretty(&Value::Array(rows));
    }
    let header = columns.iter().map(|column| column.to_uppercase()).collect::<Vec<_>>();
    let cells = rows.iter().map(|row| columns.iter().map(|column| text(&row[*column])).collect::<Vec<_>>());
    let table: Vec<Vec<String>> = std::iter::once(header).chain(cells).collect();
    fitting(&table)
}

/// The rows of a table, its header first, as wide as the terminal takes it.
pub(super) fn fitting(table: &[Vec<String>]) -> String {
    aligned(table, terminal_width())
}

/// The table's rows, cut to `most` characters where there is a limit. Columns for which there is no room are left out, first
/// those that say nothing, then from the right; the header then ends in `…`.
fn aligned(table: &[Vec<String>], most: Option<usize>) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let least = |column: usize| width(column).min(LEAST_COLUMN);
    let mut kept: Vec<usize> = (0..columns).collect();
    while let Some(most) = most
        && kept.iter().map(|column| least(*column) + 2).sum::<usize>() > most
        && kept.len() > 1
    {
        let says_nothing = |column: &usize| table.iter().skip(1).all(|row| row[*column] == "-");
        let last = kept.iter().rposition(says_nothing).filter(|_| table.len() > 1);
        kept.remove(last.unwrap_or(kept.len() - 1));
    }
    let left_out = if kept.len() < columns { " …" } else { "" };
    let mut widths: Vec<usize> = kept.iter().map(|column| width(*column)).collect();
    let between = 2 * kept.len().saturating_sub(1) + left_out.chars().count();
    while most.is_some_and(|most| widths.iter().sum::<usize>() + between > most) {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > LEAST_COLUMN) else { break };
        *widest -= 1;
    }
    let cut = |cell: &String, width: usize| match cell.char_indices().nth(width.saturating_sub(1)) {
        Some((end, _)) if cell.chars().count() > width => format!("{}…", &cell[..end]),
        _ => format!("{cell:<width$}"),
    };
    let line = |(at, row): (usize, &Vec<String>)| {
        let cells = kept.iter().zip(&widths).map(|(column, width)| cut(&row[*column], *width));
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned() + if at == 0 { left_out } else { "" } + "\n"
    };
    table.iter().enumerate().map(line).collect()
}

/// What a command prints that has deleted something: what is gone now, whether it was there or not.
pub(super) fn deleted(format: Format, gone: &[Value]) -> String {
    match format {
        Format::Json => pretty(&json!({"deleted": gone})),
        Format::Table => String::new(),
    }
}

/// A narrower column says nothing.
const LEAST_COLUMN: usize = 8;

/// Characters in a line; none for what is not read on a terminal, which gets all of it.
fn terminal_width() -> Option<usize> {
    let size = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size)?;
    size.ok().map(|(columns, _)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// One row on a line of its own, for lists that go on: what each column is called goes without saying.
pub(super) fn line(columns: &[&str], row: &Value) -> String {
    columns.iter().map(|column| text(&row[*column])).collect::<Vec<_>>().join("  ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm_of(vm_id: &str, network_id: &str, ip_address: &str) -> v1::VmNetwork {
        v1::VmNetwork {
            vm_id: vm_id.into(),
            network_id: network_id.into(),
            ip_address: ip_address.into(),
            dns_servers: vec!["8.8.8.8".into(), "8.8.4.4".into()],
            created_at: Timestamp::from_unix(1_790_000_000, 123_456_000).into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_vm_is_a_line_per_field_for_people() {
        let shown = vm(Format::Table, &vm_of("web-1", "default", "10.100.0.2"));
        let start = "vm_id            web-1\nnetwork_id       default\nworkspace_id     -\n";
        assert!(shown.starts_with(start), "{shown}");
        assert!(shown.contains("\ndns_servers      8.8.8.8, 8.8.4.4\n"), "{shown}");
        assert!(shown.ends_with("\ncreated_at       2026-09-21T14:13:20Z\n"), "{shown}");
    }

    #[test]
    fn json_has_times_to_the_last_digit_and_null_for_none() {
        let of = |vm_network: &v1::VmNetwork| -> Value {
            serde_json::from_str(&vm(Format::Json, vm_network)).unwrap()
        };
        assert_eq!(of(&vm_of("a", "default", ""))["created_at"], "2026-09-21T14:13:20.123456Z");
        assert_eq!(of(&v1::VmNetwork::default())["created_at"], Value::Null);
    }

    #[test]
    fn lists_are_aligned() {
        let vms = [vm_of("a", "default", "10.100.0.2"), vm_of("a-much-longer-name", "small", "10.200.0.2")];
        let shown = super::vms(Format::Table, &vms);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("VM_ID               NETWORK_ID  IP_ADDRESS"), "{shown}");
        assert!(lines[1].starts_with("a                   default     10.100.0.2"), "{shown}");
        assert!(lines[2].starts_with("a-much-longer-name  small       10.200.0.2"), "{shown}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')), "{shown}");
    }

    #[test]
    fn a_table_is_cut_where_it_is_widest_to_fit_a_terminal() {
        let row = |cells: [&str; 3]| cells.map(ToOwned::to_owned).to_vec();
        let table = [row(["ID", "NAME", "X"]), row(["a", &"é".repeat(40), "10.100.0.2"])];
        assert_eq!(aligned(&table, None).lines().nth(1).unwrap().chars().count(), 2 + 2 + 40 + 2 + 10);
        let cut = aligned(&table, Some(30));
        assert_eq!(cut, format!("ID  NAME{}  X\na   {}…  10.100.0.2\n", " ".repeat(10), "é".repeat(13)));
        // The first column stays, and nothing is cut to nothing.
        assert_eq!(aligned(&table, Some(5)), "ID …\na\n");
        let name = [row(["NAME", "", ""]), row([&"é".repeat(40), "", ""])].map(|row| row[..1].to_vec());
        assert!(aligned(&name, Some(5)).contains(&format!("{}…", "é".repeat(LEAST_COLUMN - 1))));
        assert_eq!(aligned(&[], Some(30)), "");
    }

    #[test]
    fn columns_that_have_no_room_are_left_out_and_the_header_says_so() {
        let row = |cells: [&str; 4]| cells.map(ToOwned::to_owned).to_vec();
        let table =
            [row(["VM_ID", "NOTHING", "ADDRESS", "VENDOR"]), row(["a", "-", "10.100.0.2", "udhcp 1.36.1"])];
        let shown = |most| aligned(&table, Some(most));
        assert_eq!(shown(30), "VM_ID  ADDRESS     VENDOR …\na      10.100.0.2  udhcp 1.…\n");
        assert_eq!(shown(20), "VM_ID  ADDRESS …\na      10.100.0.2\n");
        for most in 10..60 {
            assert!(shown(most).lines().all(|line| line.chars().count() <= most), "{most}: {}", shown(most));
        }
    }

    #[test]
    fn an_empty_list_is_its_header_or_an_empty_array() {
        for (table, json) in [
            (vms(Format::Table, &[]), vms(Format::Json, &[])),
            (networks(Format::Table, &[]), networks(Format::Json, &[])),
        ] {
            assert_eq!((table.lines().count(), json.as_str()), (1, "[]\n"), "{table}");
        }
    }
}

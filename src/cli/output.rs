//! What a command prints: aligned tables for people, JSON with the contract's field names for programs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use buffa_types::google::protobuf::Timestamp;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::guestcfg::{Generated, GuestFile};
use crate::proto::guestnet::v1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

pub(super) fn vm(format: Format, vm: &v1::VmNetwork) -> String {
    let value = vm_json(vm);
    match format {
        Format::Json => pretty(&value),
        Format::Table => key_values(&value),
    }
}

pub(super) fn vms(format: Format, vms: &[v1::VmNetwork]) -> String {
    let columns =
        ["vm_id", "network_id", "ip_address", "mac_address", "hostname", "namespace", "host_device"];
    list(format, &columns, vms.iter().map(vm_json).collect())
}

pub(super) fn leases(format: Format, leases: &[v1::Lease]) -> String {
    let columns = [
        "vm_id",
        "ip_address",
        "mac_address",
        "hostname",
        "state",
        "last_seen",
        "expires_at",
        "vendor_class",
    ];
    list(format, &columns, leases.iter().map(lease_json).collect())
}

pub(super) fn networks(format: Format, networks: &[v1::Network]) -> String {
    let columns = ["network_id", "bridge_name", "gateway", "vm_subnet", "vm_count", "free_addresses"];
    list(format, &columns, networks.iter().map(network_json).collect())
}

/// JSON only: the mode in octal, what is no text in base64.
pub(super) fn generated(generated: &Generated) -> String {
    let file = |file: &GuestFile| {
        let (key, content) = match file.as_text() {
            Some(text) => ("content", text.to_owned()),
            None => ("content_base64", BASE64.encode(&file.bytes)),
        };
        json!({"path": file.path, "mode": format!("{:04o}", file.mode), key: content})
    };
    let files: Vec<Value> = generated.files.iter().map(file).collect();
    pretty(&json!({"files": files, "warnings": generated.warnings}))
}

fn vm_json(vm: &v1::VmNetwork) -> Value {
    json!({
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
        "created_at": time(vm.created_at.as_option()),
    })
}

fn lease_json(lease: &v1::Lease) -> Value {
    json!({
        "vm_id": lease.vm_id,
        "network_id": lease.network_id,
        "mac_address": lease.mac_address,
        "ip_address": lease.ip_address,
        "hostname": lease.hostname,
        "state": lease.state,
        "last_seen": time(lease.last_seen.as_option()),
        "expires_at": time(lease.expires_at.as_option()),
        "vendor_class": lease.vendor_class,
    })
}

fn network_json(network: &v1::Network) -> Value {
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

/// RFC 3339 in UTC, or null.
fn time(timestamp: Option<&Timestamp>) -> Value {
    let time = timestamp.and_then(|t| jiff::Timestamp::new(t.seconds, t.nanos).ok());
    time.map_or(Value::Null, |time| time.to_string().into())
}

fn pretty(value: &Value) -> String {
    // Only maps with keys that are no strings cannot be written; these have none.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// A cell as a person reads it. What came from a guest has no control characters left.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn key_values(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(key, value)| format!("{key:<17}{}\n", text(value))).collect()
}

fn list(format: Format, columns: &[&str], rows: Vec<Value>) -> String {
    if format == Format::Json {
        return pretty(&Value::Array(rows));
    }
    let header = columns.iter().map(|column| column.to_uppercase()).collect::<Vec<_>>();
    let cells = rows.iter().map(|row| columns.iter().map(|column| text(&row[*column])).collect::<Vec<_>>());
    let table: Vec<Vec<String>> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    table.iter().map(line).collect()
}

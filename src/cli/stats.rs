//! `guestnet stats`: guests' traffic, once or again and again.

use std::io;

use buffa_types::google::protobuf::Timestamp;
use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::output::{self, Format};
use super::{CliError, write};
use crate::model::VmId;
use crate::proto::guestnet::v1;

const COLUMNS: [&str; 9] = [
    "vm_id",
    "rx_bytes",
    "tx_bytes",
    "rx_packets",
    "tx_packets",
    "rx_dropped",
    "tx_dropped",
    "rx_errors",
    "tx_errors",
];

#[derive(Debug, Args)]
pub(super) struct StatsCommand {
    /// These VMs [default: every VM].
    #[arg(value_name = "VM_ID")]
    vm_ids: Vec<VmId>,
    /// Print again at every interval, until interrupted; with --json a list per line.
    #[arg(long)]
    watch: bool,
    /// Milliseconds between two prints, 100 or more.
    #[arg(long, value_name = "MS", default_value = "1000", requires = "watch",
          value_parser = clap::value_parser!(u32).range(100..=3_600_000))]
    interval: u32,
}

fn rows(format: Format, stats: &[v1::NetworkStats], collected_at: Option<&Timestamp>) -> Vec<Value> {
    let collected_at = output::time(format, collected_at);
    let row = |of: &v1::NetworkStats| {
        json!({
            "vm_id": of.vm_id,
            "rx_bytes": of.rx_bytes,
            "tx_bytes": of.tx_bytes,
            "rx_packets": of.rx_packets,
            "tx_packets": of.tx_packets,
            "rx_dropped": of.rx_dropped,
            "tx_dropped": of.tx_dropped,
            "rx_errors": of.rx_errors,
            "tx_errors": of.tx_errors,
            "collected_at": collected_at,
        })
    };
    stats.iter().map(row).collect()
}

pub(super) async fn run(client: &Client, format: Format, command: StatsCommand) -> Result<Vec<u8>, CliError> {
    let vm_ids: Vec<String> = command.vm_ids.iter().map(ToString::to_string).collect();
    if !command.watch {
        let answer = client.stats(v1::GetNetworkStatsRequest { vm_ids, ..Default::default() }).await?;
        let rows = rows(format, &answer.stats, answer.collected_at.as_option());
        return Ok(output::list(format, &COLUMNS, rows).into_bytes());
    }
    let request =
        v1::WatchNetworkStatsRequest { vm_ids, interval_ms: Some(command.interval), ..Default::default() };
    client
        .watch_stats(request, |answer| {
            let rows = rows(format, &answer.stats, answer.collected_at.as_option());
            let printed = match format {
                Format::Json => Value::Array(rows).to_string() + "\n",
                Format::Table => output::list(format, &COLUMNS, rows) + "\n",
            };
            write(&mut io::stdout().lock(), printed.as_bytes())
        })
        .await?;
    Ok(Vec::new())
}

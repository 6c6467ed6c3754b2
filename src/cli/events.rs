//! `guestnet events`: what happens, a line each, as it happens.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::output::{Format, text, time};
use super::{CliError, write};
use crate::events::EventKind;
use crate::model::{NetworkName, VmId};
use crate::proto::guestnet::v1;

#[derive(Debug, Args)]
pub(super) struct EventsArguments {
    /// Only events of this kind; may be repeated.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<EventKind>,
    /// Only events of this VM.
    #[arg(long, value_name = "VM_ID")]
    vm: Option<VmId>,
    /// Only events of this network.
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// End after what the service remembers, instead of waiting for more.
    #[arg(long)]
    no_follow: bool,
}

pub(super) async fn run(client: &Client, format: Format, asked: EventsArguments) -> Result<(), CliError> {
    let kinds = asked.kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    let (vm_id, network_id) =
        (asked.vm.map(|vm_id| vm_id.to_string()), asked.network.map(|name| name.to_string()));
    if asked.no_follow {
        let request = v1::ListEventsRequest { kinds, vm_id, network_id, ..Default::default() };
        for event in client.events(request).await? {
            if !write(&mut io::stdout().lock(), line(format, &event).as_bytes())? {
                break;
            }
        }
        return flush();
    }
    let request =
        v1::WatchEventsRequest { kinds, vm_id, network_id, include_recent: true, ..Default::default() };
    let mut answers = client.watch_events(request).await?;
    while let Some(answer) = answers.next().await? {
        let line = match answer.event.into_option() {
            Some(event) => line(format, &event),
            None if answer.lost > 0 => lost(format, answer.lost),
            None => continue,
        };
        if !write(&mut io::stdout().lock(), line.as_bytes())? {
            break;
        }
    }
    flush()
}

fn flush() -> Result<(), CliError> {
    io::stdout().flush().map_err(|source| CliError::Io { what: "writing the output".into(), source })
}

fn line(format: Format, event: &v1::Event) -> String {
    let value = event_json(format, event);
    match format {
        Format::Json => format!("{value}\n"),
        Format::Table => {
            let cell = |key: &str| text(&value[key]);
            format!(
                "{}  {:<17} {:<16} {:<10} {}\n",
                cell("at"),
                cell("kind"),
                cell("vm_id"),
                cell("network_id"),
                cell("detail")
            )
        }
    }
}

fn lost(format: Format, lost: u64) -> String {
    match format {
        Format::Json => format!("{}\n", json!({"lost": lost})),
        Format::Table => format!("({lost} events were lost here: they came faster than they were read)\n"),
    }
}

pub(super) fn event_json(format: Format, event: &v1::Event) -> Value {
    json!({
        "at": time(format, event.at.as_option()),
        "kind": event.kind,
        "vm_id": event.vm_id,
        "network_id": event.network_id,
        "detail": event.detail,
    })
}

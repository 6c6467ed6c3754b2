//! `guestnet doctor`: findings for people or programs; exit code 1 if something is wrong.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::output::{Format, pretty};
use crate::api::DEFAULT_SOCKET;
use crate::config::Config;
use crate::doctor::{self, Finding, Seen, Service, Started, Verdict};
use crate::model::VmId;
use crate::proto::guestnet::v1;

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Follow this guest's way hop by hop, instead of looking at the host.
    vm_id: Option<VmId>,
}

/// What is printed, and whether something is wrong. `named` is the socket, where who asks has named it.
pub(super) async fn run(
    client: &Client,
    named: Option<&Path>,
    format: Format,
    asked: DoctorArguments,
) -> Result<(String, bool), CliError> {
    let (found, conclusion) = match asked.vm_id {
        Some(vm_id) => {
            let found = vm(client, named, &vm_id).await?;
            let conclusion = doctor::conclusion(&found);
            (found, conclusion)
        }
        None => {
            let found = host(client, named, None).await?;
            let conclusion = summary(&found);
            (found, conclusion)
        }
    };
    let wrong = found.iter().any(|finding| finding.verdict == Verdict::Problem);
    let printed = match format {
        Format::Json => pretty(&json!({"healthy": !wrong, "conclusion": conclusion, "findings": found})),
        Format::Table => screen(&found, &conclusion),
    };
    Ok((printed, wrong))
}

/// Findings of the host; of one network's and of what all share, where one is named.
async fn host(client: &Client, named: Option<&Path>, only: Option<&str>) -> Result<Vec<Finding>, CliError> {
    let namespaces = doctor::vm_namespaces();
    let (service, status, seen) = match client.status().await {
        Ok(status) => {
            let vms = client.list(v1::ListVmNetworksRequest::default()).await?;
            let vm_ids: BTreeSet<String> = vms.into_iter().map(|vm| vm.vm_id).collect();
            let events = client.events(v1::ListEventsRequest::default()).await?;
            let port_forwards = client.forwards(v1::ListPortForwardsRequest::default()).await?.len();
            (Service::Answers, Some(status), Seen { namespaces, vm_ids, events, port_forwards })
        }
        Err(error) => (unanswered(&error), None, Seen::default()),
    };
    let Started { config, configuration, runs } = doctor::started();
    let service = match service {
        Service::Silent(why) => match (elsewhere(named, config.as_ref()), runs) {
            (Some(socket), _) => Service::Misnamed { why, socket },
            (None, true) => Service::Elsewhere(why),
            (None, false) => Service::Silent(why),
        },
        service => service,
    };
    let mut networks = doctor::networks_of(status.as_ref(), config.as_ref());
    networks.retain(|network| only.is_none_or(|only| network.name == only));
    let mut facts = doctor::look(service, configuration, networks, &seen).await;
    // A VM that was being made meanwhile has its namespace first.
    if !facts.stale_namespaces.is_empty() {
        let vms = client.list(v1::ListVmNetworksRequest::default()).await?;
        facts
            .stale_namespaces
            .retain(|name| vms.iter().all(|vm| name.strip_prefix("vm-") != Some(&vm.vm_id)));
    }
    Ok(doctor::check_host(&facts))
}

/// What it means that the service has not said how it does.
fn unanswered(error: &CliError) -> Service {
    let why = error.to_string();
    match error {
        CliError::Unreachable { .. } => Service::Silent(why),
        CliError::Forbidden { .. } => Service::Closed(why),
        _ => Service::Fails(why),
    }
}

/// The socket that the service has and somebody is behind, where another one was named.
fn elsewhere(named: Option<&Path>, config: Option<&Config>) -> Option<String> {
    let socket = config.map_or(Path::new(DEFAULT_SOCKET), |config| &config.api.socket);
    let reached = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let somebody = || UnixStream::connect(socket).as_ref().err().is_none_or(reached);
    (named? != socket && somebody()).then(|| socket.display().to_string())
}

async fn vm(client: &Client, named: Option<&Path>, vm_id: &VmId) -> Result<Vec<Finding>, CliError> {
    let vm = client.get(vm_id).await?;
    let key = v1::get_lease_request::Key::VmId(vm.vm_id.clone());
    let lease = client.lease(key).await?;
    let sent = || async {
        let request = v1::GetNetworkStatsRequest { vm_ids: vec![vm.vm_id.clone()], ..Default::default() };
        let stats = client.stats(request).await?.stats.into_iter().next().unwrap_or_default();
        Ok::<_, CliError>((stats.tx_packets, stats.rx_packets))
    };
    let (before, _) = sent().await?;
    let (mut facts, host) =
        tokio::join!(doctor::look_at_vm(&vm, Some(&lease)), host(client, named, Some(&vm.network_id)));
    (facts.sent, facts.received) = sent().await?;
    facts.sent_meanwhile = facts.sent.saturating_sub(before);
    facts.drops = doctor::Drops::of(&vm.vm_id, &client.wall_drops().await?);
    Ok(doctor::check_vm(&facts, &host?))
}

fn summary(found: &[Finding]) -> String {
    let count = |verdict| found.iter().filter(|finding| finding.verdict == verdict).count();
    format!(
        "{} ok, {} warnings, {} problems",
        count(Verdict::Ok),
        count(Verdict::Warning),
        count(Verdict::Problem)
    )
}

fn screen(found: &[Finding], conclusion: &str) -> String {
    let line = |finding: &Finding| {
        let Finding { check, verdict, seen, meaning, mend, advice } = finding;
        let mut out = format!("{verdict:<8} {check:<13} {seen}\n");
        if *verdict != Verdict::Ok {
            out += &format!("{:22} {meaning}\n", "");
            for (what, text) in [("mend", mend), ("advice", advice)] {
                out += &text.as_ref().map(|text| format!("{:22} {what}: {text}\n", "")).unwrap_or_default();
            }
        }
        out
    };
    let lines: String = found.iter().map(line).collect();
    format!("{lines}\n{conclusion}\n")
}

//! `stats`: what it costs to read the counters of every VM, as a billing system does ten times a second.

use std::time::Duration;

use connectrpc::Protocol;
use futures_util::stream::{self, StreamExt};
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, GetNetworkStatsRequest};
use nix::sys::resource::{UsageWho, getrusage};

use crate::lab::api::{Client, client_of};
use crate::lab::{Daemon, Lab};
use crate::measure::{cpu_time, milliseconds};
use crate::report::{Better, Figure, Report};

const VMS: usize = 4_000;
/// Calls that are averaged: the processor time of a process is counted in hundredths of a second.
const DUMPS: u32 = 50;

pub fn run() -> Report {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let guestnet = runtime.expect("a runtime").block_on(measure(&daemon));
    let before = cpu_time_of_children();
    lab.on_host("ip", &["-s", "link", "show"]);
    let peer = cpu_time_of_children() - before;
    Report(vec![Figure {
        name: format!("dump_ms_{VMS}"),
        unit: "ms",
        better: Better::Lower,
        guestnet: milliseconds(guestnet),
        peers: vec![("ip_link", milliseconds(peer))],
        goal: 50.0,
        absent: Vec::new(),
    }])
}

/// Processor time of the service for one answer with every VM's counters.
async fn measure(daemon: &Daemon<'_>) -> Duration {
    let client = client_of(daemon.socket(), Protocol::Connect);
    stream::iter(0..VMS).for_each_concurrent(16, |number| create(&client, number)).await;
    let request = GetNetworkStatsRequest::default;
    let answer = client.get_network_stats(request()).await.expect("statistics");
    assert_eq!(answer.into_owned().stats.len(), VMS);
    let before = cpu_time(daemon.pid());
    for _ in 0..DUMPS {
        client.get_network_stats(request()).await.expect("statistics");
    }
    (cpu_time(daemon.pid()) - before) / DUMPS
}

async fn create(client: &Client, number: usize) {
    let request = CreateVmNetworkRequest { vm_id: format!("vm-{number}"), ..Default::default() };
    client.create_vm_network(request).await.expect("a network");
}

fn cpu_time_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children that have ended");
    let of =
        |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1_000);
    of(usage.user_time()) + of(usage.system_time())
}

//! `bind`: what a VM manager waits for when it creates and deletes a VM's network through the API.

use std::time::Instant;

use connectrpc::Protocol;
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, DeleteVmNetworkRequest};

use crate::lab::api::{Client, client_of};
use crate::lab::{Daemon, Lab};
use crate::measure::{milliseconds, quantile};
use crate::report::{Better, Figure, Report};

/// Creates and deletes that are timed at each count of live VMs.
const SAMPLES: usize = 100;

pub fn run() -> Report {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(measure(&daemon))
}

async fn measure(daemon: &Daemon<'_>) -> Report {
    let client = client_of(daemon.socket(), Protocol::Connect);
    let live = 20;
    for number in 0..live {
        create(&client, &format!("live-{number}")).await;
    }
    let (mut creates, mut deletes) = (Vec::new(), Vec::new());
    for number in 0..SAMPLES {
        let id = format!("sample-{number}");
        let begun = Instant::now();
        create(&client, &id).await;
        creates.push(milliseconds(begun.elapsed()));
        let begun = Instant::now();
        delete(&client, &id).await;
        deletes.push(milliseconds(begun.elapsed()));
    }
    let figure = |name: &str, values: &[f64]| Figure {
        name: format!("{name}_p50_ms_{live}"),
        unit: "ms",
        better: Better::Lower,
        guestnet: quantile(values, 0.5),
        peers: Vec::new(),
        goal: 2.0,
    };
    Report(vec![figure("create", &creates), figure("delete", &deletes)])
}

async fn create(client: &Client, vm_id: &str) {
    let request = CreateVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    client.create_vm_network(request).await.expect("a network");
}

async fn delete(client: &Client, vm_id: &str) {
    let request = DeleteVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    client.delete_vm_network(request).await.expect("no network");
}

//! `bind`: what a VM manager waits for when it creates and deletes a VM's network through the API, at 20 to 4,000 live VMs;
//! beside it, what it waits for with CNI's plugins. And what 4,000 cost: to fill, to adopt after a crash, in memory.

use std::time::{Duration, Instant};

use connectrpc::Protocol;
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, DeleteVmNetworkRequest};

use crate::cni::Cni;
use crate::lab::api::{Client, client_of};
use crate::lab::{Daemon, Lab};
use crate::measure::{cpu_time, milliseconds, quantile, resident_mib};
use crate::report::{Better, Figure, Report};

/// Creates and deletes that are timed at each count of live VMs.
const SAMPLES: usize = 200;
const CALLERS: usize = 16;
/// By all callers together: more, for an hundredth of a second is what the kernel counts processor time in.
const SAMPLES_AT_ONCE: usize = 1_600;
/// Live VMs when CNI is measured, and how many of its calls are.
const CNI_AT: usize = 200;
const CNI_SAMPLES: usize = 10;

pub fn run() -> Report {
    // It stays until the end: the kernel takes hundreds of namespaces apart for seconds, and holds calls up meanwhile.
    let cni_lab = Lab::new();
    let cni = measure_cni(&cni_lab);
    let lab = Lab::new();
    // Not a line per call: who measures a service does not have it explain itself.
    let start =
        || Daemon::start_with_env(&lab, "[[network]]\n", &[("GUESTNET_LOG", "guestnet=warn".as_ref())]);
    let daemon = start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut figures = Vec::new();
    let (mut live, mut filling) = (0, Duration::ZERO);
    for count in [20, 200, 1_000, 4_000] {
        let begun = Instant::now();
        runtime.block_on(fill(&daemon, live..count));
        filling += begun.elapsed();
        live = count;
        let (creates, deletes) = runtime.block_on(one_by_one(&daemon));
        let create = quantile(&creates, 0.5);
        let peers = if count == CNI_AT { vec![("cni", cni)] } else { Vec::new() };
        figures.push(Figure { peers, ..lower(format!("create_p50_ms_{count}"), "ms", create, 2.0) });
        if count == CNI_AT {
            let name = format!("create_p50_times_faster_than_cni_{CNI_AT}");
            let faster = lower(name, "x", cni / create, 50.0);
            figures.push(Figure { better: Better::Higher, ..faster });
        }
        figures.push(lower(format!("delete_p50_ms_{count}"), "ms", quantile(&deletes, 0.5), 2.0));
        if count == 4_000 {
            figures.push(lower("create_p99_ms_4000".into(), "ms", quantile(&creates, 0.99), 10.0));
            let first = figures[0].guestnet;
            figures.push(lower("create_p50_ratio_4000_vs_20".into(), "x", create / first, 1.5));
        }
        let spent = || [cpu_time(daemon.pid()), cpu_time(std::process::id())];
        let before = spent();
        let (creates, deletes) = runtime.block_on(many_at_once(&daemon));
        let after = spent();
        for (name, times) in [("create", &creates), ("delete", &deletes)] {
            for (share, goal) in [(50_u32, 2.0), (99, 10.0)] {
                let name = format!("{name}_p{share}_ms_{count}_{CALLERS}_callers");
                figures.push(lower(name, "ms", quantile(times, f64::from(share) / 100.0), goal));
            }
        }
        // A create and a delete together, so many at a time that none waits for another on these processors.
        let pairs = creates.len() as f64;
        let goal = 4_000.0 * processors() / CALLERS as f64;
        let [service, callers] = [0, 1].map(|of| (after[of] - before[of]).as_secs_f64() * 1e6 / pairs);
        figures.push(lower(format!("cpu_us_{count}_{CALLERS}_callers"), "us", service + callers, goal));
        figures.push(lower(format!("service_cpu_us_{count}_{CALLERS}_callers"), "us", service, goal));
    }
    figures.push(lower("fill_4000_s".into(), "s", filling.as_secs_f64(), 60.0));
    figures.push(lower("rss_mib_4000".into(), "MiB", resident_mib(daemon.pid()), 80.0));
    daemon.crash();
    let begun = Instant::now();
    let daemon = start();
    figures.push(lower("adopt_4000_s".into(), "s", begun.elapsed().as_secs_f64(), 3.0));
    drop(daemon);
    Report(figures)
}

fn lower(name: String, unit: &'static str, guestnet: f64, goal: f64) -> Figure {
    Figure { name, unit, better: Better::Lower, guestnet, peers: Vec::new(), goal, absent: Vec::new() }
}

/// Creates live VMs by `CALLERS` callers.
async fn fill(daemon: &Daemon<'_>, numbers: std::ops::Range<usize>) {
    let callers = (0..CALLERS).map(|caller| {
        let (client, numbers) = (client(daemon), numbers.clone());
        async move {
            for number in numbers.skip(caller).step_by(CALLERS) {
                create(&client, &format!("live-{number}")).await;
            }
        }
    });
    futures_util::future::join_all(callers).await;
}

/// One caller, each call timed.
async fn one_by_one(daemon: &Daemon<'_>) -> (Vec<f64>, Vec<f64>) {
    let client = client(daemon);
    create(&client, "first").await;
    delete(&client, "first").await;
    let (mut creates, mut deletes) = (Vec::new(), Vec::new());
    for number in 0..SAMPLES {
        let id = format!("sample-{number}");
        creates.push(milliseconds(timed(create(&client, &id)).await));
        deletes.push(milliseconds(timed(delete(&client, &id)).await));
    }
    (creates, deletes)
}

fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// `CALLERS` callers at a time; the creates and deletes of all.
async fn many_at_once(daemon: &Daemon<'_>) -> (Vec<f64>, Vec<f64>) {
    let callers = (0..CALLERS).map(|caller| {
        let client = client(daemon);
        async move {
            let (mut creates, mut deletes) = (Vec::new(), Vec::new());
            for number in 0..SAMPLES_AT_ONCE / CALLERS {
                let id = format!("sample-{caller}-{number}");
                creates.push(milliseconds(timed(create(&client, &id)).await));
                deletes.push(milliseconds(timed(delete(&client, &id)).await));
            }
            (creates, deletes)
        }
    });
    let (creates, deletes): (Vec<_>, Vec<_>) =
        futures_util::future::join_all(callers).await.into_iter().unzip();
    (creates.concat(), deletes.concat())
}

/// Milliseconds of one more ADD when `CNI_AT` containers are live, in the middle.
fn measure_cni(lab: &Lab) -> f64 {
    let cni = Cni::new(lab);
    for number in 0..CNI_AT {
        cni.add(number);
    }
    let samples: Vec<f64> = (CNI_AT..CNI_AT + CNI_SAMPLES).map(|n| milliseconds(cni.add(n))).collect();
    quantile(&samples, 0.5)
}

fn client(daemon: &Daemon<'_>) -> Client {
    client_of(daemon.socket(), Protocol::Connect)
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

async fn create(client: &Client, vm_id: &str) {
    let request = CreateVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    client.create_vm_network(request).await.expect("a network");
}

async fn delete(client: &Client, vm_id: &str) {
    let request = DeleteVmNetworkRequest { vm_id: vm_id.into(), ..Default::default() };
    client.delete_vm_network(request).await.expect("no network");
}

//! Killed under a storm of calls, the service comes back to all that it has answered, and to nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use connectrpc::{ErrorCode, Protocol};
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, DeleteVmNetworkRequest};

use crate::consistent::assert_consistent;
use crate::crash::Train;
use crate::lab::api::{Client, client_of};
use crate::lab::daemon::Paths;
use crate::lab::{Daemon, Lab};

const CALLERS: usize = 4;

/// What a caller has been told of a VM that nobody else calls about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Its address and MAC.
    Created(String, String),
    Deleted,
    /// The service died before it answered: either may be.
    Nothing,
}

async fn create(client: &Client, vm_id: String) -> Result<Told, (ErrorCode, String)> {
    let request = CreateVmNetworkRequest { vm_id, ..Default::default() };
    match client.create_vm_network(request).await {
        Ok(answer) => {
            let vm = answer.into_owned().vm_network.into_option().expect("a network");
            Ok(Told::Created(vm.ip_address, vm.mac_address))
        }
        Err(error) => Err((error.code, error.message.unwrap_or_default())),
    }
}

async fn delete(client: &Client, vm_id: String) -> Result<Told, (ErrorCode, String)> {
    let request = DeleteVmNetworkRequest { vm_id, ..Default::default() };
    let answer = client.delete_vm_network(request).await;
    answer.map(|_| Told::Deleted).map_err(|error| (error.code, error.message.unwrap_or_default()))
}

/// Creates and deletes a VM of its own and those that all callers call about, until the service is gone. What it was told of its own
/// last, and how many calls were answered.
fn caller(socket: &Path, number: usize, mut told: Told, killed: &AtomicBool) -> (Told, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client_of(socket, Protocol::Connect);
        for turn in 0.. {
            let shared = format!("vm{}", (turn / 2 + number) % 6);
            let is_own = turn % 2 == 0;
            let answer = match (is_own, &told) {
                (true, Told::Created(..)) => delete(&client, format!("own{number}")).await,
                (true, _) => create(&client, format!("own{number}")).await,
                (false, _) if (turn / 2 + number) % 4 < 2 => create(&client, shared).await,
                (false, _) => delete(&client, shared).await,
            };
            match answer {
                Ok(answer) if is_own => told = answer,
                Ok(_) => {}
                Err((code, message)) => {
                    // Whoever calls a service that dies is told that it cannot be had, and nothing else is ever refused.
                    assert!(killed.load(SeqCst), "turn {turn}: {code:?} {message}");
                    assert_eq!(code, ErrorCode::Unavailable, "turn {turn}: {message}");
                    return (if is_own { Told::Nothing } else { told }, turn);
                }
            }
        }
        unreachable!("a caller goes on until it is refused");
    })
}

/// Kills the daemon `times` while callers create and delete.
pub(crate) fn storm(times: usize) {
    let lab = Lab::new();
    let pool = "[[network]]\npool_size = 4\n";
    let daemon = Daemon::start_with(&lab, pool);
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    let socket = Paths::of(&lab).socket;
    let mut running = Some(daemon);
    let mut told = vec![Told::Deleted; CALLERS];
    let mut answered = 0;
    for round in 0..times {
        let daemon = running.take().unwrap();
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let of = |(number, told): (usize, &Told)| {
                let (socket, killed, told) = (&socket, &killed, told.clone());
                scope.spawn(move || caller(socket, number, told, killed))
            };
            let callers: Vec<_> = told.iter().enumerate().map(of).collect();
            // Another moment of the storm each time.
            std::thread::sleep(Duration::from_millis(40 + (round as u64 * 37) % 160));
            killed.store(true, SeqCst);
            daemon.crash();
            for (told, caller) in told.iter_mut().zip(callers) {
                let (now, calls) = caller.join().unwrap();
                *told = now;
                answered += calls;
            }
        });
        let daemon = Daemon::start_with(&lab, pool);
        assert_eq!(daemon.json(&["vm", "show", "live"]), live);
        assert_consistent(&lab, &daemon);
        let vms = daemon.json(&["vm", "list"]);
        let text = |vm: &serde_json::Value, name: &str| vm[name].as_str().unwrap().to_owned();
        let vms: BTreeMap<String, Told> = vms
            .as_array()
            .unwrap()
            .iter()
            .map(|vm| (text(vm, "vm_id"), Told::Created(text(vm, "ip_address"), text(vm, "mac_address"))))
            .collect();
        for (number, told) in told.iter_mut().enumerate() {
            let is = vms.get(&format!("own{number}")).cloned().unwrap_or(Told::Deleted);
            assert!(*told == Told::Nothing || *told == is, "own{number} was {told:?} and is {is:?}");
            *told = is;
        }
        running = Some(daemon);
    }
    println!("{times} crashes under {answered} calls that were answered");
    assert!(answered > times, "there was no storm: {answered} calls were answered");
    train.arrive();
}

#[test]
fn killed_in_a_storm_of_calls_it_leaks_nothing() {
    storm(8);
}

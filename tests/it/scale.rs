//! As many guests as a host has: `make test-scale`, minutes long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use connectrpc::Protocol;
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, DeleteVmNetworkRequest};

use crate::crash::assert_consistent;
use crate::lab::api::client_of;
use crate::lab::{Daemon, Lab, TapGuest, WEB, WEB_NAME};
use crate::slots::{slots, within};
use crate::storm::storm;

const GUESTS: usize = 4_000;
const CALLERS: usize = 16;

/// Does `work` for every guest's number, by callers that each wait for one answer before the next.
fn by_callers(daemon: &Daemon<'_>, work: impl AsyncFn(&crate::lab::api::Client, String) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = client_of(daemon.socket(), Protocol::Connect);
                    while let number @ 0..GUESTS = next.fetch_add(1, Ordering::Relaxed) {
                        work(&client, format!("vm{number}")).await;
                    }
                });
            });
        }
    });
}

#[test]
fn four_thousand_guests_are_served_adopted_and_let_go() {
    let lab = Lab::new();
    // Not every line of it: the log is kept in memory when the test fails.
    let start = || Daemon::start_with_env(&lab, "", &[("GUESTNET_LOG", "guestnet=warn".as_ref())]);
    let daemon = start();
    let begun = Instant::now();
    by_callers(&daemon, async |client, vm_id| {
        let request = CreateVmNetworkRequest { vm_id, ..Default::default() };
        client.create_vm_network(request).await.expect("a network");
    });
    println!("{GUESTS} created in {:?}", begun.elapsed());
    let vms = daemon.json(&["vm", "list"]);
    assert_eq!(vms.as_array().unwrap().len(), GUESTS);

    let ports = lab.on_host("bridge", &["link", "show"]);
    let on = |bridge: &str| ports.lines().filter(|line| line.contains(&format!("master {bridge} "))).count();
    let bridges: Vec<String> = (0..GUESTS / 512 + 1)
        .map(|n| if n == 0 { "br-vms".to_owned() } else { format!("br-vms-{n}") })
        .collect();
    for bridge in &bridges {
        assert!((1..=512).contains(&on(bridge)), "{} ports on {bridge}", on(bridge));
        assert!(lab.on_host("ip", &["addr", "show", bridge]).contains("10.100.0.1/16"));
    }

    // A guest of the first bridge and one of the last: each online, apart from the other.
    let of = |bridge: &str| {
        let port = ports.lines().find(|line| line.contains(&format!("master {bridge} "))).unwrap();
        let device = port.split(": ").nth(1).unwrap().split('@').next().unwrap();
        vms.as_array().unwrap().iter().find(|vm| vm["host_device"] == device).unwrap()
    };
    let (first, last) = (of(&bridges[0]), of(&bridges[bridges.len() - 1]));
    let guests = [TapGuest::attach(&lab, first), TapGuest::attach(&lab, last)];
    for (guest, vm) in guests.iter().zip([first, last]) {
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        guest.run("busybox", &["nslookup", "-type=a", WEB_NAME, "10.100.0.1"]);
        let leased = guest.namespace.command("busybox");
        let leased =
            { leased }.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]).output().unwrap();
        let said = crate::lab::text(&leased);
        assert!(said.contains(vm["ip_address"].as_str().unwrap()), "{said}");
    }
    for (guest, other) in [(&guests[0], last), (&guests[1], first)] {
        let mut ping = guest.namespace.command("busybox");
        let ping = ping.args(["ping", "-c", "1", "-W", "1", other["ip_address"].as_str().unwrap()]).output();
        assert!(!ping.unwrap().status.success(), "guests of two bridges reach each other");
    }
    // As policy says: opened by one, and closed by the other's again.
    let policy = |text: &str| {
        let file = lab.directory().join("policy.toml");
        std::fs::write(&file, text).unwrap();
        daemon.guestnet(&["policy", "apply", "-f", file.to_str().unwrap()]);
    };
    let vm_id = last["vm_id"].as_str().unwrap();
    let reaches = || {
        let mut ping = guests[0].namespace.command("busybox");
        let ping = ping.args(["ping", "-c", "1", "-W", "5", last["ip_address"].as_str().unwrap()]).output();
        ping.unwrap().status.success()
    };
    policy(&format!("vm_id = \"{vm_id}\"\ndefault_ingress = \"allow\"\n"));
    assert!(reaches(), "a policy opens no way between bridges");
    policy(&format!("vm_id = \"{vm_id}\"\ndefault_ingress = \"deny\"\n"));
    assert!(!reaches(), "a policy closes no way between bridges");
    drop(guests);

    daemon.crash();
    let begun = Instant::now();
    let daemon = start();
    println!("adopted in {:?}", begun.elapsed());
    assert_eq!(daemon.json(&["vm", "list"]), vms);
    assert_consistent_at_scale(&lab, &daemon);

    let begun = Instant::now();
    by_callers(&daemon, async |client, vm_id| {
        let request = DeleteVmNetworkRequest { vm_id, ..Default::default() };
        client.delete_vm_network(request).await.expect("no network");
    });
    println!("deleted in {:?}", begun.elapsed());
    within(Duration::from_secs(180), "slots beyond the stock are gone", || slots(&lab) <= 16);
    println!("cleared away in {:?}", begun.elapsed());
    assert_consistent(&lab, &daemon);
}

/// Without asking for every single VM.
fn assert_consistent_at_scale(lab: &Lab, daemon: &Daemon<'_>) {
    let count = daemon.json(&["vm", "list"]).as_array().unwrap().len();
    let lines = |program: &str, arguments: &[&str], has: &str| {
        lab.on_host(program, arguments).lines().filter(|line| line.contains(has)).count()
    };
    assert_eq!(lines("ip", &["-4", "route", "show", "proto", "103"], "src 10.100.0.1"), count);
    assert_eq!(lines("ip", &["-4", "neigh", "show", "nud", "permanent"], "10.100."), count);
    assert_eq!(lines("bridge", &["fdb", "show"], "static"), count);
    assert_eq!(lines("ip", &["netns", "list"], "vm-"), count);
    assert_eq!(lines("ip", &["netns", "list"], "guestnet-"), slots(lab));
}

#[test]
fn killed_two_hundred_times_in_a_storm_it_leaks_nothing() {
    storm(200);
}

#[test]
fn killed_at_any_operation_of_a_call_it_comes_back_to_what_it_has_answered() {
    crate::kills::at_any_operation();
}

#[test]
fn killed_at_any_operation_of_a_start_or_an_uninstall_it_is_done_by_the_next() {
    crate::kills::at_any_operation_of_a_start_and_an_uninstall();
}

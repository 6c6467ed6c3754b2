//! Somebody else changes what is ours while calls about the same VMs are under way: whatever comes first, it is put right.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::consistent::assert_consistent;
use crate::lab::{Daemon, Lab, TapGuest, WEB};
use crate::slots::{Traced, eventually};

/// Holds the daemon's commits up, each before it is on the disk, until it is stopped.
fn hold_up(lab: &Lab, daemon: &Daemon<'_>) -> Traced {
    let calls = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=600000000"];
    Traced::start(lab, daemon, &calls)
}

fn call(daemon: &Daemon<'_>, arguments: &[&str]) -> Child {
    daemon.client_command(arguments).stdout(Stdio::null()).spawn().unwrap()
}

fn assert_answered(mut call: Child) {
    assert!(call.wait().unwrap().success());
}

/// Calls and repairs that have come to a VM which another one was about.
fn waiting(daemon: &Daemon<'_>) -> usize {
    daemon.log().matches("waits until another call about the VM is over").count()
}

fn wait_for_waiting(daemon: &Daemon<'_>, wanted: usize) {
    eventually(&format!("{wanted} wait for the VM"), || waiting(daemon) == wanted);
}

fn is_online(guest: &TapGuest) -> bool {
    let mut ping = guest.namespace.command("busybox");
    ping.args(["ping", "-c", "1", "-W", "1", WEB]).output().unwrap().status.success()
}

fn limit_is(lab: &Lab, vm: &Value, rate: &str) -> bool {
    let port = vm["host_device"].as_str().unwrap();
    lab.on_host("tc", &["qdisc", "show", "dev", port, "root"]).contains(&format!("rate {rate} "))
}

#[test]
fn a_vm_that_is_changed_while_its_repair_waits_is_mended_as_it_is_then() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    crate::drift::quiet(&daemon);
    let held_up = hold_up(&lab, &daemon);
    let update = call(&daemon, &["vm", "update", "vm1", "--rate-mbps", "7"]);
    eventually("the update waits for its commit", || limit_is(&lab, &vm, "7Mbit"));
    lab.on_host("ip", &["link", "del", vm["host_device"].as_str().unwrap()]);
    wait_for_waiting(&daemon, 1);
    held_up.stop();
    assert_answered(update);
    eventually("the guest is online", || is_online(&guest));
    eventually("its limit is the new one", || limit_is(&lab, &vm, "7Mbit"));
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_vm_that_is_deleted_and_made_again_while_its_repair_waits_is_billed_for_nobody_else() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // It leaves a slot, the next one's, on which much has been counted.
    let former = daemon.json(&["vm", "create", "former"]);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &former);
    guest.run("busybox", &["ping", "-i", "0.05", "-c", "9", "-W", "5", WEB]);
    drop(guest);
    daemon.guestnet(&["vm", "delete", "former"]);
    crate::drift::quiet(&daemon);
    let held_up = hold_up(&lab, &daemon);
    let update = call(&daemon, &["vm", "update", "vm1", "--rate-mbps", "7"]);
    eventually("the update waits for its commit", || limit_is(&lab, &vm, "7Mbit"));
    let delete = call(&daemon, &["vm", "delete", "vm1"]);
    wait_for_waiting(&daemon, 1);
    let create = call(&daemon, &["vm", "create", "vm1"]);
    wait_for_waiting(&daemon, 2);
    lab.on_host("ip", &["link", "del", vm["host_device"].as_str().unwrap()]);
    wait_for_waiting(&daemon, 3);
    held_up.stop();
    for call in [update, delete, create] {
        assert_answered(call);
    }
    assert_eq!(daemon.json(&["vm", "show", "vm1"])["host_device"], former["host_device"]);
    crate::drift::quiet(&daemon);
    let billed = &daemon.json(&["stats", "vm1"])[0];
    assert_eq!((&billed["tx_packets"], &billed["rx_packets"]), (&0.into(), &0.into()), "{billed}");
    assert_consistent(&lab, &daemon);
}

/// Breaks something while a create waits for its commit, and waits for the repair before it lets it go on.
fn broken_under_a_create(broken: &[&str], noted: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let other = daemon.json(&["vm", "create", "other"]);
    let other = TapGuest::attach(&lab, &other);
    let looks = crate::drift::quiet(&daemon);
    let held_up = hold_up(&lab, &daemon);
    let create = call(&daemon, &["vm", "create", "vm1"]);
    eventually("the create waits for its commit", || {
        lab.on_host("ip", &["route", "show", "proto", "103"]).contains("10.100.0.3 ")
    });
    lab.on_host(broken[0], &broken[1..]);
    eventually(noted, || crate::drift::looks(&daemon) > looks);
    crate::drift::quiet(&daemon);
    held_up.stop();
    assert_answered(create);
    let guest = TapGuest::attach(&lab, &daemon.json(&["vm", "show", "vm1"]));
    eventually(&format!("the guest is online after {broken:?}"), || is_online(&guest));
    assert!(is_online(&other));
    crate::drift::quiet(&daemon);
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_vm_whose_veth_is_deleted_before_it_is_durable_is_online_in_the_end() {
    broken_under_a_create(&["ip", "link", "del", "gv1"], "its slot is looked for");
}

#[test]
fn a_vm_whose_bridge_is_removed_before_it_is_durable_is_online_in_the_end() {
    broken_under_a_create(&["ip", "link", "del", "br-vms"], "the bridge is looked for");
}

#[test]
fn a_vm_whose_route_entry_or_limit_goes_before_it_is_durable_is_online_in_the_end() {
    broken_under_a_create(&["ip", "route", "del", "10.100.0.3/32"], "its route is looked for");
    let entry = ["bridge", "fdb", "del", "06:00:0a:64:00:03", "dev", "gv1", "master", "static"];
    broken_under_a_create(&entry, "its forwarding entry is looked for");
    let slower = [
        "tc", "qdisc", "change", "dev", "gv1", "root", "tbf", "rate", "1mbit", "burst", "64k", "limit", "1m",
    ];
    broken_under_a_create(&slower, "its limit is looked for");
}

#[test]
fn a_vm_whose_delete_is_not_durable_yet_is_there_but_has_no_name_any_more() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let other = daemon.json(&["vm", "create", "other"]);
    let guest = TapGuest::attach(&lab, &other);
    let name_is_known = || {
        let mut asked = guest.namespace.command("busybox");
        let asked = asked.args(["nslookup", "-type=a", "vm1.vm.internal", "10.100.0.1"]).output().unwrap();
        crate::lab::text(&asked).contains(vm["ip_address"].as_str().unwrap())
    };
    assert!(name_is_known());
    crate::drift::quiet(&daemon);
    let held_up = hold_up(&lab, &daemon);
    let delete = call(&daemon, &["vm", "delete", "vm1"]);
    eventually("the delete waits for its commit", || !lab.on_host("ip", &["netns"]).contains("vm-vm1"));
    // A crash now would bring it back: who asks is told so.
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([other, vm]));
    assert_eq!(daemon.json(&["stats", "vm1"])[0]["vm_id"], "vm1");
    assert!(!name_is_known());
    // It is unbound, and so no drift.
    lab.on_host("ip", &["route", "del", other["ip_address"].as_str().unwrap()]);
    eventually("another's route is back", || is_online(&guest));
    held_up.stop();
    assert_answered(delete);
    crate::lab::assert_says(&daemon.client(&["vm", "show", "vm1"]), 1, &["vm1"]);
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([other]));
    crate::drift::quiet(&daemon);
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_limit_that_is_changed_while_its_vm_is_deleted_is_not_the_next_ones() {
    let slower = ["root", "tbf", "rate", "1mbit", "burst", "64k", "limit", "1m"];
    for end in
        [&["-n", "guestnet-0", "qdisc", "change", "dev", "in0"][..], &["qdisc", "change", "dev", "gv0"]]
    {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab);
        let vm = daemon.json(&["vm", "create", "vm1"]);
        let looks = crate::drift::quiet(&daemon);
        let held_up = hold_up(&lab, &daemon);
        let delete = call(&daemon, &["vm", "delete", "vm1"]);
        eventually("the delete waits for its commit", || !lab.on_host("ip", &["netns"]).contains("vm-vm1"));
        lab.on_host("tc", &[end, &slower[..]].concat());
        // Of what is inside it is told whose ever it is: that look finds nobody.
        eventually("it is looked for", || end[0] != "-n" || crate::drift::looks(&daemon) > looks);
        held_up.stop();
        assert_answered(delete);
        // Others are ready before it is wiped.
        let next = (0..8).map(|n| daemon.json(&["vm", "create", &format!("next{n}")]));
        let next = next.into_iter().find(|next| next["host_device"] == vm["host_device"]).unwrap();
        assert!(limit_is(&lab, &next, "100Mbit"));
        let inside = ["-n", next["namespace"].as_str().unwrap(), "qdisc", "show", "dev", "in0", "root"];
        let inside = lab.on_host("tc", &inside);
        assert!(inside.contains("rate 100Mbit "), "{inside}");
    }
}

//! Killed (kill -9) before or after any step of anything it does, the service comes back to a host that is as its records say, and
//! nothing is left over. Of creates and deletes on ready slots: `crash`. At every single operation of a step: `make test-scale`.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use serde_json::Value;

use crate::crash::{BIND, BUILD, Faults, Train, UNBIND, assert_consistent};
use crate::faults::{COLLECT, LEFT, REPAIR, SHARD, START, UNINSTALL, WALLS, before_and_after};
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, text};
use crate::slots::eventually;

/// Of a start on a host whose guests run.
const START_AGAIN: [&str; 7] =
    ["bridge", "unreachable", "all-walls", "connected", "rules", "metadata-rule", "dns-rules"];
/// With a place below that is theirs alone; the last in a create, on a kernel of old, and at a start with another configuration.
const OTHERS: [&str; 4] = ["undo-walls", "tap-options", "owned-tables", "undo-nat-rule"];

const ALL_ON: &str = "[[network]]\npool_size = 1\nmetadata = true\ndns_only_resolver = true\n";

#[test]
fn every_step_that_there_is_has_a_kill() {
    let lists = [
        &BIND[..],
        &BUILD,
        &UNBIND,
        &START,
        &START_AGAIN,
        &SHARD,
        &LEFT,
        &WALLS,
        &UNINSTALL,
        &COLLECT,
        &OTHERS,
    ];
    let of_repair = REPAIR.iter().flat_map(|(_, steps)| steps.iter());
    let walked: BTreeSet<&str> = lists.into_iter().flatten().chain(of_repair).copied().collect();
    assert_eq!(walked, guestnet::kernel::STEPS.into_iter().collect::<BTreeSet<&str>>());
}

/// The start that is to be killed at what was injected.
fn killed_start(faults: &Faults<'_>, networks: &str, what: &str) {
    let said = faults.try_start(networks).err().unwrap_or_else(|| panic!("it starts: {what}"));
    assert!(faults.happened() && said.contains("signal: 9"), "{what}: {said}");
}

fn assert_killed(output: &Output, what: &str) {
    assert_eq!(output.status.signal(), Some(9), "{what}: {}", text(output));
}

/// By an uninstall, after a start that puts all right if `started`: the host is as it was.
fn taken_away(lab: &Lab, faults: &Faults<'_>, started: bool, before: &str) {
    if started {
        let daemon = faults.start();
        assert_consistent(lab, &daemon);
        assert!(daemon.stop().success());
    }
    uninstalled(faults);
    assert_same(before, &lab.host_state());
}

fn uninstalled(faults: &Faults<'_>) {
    let output = faults.uninstall();
    assert!(output.status.success(), "{}", text(&output));
}

/// What dies is started again.
fn comes_back<'lab>(lab: &'lab Lab, faults: &Faults<'lab>, daemon: Daemon<'lab>, what: &str) -> Daemon<'lab> {
    eventually(&format!("killed {what}"), || faults.happened());
    daemon.crash();
    let daemon = faults.start();
    assert_consistent(lab, &daemon);
    daemon
}

#[test]
fn a_first_start_that_is_killed_at_any_step_is_done_by_the_next_or_undone_by_an_uninstall() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, ALL_ON);
    let before = lab.host_state();
    for (when, step) in before_and_after(&START) {
        faults.inject(when, step, "kill");
        killed_start(&faults, ALL_ON, &format!("{when} {step}"));
        // What is after a step is before the next, so half of them are taken away instead.
        taken_away(&lab, &faults, when == "before", &before);
    }
}

#[test]
fn a_start_that_is_killed_at_any_step_loses_no_packet_of_a_guest() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, ALL_ON);
    let daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "live", "--rate-mbps", "7"]);
    let train = Train::start(&lab, &vm);
    let before = lab.host_state();
    assert!(daemon.stop().success());
    for (when, step) in before_and_after(&START_AGAIN).chain([("before", "owned-tables")]) {
        faults.inject(when, step, "kill");
        killed_start(&faults, ALL_ON, &format!("{when} {step}"));
        let daemon = faults.start();
        assert_consistent(&lab, &daemon);
        assert_same(&before, &lab.host_state());
        assert!(daemon.stop().success());
    }
    train.arrive();
}

#[test]
fn killed_while_it_opens_a_further_bridge_it_has_all_of_it_or_nothing() {
    const NETWORK: &str = "[[network]]\npool_size = 0\nmetadata = true\ndns_only_resolver = true\n";
    let lab = Lab::new();
    let faults = Faults::new(&lab, NETWORK).with_ports("1");
    let mut daemon = faults.start();
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    for (number, (when, step)) in before_and_after(&SHARD).enumerate() {
        let (what, next) = (format!("{when} {step}"), format!("vm{number}"));
        // A look at the rules goes by the same steps.
        crate::drift::quiet(&daemon);
        faults.inject(when, step, "kill");
        let output = daemon.client(&["vm", "create", &next]);
        assert!(!output.status.success(), "{what}: {}", text(&output));
        daemon = comes_back(&lab, &faults, daemon, &what);
        assert_eq!(daemon.json(&["vm", "list"]).as_array().unwrap().len(), 1 + number, "{what}");
        let next = daemon.json(&["vm", "create", &next]);
        TapGuest::attach(&lab, &next).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    }
    assert_consistent(&lab, &daemon);
    train.arrive();
}

#[test]
fn killed_while_it_repairs_it_goes_on_at_the_next_start() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let mut daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    assert_eq!(vm["host_device"], "gv0");
    let guest = TapGuest::attach(&lab, &vm);
    let before = lab.host_state();
    for (broken, steps) in REPAIR {
        for (when, step) in before_and_after(steps) {
            faults.inject(when, step, "kill");
            lab.on_host(broken[0], &broken[1..]);
            daemon =
                comes_back(&lab, &faults, daemon, &format!("{when} {step} of a repair after {broken:?}"));
            assert_same(&before, &lab.host_state());
        }
    }
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
}

#[test]
fn killed_while_it_changes_a_limit_a_tap_or_an_address_it_is_what_is_written_down() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let mut daemon = faults.start();
    let limits = |vm: &Value| {
        let port = vm["host_device"].as_str().unwrap();
        let ends = [
            lab.on_host("tc", &["qdisc", "show", "dev", port, "root"]),
            lab.on_host(
                "tc",
                &["-n", vm["namespace"].as_str().unwrap(), "qdisc", "show", "dev", "in0", "root"],
            ),
        ];
        ends.map(|end| {
            end.split(" rate ").nth(1).unwrap().split("Mbit").next().unwrap().parse::<u64>().unwrap()
        })
    };
    // Each time another one than is written down.
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "16"]);
    for (when, step) in before_and_after(&["rate"]) {
        let asked = if when == "before" { "17" } else { "18" };
        faults.inject(when, step, "kill");
        daemon.client(&["vm", "update", "vm1", "--rate-mbps", asked]);
        daemon = comes_back(&lab, &faults, daemon, &format!("{when} {step} of an update"));
        let written = daemon.json(&["vm", "show", "vm1"])["rate_limit_mbps"].as_u64().unwrap();
        assert_eq!(limits(&vm), [written; 2], "{when} {step}");
    }
    for (when, step) in before_and_after(&["tap-options"]) {
        faults.inject(when, step, "kill");
        daemon.client(&["vm", "create", "owned", "--tap-uid", "1234"]);
        daemon = comes_back(&lab, &faults, daemon, &format!("{when} {step}"));
        daemon.guestnet(&["vm", "create", "owned", "--tap-uid", "1234"]);
        let shown = lab.on_host("ip", &["-n", "vm-owned", "-d", "link", "show", "tap0"]);
        assert!(shown.contains("user 1234"), "{when} {step}: {shown}");
        daemon.guestnet(&["vm", "delete", "owned"]);
    }
    for (when, step) in before_and_after(&["forget-connections"]) {
        let former = daemon.json(&["vm", "create", "former", "--ip", "10.100.0.9"]);
        TapGuest::attach(&lab, &former).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        faults.inject(when, step, "kill");
        daemon.client(&["vm", "delete", "former"]);
        daemon = comes_back(&lab, &faults, daemon, &format!("{when} {step}"));
        let heir = daemon.json(&["vm", "create", "heir", "--ip", "10.100.0.9"]);
        assert_eq!(lab.on_host("conntrack", &["-L", "-s", "10.100.0.9"]), "", "{when} {step}");
        TapGuest::attach(&lab, &heir).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        daemon.guestnet(&["vm", "delete", "heir"]);
    }
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_consistent(&lab, &daemon);
}

#[test]
fn killed_while_it_changes_a_policy_or_a_forward_it_is_what_is_written_down() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let mut daemon = faults.start();
    daemon.guestnet(&["vm", "create", "vm1"]);
    let file = lab.directory().join("policy.toml");
    std::fs::write(&file, "vm_id = \"vm1\"\ndefault_ingress = \"allow\"\n").unwrap();
    let apply = ["policy", "apply", "-f", file.to_str().unwrap()];
    let add = ["forward", "add", "vm1", "--host-port", "8085", "--vm-port", "80"];
    let changes = [
        (&["policy", "end-connections"], "policy", &apply[..], &["policy", "delete", "vm1"][..]),
        (&["forward", "end-connections"], "forward", &add, &["forward", "delete", "--host-port", "8085"]),
    ];
    for (steps, kind, make, remove) in changes {
        // Numbers of policies are drawn anew at a start, so each is one after a start.
        let restarted = |daemon: Daemon<'_>| {
            assert!(daemon.stop().success());
            faults.start()
        };
        let known = |daemon: &Daemon<'_>| (daemon.json(&[kind, "list"]), lab.host_state());
        let without = known(&daemon);
        daemon.guestnet(make);
        daemon = restarted(daemon);
        let with = known(&daemon);
        assert!(with.0 != without.0 && with.1 != without.1, "{kind}: nothing is seen of it");
        daemon.guestnet(remove);
        for (when, step) in before_and_after(steps) {
            for change in [make, remove] {
                let what = format!("{when} {step} of {change:?}");
                faults.inject(when, step, "kill");
                daemon.client(change);
                daemon = comes_back(&lab, &faults, daemon, &what);
                let now = known(&daemon);
                let wanted = if now.0 == with.0 { &with } else { &without };
                assert_eq!(now.0, wanted.0, "{what}");
                assert_same(&wanted.1, &now.1);
                // To the end, by whoever calls again; and back for the next.
                let done = if change == make { &with } else { &without };
                if now.0 != done.0 {
                    daemon.guestnet(change);
                }
                assert_eq!(daemon.json(&[kind, "list"]), done.0, "{what}");
            }
        }
    }
}

#[test]
fn an_uninstall_that_is_killed_at_any_step_is_done_by_the_next_or_undone_by_a_start() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let before = lab.host_state();
    for (when, step) in before_and_after(&UNINSTALL) {
        let daemon = faults.start();
        daemon.guestnet(&["vm", "create", "vm1"]);
        assert!(daemon.stop().success());
        faults.inject(when, step, "kill");
        assert_killed(&faults.uninstall(), &format!("{when} {step}"));
        taken_away(&lab, &faults, when == "after", &before);
    }
}

#[test]
fn a_start_that_is_killed_while_it_removes_a_former_network_is_done_by_the_next() {
    const FORMER: &str = "[[network]]\npool_size = 1\n";
    const OTHER: &str = "[[network]]\nbridge_name = \"br-new\"\nbridge_ip = \"10.9.0.1/16\"\nvm_subnet = \"10.9.0.0/16\"\npool_size = 1\n";
    let lab = Lab::new();
    let faults = Faults::new(&lab, FORMER);
    for (when, step) in before_and_after(&["undo-bridge", "undo-unreachable", "undo-nat-rule"]) {
        assert!(faults.start().stop().success());
        faults.inject(when, step, "kill");
        killed_start(&faults, OTHER, &format!("{when} {step}"));
        let daemon = faults.try_start(OTHER).unwrap();
        assert_consistent(&lab, &daemon);
        let state = lab.host_state();
        assert!(!state.contains("10.100.") && !state.contains("br-vms"), "{when} {step}: {state}");
        assert!(daemon.stop().success());
    }
}

#[test]
fn killed_while_it_removes_leftovers_it_leaves_none_the_next_time() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let mut daemon = faults.start();
    let before = lab.host_state();
    for (when, step) in before_and_after(&COLLECT) {
        crate::faults::plant(&lab);
        faults.inject(when, step, "kill");
        daemon.client(&["gc", "--apply"]);
        eventually(&format!("killed {when} {step}"), || faults.happened());
        daemon.crash();
        daemon = faults.start();
        daemon.guestnet(&["gc", "--apply"]);
        assert_consistent(&lab, &daemon);
        assert_same(&before, &lab.host_state());
    }
}

/// Kills at the first operation of an attempt, at the second, and so on until there are no more; how many there were.
fn at_every_operation<'lab>(
    lab: &'lab Lab,
    faults: &Faults<'lab>,
    mut daemon: Daemon<'lab>,
    attempt: impl Fn(&Daemon<'lab>),
    back: impl Fn(&Daemon<'lab>),
) -> (usize, Daemon<'lab>) {
    for number in 1..1_000 {
        faults.kill_at(number);
        attempt(&daemon);
        if faults.disarm() {
            back(&daemon);
            return (number - 1, daemon);
        }
        daemon = comes_back(lab, faults, daemon, &format!("operation {number}"));
        back(&daemon);
    }
    panic!("there is no end of operations");
}

/// Of creates, an update and a delete, with a guest that must not notice; of a first start and an uninstall. Minutes.
pub(crate) fn at_any_operation() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let daemon = faults.start();
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    let create = ["vm", "create", "vm1", "--ip", "10.100.0.9", "--rate-mbps", "7"];
    let call = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        move |daemon: &Daemon<'_>| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            daemon.client(&arguments);
        }
    };
    let delete = ["vm", "delete", "vm1"];
    let on_a_ready_slot = at_every_operation(&lab, &faults, daemon, call(&create), call(&delete));
    let built = [&create[..], &["--tap-multi-queue", "--tap-uid", "1000"]].concat();
    let on_the_spot = at_every_operation(&lab, &faults, on_a_ready_slot.1, call(&built), call(&delete));
    on_the_spot.1.guestnet(&create);
    let (slow, fast) =
        (["vm", "update", "vm1", "--rate-mbps", "7"], ["vm", "update", "vm1", "--rate-mbps", "9"]);
    let of_an_update = at_every_operation(&lab, &faults, on_the_spot.1, call(&fast), call(&slow));
    let of_a_delete = at_every_operation(&lab, &faults, of_an_update.1, call(&delete), call(&create));
    let counts = [on_a_ready_slot.0, on_the_spot.0, of_an_update.0, of_a_delete.0];
    println!("operations: {counts:?}");
    assert!(counts.iter().zip([10, 40, 4, 8]).all(|(count, least)| *count >= least), "{counts:?}");
    assert_eq!(of_a_delete.1.json(&["vm", "show", "live"]), live);
    train.arrive();
}

/// Of a first start, and of an uninstall. Minutes.
pub(crate) fn at_any_operation_of_a_start_and_an_uninstall() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, ALL_ON);
    let before = lab.host_state();
    for number in 1.. {
        faults.kill_at(number);
        let started = faults.try_start(ALL_ON);
        let over = faults.disarm();
        // Killed after it was ready, or not at all.
        let daemon = match started {
            Ok(daemon) if over => {
                assert!(number > 60, "only {number} operations of a start");
                assert!(daemon.stop().success());
                uninstalled(&faults);
                break;
            }
            Ok(daemon) => comes_back(&lab, &faults, daemon, &format!("operation {number} of a start")),
            Err(_) => faults.start(),
        };
        assert_consistent(&lab, &daemon);
        assert!(daemon.stop().success());
        uninstalled(&faults);
        assert_same(&before, &lab.host_state());
    }
    for number in 1.. {
        let daemon = faults.start();
        daemon.guestnet(&["vm", "create", "vm1"]);
        assert!(daemon.stop().success());
        faults.kill_at(number);
        let output = faults.uninstall();
        if faults.disarm() {
            assert!(number > 20 && output.status.success(), "{number} operations: {}", text(&output));
            assert_same(&before, &lab.host_state());
            return;
        }
        assert_killed(&output, &format!("operation {number} of an uninstall"));
        if number % 2 == 0 {
            let daemon = faults.start();
            assert_consistent(&lab, &daemon);
            assert!(daemon.stop().success());
        }
        uninstalled(&faults);
        assert_same(&before, &lab.host_state());
    }
}

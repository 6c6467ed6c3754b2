//! Of what is made, changed and taken away for one VM, and of the slots that wait for one.

use serde_json::Value;

use super::{LEFT, assert_injected, assert_nothing_left, at_every_operation, before_and_after};
use crate::crash::{BIND, BUILD, Faults, UNBIND, assert_consistent, walled};
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, assert_says, text};
use crate::slots::{eventually, slots};

#[test]
fn a_create_that_fails_at_any_operation_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let create = ["vm", "create", "vm1", "--ip", "10.100.0.9", "--rate-mbps", "7"];
    // On a slot that is ready, the second with options that its TAP keeps; on one that is built for it.
    for (options, least) in [(&[][..], 10), (&["--tap-uid", "1000"], 14), (&["--tap-multi-queue"], 40)] {
        let create = [&create[..], options].concat();
        let back = || drop(daemon.guestnet(&["vm", "delete", "vm1"]));
        let operations = at_every_operation(&faults, || lab.host_state(), || daemon.client(&create), back);
        assert!(operations >= least, "only {operations} operations of {create:?}");
        back();
    }
    assert_nothing_left(&lab, &daemon);
    assert_eq!(walled(&lab), Vec::<String>::new());
}

/// Of slots that no VM has, too, which `host_state` leaves out.
#[test]
fn a_slot_that_fails_at_any_operation_leaves_no_namespace() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 0\n");
    let daemon = faults.start();
    let nothing_is_left = || {
        // A slot that is whole and whose VM is not goes in the background.
        eventually("no slot is left", || {
            slots(&lab) == 0 && !lab.on_host("ip", &["netns", "list"]).contains("guestnet-")
        });
        String::new()
    };
    let back = || drop(daemon.guestnet(&["vm", "delete", "vm1"]));
    let create = || daemon.client(&["vm", "create", "vm1"]);
    let operations = at_every_operation(&faults, nothing_is_left, create, back);
    assert!(operations >= 40, "only {operations} operations");
    back();
    assert_nothing_left(&lab, &daemon);
}

#[test]
fn an_update_and_a_delete_that_fail_at_any_operation_leave_the_vm_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let create = || daemon.json(&["vm", "create", "vm1", "--ip", "10.100.0.9", "--rate-mbps", "7"]);
    let port = create()["host_device"].as_str().unwrap().to_owned();
    let state = || {
        let queue = |arguments: &[&str]| {
            let shown = lab.on_host(arguments[0], &arguments[1..]);
            assert!(shown.contains("tbf"), "{shown}");
            shown
        };
        let ends = [
            queue(&["tc", "qdisc", "show", "dev", &port, "root"]),
            queue(&["ip", "netns", "exec", "vm-vm1", "tc", "qdisc", "show", "dev", "in0", "root"]),
        ];
        format!("{}{}{}", lab.host_state(), ends.concat(), daemon.json(&["vm", "show", "vm1"]))
    };
    let (slow, fast) =
        (["vm", "update", "vm1", "--rate-mbps", "7"], ["vm", "update", "vm1", "--rate-mbps", "9"]);
    let back = || drop(daemon.guestnet(&slow));
    let operations = at_every_operation(&faults, state, || daemon.client(&fast), back);
    assert!(operations >= 4, "only {operations} operations of an update");
    back();
    for when in ["before", "after"] {
        let before = state();
        faults.inject(when, "rate", "fail");
        assert_injected(&daemon.client(&fast), when);
        assert_same(&before, &state());
    }

    // Given to it again by name, its address is asked for before the slot it was on is wiped.
    let delete = || daemon.client(&["vm", "delete", "vm1"]);
    let state = || format!("{}{}", lab.host_state(), daemon.json(&["vm", "show", "vm1"]));
    let operations = at_every_operation(&faults, state, delete, || drop(create()));
    assert!(operations >= 8, "only {operations} operations of a delete");
    assert_nothing_left(&lab, &daemon);
}

/// The next VM gets the address of one whose slot was not wiped or cleared as it should be, and nothing else of it.
fn left(pool_size: usize, steps: &[&str], before_it_leaves: impl Fn(&Lab)) {
    let lab = Lab::new();
    let networks: &'static str = format!("[[network]]\npool_size = {pool_size}\n").leak();
    let faults = Faults::new(&lab, networks);
    let daemon = faults.start();
    let create = ["vm", "create", "vm1", "--ip", "10.100.0.9", "--rate-mbps", "7"];
    for (when, step) in before_and_after(steps) {
        let vm = daemon.json(&create);
        TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        before_it_leaves(&lab);
        faults.inject(when, step, "fail");
        daemon.guestnet(&["vm", "delete", "vm1"]);
        eventually(&format!("{when} {step}"), || faults.happened());
        let next = daemon.json(&["vm", "create", "next", "--ip", "10.100.0.9"]);
        let tracked = lab.on_host("conntrack", &["-L", "-s", "10.100.0.9"]);
        assert_eq!(tracked, "", "the former guest's connections, after a fault {when} {step}");
        let queue = lab.on_host("tc", &["qdisc", "show", "dev", next["host_device"].as_str().unwrap()]);
        assert!(queue.contains("rate 100Mbit"), "{queue}");
        TapGuest::attach(&lab, &next).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        daemon.guestnet(&["vm", "delete", "next"]);
        assert_nothing_left(&lab, &daemon);
    }
}

#[test]
fn a_slot_is_wiped_to_its_end_or_given_to_nobody() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let create = ["vm", "create", "vm1", "--ip", "10.100.0.9", "--rate-mbps", "7"];
    // It has the address of the one before, so it waits until that one's slot is wiped.
    let (delete, next) = (["vm", "delete", "vm1"], ["vm", "create", "next", "--ip", "10.100.0.9"]);
    daemon.guestnet(&create);
    let operations = (1..1_000).take_while(|number| {
        faults.fail_at(*number);
        let done = [&delete[..], &next].iter().all(|call| daemon.client(call).status.success());
        let over = faults.disarm();
        assert!(done || !over, "a call that fails without a fault\n{}", daemon.log());
        daemon.guestnet(&delete);
        let vm = daemon.json(&next);
        for (netns, device) in [(None, vm["host_device"].as_str().unwrap()), (Some("vm-next"), "in0")] {
            let shown = ["tc", "qdisc", "show", "dev", device, "root"];
            let inside = netns.map(|netns| ["ip", "netns", "exec", netns]);
            let shown = [inside.as_ref().map(|inside| &inside[..]).unwrap_or_default(), &shown].concat();
            let queue = lab.on_host(shown[0], &shown[1..]);
            assert!(queue.contains("rate 100Mbit"), "{device} after operation {number}: {queue}");
        }
        daemon.guestnet(&["vm", "delete", "next"]);
        daemon.guestnet(&create);
        !over
    });
    let operations = operations.count();
    assert!(operations >= 20, "only {operations} operations of a delete and what follows");
    assert_nothing_left(&lab, &daemon);
}

#[test]
fn a_slot_that_cannot_be_wiped_or_cleared_is_given_to_nobody() {
    let [forget, wipe, wipe_some, clear] = LEFT;
    // So many are kept that one more is wiped, and none is built for one that was taken.
    left(4, &[forget, wipe, wipe_some], |_| {});
    // So few that one more is too many.
    left(2, &[clear], |lab| eventually("two wait beside the VM's", || slots(lab) == 3));
}

/// A run that was cut off before it came to it, and a kernel that refuses at the next start, and goes on to.
#[test]
fn an_address_whose_connections_cannot_be_forgotten_at_a_start_is_nobodys_until_they_are() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "former", "--ip", "10.100.0.9"]);
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    let tracked = || lab.on_host("conntrack", &["-L", "-s", "10.100.0.9"]);
    faults.inject("before", "forget-connections", "refuse");
    daemon.guestnet(&["vm", "delete", "former"]);
    daemon.crash();
    assert!(tracked().contains("10.100.0.9"), "nothing was to be forgotten");
    let daemon = faults.start();
    let begun = daemon.log().len();
    // Others are served, from slots that are built meanwhile too; who asks for this one is told to come back.
    let heir = ["vm", "create", "heir", "--ip", "10.100.0.9"];
    assert_says(&daemon.client(&heir), 1, &["10.100.0.9", "its last guest", "repeat the call"]);
    for n in 0..6 {
        daemon.guestnet(&["vm", "create", &format!("other{n}")]);
    }
    eventually("it is tried again and again", || {
        daemon.log()[begun..].matches("former guests' connections are not forgotten yet").count() >= 3
    });
    assert!(tracked().contains("10.100.0.9"), "{}", daemon.log());
    assert!(faults.disarm());
    eventually("it is forgotten", || daemon.client(&heir).status.success());
    assert_eq!(tracked(), "", "the heir has its predecessor's connections");
    let heir = daemon.json(&["vm", "show", "heir"]);
    TapGuest::attach(&lab, &heir).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    assert_consistent(&lab, &daemon);
}

/// The same while it runs. Nobody waits for it: not who asks for another address, not who has all calls wait.
#[test]
fn a_kernel_that_does_not_forget_holds_up_no_call() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let daemon = faults.start();
    let online = |vm: &Value| {
        TapGuest::attach(&lab, vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    };
    let former = ["former", "other"].map(|vm_id| daemon.json(&["vm", "create", vm_id]));
    former.iter().for_each(online);
    faults.inject("before", "forget-connections", "refuse");
    daemon.guestnet(&["vm", "delete", "former"]);
    let address = former[0]["ip_address"].as_str().unwrap();
    let heir = ["vm", "create", "heir", "--ip", address];
    assert_says(&daemon.client(&heir), 1, &[address, "its last guest", "repeat the call"]);
    let body = format!(r#"{{"vmId":"heir","ipAddress":"{address}"}}"#);
    assert_eq!(crate::bad_state::connect_code(&lab, &daemon, "CreateVmNetwork", &body), "unavailable");
    daemon.guestnet(&["vm", "delete", "other"]);
    for n in 0..6 {
        let vm = daemon.json(&["vm", "create", &format!("next{n}")]);
        assert!(former.iter().all(|former| former["ip_address"] != vm["ip_address"]), "{vm}");
        online(&vm);
        // Each of these has all calls wait until none is under way.
        daemon.guestnet(&["reload"]);
        lab.on_host("ip", &["route", "add", "10.100.0.77/32", "dev", "br-vms", "proto", "103"]);
        assert_eq!(daemon.json(&["gc", "--apply"]).as_array().unwrap().len(), 1);
    }
    assert!(!faults.happened() && lab.on_host("conntrack", &["-L", "-s", address]).contains(address));
    assert!(faults.disarm());
    eventually("it is forgotten", || daemon.client(&heir).status.success());
    assert_eq!(lab.on_host("conntrack", &["-L", "-s", address]), "");
    online(&daemon.json(&["vm", "show", "heir"]));
    assert_consistent(&lab, &daemon);
}

/// No guest has had its address, so it is the next one's at once.
#[test]
fn a_create_that_fails_costs_the_smallest_subnet_no_address() {
    let lab = Lab::new();
    let network = "[[network]]\nbridge_ip = \"10.9.0.1/30\"\nvm_subnet = \"10.9.0.0/30\"\npool_size = 1\n";
    let faults = Faults::new(&lab, network);
    let mut daemon = faults.start();
    for (when, step) in before_and_after(&["walls", "name", "forwarding"]) {
        for _ in 0..2 {
            faults.inject(when, step, "fail");
            assert_injected(&daemon.client(&["vm", "create", "vm1"]), step);
        }
        // Nor is there anything of it after a crash.
        daemon.crash();
        daemon = faults.start();
        assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([]), "{when} {step}");
    }
    assert_eq!(daemon.json(&["vm", "create", "vm1"])["ip_address"], "10.9.0.2");
    daemon.guestnet(&["vm", "delete", "vm1"]);
    // Now a guest may have had it: it rests, whoever asks for it by name meanwhile and gets nothing.
    let resting = || assert_says(&daemon.client(&["vm", "create", "vm2"]), 1, &["1 in quarantine"]);
    resting();
    faults.inject("before", "forwarding", "fail");
    assert_injected(&daemon.client(&["vm", "create", "vm2", "--ip", "10.9.0.2"]), "by name");
    resting();
}

fn failing_create(lab: &Lab, faults: &Faults<'_>, daemon: &Daemon<'_>, when: &str, step: &str) {
    let before = lab.host_state();
    faults.inject(when, step, "fail");
    let output = daemon.client(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    assert!(faults.happened(), "{when} {step} never came");
    assert!(
        !output.status.success() && text(&output).contains("fault injected"),
        "{when} {step}: {}",
        text(&output)
    );
    assert_same(&before, &lab.host_state());
    daemon.guestnet(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_same(&before, &lab.host_state());
}

#[test]
fn a_create_that_fails_at_any_step_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    for step in BIND {
        assert_eq!(walled(&lab), Vec::<String>::new());
        failing_create(&lab, &faults, &daemon, "before", step);
        failing_create(&lab, &faults, &daemon, "after", step);
        eventually("as many slots as before", || slots(&lab) == 4);
    }
    assert_consistent(&lab, &daemon);
}

/// A TAP's owner cannot be unset: its slot is built anew, in the background.
#[test]
fn a_tap_that_cannot_be_given_away_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let before = lab.host_state();
    let as_before = || eventually("the host is as it was", || lab.host_state() == before);
    for when in ["before", "after"] {
        faults.inject(when, "tap-options", "fail");
        let create = ["vm", "create", "vm1", "--tap-uid", "1000"];
        let output = daemon.client(&create);
        assert!(!output.status.success() && text(&output).contains("fault injected"), "{}", text(&output));
        as_before();
        daemon.guestnet(&create);
        daemon.guestnet(&["vm", "delete", "vm1"]);
        as_before();
    }
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_slot_that_cannot_be_built_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 0\n");
    let daemon = faults.start();
    for step in BUILD {
        failing_create(&lab, &faults, &daemon, "before", step);
        failing_create(&lab, &faults, &daemon, "after", step);
        eventually("no slot is left", || slots(&lab) == 0);
        eventually("nor a namespace", || !lab.on_host("ip", &["netns", "list"]).contains("guestnet"));
    }
}

#[test]
fn a_delete_that_fails_at_any_step_leaves_a_guest_that_works() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let before = lab.host_state();
    for (when, step) in UNBIND.iter().flat_map(|step| [("before", step), ("after", step)]) {
        faults.inject(when, step, "fail");
        let output = daemon.client(&["vm", "delete", "vm1"]);
        assert!(faults.happened() && !output.status.success(), "{when} {step}: {}", text(&output));
        assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
        assert_same(&before, &lab.host_state());
        assert_consistent(&lab, &daemon);
    }
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_delete_that_cannot_take_the_guest_out_of_the_walls_leaves_nothing_in_them() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let stays = daemon.json(&["vm", "create", "stays"]);
    for when in ["before", "after"] {
        daemon.guestnet(&["vm", "create", "vm1"]);
        faults.inject(when, "undo-walls", "fail");
        daemon.guestnet(&["vm", "delete", "vm1"]);
        assert!(faults.happened());
        assert_eq!(walled(&lab), [stays["ip_address"].as_str().unwrap()]);
        assert_consistent(&lab, &daemon);
    }
    TapGuest::attach(&lab, &stays).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

//! Of what is made for all VMs: at a start, while it runs, and when it goes.

use super::{
    COLLECT, REPAIR, SHARD, START, UNINSTALL, assert_injected, assert_nothing_left, before_and_after,
};
use crate::crash::{Faults, assert_consistent};
use crate::lab::{Lab, TapGuest, WEB, assert_same, text};
use crate::slots::eventually;

#[test]
fn a_further_bridge_that_cannot_be_made_leaves_the_host_as_it_was() {
    const NETWORK: &str = "[[network]]\npool_size = 0\nmetadata = true\ndns_only_resolver = true\n";
    let lab = Lab::new();
    let faults = Faults::new(&lab, NETWORK).with_ports("1");
    let daemon = faults.start();
    let first = daemon.json(&["vm", "create", "vm0"]);
    let state = || lab.host_state();
    let attempt = |number: usize| daemon.client(&["vm", "create", &format!("vm{number}")]);
    // A bridge that stands is its network's, not a VM's: it stays when the slot that was to be its first cannot be built. What comes
    // upon slots alone has its own test.
    let stands = |vm: usize| lab.on_host("ip", &["-br", "link"]).contains(&format!("br-vms-{vm}"));
    let (mut number, mut vm) = (1, 1);
    loop {
        let (before, stood) = (state(), stands(vm));
        // Its own iptables look like somebody's: a look at the rules is due after each try that came to them.
        eventually("no look is due", || crate::drift::looks(&daemon).is_some());
        faults.fail_at(number);
        let output = attempt(vm);
        if output.status.success() {
            if faults.disarm() {
                break;
            }
            // It came upon something else that the service does, such a look perhaps: once more, for the next VM.
            crate::drift::quiet(&daemon);
            vm += 1;
            assert!(vm < 40, "operation {number} is never one of a bridge or a slot");
            continue;
        }
        assert_injected(&output, &format!("operation {number}"));
        if stood != stands(vm) {
            let of_slot = ["/run/netns", "guestnet-"].iter().any(|word| text(&output).contains(word));
            assert!(of_slot, "{}", text(&output));
            break;
        }
        assert_same(&before, &state());
        number += 1;
    }
    assert!(number > 50, "only {number} operations of a bridge");
    faults.disarm();
    assert!(attempt(vm).status.success(), "{}", daemon.log());
    for (when, step) in before_and_after(&SHARD) {
        vm += 1;
        // A look at the rules goes by the same steps.
        crate::drift::quiet(&daemon);
        let before = state();
        faults.inject(when, step, "fail");
        assert_injected(&attempt(vm), &format!("{when} {step}"));
        assert_same(&before, &state());
        assert!(attempt(vm).status.success() && stands(vm), "{when} {step}\n{}", daemon.log());
    }
    let last = daemon.json(&["vm", "show", &format!("vm{vm}")]);
    for vm in [&first, &last] {
        TapGuest::attach(&lab, vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    }
    assert_nothing_left(&lab, &daemon);
}

#[test]
fn a_start_that_fails_at_any_step_leaves_the_host_as_it_was() {
    const NETWORK: &str = "[[network]]\npool_size = 1\nmetadata = true\ndns_only_resolver = true\n";
    let lab = Lab::new();
    let faults = Faults::new(&lab, NETWORK);
    let before = lab.host_state();
    let uninstall = || {
        let output = faults.uninstall();
        assert!(output.status.success(), "{}", text(&output));
        assert_same(&before, &lab.host_state());
    };
    for (when, step) in before_and_after(&START) {
        faults.inject(when, step, "fail");
        let said = faults.try_start(NETWORK).err().unwrap_or_else(|| panic!("it starts: {when} {step}"));
        assert!(faults.happened() && said.contains("fault injected"), "{when} {step}: {said}");
        assert_same(&before, &lab.host_state());
        let daemon = faults.start();
        daemon.guestnet(&["vm", "create", "vm1"]);
        assert!(daemon.stop().success());
        uninstall();
    }
    // And at every operation, until none of them is left.
    for number in 1.. {
        faults.fail_at(number);
        let started = faults.try_start(NETWORK);
        let done = faults.disarm();
        match started {
            Err(_) => assert_same(&before, &lab.host_state()),
            Ok(daemon) => {
                daemon.guestnet(&["vm", "create", "vm1"]);
                assert_consistent(&lab, &daemon);
                assert!(daemon.stop().success());
                uninstall();
            }
        }
        if done {
            assert!(number > 60, "only {number} operations of a start");
            return;
        }
    }
}

#[test]
fn what_cannot_be_uninstalled_at_once_is_at_the_next_try() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let before = lab.host_state();
    for (when, step) in before_and_after(&UNINSTALL) {
        let daemon = faults.start();
        daemon.guestnet(&["vm", "create", "vm1"]);
        assert!(daemon.stop().success());
        faults.inject(when, step, "fail");
        assert_injected(&faults.uninstall(), &format!("{when} {step}"));
        let output = faults.uninstall();
        assert!(output.status.success(), "{when} {step}: {}", text(&output));
        assert_same(&before, &lab.host_state());
    }
}

#[test]
fn a_former_networks_rule_that_cannot_be_removed_is_at_the_next_start() {
    for when in ["before", "after"] {
        let lab = Lab::new();
        let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
        assert!(faults.start().stop().success());
        let other = "[[network]]\nbridge_ip = \"10.9.0.1/16\"\nvm_subnet = \"10.9.0.0/16\"\npool_size = 1\n";
        faults.inject(when, "undo-nat-rule", "fail");
        let said = faults.try_start(other).err().expect("a start that fails");
        assert!(said.contains("fault injected"), "{said}");
        let daemon = faults.try_start(other).unwrap();
        daemon.guestnet(&["vm", "create", "vm1"]);
        let state = lab.host_state();
        assert!(!state.contains("10.100."), "{state}");
    }
}

#[test]
fn a_repair_that_fails_at_any_step_is_done_by_the_next() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let daemon = faults.start();
    // With a limit of its own, which a slot that is plugged in again does not come with.
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    assert_eq!(vm["host_device"], "gv0");
    let guest = TapGuest::attach(&lab, &vm);
    let state = || {
        let port = lab.on_host("sh", &["-c", "bridge -d link show dev gv0 2>&1; true"]);
        let entry = lab.on_host(
            "sh",
            &[
                "-c",
                "bridge fdb show dev gv0 2>&1 | grep static; tc qdisc show dev gv0 | grep -o 'rate.*'; true",
            ],
        );
        // Not the index of the other end.
        let port: Vec<&str> = port.split(": ").skip(1).collect();
        format!("{}\n{}\n{entry}", lab.host_state(), port.join(": "))
    };
    let before = state();
    for (broken, steps) in REPAIR {
        for (when, step) in before_and_after(steps) {
            faults.inject(when, step, "fail");
            lab.on_host(broken[0], &broken[1..]);
            eventually(&format!("{when} {step} of a repair after {broken:?}"), || faults.happened());
            eventually(&format!("all is as it was after {when} {step}"), || state() == before);
        }
    }
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    assert!(daemon.log().contains("fault injected after forwarding"), "it is told of");
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    drop(guest);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_nothing_left(&lab, &daemon);
}

/// What bears a mark of ours and belongs to nobody: a thing of each kind, beside the slot 0 that waits.
pub(crate) fn plant(lab: &Lab) {
    let first: u32 = lab.on_host("cat", &["/sys/class/net/gv0/ifindex"]).trim().parse().unwrap();
    let of_slot = first + 300;
    let lines = [
        "ip netns add guestnet-300".to_owned(),
        format!("ip netns exec guestnet-300 ip link set lo alias 'guestnet {of_slot}'"),
        format!("ip link add gv300 index {of_slot} type veth peer name in0 netns guestnet-300"),
        "ln -s guestnet-300 /run/netns/vm-gone".to_owned(),
        "ip route add 10.100.7.7/32 dev br-vms proto 103 scope link".to_owned(),
        "ip neigh add 10.100.7.7 lladdr 06:00:0a:64:07:07 nud permanent dev br-vms".to_owned(),
        "bridge fdb add 06:00:0a:64:07:07 dev gv0 master static".to_owned(),
        "ip addr add 10.100.0.99/32 dev br-vms".to_owned(),
    ];
    lab.on_host("sh", &["-c", &lines.join(" && ")]);
}

#[test]
fn a_leftover_that_cannot_be_removed_is_named_and_goes_the_next_time() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 1\n");
    let daemon = faults.start();
    let before = lab.host_state();
    for (when, step) in before_and_after(&COLLECT) {
        plant(&lab);
        faults.inject(when, step, "fail");
        let output = daemon.client(&["gc", "--apply", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = found.as_array().unwrap();
        let failed: Vec<_> = found.iter().filter(|of| of["removed"] == false).collect();
        assert!(faults.happened() && found.len() == 7, "{when} {step}: {found:#?}");
        assert!(
            failed.len() == 1 && failed[0]["error"].as_str().unwrap().contains("fault injected"),
            "{failed:?}"
        );
        assert_nothing_left(&lab, &daemon);
        assert_same(&before, &lab.host_state());
    }
}

#[test]
fn a_policy_or_a_forward_that_fails_at_any_step_changes_nothing() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let daemon = faults.start();
    let vms = ["vm1", "vm2"].map(|vm_id| daemon.json(&["vm", "create", vm_id]));
    let guests = [0, 1].map(|at| TapGuest::attach(&lab, &vms[at]));
    let file = lab.directory().join("policy.toml");
    std::fs::write(&file, "vm_id = \"vm2\"\ndefault_ingress = \"allow\"\n").unwrap();
    let file = file.to_str().unwrap();
    // Who is to get nowhere is not given as long.
    let is_open = |wanted: bool| {
        let (seconds, to) = (if wanted { "20" } else { "1" }, vms[1]["ip_address"].as_str().unwrap());
        let mut ping = guests[0].namespace.command("busybox");
        ping.args(["ping", "-c", "1", "-W", seconds, to]).output().unwrap().status.success() == wanted
    };
    let policies = || daemon.json(&["policy", "list"]);
    let forwards = || daemon.json(&["forward", "list"]);
    let in_kernel =
        || lab.on_host("nft", &["-nn", "list", "table", "inet", "guestnet"]).matches(" 8085 ").count();
    let nothing = policies();
    for (when, step) in before_and_after(&["policy", "end-connections"]) {
        let what = format!("{when} {step}");
        faults.inject(when, step, "fail");
        assert_injected(&daemon.client(&["policy", "apply", "-f", file]), &what);
        assert!(policies() == nothing && is_open(false), "{what} of a policy that comes");
        daemon.guestnet(&["policy", "apply", "-f", file]);
        let applied = policies();
        assert!(applied != nothing && is_open(true));
        faults.inject(when, step, "fail");
        assert_injected(&daemon.client(&["policy", "delete", "vm2"]), &what);
        assert!(policies() == applied && is_open(true), "{what} of a policy that goes");
        daemon.guestnet(&["policy", "delete", "vm2"]);
        assert!(policies() == nothing && is_open(false));
    }
    let (add, delete) = (
        ["forward", "add", "vm2", "--host-port", "8085", "--vm-port", "80"],
        ["forward", "delete", "--host-port", "8085"],
    );
    for (when, step) in before_and_after(&["forward", "end-connections"]) {
        let what = format!("{when} {step}");
        faults.inject(when, step, "fail");
        assert_injected(&daemon.client(&add), &what);
        assert_eq!((forwards(), in_kernel()), (serde_json::json!([]), 0), "{what} of a forward that comes");
        daemon.guestnet(&add);
        let added = (forwards(), in_kernel());
        assert!(added.1 > 0);
        faults.inject(when, step, "fail");
        assert_injected(&daemon.client(&delete), &what);
        assert_eq!((forwards(), in_kernel()), added, "{what} of a forward that goes");
        daemon.guestnet(&delete);
        assert_eq!((forwards(), in_kernel()), (serde_json::json!([]), 0));
    }
}

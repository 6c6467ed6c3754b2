//! Whatever step fails, before it or after it, and whatever operation of one: the host is as it was, and the next try succeeds.

mod host;
mod vms;

pub(crate) use host::plant;

use std::collections::BTreeSet;
use std::process::Output;

use crate::crash::{BIND, BUILD, Faults, UNBIND, assert_consistent};
use crate::lab::{Daemon, Lab, text};

/// Steps of a first start.
pub(crate) const START: [&str; 8] =
    ["sysctl", "bridge", "unreachable", "all-walls", "connected", "rules", "metadata-rule", "dns-rules"];
/// Of one more bridge for a network with guests on the others.
pub(crate) const SHARD: [&str; 5] = ["bridge", "bridge-walls", "rules", "metadata-rule", "dns-rules"];
/// Of a slot that its VM has left.
pub(crate) const LEFT: [&str; 4] = ["forget-connections", "wipe", "wipe-some", "clear"];
/// Of policies and port forwards.
pub(crate) const WALLS: [&str; 3] = ["policy", "forward", "end-connections"];
/// Of a repair, by what somebody does to a VM's port, its bridge or the host's rules.
pub(crate) const REPAIR: [(&[&str], &[&str]); 5] = [
    (
        &["ip", "link", "set", "gv0", "nomaster"],
        &["unplug", "redirect", "rate", "port", "name", "neighbour", "route", "forwarding"],
    ),
    (&["ip", "link", "del", "gv0"], &["undo-veth", "veth"]),
    (&["ip", "link", "del", "br-vms"], &["bridge"]),
    (&["ip", "route", "del", "unreachable", "10.100.0.0/16"], &["unreachable"]),
    (&["iptables", "-F"], &["rules"]),
];
/// Of taking all away that was ever made.
pub(crate) const UNINSTALL: [&str; 7] =
    ["clear", "undo-rules", "undo-unreachable", "undo-nat-rule", "undo-bridge", "sysctl", "undo-all-walls"];
/// Of taking away what belongs to nobody.
pub(crate) const COLLECT: [&str; 7] = [
    "undo-forwarding",
    "undo-any-route",
    "undo-neighbour",
    "undo-address",
    "undo-name",
    "undo-veth",
    "undo-namespace",
];
/// That have a test of their own, the last in `walls::tables`.
const OTHERS: [&str; 3] = ["tap-options", "undo-walls", "owned-tables"];

#[test]
fn every_step_that_there_is_has_a_test_here() {
    let lists = [&BIND[..], &BUILD, &UNBIND, &START, &SHARD, &LEFT, &WALLS, &UNINSTALL, &COLLECT, &OTHERS];
    let of_repair = REPAIR.iter().flat_map(|(_, steps)| steps.iter());
    let walked: BTreeSet<&str> = lists.into_iter().flatten().chain(of_repair).copied().collect();
    assert_eq!(walked, guestnet::kernel::STEPS.into_iter().collect::<BTreeSet<&str>>());
}

pub(crate) fn before_and_after<'a>(steps: &'a [&'a str]) -> impl Iterator<Item = (&'static str, &'a str)> {
    steps.iter().flat_map(|step| [("before", *step), ("after", *step)])
}

fn assert_injected(output: &Output, what: &str) {
    assert!(!output.status.success() && text(output).contains("fault injected"), "{what}: {}", text(output));
}

/// Tries with a fault at the first operation, at the second, and so on until there are no more; how many there were. What fails
/// leaves `state` as it was. `back` is called when it has succeeded all the same, because nobody waits for what the fault came upon.
fn at_every_operation(
    faults: &Faults<'_>,
    state: impl Fn() -> String,
    mut attempt: impl FnMut() -> Output,
    mut back: impl FnMut(),
) -> usize {
    for number in 1..1_000 {
        let before = state();
        faults.fail_at(number);
        let output = attempt();
        match output.status.success() {
            false => {
                assert_injected(&output, &format!("operation {number}"));
                let after = state();
                assert!(after == before, "operation {number}: {}\n{before}\n{after}", text(&output));
            }
            true if faults.disarm() => return number - 1,
            true => back(),
        }
    }
    panic!("there is no end of operations");
}

/// Nothing is left over, in the end.
fn assert_nothing_left(lab: &Lab, daemon: &Daemon<'_>) {
    daemon.guestnet(&["gc", "--apply"]);
    assert_eq!(daemon.json(&["gc", "--dry-run"]), serde_json::json!([]));
    assert_consistent(lab, daemon);
}

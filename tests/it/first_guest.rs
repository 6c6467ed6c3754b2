//! A real guest boots and is online; and when a part of that is off, the scenario says which.

use serde_json::Value;

use crate::lab::scenario::{self, Report};
use crate::lab::{Daemon, Lab, Machine};

fn problems(lab: &Lab, daemon: &Daemon<'_>, break_it: impl FnOnce(&Lab)) -> Vec<String> {
    let vms = scenario::create_vms(daemon);
    break_it(lab);
    seen(lab, &vms)
}

/// What the guests of both VMs saw that is not as it should be.
fn seen(lab: &Lab, vms: &[Value; 2]) -> Vec<String> {
    let (_guests, reports) = scenario::run(lab, Machine::default(), vms, |_| {});
    reports.iter().flat_map(Report::problems).collect()
}

/// Every problem is of this part, and both guests have it.
fn assert_only(part: &str, problems: &[String]) {
    let of_part = problems.iter().filter(|problem| problem.contains(&format!(": {part}: "))).count();
    assert!(of_part == 2 && problems.len() == 2, "expected each guest to miss {part} only: {problems:#?}");
}

#[test]
fn two_guests_are_online_and_apart() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    assert_eq!(problems(&lab, &daemon, |_| {}), Vec::<String>::new());
}

#[test]
fn a_guest_without_nat_is_noticed() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let problems = problems(&lab, &daemon, |lab| {
        // Rules of our own would come back.
        lab.on_host("iptables", &["-t", "nat", "-I", "POSTROUTING", "-s", "10.100.0.0/16", "-j", "ACCEPT"]);
    });
    assert_only("nat", &problems);
}

#[test]
fn a_guest_without_dns_is_noticed() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let problems = problems(&lab, &daemon, |lab| {
        lab.on_host(
            "iptables",
            &["-t", "raw", "-I", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "DROP"],
        );
    });
    assert_only("dns", &problems);
}

#[test]
fn a_guest_without_isolation_is_noticed() {
    let lab = Lab::new();
    // Opened as an operator would: the walls' own tables cannot be changed by others while the daemon runs.
    let daemon = Daemon::start_with(&lab, "[[network]]\nintra_workspace = \"allow\"\n");
    let vms = ["vm1", "vm2"].map(|vm_id| daemon.json(&["vm", "create", vm_id, "--workspace", "shared"]));
    assert_only("isolation", &seen(&lab, &vms));
}

#[test]
fn a_guest_without_dhcp_is_noticed() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let problems = problems(&lab, &daemon, |lab| {
        // Before the bridge hands the frame to anyone, the server's packet socket included.
        lab.on_host("nft", &["add table bridge broken"]);
        lab.on_host("nft", &["add chain bridge broken pre { type filter hook prerouting priority -300; }"]);
        lab.on_host("nft", &["add rule bridge broken pre udp dport 67 drop"]);
    });
    let without_lease = problems.iter().filter(|problem| problem.ends_with(": dhcp: no lease")).count();
    assert_eq!(without_lease, 2, "{problems:#?}");
}

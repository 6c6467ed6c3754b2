//! The service stops, crashes and comes back; guests do not notice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::lab::guest::Boot;
use crate::lab::{Daemon, Guest, Lab, Machine, assert_same};

/// The guest pings the internet every 20 ms by its own clock, which an emulated guest on a busy machine may see pass
/// slowly. Returns how many of the pings got no answer, after `again` has been repeated until it has happened under
/// `WHILE_IT_HAPPENS` answered pings, and as many answers have come after it.
fn lost_while(guest: &mut Guest, mut again: impl FnMut()) -> usize {
    const WHILE_IT_HAPPENS: usize = 20;
    guest.succeed("ping -i 0.02 198.51.100.10 >/tmp/pings & echo $! >/tmp/pid");
    let answered = |guest: &mut Guest| -> BTreeSet<usize> {
        let replies = guest.succeed("cat /tmp/pings");
        let sequence = |line: &str| line.split_once("seq=")?.1.split(' ').next()?.parse().ok();
        replies.lines().filter_map(sequence).collect()
    };
    let mut until = |count: usize, again: &mut dyn FnMut()| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = answered(guest);
            if seen.len() >= count {
                return seen;
            }
            assert!(Instant::now() < deadline, "not {count} answers in a minute: {seen:?}");
            again();
        }
    };
    let before = until(1, &mut || {}).len();
    let during = until(before + WHILE_IT_HAPPENS, &mut again).len();
    let seen = until(during + WHILE_IT_HAPPENS, &mut || {});
    // An answer that is missing before another one is lost; the last pings may still have been on their way.
    let sent = seen.last().expect("an answer") + 1;
    sent - seen.len()
}

fn booted(lab: &Lab, daemon: &Daemon<'_>) -> (serde_json::Value, Guest) {
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let mut guest =
        Guest::boot(lab, &Boot { machine: Machine::default(), network: &vm, kernel_arguments: "" });
    guest.event("ready");
    (vm, guest)
}

#[test]
fn a_restart_loses_no_packet_and_no_vm() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let (vm, mut guest) = booted(&lab, &daemon);
    let before = lab.host_state();
    let mut running = Some(daemon);
    let lost = lost_while(&mut guest, || {
        assert!(running.take().expect("a daemon").stop().success());
        running = Some(Daemon::start(&lab));
    });
    assert_eq!(lost, 0);
    let daemon = running.expect("a daemon");
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    assert_same(&before, &lab.host_state());
    guest.succeed("timeout 10 nslookup -type=a web.example.com.");
}

#[test]
fn a_crash_loses_no_packet_and_no_vm() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let (vm, mut guest) = booted(&lab, &daemon);
    let before = lab.host_state();
    let mut running = Some(daemon);
    let lost = lost_while(&mut guest, || {
        running.take().expect("a daemon").crash();
        running = Some(Daemon::start(&lab));
    });
    assert_eq!(lost, 0);
    let daemon = running.expect("a daemon");
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    assert_same(&before, &lab.host_state());
    // What is taken stays taken, and what was deleted after the crash is gone.
    assert_ne!(daemon.json(&["vm", "create", "vm2"])["ip_address"], vm["ip_address"]);
    drop(guest);
    daemon.guestnet(&["vm", "delete", "vm1", "vm2"]);
    assert!(!lab.on_host("ip", &["netns", "list"]).contains("vm-"));
}

#[test]
fn what_an_admin_broke_is_mended_at_the_next_start() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let before = lab.host_state();
    assert!(daemon.stop().success());
    lab.on_host("ip", &["link", "del", "gv0"]);
    lab.on_host("iptables", &["-F"]);
    lab.on_host("iptables", &["-t", "nat", "-F"]);
    let daemon = Daemon::start(&lab);
    assert_same(&before, &lab.host_state());
    let mut guest =
        Guest::boot(&lab, &Boot { machine: Machine::default(), network: &vm, kernel_arguments: "" });
    guest.event("ready");
    guest.succeed("timeout 10 wget -q -O - http://web.example.com/");
    drop(daemon);
}

#[test]
fn a_vm_that_cannot_be_mended_does_not_keep_the_others_offline() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    daemon.guestnet(&["vm", "create", "vm1"]);
    let vm2 = daemon.json(&["vm", "create", "vm2"]);
    assert!(daemon.stop().success());
    // Somebody's namespace stands where vm1's has to be.
    lab.on_host("ip", &["netns", "del", "vm-vm1"]);
    lab.on_host("ip", &["netns", "add", "vm-vm1"]);
    let daemon = Daemon::start(&lab);
    assert!(
        daemon.log().contains("could not be mended") && daemon.log().contains("vm-vm1"),
        "{}",
        daemon.log()
    );
    let mut guest =
        Guest::boot(&lab, &Boot { machine: Machine::default(), network: &vm2, kernel_arguments: "" });
    assert_eq!(guest.event("lease").get("ip"), vm2["ip_address"]);
    drop(guest);
    lab.on_host("ip", &["netns", "del", "vm-vm1"]);
    daemon.guestnet(&["vm", "delete", "vm1", "vm2"]);
    assert_same(&before, &lab.host_state());
}

#[test]
fn a_configuration_without_a_place_for_a_stored_vm_is_refused_with_its_name() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "vm1"]);
    assert!(daemon.stop().success());
    let before = lab.host_state();
    let other = "[[network]]\nbridge_ip = \"10.9.0.1/16\"\nvm_subnet = \"10.9.0.0/16\"\n";
    let refused = crate::lab::daemon::serve_command(&lab, other).output().unwrap();
    let said = crate::lab::text(&refused);
    assert!(
        refused.status.code() == Some(1) && said.contains("VM vm1") && said.contains("10.9.0.0/16"),
        "{said}"
    );
    assert_same(&before, &lab.host_state());
}

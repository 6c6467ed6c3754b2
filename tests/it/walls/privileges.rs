//! What the service may do to the host.

use crate::lab::{Daemon, Lab};

/// CHOWN, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE, NET_BROADCAST, NET_ADMIN, NET_RAW, SYS_ADMIN: no SYS_MODULE, SYS_PTRACE, SETUID …
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 21;

/// Of every task of a process: what of these sets it has beyond `NEEDED`, and whether it may get more by what it runs.
fn beyond(pid: u32) -> Vec<(u64, bool)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |status: String| {
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let set = |key: &str| value(key).map(|value| u64::from_str_radix(value, 16).unwrap());
        let sets = ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"].map(|key| set(key).unwrap());
        (sets.iter().fold(0, |all, set| all | set) & !NEEDED, value("NoNewPrivs:") != Some("1"))
    };
    // One that has ended meanwhile has none.
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses.map(of).collect()
}

#[test]
fn the_service_keeps_only_the_capabilities_that_it_needs() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let tasks = beyond(daemon.pid());
    assert!(tasks.len() > 1 && tasks.iter().all(|task| *task == (0, false)), "{tasks:x?}");
    // Root that nobody has confined, as this is, has more: the same look says so.
    let own = beyond(std::process::id());
    assert!(own.iter().all(|(more, privileges)| *more != 0 && *privileges), "{own:x?}");
}

#[test]
fn what_the_service_does_needs_each_capability_that_it_keeps_for_it() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // Devices, namespaces, rules, packet sockets, ports below 1024: a VM and its network.
    daemon.guestnet(&["vm", "create", "a", "--tap-uid", "12345", "--tap-gid", "12345"]);
    daemon.guestnet(&["vm", "delete", "a"]);
    let pid = daemon.pid().to_string();
    let kept = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kept = kept.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim().to_owned();
    assert_eq!(u64::from_str_radix(&kept, 16).unwrap(), NEEDED);
    // The unit bounds it to the same.
    let unit = include_str!("../../../packaging/guestnet.service");
    let bound = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let number = |name: &str| match name {
        "CAP_CHOWN" => 0,
        "CAP_DAC_OVERRIDE" => 1,
        "CAP_FOWNER" => 3,
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_BROADCAST" => 11,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_SYS_ADMIN" => 21,
        other => panic!("{other} is not what the service needs"),
    };
    assert_eq!(bound.split(' ').fold(0, |set, name| set | 1_u64 << number(name)), NEEDED);
}

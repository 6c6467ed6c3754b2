//! What is ours by record and belongs to nobody is found and removed; what is somebody else's beside it stays.

use serde_json::Value;

use crate::crash::assert_consistent;
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, assert_says};
use crate::slots::{eventually, slots};

/// Index of a device.
fn index(lab: &Lab, device: &str) -> u32 {
    let shown: Value = serde_json::from_str(&lab.on_host("ip", &["-j", "link", "show", device])).unwrap();
    u32::try_from(shown[0]["ifindex"].as_u64().unwrap()).unwrap()
}

#[test]
fn what_has_no_owner_is_removed_and_nothing_else() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 2\n");
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let (port, netns) = (vm["host_device"].as_str().unwrap(), vm["namespace"].as_str().unwrap());
    let host = |line: &str| lab.on_host("sh", &["-c", line]);
    eventually("two slots are ready beside the VM's", || slots(&lab) == 3);
    // Somebody else's, each like one of ours.
    for line in [
        "ip link add gv77 type veth peer name p77",
        "ip link add br-other type bridge && ip addr add 192.0.2.1/24 dev br-other && ip link set br-other up",
        "ip netns add guestnet-88",
        "ip netns add vm-other",
        "ip route add 203.0.113.0/24 dev br-other proto 4",
        "ip route add unreachable 203.0.114.0/24",
        "ip link set gv77 master br-other && bridge fdb add 06:00:00:00:00:07 dev gv77 master static",
        "ip neigh add 192.0.2.9 lladdr 06:00:00:00:00:09 nud permanent dev br-other",
    ] {
        host(line);
    }
    let before = lab.host_state();
    assert_eq!(daemon.json(&["gc", "--dry-run"]), serde_json::json!([]));
    assert!(daemon.guestnet(&["gc", "--apply"]).contains("nothing is left over"));

    // Ours by its marks, of a slot and of VMs that there are not.
    let (first, bridge) = (index(&lab, port), index(&lab, "br-vms"));
    let slot: u32 = port.strip_prefix("gv").unwrap().parse().unwrap();
    let of_slot = first - slot + 300;
    let ready = if slot == 1 { "gv0" } else { "gv1" };
    for line in [
        "ip netns add guestnet-300".to_owned(),
        format!("ip netns exec guestnet-300 ip link set lo alias 'guestnet {of_slot}'"),
        format!("ip link add gv300 index {of_slot} type veth peer name in0 netns guestnet-300"),
        format!("ip link add strange index {} type bridge", bridge + 100),
        "ln -s guestnet-300 /run/netns/vm-gone".to_owned(),
        "ip route add 10.100.7.7/32 dev br-vms proto 103 scope link".to_owned(),
        "ip route add unreachable 10.99.0.0/16 proto 103".to_owned(),
        "ip neigh add 10.100.7.7 lladdr 06:00:0a:64:07:07 nud permanent dev br-vms".to_owned(),
        // On a slot that waits: a guest's own port is put right by whatever look comes by.
        format!("bridge fdb add 06:00:0a:64:07:07 dev {ready} master static"),
        "ip addr add 10.100.0.99/32 dev br-vms".to_owned(),
    ] {
        host(&line);
    }
    let planted = lab.host_state();
    let kinds = |found: &Value, removed: bool| -> Vec<String> {
        let found = found.as_array().unwrap();
        assert!(found.iter().all(|of| of["removed"] == removed && of["error"] == ""), "{found:?}");
        found.iter().map(|of| of["kind"].as_str().unwrap().to_owned()).collect()
    };
    let wanted = [
        "forwarding_entry",
        "route",
        "route",
        "neighbour",
        "address",
        "name",
        "device",
        "device",
        "namespace",
    ];
    let found = daemon.json(&["gc", "--dry-run"]);
    let mut dry = kinds(&found, false);
    dry.sort();
    let mut sorted = wanted.map(str::to_owned);
    sorted.sort();
    assert_eq!(dry, sorted, "{found:#}");
    assert_same(&planted, &lab.host_state());

    let mut applied = kinds(&daemon.json(&["gc", "--apply"]), true);
    applied.sort();
    assert_eq!(applied, sorted);
    assert_same(&before, &lab.host_state());
    assert_eq!(daemon.json(&["gc", "--dry-run"]), serde_json::json!([]));
    // What is somebody else's is all there, and the guest is online.
    for (line, seen) in [
        ("ip neigh show dev br-other", "192.0.2.9"),
        ("bridge fdb show dev gv77", "06:00:00:00:00:07"),
        ("ip netns list", "guestnet-88"),
    ] {
        assert!(host(line).contains(seen), "{line}");
    }
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    assert!(host("ip netns list").contains(netns));
    host(
        "ip netns del guestnet-88; ip netns del vm-other; ip link del gv77; ip link del br-other; ip route del unreachable 203.0.114.0/24",
    );
    assert_consistent(&lab, &daemon);
    assert_says(&daemon.client(&["gc"]), 2, &["--dry-run", "--apply"]);
}

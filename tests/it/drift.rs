//! Somebody else changes what is ours while the service runs: it is put right, with an event, and the guest is online again.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Daemon, Lab, TapGuest, WEB, WEB_NAME, assert_same};
use crate::slots::eventually;

/// Longer than it takes by far: the machine may be busy. What it takes is said in docs/operations.md.
const LIMIT: Duration = Duration::from_secs(60);

/// What the service tells of drift, as it happens.
struct Told {
    events: Receiver<Value>,
    watch: Child,
}

impl Told {
    fn by(daemon: &Daemon<'_>) -> Self {
        let asked = ["events", "--kind", "drift_repaired", "--kind", "drift_reported", "--json"];
        // What is remembered of before is told first.
        let before = daemon.guestnet(&[&asked[..], &["--no-follow"]].concat()).lines().count();
        let mut watch = daemon.client_command(&asked).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).skip(before) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { events, watch }
    }

    /// Waits for the event of that kind whose detail has these words; those before it.
    fn until(&self, daemon: &Daemon<'_>, kind: &str, words: &str) -> Vec<Value> {
        let deadline = Instant::now() + LIMIT;
        let mut before = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = self.events.recv_timeout(left) else {
                panic!("no {kind} with {words:?}, but {before:?}\n{}", daemon.log());
            };
            let found = event["kind"] == kind && event["detail"].as_str().unwrap().contains(words);
            before.push(event);
            if found {
                return before;
            }
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

const NOTED: &str = "somebody else has changed what may be ours";

/// How often it was looked for drift; `None` before the first look, and while one is under way or due.
pub(crate) fn looks(daemon: &Daemon<'_>) -> Option<usize> {
    let (begun, over) =
        ("looking for what somebody else", "the look for what somebody else has changed is over");
    let log = daemon.log();
    let is_over = log.rfind(over) > log.rfind(begun).max(log.rfind(NOTED));
    is_over.then(|| log.matches(over).count())
}

/// Waits until no look is under way, due or to come of what has been changed; how many there were.
pub(crate) fn quiet(daemon: &Daemon<'_>) -> Option<usize> {
    let mut before = None;
    eventually("no look is under way, due or to come", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = looks(daemon);
        std::mem::replace(&mut before, now) == now && now.is_some()
    });
    before
}

/// A guest on the TAP before anything is broken, online.
fn scene<'lab>(lab: &'lab Lab) -> (Daemon<'lab>, Value, TapGuest) {
    let daemon = Daemon::start(lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(lab, &vm);
    online(&guest, &vm);
    (daemon, vm, guest)
}

/// Its address out and back, a name by the resolver, a lease.
fn online(guest: &TapGuest, vm: &Value) {
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    guest.run("busybox", &["nslookup", "-type=a", WEB_NAME, vm["gateway"].as_str().unwrap()]);
    let mut leased = guest.namespace.command("busybox");
    let leased = leased.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]).output().unwrap();
    let said = crate::lab::text(&leased);
    assert!(said.contains(vm["ip_address"].as_str().unwrap()), "{said}");
}

/// Breaks something on the host, and waits until all is as it was.
fn mended(lab: &Lab, daemon: &Daemon<'_>, broken: &[&str], words: &str) -> Vec<Value> {
    let (told, before) = (Told::by(daemon), lab.host_state());
    lab.on_host(broken[0], &broken[1..]);
    let events = told.until(daemon, "drift_repaired", words);
    eventually("the host is as it was", || lab.host_state() == before);
    assert_same(&before, &lab.host_state());
    events
}

#[test]
fn a_veth_that_was_deleted_is_made_again_and_a_live_guest_is_back() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let events =
        mended(&lab, &daemon, &["ip", "link", "del", vm["host_device"].as_str().unwrap()], "made again");
    let of_vm: Vec<&Value> = events.iter().filter(|event| event["vm_id"] == "vm1").collect();
    assert_eq!(of_vm.len(), 1, "{events:?}");
    assert_eq!(of_vm[0]["network_id"], "default");
    // The same TAP, which its VMM has had open all the while, with the same MAC and address.
    online(&guest, &vm);
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    let metrics = daemon.guestnet(&["events", "--kind", "drift_repaired", "--no-follow"]);
    assert!(metrics.contains("vm1"), "{metrics}");
    assert!(daemon.log().contains("repaired what somebody else had changed"));
}

#[test]
fn a_ports_state_its_route_its_neighbour_and_its_entry_come_back() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let (port, address) = (vm["host_device"].as_str().unwrap(), vm["ip_address"].as_str().unwrap());
    let mac = vm["mac_address"].as_str().unwrap();
    let neighbour = || lab.on_host("ip", &["neigh", "show", address]);
    let entry = || lab.on_host("bridge", &["fdb", "show", "dev", port]);
    let flags = || lab.on_host("bridge", &["-d", "link", "show", "dev", port]);
    let (neighbours, entries, closed) = (neighbour(), entry(), flags());
    let route = format!("{address}/32");
    let rate = || lab.on_host("tc", &["qdisc", "show", "dev", port, "root"]);
    let limited = rate();
    let changed =
        ["tc", "qdisc", "change", "dev", port, "root", "tbf", "rate", "1mbit", "burst", "64k", "limit", "1m"];
    let broken: [(&[&str], &str); 8] = [
        (&["ip", "link", "set", port, "down"], "made again, port"),
        (&["ip", "link", "set", port, "nomaster"], "was off its bridge"),
        (&["bridge", "link", "set", "dev", port, "isolated", "off"], "made again, port"),
        (&["ip", "route", "del", &route], "made again, route"),
        (&["ip", "neigh", "del", address, "dev", "br-vms"], "made again, neighbour"),
        (&["bridge", "fdb", "del", mac, "dev", port, "master", "static"], "made again, forwarding entry"),
        (&changed, "made again, the rate limit"),
        (&["tc", "qdisc", "del", "dev", port, "root"], "made again, the rate limit"),
    ];
    for (command, words) in broken {
        mended(&lab, &daemon, command, words);
        eventually("all that is not in the state compared", || {
            neighbour() == neighbours && entry() == entries && flags() == closed
        });
        // Not the handle, which is a new queue's own.
        let words = |shown: &str| shown.split(' ').skip(3).map(str::to_owned).collect::<Vec<_>>();
        eventually("its limit", || words(&rate()) == words(&limited));
        online(&guest, &vm);
    }
}

#[test]
fn what_somebody_changes_inside_a_guests_namespace_is_made_again() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let inside = |arguments: &[&'static str]| [&["tc", "-n", "vm-vm1"], arguments].concat();
    let filters =
        |device: &str| lab.on_host("tc", &["-n", "vm-vm1", "filter", "show", "dev", device, "ingress"]);
    let joined = || {
        [("in0", "tap0"), ("tap0", "in0")]
            .iter()
            .all(|(from, to)| filters(from).contains(&format!("mirred (Egress Redirect to device {to})")))
    };
    assert!(joined(), "{}", filters("in0"));
    let slower =
        ["qdisc", "change", "dev", "in0", "root", "tbf", "rate", "1mbit", "burst", "64k", "limit", "1m"];
    for (broken, words) in [
        (&["qdisc", "del", "dev", "in0", "root"][..], "made again, the rate limit"),
        (&slower, "made again, the rate limit"),
        (&["qdisc", "del", "dev", "in0", "ingress"], "made again, the redirect"),
        (&["qdisc", "del", "dev", "tap0", "ingress"], "made again, the redirect"),
        (&["filter", "del", "dev", "in0", "ingress"], "made again, the redirect"),
        (&["filter", "del", "dev", "tap0", "ingress"], "made again, the redirect"),
    ] {
        let events = mended(&lab, &daemon, &inside(broken), words);
        assert!(events.iter().any(|event| event["vm_id"] == "vm1"), "{broken:?}: {events:?}");
        eventually("the redirect both ways", joined);
        online(&guest, &vm);
    }
    // A limit that we change ourselves is no drift.
    let before = quiet(&daemon);
    daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", "50"]);
    daemon.guestnet(&["vm", "create", "other", "--rate-mbps", "7"]);
    daemon.guestnet(&["vm", "delete", "other"]);
    assert_eq!(quiet(&daemon), before, "our own changes are no drift\n{}", daemon.log());
    // One that waits for a VM is given to none.
    let told = Told::by(&daemon);
    let ready = lab.on_host("sh", &["-c", "ls /run/netns | grep guestnet- | grep -v guestnet-0 | head -1"]);
    lab.on_host("tc", &["-n", ready.trim(), "qdisc", "del", "dev", "in0", "root"]);
    told.until(&daemon, "drift_repaired", "kept ready were broken");
    crate::crash::assert_consistent(&lab, &daemon);
}

/// A VMM of another user has its TAP open, when its name and more is taken away.
#[test]
fn all_but_an_open_tap_is_made_again_at_a_start_and_while_it_runs() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--tap-uid", "65534"]);
    let guest = TapGuest::attach(&lab, &vm);
    online(&guest, &vm);
    let before = lab.host_state();
    let break_it = || {
        lab.on_host("rm", &["/run/netns/vm-vm1"]);
        lab.on_host("ip", &["neigh", "del", vm["ip_address"].as_str().unwrap(), "dev", "br-vms"]);
        lab.on_host("ip", &["route", "del", &format!("{}/32", vm["ip_address"].as_str().unwrap())]);
    };
    break_it();
    eventually("the host is as it was", || lab.host_state() == before);
    online(&guest, &vm);
    assert!(daemon.stop().success());
    break_it();
    let daemon = Daemon::start(&lab);
    assert_same(&before, &lab.host_state());
    online(&guest, &vm);
    assert!(!daemon.log().contains("could not be mended"), "{}", daemon.log());
}

#[test]
fn a_slot_that_waits_for_a_vm_is_given_to_none_once_somebody_has_changed_it() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let broken: [&[&str]; 5] = [
        &[
            "tc", "qdisc", "change", "dev", "gv4", "root", "tbf", "rate", "1mbit", "burst", "64k", "limit",
            "1m",
        ],
        &["ip", "link", "set", "gv0", "down"],
        &["bridge", "link", "set", "dev", "gv1", "isolated", "off"],
        &["bridge", "link", "set", "dev", "gv2", "locked", "off"],
        &["tc", "qdisc", "del", "dev", "gv3", "root"],
    ];
    for command in broken {
        let told = Told::by(&daemon);
        lab.on_host(command[0], &command[1..]);
        told.until(&daemon, "drift_repaired", "kept ready were broken");
    }
    for n in 0..5 {
        let vm = daemon.json(&["vm", "create", &format!("vm{n}")]);
        let port = vm["host_device"].as_str().unwrap();
        let flags = lab.on_host("bridge", &["-d", "link", "show", "dev", port]);
        assert!(flags.contains("isolated on") && flags.contains("locked on"), "{flags}");
        assert!(lab.on_host("tc", &["qdisc", "show", "dev", port]).contains("tbf"));
        online(&TapGuest::attach(&lab, &vm), &vm);
    }
}

#[test]
fn a_bridge_that_was_removed_is_back_with_all_that_was_on_it() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let other = daemon.json(&["vm", "create", "vm2"]);
    let other_guest = TapGuest::attach(&lab, &other);
    let told = Told::by(&daemon);
    mended(&lab, &daemon, &["ip", "link", "del", "br-vms"], "bridge br-vms was gone");
    for vm_id in ["vm1", "vm2"] {
        eventually("an event for each VM", || {
            daemon
                .guestnet(&["events", "--kind", "drift_repaired", "--vm", vm_id, "--no-follow"])
                .contains("off its bridge")
        });
    }
    drop(told);
    online(&guest, &vm);
    online(&other_guest, &other);
    // And further guests.
    let third = daemon.json(&["vm", "create", "vm3"]);
    online(&TapGuest::attach(&lab, &third), &third);
}

#[test]
fn a_bridge_that_is_down_or_has_lost_its_address_is_brought_back() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    mended(&lab, &daemon, &["ip", "link", "set", "br-vms", "down"], "bridge br-vms was down");
    online(&guest, &vm);
    mended(&lab, &daemon, &["ip", "addr", "flush", "dev", "br-vms"], "bridge br-vms was down or had lost");
    online(&guest, &vm);
    mended(&lab, &daemon, &["ip", "route", "del", "unreachable", "10.100.0.0/16"], "route unreachable");
}

#[test]
fn a_tap_that_was_deleted_alone_is_heard_of_and_made_again() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let events = mended(&lab, &daemon, &["ip", "-n", "vm-vm1", "link", "del", "tap0"], "made again");
    assert!(events.iter().any(|event| event["vm_id"] == "vm1"), "{events:?}");
    drop(guest);
    // Restarted, for its VMM has lost the device.
    let guest = TapGuest::attach(&lab, &vm);
    online(&guest, &vm);
    // One that waits for a VM is not given to any.
    let ready = lab.on_host("sh", &["-c", "ls /run/netns | grep guestnet- | grep -v guestnet-0 | head -1"]);
    mended(&lab, &daemon, &["ip", "-n", ready.trim(), "link", "del", "tap0"], "kept ready were broken");
    crate::crash::assert_consistent(&lab, &daemon);
    for n in 0..8 {
        let other = daemon.json(&["vm", "create", &format!("other{n}")]);
        online(&TapGuest::attach(&lab, &other), &other);
    }
    // A VM that goes takes its slot's TAP with it in the end: that is no drift.
    let before = quiet(&daemon);
    let ids: Vec<String> = (0..8).map(|n| format!("other{n}")).collect();
    daemon.guestnet(&[&["vm", "delete"], &ids.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    let waiting = || crate::slots::slots(&lab) <= 1 + 8 + 2;
    eventually("what is too many is gone", waiting);
    assert_eq!(quiet(&daemon), before, "our own changes are no drift\n{}", daemon.log());
}

#[test]
fn a_flushed_firewall_comes_back_and_the_walls_were_never_gone() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let walls = || lab.on_host("nft", &["-nn", "list", "tables"]);
    for broken in [
        &["iptables", "-F"][..],
        &["iptables", "-t", "nat", "-F"],
        &["iptables", "-D", "FORWARD", "-m", "comment", "--comment", "guestnet", "-j", "GUESTNET-FORWARD"],
        &["iptables", "-F", "GUESTNET-INPUT"],
        &["nft", "flush", "ruleset"],
    ] {
        mended(&lab, &daemon, broken, "of iptables were gone");
        let tables = walls();
        assert!(
            tables.contains("inet guestnet") && tables.contains("bridge guestnet"),
            "{broken:?}: {tables}"
        );
        online(&guest, &vm);
    }
    // A rule that somebody puts before ours goes behind.
    let told = Told::by(&daemon);
    lab.on_host("iptables", &["-I", "FORWARD", "1", "-i", "br-vms", "-j", "DROP"]);
    told.until(&daemon, "drift_repaired", "of iptables");
    online(&guest, &vm);
    let refused = lab.host_command("nft").args(["delete", "table", "inet", "guestnet"]).output().unwrap();
    assert!(!refused.status.success(), "the walls are the service's alone");
}

/// On a host whose iptables is the one of before nf_tables: the kernel tells nobody of its changes.
#[test]
fn a_flushed_iptables_legacy_comes_back_too() {
    let lab = Lab::new();
    lab.on_host("mount", &["--bind", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"]);
    assert!(lab.on_host("iptables", &["--version"]).contains("legacy"));
    let (daemon, vm, guest) = scene(&lab);
    for broken in [
        &["iptables", "-F"][..],
        &["iptables", "-t", "nat", "-F"],
        &["iptables", "-D", "FORWARD", "-m", "comment", "--comment", "guestnet", "-j", "GUESTNET-FORWARD"],
    ] {
        mended(&lab, &daemon, broken, "of iptables were gone");
        online(&guest, &vm);
    }
    // As many rules as before, of the same size: the jump leads to a chain of somebody else's.
    lab.on_host("iptables", &["-N", "GUESTNET-FORWARE"]);
    quiet(&daemon);
    let told = Told::by(&daemon);
    let rule = ["-m", "comment", "--comment", "guestnet", "-j"];
    lab.on_host("iptables", &[&["-R", "FORWARD", "1"], &rule[..], &["GUESTNET-FORWARE"]].concat());
    told.until(&daemon, "drift_repaired", "of iptables were gone");
    online(&guest, &vm);
    for _ in 0..2 {
        lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
        told.until(&daemon, "drift_reported", "policy of FORWARD is DROP now: guestnet's rules come first");
        online(&guest, &vm);
        lab.on_host("iptables", &["-P", "FORWARD", "ACCEPT"]);
        quiet(&daemon);
        std::thread::sleep(Duration::from_secs(1));
    }
    let before = quiet(&daemon);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(looks(&daemon), before, "nothing was changed: what is looked for?\n{}", daemon.log());
}

/// More than are asked for one by one.
#[test]
fn many_ports_that_are_changed_at_once_are_all_put_right() {
    const VMS: usize = 70;
    let lab = Lab::new();
    let (daemon, _, guest) = scene(&lab);
    let vms: Vec<Value> = (2..=VMS).map(|n| daemon.json(&["vm", "create", &format!("vm{n}")])).collect();
    let last = TapGuest::attach(&lab, vms.last().unwrap());
    quiet(&daemon);
    let before = lab.host_state();
    // Those that wait for a VM, too.
    let ports: Vec<String> = lab
        .on_host("ip", &["-br", "link", "show", "type", "veth"])
        .lines()
        .filter(|line| line.starts_with("gv"))
        .map(|line| line.split(['@', ' ']).next().unwrap().to_owned())
        .collect();
    assert!(ports.len() > VMS, "{ports:?}");
    for change in ["link set {} down", "link set {} type bridge_slave isolated off"] {
        let changes: String = ports.iter().map(|port| change.replace("{}", port) + "\n").collect();
        let batch = lab.directory().join("changes");
        std::fs::write(&batch, changes).unwrap();
        let repaired = || {
            let kinds = ["events", "--kind", "drift_repaired", "--no-follow", "--json"];
            daemon.guestnet(&kinds).lines().filter(|line| line.contains("made again, port")).count()
        };
        let logged = daemon.log().len();
        lab.on_host("ip", &["-batch", batch.to_str().unwrap()]);
        eventually("every VM's port is mended", || {
            daemon.log()[logged..].matches("made again, port").count() >= VMS
        });
        assert!(repaired() >= VMS, "{}", daemon.log());
        quiet(&daemon);
        eventually("the host is as it was", || lab.host_state() == before);
        crate::crash::assert_consistent(&lab, &daemon);
        for guest in [&guest, &last] {
            guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        }
    }
}

/// What cannot be read because it changes while it is read is no reason not to start, nor is it overlooked later.
#[test]
fn it_starts_beside_somebody_who_changes_iptables_legacy_and_notices_what_comes() {
    let lab = Lab::new();
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            // Until the sender is gone, by a panic perhaps.
            let stopped = stopped;
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                lab.on_host("iptables-legacy", &["-w", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT"]);
                lab.on_host("iptables-legacy", &["-w", "-F", "FORWARD"]);
            }
        });
        let stop = stop;
        for _ in 0..3 {
            assert!(Daemon::start(&lab).stop().success());
        }
        let daemon = Daemon::start(&lab);
        let told = Told::by(&daemon);
        lab.on_host("iptables-legacy", &["-w", "-P", "FORWARD", "DROP"]);
        told.until(&daemon, "drift_reported", "iptables-legacy is DROP now: guests are cut off");
        drop(stop);
        changing.join().unwrap();
    });
}

/// Somebody uses it beside the iptables that our rules are in.
#[test]
fn a_policy_of_iptables_legacy_that_drops_is_reported_where_ours_is_another() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let told = Told::by(&daemon);
    lab.on_host("iptables-legacy", &["-P", "FORWARD", "DROP"]);
    told.until(&daemon, "drift_reported", "iptables-legacy is DROP now: guests are cut off");
    lab.on_host("iptables-legacy", &["-P", "FORWARD", "ACCEPT"]);
    online(&guest, &vm);
}

#[test]
fn a_forward_chain_that_drops_is_reported_and_guests_go_on() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    let told = Told::by(&daemon);
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    told.until(&daemon, "drift_reported", "policy of FORWARD is DROP");
    online(&guest, &vm);
    let doctor = crate::lab::text(&daemon.client(&["doctor"]));
    assert!(
        doctor.contains("guestnet's rules come first in FORWARD of iptables, whose policy is DROP"),
        "{doctor}"
    );
    // Firewalld's way: a table of its own, which knows nothing of us.
    lab.on_host("nft", &["add", "table", "inet", "strict"]);
    let chain = "{ type filter hook forward priority 10; policy drop; }";
    lab.on_host("nft", &["add", "chain", "inet", "strict", "forward", chain]);
    told.until(&daemon, "drift_reported", "chain forward of the nf_tables table strict");
    let mut ping = guest.namespace.command("busybox");
    let ping = ping.args(["ping", "-c", "1", "-W", "1", WEB]).output().unwrap();
    assert!(!ping.status.success(), "a foreign table decides too: that is why it is reported");
    let doctor = crate::lab::text(&daemon.client(&["doctor"]));
    assert!(doctor.contains("strict"), "{doctor}");
    lab.on_host("nft", &["delete", "table", "inet", "strict"]);
    online(&guest, &vm);
}

/// What is done to a host, and what it is that is repaired then.
const BROKEN: [(&[&str], &str); 6] = [
    (&["tc", "-n", "vm-vm1", "qdisc", "del", "dev", "in0", "ingress"], "made again, the redirect"),
    (&["ip", "link", "del", "gv0"], "made again, veth"),
    (&["iptables", "-F"], "of iptables were gone"),
    (&["nft", "flush", "ruleset"], "of iptables were gone"),
    (&["ip", "link", "del", "br-vms"], "bridge br-vms was gone"),
    (
        &[
            "tc", "qdisc", "change", "dev", "gv0", "root", "tbf", "rate", "1mbit", "burst", "64k", "limit",
            "1m",
        ],
        "rate limit",
    ),
];

/// The kernel's word is the only reason to look: a look is begun by nothing else, however long it is waited for one. So what is
/// repaired was heard of; how soon is told by the log. A machine that is busy may give the service no second of its own, so what is
/// asserted is that of some tries one is in time: a look from time to time would not be seen at all, or in the first part.
#[test]
fn drift_is_heard_of_from_the_kernel_alone_and_repaired_within_a_second() {
    const TRIES: usize = 20;
    let lab = Lab::new();
    let (daemon, _vm, _guest) = scene(&lab);
    let before = quiet(&daemon);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(looks(&daemon), before, "nothing was changed: what is looked for?\n{}", daemon.log());
    for (broken, repaired) in BROKEN {
        let mut took = Vec::new();
        let in_time = (0..TRIES).any(|_| {
            quiet(&daemon);
            let (state, logged) = (lab.host_state(), daemon.log().len());
            let changed = jiff::Timestamp::now();
            lab.on_host(broken[0], &broken[1..]);
            let at = |words: &[&str]| {
                let log = daemon.log();
                let line = log[logged..].lines().find(|line| words.iter().all(|word| line.contains(word)))?;
                let line: Value = serde_json::from_str(line).unwrap();
                let at: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
                Some(at.duration_since(changed).as_secs_f64())
            };
            let is_repaired = || at(&["repaired what somebody else had changed", repaired]);
            eventually(&format!("the repair after {broken:?}"), || is_repaired().is_some());
            eventually("the host is as it was", || lab.host_state() == state);
            took.push((at(&[NOTED]).expect("heard of before it was repaired"), is_repaired().unwrap()));
            took.last().unwrap().1 <= 1.0
        });
        assert!(in_time, "{broken:?}: seconds until it was heard of, and repaired: {took:?}");
    }
}

#[test]
fn calls_go_on_while_it_is_repaired_and_nothing_spins() {
    let lab = Lab::new();
    let (daemon, vm, guest) = scene(&lab);
    // An admin, or a program of theirs, that does it again and again.
    std::thread::scope(|scope| {
        let breaking = scope.spawn(|| {
            for _ in 0..30 {
                let _ = lab
                    .host_command("ip")
                    .args(["link", "del", vm["host_device"].as_str().unwrap()])
                    .output();
                let _ = lab.host_command("iptables").args(["-F"]).output();
            }
        });
        for n in 0..20 {
            daemon.guestnet(&["vm", "create", &format!("other{n}")]);
            daemon.guestnet(&["vm", "delete", &format!("other{n}")]);
        }
        breaking.join().unwrap();
    });
    let port = vm["host_device"].as_str().unwrap();
    eventually("the port is back", || {
        let ports = lab.host_command("bridge").args(["link", "show", "dev", port]).output().unwrap();
        crate::lab::text(&ports).contains("master br-vms")
    });
    eventually("the guest is online", || {
        let mut ping = guest.namespace.command("busybox");
        ping.args(["ping", "-c", "1", "-W", "1", WEB]).output().unwrap().status.success()
    });
    online(&guest, &vm);
    crate::crash::assert_consistent(&lab, &daemon);
    // Once all is well nothing is looked at any more, however many VMs come and go.
    let mut before = None;
    eventually("it is quiet", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = looks(&daemon);
        std::mem::replace(&mut before, now) == now && now.is_some()
    });
    let noted = || daemon.log().matches(NOTED).count();
    let noted_before = noted();
    for n in 0..5 {
        daemon.guestnet(&["vm", "create", &format!("other{n}")]);
        daemon.guestnet(&["vm", "delete", &format!("other{n}")]);
    }
    // What is not ours is the first that is noted.
    lab.on_host("ip", &["addr", "add", "10.100.0.99/32", "dev", "br-vms"]);
    eventually("it is looked for", || noted() > noted_before && looks(&daemon).is_some());
    let after = (noted(), looks(&daemon));
    let wanted = (noted_before + 1, before.map(|looks| looks + 1));
    assert_eq!(after, wanted, "our own changes are no drift\n{}", daemon.log());
}

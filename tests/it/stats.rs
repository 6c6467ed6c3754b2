//! What a guest has sent and received, as it is billed.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_says};

const COUNTERS: [&str; 8] = [
    "rx_bytes",
    "tx_bytes",
    "rx_packets",
    "tx_packets",
    "rx_dropped",
    "tx_dropped",
    "rx_errors",
    "tx_errors",
];

fn stats(daemon: &Daemon<'_>, vm_id: &str) -> Value {
    daemon.json(&["stats", vm_id])[0].clone()
}

fn counter(stats: &Value, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or_else(|| panic!("no {name}: {stats}"))
}

fn ping(guest: &TapGuest, count: &str) {
    guest.run("busybox", &["ping", "-i", "0.05", "-c", count, "-s", "1000", "-W", "5", WEB]);
}

/// Waits until what the guest has counted is what it is billed: the last frame may be on its way.
fn settled(daemon: &Daemon<'_>, guest: &TapGuest, vm_id: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let billed = stats(daemon, vm_id);
        let own = |name: &&&str| guest.counter(name) == counter(&billed, name);
        if COUNTERS[..4].iter().all(|name| own(&name)) {
            return billed;
        }
        let of_guest: Vec<u64> = COUNTERS[..4].iter().map(|name| guest.counter(name)).collect();
        assert!(Instant::now() < deadline, "the guest counted {of_guest:?}, billed is {billed}");
    }
}

fn assert_not_less(before: &Value, after: &Value) {
    for name in COUNTERS {
        assert!(counter(after, name) >= counter(before, name), "{name} went back: {before} {after}");
    }
}

#[test]
fn a_guest_is_billed_what_it_has_sent_and_received() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let (vm1, vm2) = (daemon.json(&["vm", "create", "vm1"]), daemon.json(&["vm", "create", "vm2"]));
    let (guest, other) = (TapGuest::attach(&lab, &vm1), TapGuest::attach(&lab, &vm2));
    ping(&guest, "7");
    ping(&other, "1");
    let billed = settled(&daemon, &guest, "vm1");
    assert!(counter(&billed, "rx_bytes") > 7_000 && counter(&billed, "tx_packets") >= 7, "{billed}");
    // One answer for all says the same, ordered by vm_id.
    settled(&daemon, &other, "vm2");
    let all = daemon.json(&["stats"]);
    assert_eq!((all[0]["vm_id"].as_str(), all[1]["vm_id"].as_str()), (Some("vm1"), Some("vm2")));
    for name in COUNTERS {
        assert_eq!(all[0][name], billed[name]);
    }
    assert!(daemon.guestnet(&["stats", "vm1"]).starts_with("VM_ID  RX_BYTES"));
}

#[test]
fn restarts_of_the_service_take_nothing_back_and_lose_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    ping(&guest, "3");
    let first = settled(&daemon, &guest, "vm1");
    assert!(daemon.stop().success());
    ping(&guest, "3");
    let daemon = Daemon::start(&lab);
    let second = settled(&daemon, &guest, "vm1");
    assert_not_less(&first, &second);
    daemon.crash();
    ping(&guest, "3");
    let daemon = Daemon::start(&lab);
    let third = settled(&daemon, &guest, "vm1");
    assert_not_less(&second, &third);
    assert!(counter(&third, "rx_packets") >= 9, "{third}");
}

#[test]
fn a_vm_is_not_billed_for_the_one_that_had_its_port_before() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let first = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &first);
    ping(&guest, "3");
    settled(&daemon, &guest, "vm1");
    drop(guest);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_says(&daemon.client(&["stats", "vm1"]), 1, &["vm1"]);
    for vm_id in ["vm1", "vm2"] {
        let next = daemon.json(&["vm", "create", vm_id]);
        for name in COUNTERS {
            assert_eq!(stats(&daemon, vm_id)[name], 0, "{name} of {vm_id}, which has sent nothing");
        }
        let guest = TapGuest::attach(&lab, &next);
        ping(&guest, "2");
        settled(&daemon, &guest, vm_id);
        drop(guest);
        daemon.guestnet(&["vm", "delete", vm_id]);
    }
}

#[test]
fn a_device_that_was_replaced_takes_nothing_back() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    ping(&guest, "5");
    let before = settled(&daemon, &guest, "vm1");
    assert!(daemon.stop().success());
    lab.on_host("ip", &["link", "del", vm["host_device"].as_str().unwrap()]);
    let daemon = Daemon::start(&lab);
    let after = stats(&daemon, "vm1");
    assert_not_less(&before, &after);
    ping(&guest, "5");
    let later = stats(&daemon, "vm1");
    assert!(counter(&later, "rx_bytes") >= counter(&before, "rx_bytes") + 5_000, "{before} {later}");
}

#[test]
fn a_veth_that_an_admin_deletes_under_a_live_guest_takes_nothing_back() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    let port = vm["host_device"].as_str().unwrap();
    let mut billed = stats(&daemon, "vm1");
    // The second device counts more than the first had when it went: only by its going are they told apart.
    for (round, pings) in ["5", "20", "3"].iter().enumerate() {
        ping(&guest, pings);
        let counted = stats(&daemon, "vm1");
        assert_not_less(&billed, &counted);
        let repairs =
            || daemon.guestnet(&["events", "--kind", "drift_repaired", "--vm", "vm1", "--no-follow"]);
        lab.on_host("ip", &["link", "del", port]);
        // Asked for all the while: neither while there is none, nor with the new one, is anything lost or counted twice.
        let mut last = counted.clone();
        crate::slots::eventually("its veth is made again", || {
            let now = stats(&daemon, "vm1");
            assert_not_less(&last, &now);
            last = now;
            repairs().lines().count() > round
        });
        ping(&guest, "2");
        billed = stats(&daemon, "vm1");
        assert_not_less(&last, &billed);
        let sent: u64 = pings.parse().unwrap();
        let more = counter(&billed, "tx_bytes") - counter(&counted, "tx_bytes");
        assert!(
            (2_000..2_000 + 1_000 * sent).contains(&more),
            "two pings are billed as {more}: {counted} {billed}"
        );
    }
    // All of them, with what ARP and the like add.
    assert!((34..60).contains(&counter(&billed, "tx_packets")), "{billed}");
    daemon.crash();
    let daemon = Daemon::start(&lab);
    assert_not_less(&billed, &stats(&daemon, "vm1"));
}

/// A guest that takes whatever is sent to it, from the internet.
struct Flooded {
    server: UdpSocket,
    guest: std::net::SocketAddr,
    _client: UdpSocket,
}

impl Flooded {
    fn by(lab: &Lab, guest: &TapGuest) -> Self {
        let server = lab.inet.run(|| UdpSocket::bind((WEB, 7)).unwrap());
        let client = guest.namespace.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        client.send_to(b"flood me", (WEB, 7)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (_, guest) = server.recv_from(&mut [0; 64]).unwrap();
        Self { server, guest, _client: client }
    }

    fn with(&self, packets: usize) {
        (0..packets).for_each(|_| _ = self.server.send_to(&[0; 1_400], self.guest).unwrap());
    }
}

#[test]
fn what_the_rate_limit_dropped_is_counted() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "1"]);
    let guest = TapGuest::attach(&lab, &vm);
    Flooded::by(&lab, &guest).with(2_000);
    let billed = stats(&daemon, "vm1");
    let (dropped, received) = (counter(&billed, "rx_dropped"), counter(&billed, "rx_packets"));
    assert!(dropped > 1_000 && received < 1_000, "{billed}");
}

/// What a limit has dropped is counted by the limit: another one begins at 0. Of what is told before a crash the record on the disk has
/// only what it had at the last checkpoint, some seconds ago.
#[test]
fn a_crash_after_a_limit_was_lifted_or_set_again_takes_nothing_back() {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "1"]);
    let guest = TapGuest::attach(&lab, &vm);
    let flooded = Flooded::by(&lab, &guest);
    let crash = |daemon: Daemon<'_>, told: &Value| {
        daemon.crash();
        let daemon = Daemon::start(&lab);
        assert_not_less(told, &stats(&daemon, "vm1"));
        daemon
    };
    flooded.with(600);
    let told = stats(&daemon, "vm1");
    assert!(counter(&told, "rx_dropped") > 100, "{told}");
    daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", "0"]);
    daemon = crash(daemon, &told);

    daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", "1"]);
    flooded.with(900);
    let told = stats(&daemon, "vm1");
    // Unasked for in between, the new queue has counted more than the former.
    daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", "0"]);
    daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", "1"]);
    flooded.with(1_500);
    let later = stats(&daemon, "vm1");
    let more = counter(&later, "rx_dropped") - counter(&told, "rx_dropped");
    assert!((1_000..=1_500).contains(&more), "{told} {later}");
    flooded.with(900);
    let told = stats(&daemon, "vm1");
    drop(crash(daemon, &told));
}

#[test]
fn a_watch_counts_again_and_again_and_ends_with_the_service() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    let mut watch = daemon
        .client_command(&["stats", "vm1", "--watch", "--interval", "100", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()[0]["rx_packets"], 0);
    ping(&guest, "1");
    let deadline = Instant::now() + Duration::from_secs(10);
    while counter(&next()[0], "rx_packets") == 0 {
        assert!(Instant::now() < deadline, "the watch does not see what was received");
    }
    drop(guest);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    while next() != serde_json::json!([]) {
        assert!(Instant::now() < deadline, "the watch still counts a VM that is gone");
    }
    assert!(daemon.stop().success());
    assert_eq!(watch.wait().unwrap().code(), Some(1), "a program knows that it has to watch again");
}

#[test]
fn who_watches_and_does_not_read_costs_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "vm1"]);
    // The pipe fills, nobody reads; the service answers others and stops.
    let mut deaf = daemon
        .client_command(&["stats", "--watch", "--interval", "100", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(counter(&stats(&daemon, "vm1"), "tx_bytes"), 0);
    assert_says(&daemon.client(&["stats", "vm1", "none"]), 1, &["none"]);
    assert_says(&daemon.client(&["stats", "--watch", "--interval", "99"]), 2, &["99"]);
    assert!(daemon.stop().success());
    deaf.kill().unwrap();
    deaf.wait().unwrap();
}

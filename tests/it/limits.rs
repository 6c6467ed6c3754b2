//! Rate limits, as a guest's own TCP sees them: unsegmented packets and all.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_says};

#[derive(Debug, Clone, Copy)]
enum Way {
    Upload,
    Download,
}

/// A TCP connection of the guest to the internet: the guest's end, and the other.
fn connect(lab: &Lab, guest: &TapGuest, port: u16) -> (TcpStream, TcpStream) {
    let listener = lab.inet.run(|| TcpListener::bind((WEB, port)).unwrap());
    let own = guest.namespace.run(|| TcpStream::connect((WEB, port)).unwrap());
    let (other, _) = listener.accept().unwrap();
    (own, other)
}

/// What comes through in Mbit/s, once TCP has found the rate.
struct Through {
    /// What the reader gets. Behind a segment that was dropped, TCP holds back what has come until that has come again.
    goodput: f64,
    /// What arrives at the reader's devices, headers and all.
    arrived: f64,
}

/// Bytes that the devices of this thread's network namespace have received.
fn received() -> u64 {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let counts =
        devices.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    counts.map(|(_, counts)| counts.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
}

fn through(lab: &Lab, guest: &TapGuest, way: Way, time: Duration) -> Through {
    let (own, other) = connect(lab, guest, 5001);
    let (mut from, mut to, reader) = match way {
        Way::Upload => (own, other, &lab.inet),
        Way::Download => (other, own, &guest.namespace),
    };
    let megabits = |bytes: u64, time: Duration| bytes as f64 * 8.0 / 1e6 / time.as_secs_f64();
    let sender = std::thread::spawn(move || {
        let bytes = vec![0; 1 << 20];
        while from.write(&bytes).is_ok() {}
    });
    let mut buffer = vec![0; 1 << 20];
    let mut received_in = |time: Duration| {
        let (begun, mut received) = (Instant::now(), 0_u64);
        while begun.elapsed() < time {
            match to.read(&mut buffer) {
                Ok(length) if length > 0 => received += length as u64,
                other => panic!("the connection ended after {received} bytes: {other:?}"),
            }
        }
        megabits(received, begun.elapsed())
    };
    received_in(Duration::from_secs(1));
    // The time is what goes by around both counts.
    let (begun, before) = (Instant::now(), reader.run(received));
    let goodput = received_in(time);
    let arrived = megabits(reader.run(received) - before, begun.elapsed());
    drop(to);
    sender.join().unwrap();
    Through { goodput, arrived }
}

fn assert_goodput(lab: &Lab, guest: &TapGuest, way: Way, mbps: u32) {
    const SECONDS: u32 = 3;
    let Through { goodput, arrived } = through(lab, guest, way, Duration::from_secs(SECONDS.into()));
    // Besides the rate, what a full bucket holds.
    let bucket = 65_536.0 * 8.0 / 1e6 / f64::from(SECONDS);
    let rate = f64::from(mbps);
    let said = format!("{way:?} at {mbps} Mbit/s: {arrived:.2} arrived, TCP got {goodput:.2}");
    assert!(goodput >= 0.9 * rate && arrived <= rate + bucket, "{said}");
}

fn rates(vm: &Value) -> (u64, u64) {
    (vm["rate_limit_mbps"].as_u64().unwrap(), vm["burst_kib"].as_u64().unwrap())
}

#[test]
fn tcp_gets_what_the_limit_says_both_ways_and_live() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "10"]);
    let guest = TapGuest::attach(&lab, &vm);
    for mbps in [10, 100, 1_000] {
        let updated = daemon.json(&["vm", "update", "vm1", "--rate-mbps", &mbps.to_string()]);
        assert_eq!(rates(&updated).0, u64::from(mbps));
        assert_goodput(&lab, &guest, Way::Upload, mbps);
        assert_goodput(&lab, &guest, Way::Download, mbps);
    }
}

#[test]
fn a_limit_changes_under_a_transfer_that_does_not_notice() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "1000"]);
    let guest = TapGuest::attach(&lab, &vm);
    let (mut own, mut other) = connect(&lab, &guest, 5002);
    let sender = std::thread::spawn(move || {
        let bytes = vec![7; 1 << 16];
        while own.write(&bytes).is_ok() {}
    });
    let mut buffer = vec![0; 1 << 16];
    for mbps in ["5", "500", "0", "50", "1000"] {
        daemon.guestnet(&["vm", "update", "vm1", "--rate-mbps", mbps]);
        let mut more = 0;
        while more < 1 << 20 {
            let length = other.read(&mut buffer).unwrap();
            assert!(length > 0 && buffer[..length].iter().all(|byte| *byte == 7));
            more += length;
        }
    }
    drop(other);
    sender.join().unwrap();
}

#[test]
fn a_limit_that_a_crash_kept_from_the_kernel_is_set_at_the_next_start() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--rate-mbps", "10"]);
    let guest = TapGuest::attach(&lab, &vm);
    daemon.crash();
    // As if it had been written down and no more.
    let (netns, port) = (vm["namespace"].as_str().unwrap(), vm["host_device"].as_str().unwrap());
    let old = ["root", "tbf", "rate", "1gbit", "burst", "256k", "limit", "1m"];
    lab.on_host("ip", &[&["netns", "exec", netns, "tc", "qdisc", "change", "dev", "in0"], &old[..]].concat());
    lab.on_host("tc", &[&["qdisc", "change", "dev", port], &old[..]].concat());
    let daemon = Daemon::start(&lab);
    assert_goodput(&lab, &guest, Way::Upload, 10);
    assert_goodput(&lab, &guest, Way::Download, 10);
    drop(daemon);
}

#[test]
fn without_a_limit_there_is_none_and_one_may_be_asked_for_anyway() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\nenable_rate_limit = false\nrate_limit_mbps = 10\n");
    let free = daemon.json(&["vm", "create", "free"]);
    assert_eq!(rates(&free), (0, 0));
    let guest = TapGuest::attach(&lab, &free);
    for way in [Way::Upload, Way::Download] {
        let measured = through(&lab, &guest, way, Duration::from_secs(1)).goodput;
        assert!(measured > 200.0, "{way:?}: {measured:.2} Mbit/s without a limit");
    }
    let limited = daemon.json(&["vm", "create", "limited", "--rate-mbps", "20", "--burst-kib", "64"]);
    assert_eq!(rates(&limited), (20, 64));
    assert_eq!(limited, daemon.json(&["vm", "create", "limited", "--rate-mbps", "20"]), "repeated");
    assert_says(
        &daemon.client(&["vm", "create", "limited", "--rate-mbps", "0"]),
        1,
        &["rate_limit_mbps", "20"],
    );
    assert_says(&daemon.client(&["vm", "create", "vm3", "--burst-kib", "64"]), 2, &["burst_kib 64"]);
    assert_says(&daemon.client(&["vm", "create", "vm3", "--rate-mbps", "100001"]), 2, &["100001", "100000"]);
    assert_says(&daemon.client(&["vm", "update", "limited"]), 2, &["--rate-mbps"]);
    assert_says(&daemon.client(&["vm", "update", "none", "--rate-mbps", "5"]), 1, &["none"]);
    // Removed live, and what was asked for survives a restart.
    daemon.guestnet(&["vm", "update", "limited", "--rate-mbps", "0"]);
    daemon.guestnet(&["vm", "update", "free", "--rate-mbps", "30"]);
    assert!(daemon.stop().success());
    let daemon = Daemon::start_with(&lab, "[[network]]\nenable_rate_limit = true\nrate_limit_mbps = 10\n");
    assert_eq!(rates(&daemon.json(&["vm", "show", "limited"])), (0, 0));
    assert_eq!(rates(&daemon.json(&["vm", "show", "free"])).0, 30);
}

#[test]
fn a_host_name_changes_while_the_vm_runs() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--hostname", "old"]);
    let updated = daemon.json(&["vm", "update", "vm1", "--hostname", "new"]);
    assert_eq!((updated["hostname"].as_str(), &updated["ip_address"]), (Some("new"), &vm["ip_address"]));
    let guest = TapGuest::attach(&lab, &vm);
    let resolve = |name: &str| {
        let mut nslookup = guest.namespace.command("busybox");
        let output =
            nslookup.args(["nslookup", "-type=a", &format!("{name}.vm.internal."), "10.100.0.1"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let address = vm["ip_address"].as_str().unwrap();
    assert!(resolve("new").contains(address));
    assert!(!resolve("old").contains(address));
}

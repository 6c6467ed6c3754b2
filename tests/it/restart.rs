//! The service stops, crashes and comes back; guests do not notice.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::daemon::Paths;
use crate::lab::guest::Boot;
use crate::lab::{Daemon, Guest, Lab, Machine, Namespace, TapGuest, UPLINK, WEB, assert_same};

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

/// The machine after a reboot: a kernel with nothing in it, another boot_id, the same disk.
fn rebooted(before: &Lab) -> Lab {
    let after = Lab::new();
    let (from, to) = (Paths::of(before).state, Paths::of(&after).state);
    crate::lab::succeed(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
    let boot_id = after.directory().join("boot_id");
    std::fs::write(&boot_id, "00000000-0000-4000-8000-000000000000\n").unwrap();
    after.on_host("mount", &["--bind", &boot_id.display().to_string(), "/proc/sys/kernel/random/boot_id"]);
    after
}

#[test]
fn after_a_reboot_vms_can_be_started_again() {
    let before = Lab::new();
    let daemon = Daemon::start(&before);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    daemon.crash();
    let after = rebooted(&before);
    let daemon = Daemon::start(&after);
    assert!(daemon.notified.contains("EXTEND_TIMEOUT_USEC=60000000"), "{}", daemon.notified);
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
    let guest = TapGuest::attach(&after, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

/// Asks a start to stop at that step of its; how it ends.
fn stopped_at(lab: &Lab, step: &str) -> ExitStatus {
    let (notify, fault) = (lab.directory().join("notify-start"), lab.directory().join("fault"));
    let _ = std::fs::remove_file(&notify);
    let told = UnixDatagram::bind(&notify).unwrap();
    std::fs::write(&fault, format!("before {step} stop")).unwrap();
    let log = std::fs::File::create(lab.directory().join("log-start")).unwrap();
    let mut start = crate::lab::daemon::serve_command(lab, "");
    start.env("NOTIFY_SOCKET", &notify).env("GUESTNET_FAULT", &fault).stderr(log);
    let mut start = start.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let state = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    while !state(start.id()).contains(") T ") {
        if Instant::now() > deadline {
            start.kill().unwrap();
            panic!("it does not come to {step}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        kill(Pid::from_raw(start.id() as i32), signal).unwrap();
    }
    let status = start.wait().unwrap();
    told.set_nonblocking(true).unwrap();
    let (mut said, mut buffer) = (String::new(), [0; 256]);
    while let Ok(length) = told.recv(&mut buffer) {
        said += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(!said.contains("READY=1"), "it went on to the end: {said}");
    status
}

#[test]
fn a_start_that_is_asked_to_stop_does_so_and_the_next_one_goes_on_from_there() {
    let before = Lab::new();
    assert!(stopped_at(&before, "bridge").success());
    let daemon = Daemon::start(&before);
    let vm_ids: Vec<String> = (0..100).map(|n| format!("vm{n}")).collect();
    let vm_ids: Vec<&str> = vm_ids.iter().map(String::as_str).collect();
    daemon.guestnet(&[&["vm", "create"], &vm_ids[..]].concat());
    let known = daemon.json(&["vm", "list"]);
    daemon.crash();
    // Every VM's network is made again, from the first namespace on.
    let after = rebooted(&before);
    for step in ["namespace", "port", "route"] {
        assert!(stopped_at(&after, step).success(), "{step}");
    }
    let daemon = Daemon::start(&after);
    assert_eq!(daemon.json(&["vm", "list"]), known);
    crate::consistent::assert_consistent(&after, &daemon);
}

/// What is said on a connection to that port; `None` when there is none to be had.
fn said(from: &Namespace, to: &str) -> Option<String> {
    let to = to.parse().unwrap();
    let mut stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    Some(said)
}

#[test]
fn after_a_reboot_every_vm_has_its_network_limit_policy_and_forward_again() {
    const NETWORKS: &str = "[[network]]\npool_size = 2\n[[network]]\nname = \"two\"\nbridge_name = \"br-two\"\n\
                            bridge_ip = \"10.101.0.1/16\"\nvm_subnet = \"10.101.0.0/16\"\npool_size = 1\n";
    let before = Lab::new();
    let daemon = Daemon::start_with(&before, NETWORKS);
    for options in [
        &["front", "--workspace", "acme", "--rate-mbps", "7"][..],
        &["gone"],
        &["data", "--hostname", "base", "--mac", "02:00:00:00:00:07"],
        &["other", "--network", "two"],
        &["queues", "--tap-multi-queue", "--tap-uid", "1000"],
        &["last", "--ip", "10.100.9.9", "--rate-mbps", "0"],
    ] {
        daemon.guestnet(&[&["vm", "create"], options].concat());
    }
    daemon.guestnet(&["vm", "delete", "gone"]);
    for (name, policy) in [
        (
            "vm",
            "vm_id = \"data\"\n[[rules]]\nname = \"web\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\nport = 80\naction = \"allow\"\n",
        ),
        (
            "workspace",
            "workspace_id = \"acme\"\n[[rules]]\nname = \"dns\"\ndirection = \"egress\"\ndestination = \"8.8.8.8/32\"\naction = \"deny\"\n",
        ),
    ] {
        let file = before.directory().join(name);
        std::fs::write(&file, policy).unwrap();
        daemon.guestnet(&["policy", "apply", "-f", file.to_str().unwrap()]);
    }
    daemon.guestnet(&["forward", "add", "data", "--host-port", "8085", "--vm-port", "80"]);
    let vm_of = |daemon: &Daemon<'_>, vm_id| daemon.json(&["vm", "show", vm_id]);
    let guest = TapGuest::attach(&before, &vm_of(&daemon, "front"));
    guest.run("busybox", &["ping", "-c", "3", "-i", "0.05", "-W", "5", WEB]);
    let billed = daemon.json(&["stats", "front"]);
    drop(guest);
    let facts = |daemon: &Daemon<'_>| {
        let lists = [&["vm", "list"], &["policy", "list"], &["forward", "list"], &["lease", "list"]];
        lists.map(|list| daemon.json(list))
    };
    let known = facts(&daemon);
    assert_eq!(known[0].as_array().unwrap().len(), 5);
    // Slots that wait for VMs are no part of it.
    let standing = before.host_state();
    assert!(daemon.stop().success());

    let after = rebooted(&before);
    let daemon = Daemon::start_with(&after, NETWORKS);
    assert_eq!(facts(&daemon), known);
    assert_same(&standing, &after.host_state());
    crate::crash::assert_consistent(&after, &daemon);
    let attach = |vm_id| TapGuest::attach(&after, &vm_of(&daemon, vm_id));
    let (front, data, other, last) = (attach("front"), attach("data"), attach("other"), attach("last"));
    for guest in [&front, &data, &other, &last] {
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    }
    // The policies decide: TCP to port 80 of `data` and nothing else; no DNS server elsewhere for `acme`.
    let address = vm_of(&daemon, "data")["ip_address"].as_str().unwrap().to_owned();
    let listener = data.namespace.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            listener.accept().unwrap().0.write_all(b"after the reboot").unwrap();
        }
    });
    // Who is to get nowhere is not given as long.
    let pings = |guest: &TapGuest, to: &str, seconds: &str| {
        let mut ping = guest.namespace.command("busybox");
        ping.args(["ping", "-c", "1", "-W", seconds, to]).output().unwrap().status.success()
    };
    assert_eq!(said(&front.namespace, &format!("{address}:80")).as_deref(), Some("after the reboot"));
    assert!(!pings(&front, &address, "1") && !pings(&last, "10.101.0.1", "1"));
    assert!(!pings(&front, "8.8.8.8", "1") && pings(&last, "8.8.8.8", "20"));
    // The forward leads there, and the limits are the ones that were asked for.
    assert_eq!(said(&after.inet, &format!("{UPLINK}:8085")).as_deref(), Some("after the reboot"));
    server.join().unwrap();
    let queue = |vm_id| {
        let port = vm_of(&daemon, vm_id)["host_device"].as_str().unwrap().to_owned();
        after.on_host("tc", &["qdisc", "show", "dev", &port])
    };
    assert!(queue("front").contains("rate 7Mbit") && !queue("last").contains("tbf"), "{}", queue("last"));
    last.run("busybox", &["nslookup", "-type=a", "base.vm.internal", "10.100.0.1"]);
    // What was billed stays billed, and the address of the one that was deleted rests.
    let now = daemon.json(&["stats", "front"]);
    assert!(now[0]["tx_bytes"].as_u64() > billed[0]["tx_bytes"].as_u64(), "{billed} {now}");
    assert_ne!(daemon.json(&["vm", "create", "new"])["ip_address"], "10.100.0.3");
}

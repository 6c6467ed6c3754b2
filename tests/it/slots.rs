//! VMs come and go on slots that are made ready before: what that costs, and what the next VM finds of the one before.

use std::io::Read;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attributes::read;
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, assert_says};

/// Waits for what happens in the background.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(Duration::from_secs(60), what, holds);
}

pub(crate) fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not in {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Host devices of slots, taken or not.
pub(crate) fn slots(lab: &Lab) -> usize {
    lab.on_host("ip", &["-br", "link", "show", "type", "veth"])
        .lines()
        .filter(|l| l.starts_with("gv"))
        .count()
}

/// The system calls of a daemon and all of its threads, as strace sees them.
pub(crate) struct Traced {
    tracer: Child,
    log: PathBuf,
}

impl Traced {
    /// With `options` of strace, from when this returns.
    pub(crate) fn start(lab: &Lab, daemon: &Daemon<'_>, options: &[&str]) -> Self {
        let traced = Self::start_or_ended(lab, daemon, options);
        assert!(!has_ended(daemon), "it ended before it was traced\n{}", daemon.log());
        traced
    }

    /// The same, unless what the options inject has ended the daemon before.
    pub(crate) fn start_or_ended(lab: &Lab, daemon: &Daemon<'_>, options: &[&str]) -> Self {
        let log = lab.directory().join("calls");
        let mut tracer = Command::new("strace");
        tracer.args(["-f", "-qq"]).args(options).arg("-o").arg(&log);
        let tracer = tracer.args(["-p", &daemon.pid().to_string()]).stderr(Stdio::null()).spawn().unwrap();
        let is_traced = |task: std::io::Result<std::fs::DirEntry>| {
            // A thread that has ended meanwhile has none.
            let status = std::fs::read_to_string(task.unwrap().path().join("status"));
            status.map_or(true, |status| !status.contains("TracerPid:\t0"))
        };
        eventually("the daemon is traced", || {
            has_ended(daemon)
                || std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().all(is_traced)
        });
        Self { tracer, log }
    }

    /// Those so far, a line each.
    pub(crate) fn calls(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it; all of them.
    pub(crate) fn stop(mut self) -> String {
        kill(Pid::from_raw(self.tracer.id() as i32), Signal::SIGINT).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.tracer.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                // It waits for a thread to stop that has just made a process (vfork), and that for the process, which strace has not yet
                // let go on: without strace both do.
                self.tracer.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.calls()
    }
}

/// A process that has ended has no program any more.
pub(crate) fn has_ended(daemon: &Daemon<'_>) -> bool {
    std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).is_err()
}

impl Drop for Traced {
    /// Of a test that fails: the daemon goes on without it, and ends.
    fn drop(&mut self) {
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

/// What makes a process, and what makes it another program.
const FORKS: [&str; 2] = ["-e", "trace=execve,execveat,fork,vfork,clone,clone3"];

/// The calls that made processes: threads of the runtime come and go, a process is a clone without CLONE_THREAD.
fn forks(calls: &str) -> Vec<String> {
    let made = |line: &&str| ["exec", "clone", "fork"].iter().any(|call| line.contains(call));
    let processes = calls.lines().filter(|line| !line.contains("CLONE_THREAD")).filter(made);
    // The second line of a call that another thread's came in between says no more than the first.
    processes.filter(|line| !line.contains("resumed>")).map(ToOwned::to_owned).collect()
}

#[test]
fn a_dry_pool_a_storm_policies_and_forwards_fork_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 0\n");
    let stays = daemon.json(&["vm", "create", "stays"]);
    // The service's own iptables at the start look like somebody's: it looks once, by iptables, and then no more.
    crate::drift::quiet(&daemon);
    let traced = Traced::start(&lab, &daemon, &FORKS);
    let policy = |vm_id: &str| {
        let file = lab.directory().join(format!("{vm_id}.toml"));
        let rule = "[[rules]]\nname = \"web\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\nport = 80\naction = \"allow\"\n";
        std::fs::write(&file, format!("vm_id = \"{vm_id}\"\n{rule}")).unwrap();
        file.display().to_string()
    };
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (daemon, policy) = (&daemon, &policy);
            scope.spawn(move || {
                for turn in 0..3 {
                    // Each on a slot that is built for it.
                    let vm_id = format!("vm{caller}-{turn}");
                    let port = (8_000 + caller * 10 + turn).to_string();
                    let options =
                        if turn == 2 { &["--tap-multi-queue", "--tap-uid", "1000"][..] } else { &[] };
                    daemon.guestnet(&[&["vm", "create", &vm_id, "--rate-mbps", "50"], options].concat());
                    daemon.guestnet(&["policy", "apply", "-f", &policy(&vm_id)]);
                    daemon.guestnet(&["forward", "add", &vm_id, "--host-port", &port, "--vm-port", "80"]);
                    daemon.guestnet(&["vm", "update", &vm_id, "--rate-mbps", "20"]);
                    daemon.guestnet(&["policy", "delete", &vm_id]);
                    daemon.guestnet(&["vm", "delete", &vm_id]);
                }
            });
        }
    });
    eventually("all slots but one are gone", || slots(&lab) == 1);
    assert_eq!(forks(&traced.stop()), Vec::<String>::new());
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([stays]));
    crate::consistent::assert_consistent(&lab, &daemon);
}

#[test]
fn a_create_and_a_delete_fork_nothing_and_change_no_device() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // The kernel says a little later that the ports made at the start have their carrier.
    eventually("the ports of the slots are up", || {
        let shown = lab.on_host("ip", &["-br", "link", "show", "type", "veth"]);
        shown.lines().filter(|line| line.starts_with("gv")).all(|line| line.contains(" UP "))
    });
    crate::drift::quiet(&daemon);
    let mut monitor =
        lab.host_command("ip").args(["-o", "monitor", "link"]).stdout(Stdio::piped()).spawn().unwrap();
    let traced = Traced::start(&lab, &daemon, &FORKS);

    daemon.guestnet(&["vm", "create", "vm1"]);
    daemon.guestnet(&["vm", "create", "vm2", "--rate-mbps", "50", "--ip", "10.100.9.9"]);
    daemon.guestnet(&["vm", "delete", "vm1", "vm2"]);

    // What comes after it in both logs tells that everything before has been seen.
    lab.on_host("ip", &["link", "add", "seen", "type", "bridge"]);
    let mut said = String::new();
    let mut out = monitor.stdout.take().unwrap();
    while !said.contains("seen") {
        let mut bytes = [0; 4096];
        let length = out.read(&mut bytes).unwrap();
        assert!(length > 0, "ip monitor ended: {said}");
        said += &String::from_utf8_lossy(&bytes[..length]);
    }
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let changed: Vec<&str> = said.lines().filter(|line| !line.contains("seen")).collect();
    assert!(changed.is_empty(), "devices changed:\n{}", changed.join("\n"));
    assert_eq!(forks(&traced.stop()), Vec::<String>::new());
}

#[test]
fn building_a_slot_looks_nothing_up_where_the_kernel_keeps_all_namespaces() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 0\n");
    daemon.json(&["vm", "create", "first"]);
    crate::drift::quiet(&daemon);
    // Nothing else of ours is a directory without a path.
    let mounts = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let leads = open.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        leads.filter(|to| to.as_os_str() == "/").count()
    };
    let before = mounts();
    let traced = Traced::start(&lab, &daemon, &["-e", "trace=openat,unshare,fsmount"]);
    for number in 1..70 {
        daemon.json(&["vm", "create", &format!("vm{number}")]);
    }
    let calls = traced.stop();
    let counted = |what: &str| calls.matches(what).count();
    assert_eq!(counted("unshare("), 69, "{calls}");
    assert_eq!(counted("\"sys/net/ipv6/conf\""), 69, "{calls}");
    assert_eq!(counted("/proc/sys/net/ipv6"), 0, "{calls}");
    // The first slot's serves 64; the next takes its place.
    assert_eq!((counted("fsmount("), mounts()), (1, before), "{calls}");
}

#[test]
fn a_kernel_that_mounts_no_procfs_apart_has_slots_without_ipv6_too() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 0\n");
    let traced = Traced::start(&lab, &daemon, &["-e", "trace=fsopen", "-e", "inject=fsopen:error=ENOSYS"]);
    let vm = daemon.json(&["vm", "create", "vm"]);
    let calls = traced.stop();
    assert!(calls.contains("ENOSYS"), "{calls}");
    let settings = ["all", "default"].map(|name| format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    let read = [
        &["netns", "exec", vm["namespace"].as_str().unwrap(), "cat"][..],
        &settings.each_ref().map(String::as_str),
    ];
    assert_eq!(lab.on_host("ip", &read.concat()), "1\n1\n");
}

#[test]
fn namespaces_have_numbers_that_count_down() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 0\n");
    let port = |vm_id: &str| {
        let vm = daemon.json(&["vm", "create", vm_id]);
        let link = read(&lab, "ip", &["-j", "link", "show", vm["host_device"].as_str().unwrap()]);
        link[0]["ifindex"].as_i64().unwrap()
    };
    let numbers = || {
        let all = read(&lab, "ip", &["-j", "netns", "list-id"]);
        let numbers = all.as_array().unwrap().iter().map(|namespace| namespace["nsid"].as_i64().unwrap());
        numbers.collect::<Vec<_>>()
    };
    let ports = [port("first"), port("second")];
    assert!(ports[0] < ports[1], "{ports:?}");
    let own = ports.map(|port| i64::from(i32::MAX) - port);
    assert!(own.iter().all(|number| numbers().contains(number)), "{own:?}: {:?}", numbers());

    // The number that the next would have is another namespace's.
    lab.on_host("ip", &["netns", "add", "theirs"]);
    lab.on_host("ip", &["netns", "set", "theirs", &(own[1] - 1).to_string()]);
    let before = numbers().len();
    assert_eq!(port("third"), ports[1] + 1);
    assert_eq!(numbers().len(), before + 1, "{:?}", numbers());
    lab.on_host("ip", &["netns", "del", "theirs"]);
}

#[test]
fn the_stock_of_slots_is_kept_at_its_size() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    assert_eq!(slots(&lab), 8, "ready when the service is");
    let ids: Vec<String> = (0..20).map(|n| format!("vm{n}")).collect();
    for id in &ids {
        daemon.guestnet(&["vm", "create", id]);
    }
    eventually("8 slots wait beside the 20 that are taken", || slots(&lab) >= 26);
    let delete: Vec<&str> = ["vm", "delete"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    daemon.guestnet(&delete);
    eventually("what is too many is gone", || slots(&lab) <= 10);
    // Neither netns nor name is left of them.
    eventually("their namespaces too", || {
        lab.on_host("ip", &["netns", "list"]).lines().count() == slots(&lab)
    });
    drop(daemon);
}

#[test]
fn a_vm_that_runs_keeps_its_network_until_it_ends() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    let before = lab.host_state();
    assert_says(&daemon.client(&["vm", "delete", "vm1"]), 1, &["vm1", "still running", "tap0"]);
    assert_same(&before, &lab.host_state());
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    drop(guest);
    daemon.guestnet(&["vm", "delete", "vm1"]);
}

/// Connections that come by the host's prerouting are tracked in a zone of their own, as somebody's rules may have it.
pub(crate) fn track_in_a_zone(lab: &Lab) {
    lab.on_host("nft", &["add", "table", "ip", "zoned"]);
    let chain = "{ type filter hook prerouting priority -300; }";
    lab.on_host("nft", &["add", "chain", "ip", "zoned", "first", chain]);
    lab.on_host("nft", &["add", "rule", "ip", "zoned", "first", "ct", "zone", "set", "5"]);
}

#[test]
fn a_guest_inherits_nothing_from_the_one_that_had_its_address() {
    inherits_nothing(&Lab::new());
}

#[test]
fn a_guest_inherits_nothing_that_is_tracked_in_a_zone_either() {
    let lab = Lab::new();
    track_in_a_zone(&lab);
    inherits_nothing(&lab);
}

fn inherits_nothing(lab: &Lab) {
    let daemon = Daemon::start(lab);
    let first = daemon.json(&["vm", "create", "vm1", "--ip", "10.100.0.9"]);
    let guest = TapGuest::attach(lab, &first);
    let server = lab.inet.run(|| UdpSocket::bind((WEB, 7)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let client = guest.namespace.run(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    client.send_to(b"a question", (WEB, 7)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    let tracked = || lab.on_host("conntrack", &["-L", "-s", "10.100.0.9"]);
    assert!(tracked().contains("10.100.0.9"));
    drop((client, guest));
    daemon.guestnet(&["vm", "delete", "vm1"]);
    let left = |what: &[&str]| lab.on_host("ip", what);
    assert!(!left(&["neigh", "show"]).contains("10.100.0.9"));
    assert!(!left(&["route", "show"]).contains("10.100.0.9"));
    assert!(!lab.on_host("bridge", &["fdb", "show"]).contains("06:00:0a:64:00:09"));

    // Given out again at once, because it is asked for by name.
    let second = daemon.json(&["vm", "create", "vm2", "--ip", "10.100.0.9", "--mac", "02:00:00:00:00:09"]);
    assert!(!tracked().contains("10.100.0.9"), "{}", tracked());
    let heir = TapGuest::attach(lab, &second);
    let listener = heir.namespace.run(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // The answer to the one before comes late.
    server.send_to(b"an answer", from).unwrap();
    let got = listener.recv_from(&mut [0; 64]);
    assert!(got.is_err(), "the heir got its predecessor's answer");
}

#[test]
fn a_namespace_that_an_admin_unmounted_stands_in_nobodys_way() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    let broken: [&dyn Fn(); 3] = [
        &|| _ = lab.on_host("umount", &["/run/netns/vm-vm1"]),
        &|| _ = lab.on_host("ip", &["netns", "del", "vm-vm1"]),
        &|| _ = lab.on_host("sh", &["-c", "rm /run/netns/vm-vm1; touch /run/netns/vm-vm1"]),
    ];
    for break_it in broken {
        daemon.guestnet(&["vm", "create", "vm1"]);
        break_it();
        daemon.guestnet(&["vm", "delete", "vm1"]);
        let vm = daemon.json(&["vm", "create", "vm1"]);
        let guest = TapGuest::attach(&lab, &vm);
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        drop(guest);
        daemon.guestnet(&["vm", "delete", "vm1"]);
        assert_same(&before, &lab.host_state());
    }
    // Broken while the service is away, it is whole again after the start.
    daemon.guestnet(&["vm", "create", "vm1"]);
    daemon.crash();
    lab.on_host("sh", &["-c", "umount /run/netns/vm-vm1; rm /run/netns/vm-vm1; touch /run/netns/vm-vm1"]);
    let daemon = Daemon::start(&lab);
    let guest = TapGuest::attach(&lab, &daemon.json(&["vm", "show", "vm1"]));
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

#[test]
fn callers_who_create_and_delete_one_vm_at_a_time_leave_all_of_it_or_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let daemon = &daemon;
            scope.spawn(move || {
                for _ in 0..5 {
                    let verb = if caller % 2 == 0 { "create" } else { "delete" };
                    let output = daemon.client(&["vm", verb, "vm1"]);
                    assert!(output.status.success(), "{}", crate::lab::text(&output));
                }
            });
        }
    });
    daemon.guestnet(&["vm", "create", "vm1"]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_same(&before, &lab.host_state());
}

#[test]
fn after_another_configuration_nothing_of_the_former_is_left() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 2\n");
    assert!(daemon.stop().success());
    lab.on_host("iptables", &["-I", "FORWARD", "-j", "DROP"]);
    let other = "[[network]]\nbridge_name = \"br-new\"\nbridge_ip = \"10.9.0.1/16\"\nvm_subnet = \"10.9.0.0/16\"\npool_size = 2\n";
    let daemon = Daemon::start_with(&lab, other);
    let state = lab.host_state();
    for former in ["10.100.", "br-vms"] {
        assert!(!state.contains(former), "{former}: {state}");
    }
    assert!(state.contains("10.9.0.0/16"), "{state}");
    // Our jump comes before what somebody has put in front of it meanwhile.
    let forward = lab.on_host("iptables", &["-S", "FORWARD"]);
    let jumps: Vec<usize> =
        forward.lines().enumerate().filter(|(_, l)| l.contains("GUESTNET")).map(|(n, _)| n).collect();
    assert_eq!(jumps, [1], "{forward}");
    let guest = TapGuest::attach(&lab, &daemon.json(&["vm", "create", "vm1"]));
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

//! The service as systemd and operators drive it: reload, SIGHUP, the watchdog, the unit's walls, a log disk that is full.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use serde_json::Value;

use super::foreign::project;
use crate::lab::daemon::{Paths, serve_command};
use crate::lab::port::PortGuest;
use crate::lab::{Daemon, Lab, TapGuest, succeed, text};

#[test]
fn a_reload_applies_what_can_change_live_and_says_what_cannot_and_a_file_that_does_not_fit_changes_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let path = Paths::of(&lab).config;
    let before = fs::read_to_string(&path).unwrap();
    assert_eq!(daemon.guestnet(&["reload"]), "nothing has changed\n");

    fs::write(
        &path,
        before.replace("pool_size = 8", "pool_size = 8\nmtu = 1400") + "\n[metrics]\nvm_labels = true\n",
    )
    .unwrap();
    let reloaded = daemon.json(&["reload"]);
    assert_eq!(reloaded["applied"], serde_json::json!(["metrics.vm_labels"]));
    assert_eq!(reloaded["needs_restart"], serde_json::json!(["network[0].mtu"]));
    let why = reloaded["reasons"]["network[0].mtu"].as_str().unwrap();
    assert!(daemon.guestnet(&["reload"]).contains(&format!("network[0].mtu: {why}")), "{reloaded}");
    assert_eq!(daemon.json(&["reload"])["applied"], serde_json::json!([]), "it is in force already");

    fs::write(&path, "[[network]]\nmtu = 1").unwrap();
    let refused = daemon.client(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("line 2: network[0].mtu: 1 is not an MTU"), "{}", text(&refused));
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while daemon.log().matches("the old one stays in force").count() < 2 {
        assert!(Instant::now() < deadline, "a signal reloads too: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.guestnet(&["vm", "create", "a"]);
}

#[test]
fn a_reload_says_in_force_only_of_what_is() {
    let lab = Lab::new();
    // The lab sets GUESTNET_LOG.
    let of_variables = [("UNKEY_METALD_NETWORK_DNS", "192.0.2.53".as_ref())];
    let daemon = Daemon::start_with_env(&lab, "", &of_variables);
    let path = Paths::of(&lab).config;
    let before = fs::read_to_string(&path).unwrap();
    let with_group = |group: &str| {
        let socket = lab.directory().join("read.sock");
        let opened = format!(
            "[api]\nread_only_socket = {socket:?}\nread_only_group = {group:?}\nspiffe_ids = [\"spiffe://a/b\"]\n"
        );
        let text =
            before.replace("[api]\n", &opened).replace("pool_size = 8", "dns_servers = [\"192.0.2.54\"]");
        fs::write(&path, text + "\n[log]\nfilter = \"warn\"\n").unwrap();
    };
    with_group("no-such-group");
    let refused = daemon.client(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("api.read_only_group: "), "{}", text(&refused));

    with_group("root");
    let printed = daemon.guestnet(&["reload"]);
    let overridden = "not in force: network[0].dns_servers, overridden by UNKEY_METALD_NETWORK_DNS\n";
    assert!(printed.contains(overridden), "{printed}");
    assert!(printed.contains("not in force: log.filter, overridden by GUESTNET_LOG\n"), "{printed}");
    assert!(printed.contains("in force now: network[0].pool_size\n"), "{printed}");
    let reloaded = daemon.json(&["reload"]);
    let waiting = ["api.read_only_group", "api.read_only_socket", "api.spiffe_ids"];
    assert_eq!(reloaded["needs_restart"], serde_json::json!(waiting), "{reloaded}");
    assert_eq!(reloaded["applied"], serde_json::json!([]), "{reloaded}");
}

/// Who rewrites a file empties it first, and a signal may come between.
#[test]
fn a_reload_of_a_file_that_is_empty_or_gone_changes_nothing_and_names_it() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[metrics]\nvm_labels = true\n");
    let path = Paths::of(&lab).config;
    let before = fs::read_to_string(&path).unwrap();
    for text_left in [Some(""), Some("\n \n"), None] {
        match text_left {
            Some(left) => fs::write(&path, left).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let refused = daemon.client(&["reload"]);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains(path.to_str().unwrap()), "{}", text(&refused));
    }
    fs::write(&path, before).unwrap();
    assert_eq!(daemon.guestnet(&["reload"]), "nothing has changed\n");
}

/// The command of the unit, with the program that the tests have built.
fn of_the_unit(key: &str) -> Vec<String> {
    let unit = fs::read_to_string(project("packaging/guestnet.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let mut words: Vec<String> = line.unwrap().split(' ').map(str::to_owned).collect();
    assert_eq!(words[0], "/usr/bin/guestnet", "{key}");
    words[0] = crate::lab::guestnet_binary().display().to_string();
    words
}

/// Gives the lab's host an /etc of its own; the file in it that is where the package puts the service's configuration.
fn own_configuration(lab: &Lab) -> PathBuf {
    let etc = lab.directory().join("etc");
    let own = "cp -a /etc \"$0\" && mkdir -p \"$0\"/guestnet && mount --bind \"$0\" /etc";
    lab.on_host("sh", &["-ec", own, etc.to_str().unwrap()]);
    etc.join("guestnet/guestnet.toml")
}

#[test]
fn the_unit_reloads_a_service_whose_socket_is_elsewhere() {
    let lab = Lab::new();
    let config = own_configuration(&lab);
    fs::write(&config, crate::lab::daemon::config(&lab, "")).unwrap();
    let notify_path = lab.directory().join("notify");
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let command = |words: Vec<String>| {
        let mut command = lab.host_command(&words[0]);
        command.args(&words[1..]).env_remove("GUESTNET_SOCKET");
        command
    };
    let log = fs::File::create(lab.directory().join("log")).unwrap();
    let mut service = command(of_the_unit("ExecStart"));
    let mut service = service.env("NOTIFY_SOCKET", &notify_path).stderr(log).spawn().unwrap();
    notify.recv(&mut [0; 256]).expect("it gets ready");

    let reload = || command(of_the_unit("ExecReload")).output().unwrap();
    let changed = fs::read_to_string(&config).unwrap() + "\n[metrics]\nvm_labels = true\n";
    fs::write(&config, &changed).unwrap();
    let reloaded = reload();
    assert!(reloaded.status.success(), "{}", text(&reloaded));
    assert!(text(&reloaded).contains("in force now: metrics.vm_labels"), "{}", text(&reloaded));
    fs::write(&config, format!("{changed}[log]\nfilter = 1\n")).unwrap();
    let refused = reload();
    assert!(refused.status.code() == Some(1) && text(&refused).contains("log.filter"), "{}", text(&refused));
    // Clients without a socket find it too, and a service with another configuration by that.
    let guestnet = |arguments: &[&str]| {
        let program = crate::lab::guestnet_binary().display().to_string();
        command(std::iter::once(program).chain(arguments.iter().map(|word| (*word).to_owned())).collect())
            .output()
            .unwrap()
    };
    assert!(guestnet(&["vm", "create", "a"]).status.success());
    fs::rename(&config, lab.directory().join("other.toml")).unwrap();
    let nobody = guestnet(&["vm", "list"]);
    assert!(text(&nobody).contains("no answer on /run/guestnet/guestnet.sock"), "{}", text(&nobody));
    let other = lab.directory().join("other.toml");
    let found = guestnet(&["reload", "--config", other.to_str().unwrap()]);
    assert!(!text(&found).contains("no answer"), "{}", text(&found));
    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).unwrap();
    assert!(service.wait().unwrap().success());
}

/// The file alone says where the service is, and it says something new.
#[test]
fn a_socket_that_the_file_has_moved_waits_for_a_restart_and_the_old_one_is_served() {
    let lab = Lab::new();
    let config = own_configuration(&lab);
    lab.on_host("mkdir", &["-p", "/run/guestnet"]);
    let at = |socket: &str| {
        let text = crate::lab::daemon::config(&lab, "");
        let ours = format!("socket = {:?}", Paths::of(&lab).socket);
        assert!(text.contains(&ours));
        fs::write(&config, text.replace(&ours, &format!("socket = {socket:?}"))).unwrap();
    };
    at("/run/guestnet/guestnet.sock");
    let notify_path = lab.directory().join("notify");
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let guestnet = |arguments: &[&str]| {
        let mut command = lab.host_command(crate::lab::guestnet_binary());
        command.args(arguments).env_remove("GUESTNET_SOCKET");
        command
    };
    let mut service =
        guestnet(&["serve"]).env("NOTIFY_SOCKET", &notify_path).stderr(Stdio::null()).spawn().unwrap();
    notify.recv(&mut [0; 256]).expect("it gets ready");
    at("/run/guestnet/other.sock");
    for _ in 0..2 {
        let reloaded = guestnet(&["reload"]).output().unwrap();
        assert!(reloaded.status.success(), "{}", text(&reloaded));
        let said = "after systemctl restart guestnet:\n  api.socket: ";
        assert!(text(&reloaded).contains(said), "{}", text(&reloaded));
    }
    assert!(!lab.host_command("test").args(["-e", "/run/guestnet/other.sock"]).status().unwrap().success());
    let old = guestnet(&["--socket", "/run/guestnet/guestnet.sock", "vm", "create", "a"]).output().unwrap();
    assert!(old.status.success(), "{}", text(&old));
    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).unwrap();
    assert!(service.wait().unwrap().success());
    // Nobody is at either: it is said why that may be.
    let nobody = guestnet(&["reload"]).output().unwrap();
    assert!(text(&nobody).contains("/run/guestnet/other.sock"), "{}", text(&nobody));
    assert!(text(&nobody).contains("guestnet --socket OLD reload"), "{}", text(&nobody));
}

/// What busybox' DHCP client says of its lease.
fn lease(guest: &TapGuest) -> String {
    let mut client = guest.namespace.command("busybox");
    let said = client.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]).output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    text(&said)
}

fn wait_until(what: &str, is_it: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_it() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_reload_changes_what_guests_that_run_are_told_and_what_new_vms_get() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let path = Paths::of(&lab).config;
    let before = fs::read_to_string(&path).unwrap();
    let old = daemon.json(&["vm", "create", "old"]);
    let guest = TapGuest::attach(&lab, &old);
    assert!(lease(&guest).contains("lease time 43200"), "{}", lease(&guest));
    let slots =
        || lab.on_host("sh", &["-c", "ls /run/netns | grep -c ^guestnet-"]).trim().parse::<u32>().unwrap();

    let network = "pool_size = 16\nlease_seconds = 600\nrate_limit_mbps = 50\n\
                   dhcp_options = { ntp_servers = [\"10.100.0.1\"] }";
    let changed =
        before.replace("pool_size = 8", network).replace("[api]", "[api]\nsocket_group = \"daemon\"");
    fs::write(&path, changed).unwrap();
    let reloaded = daemon.json(&["reload"]);
    let applied = [
        "api.socket_group",
        "network[0].dhcp_options",
        "network[0].lease_seconds",
        "network[0].pool_size",
        "network[0].rate_limit_mbps",
    ];
    let said: Vec<&str> =
        reloaded["applied"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    let mut tables: Vec<&str> = said.iter().map(|key| key.trim_end_matches(".ntp_servers")).collect();
    tables.sort_unstable();
    assert_eq!(
        (tables, &reloaded["needs_restart"]),
        (applied.to_vec(), &serde_json::json!([])),
        "{reloaded}"
    );

    assert!(lease(&guest).contains("lease time 600"), "{}", lease(&guest));
    assert!(daemon.guestnet(&["gen", "networkd", "old"]).contains("NTP=10.100.0.1"));
    let limit = |vm: &str| {
        let vm = daemon.json(&["vm", "show", vm]);
        let device = vm["host_device"].as_str().unwrap();
        (vm["rate_limit_mbps"].clone(), lab.on_host("tc", &["qdisc", "show", "dev", device]))
    };
    for (vm, rate) in [("new", 50), ("old", 100)] {
        if vm == "new" {
            daemon.guestnet(&["vm", "create", vm]);
        }
        let (said, queue) = limit(vm);
        assert_eq!(said, rate);
        assert!(queue.contains(&format!("rate {rate}Mbit")), "{vm}: {queue}");
    }
    // A slot that it leaves, with the limit of a slot that waits, gives the next one the new limit too.
    daemon.guestnet(&["vm", "delete", "new"]);
    daemon.guestnet(&["vm", "create", "newer"]);
    assert!(limit("newer").1.contains("rate 50Mbit"), "{:?}", limit("newer"));
    wait_until("more slots are kept", || slots() >= 16);
    let group = || lab.on_host("stat", &["-c", "%g %a", daemon.socket().to_str().unwrap()]);
    // Debian's base-passwd: daemon is 1.
    assert_eq!(group(), "1 660\n");

    // One part that cannot be: none of it is.
    let refused = before.replace("pool_size = 8", "pool_size = 8\nlease_seconds = 700");
    fs::write(&path, refused.replace("[api]", "[api]\nsocket_group = \"no-such-group\"")).unwrap();
    let refused = daemon.client(&["reload"]);
    assert!(!refused.status.success() && text(&refused).contains("no-such-group"), "{}", text(&refused));
    assert!(lease(&guest).contains("lease time 600"), "{}", lease(&guest));
    fs::write(&path, &before).unwrap();
    daemon.guestnet(&["reload"]);
    assert!(lease(&guest).contains("lease time 43200"), "{}", lease(&guest));
    assert_eq!(group(), "0 660\n");
}

#[test]
fn a_reload_changes_what_is_logged() {
    let lab = Lab::new();
    let (notify_path, log) = (lab.directory().join("notify"), lab.directory().join("log"));
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut daemon = serve_command(&lab, "")
        .env("NOTIFY_SOCKET", &notify_path)
        .env_remove("GUESTNET_LOG")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut said = String::new();
    while !said.contains("READY=1") {
        let mut buffer = [0; 256];
        let length = notify.recv(&mut buffer).expect("it gets ready");
        said += &String::from_utf8_lossy(&buffer[..length]);
    }
    let client = |arguments: &[&str]| {
        let mut command = lab.host_command(crate::lab::guestnet_binary());
        command.args(arguments).env("GUESTNET_SOCKET", Paths::of(&lab).socket).output().unwrap()
    };
    let debugged = || fs::read_to_string(&log).unwrap().matches("not changed").count();
    let refused = || assert!(!client(&["vm", "create", "a", "--ip", "10.100.0.1"]).status.success());
    refused();
    assert_eq!(debugged(), 0, "that is for debug");
    let config = Paths::of(&lab).config;
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{before}[log]\nfilter = \"guestnet::api=debug\"\n")).unwrap();
    let reloaded = client(&["reload"]);
    assert!(text(&reloaded).contains("log.filter"), "{}", text(&reloaded));
    refused();
    assert_eq!(debugged(), 1, "{}", fs::read_to_string(&log).unwrap());
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn the_watchdog_is_fed_as_often_as_systemd_asks() {
    let lab = Lab::new();
    let path = lab.directory().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut daemon = serve_command(&lab, "")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut fed, mut buffer) = (0, [0; 256]);
    while fed < 3 {
        let length = notify.recv(&mut buffer).expect("the watchdog is fed");
        fed += usize::from(String::from_utf8_lossy(&buffer[..length]).contains("WATCHDOG=1"));
    }
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_full_log_disk_costs_the_log_and_nothing_else() {
    let lab = Lab::new();
    let path = lab.directory().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut daemon = serve_command(&lab, "").env("NOTIFY_SOCKET", &path).stderr(full).spawn().unwrap();
    let mut buffer = [0; 256];
    notify.recv(&mut buffer).expect("it gets ready");
    let client = |arguments: &[&str]| {
        let mut command = lab.host_command(crate::lab::guestnet_binary());
        succeed(command.args(arguments).env("GUESTNET_SOCKET", Paths::of(&lab).socket))
    };
    client(&["vm", "create", "a"]);
    assert!(client(&["vm", "list"]).contains("10.100.0.2"));
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn the_units_exposure_is_no_worse_than_stated() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/guestnet.service");
    let mut analyze = Command::new("systemd-analyze");
    // 5.3 of 10, in tenths; docs/operations.md states it.
    succeed(analyze.args(["security", "--offline=yes", "--threshold=53"]).arg(unit));
}

#[test]
fn completions_and_man_pages_know_every_command() {
    let lab = Lab::new();
    let guestnet = |arguments: &[&str]| succeed(Command::new(crate::lab::guestnet_binary()).args(arguments));
    for shell in ["bash", "zsh", "fish"] {
        assert!(guestnet(&["completions", shell]).contains("doctor"), "{shell}");
    }
    let folder = lab.directory().join("man");
    guestnet(&["man", folder.to_str().unwrap()]);
    for page in ["guestnet.1", "guestnet-vm-create.1", "guestnet-doctor.1", "guestnet-capture.1"] {
        assert!(fs::read_to_string(folder.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

#[test]
fn a_guests_packets_are_captured_for_tcpdump_and_rates_are_told() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a"]);
    let file = lab.directory().join("a.pcap");
    let mut capture = daemon.client_command(&["capture", "a", "--packets", "1", "--seconds", "30", "--out"]);
    let mut capture = capture.arg(&file).stderr(Stdio::null()).spawn().unwrap();
    // The host asks until the capture has seen it.
    while capture.try_wait().unwrap().is_none() {
        let _ = lab.host_command("busybox").args(["ping", "-c", "1", "-W", "1", "10.100.0.2"]).output();
    }
    assert!(capture.wait().unwrap().success());
    let install = Command::new(project("packaging/apt-install")).arg("tcpdump").output().unwrap();
    assert!(install.status.success(), "{}", text(&install));
    let read = lab.on_host("tcpdump", &["-n", "-e", "-r", file.to_str().unwrap()]);
    assert!(read.contains("ICMP echo request") || read.contains("ARP, Request"), "{read}");
    assert!(read.contains("10.100.0.2"), "{read}");
    // And as it comes, from standard output.
    let mut capture = daemon.client_command(&["capture", "a", "--packets", "1", "--seconds", "30"]);
    let mut capture = capture.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut tcpdump = lab.host_command("tcpdump");
    let tcpdump = tcpdump.args(["-n", "-r", "-"]).stdin(capture.stdout.take().unwrap());
    let tcpdump = tcpdump.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    while capture.try_wait().unwrap().is_none() {
        let _ = lab.host_command("busybox").args(["ping", "-c", "1", "-W", "1", "10.100.0.2"]).output();
    }
    let read = tcpdump.wait_with_output().unwrap();
    assert!(read.status.success() && text(&read).contains("10.100.0.2"), "{}", text(&read));
    let top = daemon.json(&["top", "--once", "--interval", "200"]);
    assert_eq!(top[0]["vm_id"], "a");
    assert!(top[0]["rx_bytes_per_second"].is_number());
}

/// A port that its VM has left is soon another's.
#[test]
fn a_capture_ends_with_its_vm_and_has_nothing_of_the_next_one_at_its_port() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 1\n");
    let port = daemon.json(&["vm", "create", "a"])["host_device"].clone();
    let file = lab.directory().join("a.pcap");
    let mut capture = daemon.client_command(&["capture", "a", "--seconds", "60", "--out"]);
    let capture = capture.arg(&file).stderr(Stdio::piped()).spawn().unwrap();
    let ping = |address: &str| {
        lab.host_command("busybox").args(["ping", "-c", "1", "-W", "1", address]).output().unwrap();
    };
    let bytes = || fs::read(&file).unwrap_or_default();
    // 10.100.0.2 as it stands in a packet.
    let has = |last: u8| bytes().windows(4).any(|at| at == [10, 100, 0, last]);
    wait_until("the capture has begun", || {
        ping("10.100.0.2");
        has(2)
    });
    daemon.guestnet(&["vm", "delete", "a"]);
    for number in 0..20 {
        let vm = daemon.json(&["vm", "create", &format!("b{number}")]);
        ping(vm["ip_address"].as_str().unwrap());
        if vm["host_device"] == port {
            break;
        }
        assert!(number < 19, "nobody gets {port}");
    }
    let ended = capture.wait_with_output().unwrap();
    assert!(ended.status.success() && text(&ended).contains("VM a has left it"), "{}", text(&ended));
    assert!((3..=22).all(|last| !has(last)), "packets of the next guest");
}

#[test]
fn top_tells_who_asks_the_resolver() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = PortGuest::of(&lab, &daemon.json(&["vm", "create", "a"]));
    daemon.guestnet(&["vm", "create", "b"]);
    let mut top =
        daemon.client_command(&["top", "--once", "--interval", "3000", "--sort", "queries", "--json"]);
    let mut top = top.stdout(Stdio::piped()).spawn().unwrap();
    while top.try_wait().unwrap().is_none() {
        guest.dig(&["localhost"]);
    }
    let told = top.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((&told[0]["vm_id"], &told[1]["vm_id"]), (&"a".into(), &"b".into()), "{told}");
    assert!(told[0]["queries_per_second"].as_f64().unwrap() > 0.0, "{told}");
    assert_eq!(told[1]["queries_per_second"], 0.0, "{told}");
}

//! The Debian package, as `packaging/deb` makes it, in a Debian whose systemd runs: installed, started, upgraded under a live
//! guest, removed, purged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::tap_guest::open_tap;
use crate::lab::{Lab, System, TapGuest, WEB, assert_same, succeed, text};

fn package() -> PathBuf {
    let folder = crate::lab::guestnet_binary().ancestors().nth(2).unwrap().join("debian");
    let made = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let package = made.filter(|path| path.extension().is_some_and(|end| end == "deb")).max();
    package.unwrap_or_else(|| panic!("no package in {}: PROFILE=dev packaging/deb", folder.display()))
}

/// Where they lead to each other as they do in the source.
fn assert_has_its_pages(tree: &Path) {
    let (source, packed) = (Path::new(env!("CARGO_MANIFEST_DIR")), tree.join("usr/share/doc/guestnet"));
    let docs = fs::read_dir(source.join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| Path::new("docs").join(name));
    let docs = docs.filter(|page| page.extension().is_some_and(|end| end == "md"));
    let pages: Vec<PathBuf> = docs.chain(["README.md", "SECURITY.md"].map(PathBuf::from)).collect();
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let here = fs::read(packed.join(&page)).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(
            here == fs::read(source.join(&page)).unwrap(),
            "{} is an old one: PROFILE=dev packaging/deb",
            page.display()
        );
    }
}

/// The package, and the same under a later version, in the folder that the system sees as /given.
fn two_versions(lab: &Lab) {
    let given = lab.directory().join("given");
    fs::create_dir_all(&given).unwrap();
    let (first, tree) = (given.join("first.deb"), lab.directory().join("tree"));
    fs::copy(package(), &first).unwrap();
    succeed(Command::new("dpkg-deb").arg("-R").args([&first, &tree]));
    assert_has_its_pages(&tree);
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = text.lines().find(|line| line.starts_with("Version: ")).unwrap();
    fs::write(&control, text.replace(version, "Version: 99.0.0")).unwrap();
    succeed(Command::new("dpkg-deb").args(["-Znone", "-b"]).args([&tree, &given.join("second.deb")]));
}

fn json(system: &System, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&system.run("guestnet", &arguments)).unwrap()
}

fn main_pid(system: &System) -> String {
    system.run("systemctl", &["show", "-P", "MainPID", "guestnet"])
}

/// What an operator sees of the host's network: all of it guestnet's, or there before.
fn network_state(system: &System) -> String {
    let show = |program, arguments: &[&str]| system.run(program, arguments);
    let chains = |table| show("iptables", &["-t", table, "-S"]);
    format!(
        "{}{}{}{}{}",
        // Without what the kernel numbers anew.
        show("sh", &["-c", "ip -br link | cut -d ' ' -f 1 | cut -d @ -f 1 | sort"]),
        show("ip", &["-4", "route"]),
        show("sh", &["-c", "ls /run/netns 2>/dev/null || true"]),
        chains("filter"),
        chains("nat"),
    )
}

/// Pings the internet from the guest, one each 10 ms, until `stop`; counts the answers, of which none may be missing.
fn ping_until(guest: &TapGuest, stop: &AtomicBool, answered: &AtomicUsize) {
    let mut ping = guest.namespace.command("busybox");
    let mut ping =
        ping.args(["ping", "-i", "0.01", WEB]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(ping.stdout.take().unwrap()));
    let mut expected = 0;
    for line in lines {
        let line = line.unwrap();
        let Some(at) = line.find("seq=") else { continue };
        let sequence: usize = line[at + 4..].split(' ').next().unwrap().parse().unwrap();
        assert_eq!(sequence, expected, "a packet was lost before: {line}");
        expected += 1;
        answered.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    ping.kill().unwrap();
    ping.wait().unwrap();
    assert!(stop.load(Ordering::Relaxed), "ping has ended");
}

/// While the guest pings without a loss.
fn under_traffic<T>(guest: &TapGuest, work: impl FnOnce() -> T) -> T {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let train = scope.spawn(|| ping_until(guest, &stop, &answered));
        let more = || {
            let (now, deadline) =
                (answered.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
            while answered.load(Ordering::Relaxed) < now + 10 {
                assert!(
                    !train.is_finished() && Instant::now() < deadline,
                    "the guest's pings are not answered"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        more();
        let done = work();
        more();
        stop.store(true, Ordering::Relaxed);
        train.join().unwrap();
        done
    })
}

#[test]
fn it_installs_starts_upgrades_under_a_live_guest_and_purges_clean() {
    let lab = Lab::new();
    two_versions(&lab);
    let system = System::boot(&lab);
    let before = network_state(&system);

    system.run("dpkg", &["-i", "/given/first.deb"]);
    assert_eq!(system.run("systemctl", &["is-active", "guestnet"]), "active\n");
    assert_eq!(system.run("systemctl", &["is-enabled", "guestnet"]), "enabled\n");
    let socket = ["-c", "%a %U %G", "/run/guestnet/guestnet.sock"];
    assert_eq!(system.run("stat", &socket), "660 root guestnet\n");
    assert_eq!(system.run("stat", &["-c", "%a %U", "/var/lib/guestnet"]), "700 root\n");
    for file in [
        "/usr/share/bash-completion/completions/guestnet",
        "/usr/share/guestnet/prometheus/alerts.yml",
        "/usr/share/guestnet/grafana/guestnet.json",
    ] {
        system.run("test", &["-s", file]);
    }
    doctor_looks_at_what_the_unit_starts_with(&system);

    // Not what the file says, and of the packages' scripts none reads it.
    let overrides = "UNKEY_METALD_NETWORK_BRIDGE=br-other\\nUNKEY_METALD_NETWORK_BRIDGE_IP=10.9.0.1/16\\n\
                     UNKEY_METALD_NETWORK_VM_SUBNET=10.9.0.0/16\\n";
    let restarted = format!("printf '{overrides}' > /etc/default/guestnet; systemctl restart guestnet");
    system.run("sh", &["-ec", &restarted]);
    system.run("ip", &["link", "show", "br-other"]);

    let vm = json(&system, &["vm", "create", "web-1"]);
    let tap = system.netns("vm-web-1").run(|| open_tap("tap0", libc::IFF_VNET_HDR).unwrap());
    let guest = TapGuest::attach_to(tap, &vm);
    // The journal has the change with its fields, for `journalctl F_VM_ID=web-1`.
    let entry = system.run("journalctl", &["-u", "guestnet", "-o", "json", "--no-pager", "F_VM_ID=web-1"]);
    let entry: Value = serde_json::from_str(entry.lines().next().expect("an entry")).unwrap();
    assert_eq!((&entry["MESSAGE"], &entry["F_VERB"]), (&"VM network changed".into(), &"create".into()));
    assert_eq!(entry["PRIORITY"], "5", "{entry}");

    under_traffic(&guest, || {
        system.run("systemctl", &["reload", "guestnet"]);
        let old = main_pid(&system);
        system.run("dpkg", &["-i", "/given/second.deb"]);
        assert_ne!(main_pid(&system), old, "the new program runs");
        assert_eq!(system.run("systemctl", &["is-active", "guestnet"]), "active\n");
        assert_eq!(json(&system, &["vm", "list"])[0], json(&system, &["vm", "show", "web-1"]));
        assert_eq!(json(&system, &["vm", "show", "web-1"])["ip_address"], vm["ip_address"]);
        // A crash is an upgrade that nobody planned.
        let old = main_pid(&system);
        system.run("systemctl", &["kill", "-s", "KILL", "--kill-whom=main", "guestnet"]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while main_pid(&system) == old || !system.try_run("guestnet", &["status"]).status.success() {
            assert!(Instant::now() < deadline, "it does not come back");
            std::thread::sleep(Duration::from_millis(50));
        }
        system.run("dpkg", &["-r", "guestnet"]);
        assert!(!system.try_run("systemctl", &["is-active", "guestnet"]).status.success());
    });

    // A VM that runs is not cut off by a purge: it says which, and may be repeated.
    let refused = system.try_run("dpkg", &["-P", "guestnet"]);
    assert!(!refused.status.success() && text(&refused).contains("web-1"), "{}", text(&refused));
    under_traffic(&guest, || ());
    drop(guest);
    system.run("dpkg", &["-P", "guestnet"]);
    assert_same(&before, &network_state(&system));
    // The operator's, as is what else is in /etc/default.
    system.run("rm", &["/etc/default/guestnet"]);
    for gone in ["/var/lib/guestnet", "/etc/guestnet", "/run/guestnet", "/usr/bin/guestnet"] {
        assert!(!system.try_run("test", &["-e", gone]).status.success(), "{gone} is left");
    }
    assert_eq!(left_of_systemd(&system), Vec::<String>::new());
    let status = system.try_run("dpkg-query", &["-W", "-f", "${db:Status-Status}", "guestnet"]);
    assert!(!text(&status).contains("config-files"), "{}", text(&status));
}

/// Its own variables are not the service's: those are the unit's.
fn doctor_looks_at_what_the_unit_starts_with(system: &System) {
    let told = |check: &str, doctor: &[&str]| -> Option<Value> {
        let output = system.try_run(doctor[0], &[&doctor[1..], &["--json"]].concat());
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        let mut found = report["findings"].as_array().unwrap().iter();
        found.find(|finding| finding["check"] == check).cloned()
    };
    let configuration = |doctor: &[&str]| told("configuration", doctor);
    let doctor = ["guestnet", "doctor"];
    let sh = |command: &str| system.run("sh", &["-ec", command]);
    assert_eq!(configuration(&doctor), None);
    assert_eq!(configuration(&["env", "UNKEY_METALD_NETWORK_VM_SUBNET=x", "guestnet", "doctor"]), None);
    sh("echo 'UNKEY_METALD_NETWORK_VM_SUBNET=\"nonsense\"' > /etc/default/guestnet");
    let of_the_file = configuration(&doctor).expect("a variable that does not fit");
    assert!(of_the_file["seen"].to_string().contains("UNKEY_METALD_NETWORK_VM_SUBNET"), "{of_the_file}");
    sh("chmod 600 /etc/default/guestnet");
    let hidden = configuration(&["setpriv", "--reuid=65534", "--clear-groups", "guestnet", "doctor"]);
    let hidden = hidden.expect("variables that nobody else may read");
    assert_eq!((&hidden["verdict"], &hidden["mend"]), (&"warning".into(), &"sudo guestnet doctor".into()));
    assert!(hidden["seen"].as_str().unwrap().contains("/etc/default/guestnet"), "{hidden}");
    sh("rm /etc/default/guestnet");
    let mistyped = told("service", &["guestnet", "--socket", "/run/guestnet/typo.sock", "doctor"]).unwrap();
    assert_eq!(mistyped["mend"], "guestnet --socket /run/guestnet/guestnet.sock doctor", "{mistyped}");

    let drop_in = "/etc/systemd/system/guestnet.service.d";
    sh(&format!(
        "mkdir -p {drop_in}; printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/guestnet serve --config /etc/other.toml\\n' \\
         > {drop_in}/other.conf; systemctl daemon-reload"
    ));
    let missing = configuration(&doctor).expect("a file that is not there");
    assert_eq!(missing["verdict"], "warning", "the service runs: {missing}");
    assert!(missing["seen"].to_string().contains("/etc/other.toml"), "{missing}");
    sh("install -m 600 /etc/guestnet/guestnet.toml /etc/other.toml");
    assert_eq!(configuration(&doctor), None);
    let hidden = configuration(&["setpriv", "--reuid=65534", "--clear-groups", "guestnet", "doctor"]);
    let hidden = hidden.expect("a file that nobody else may read");
    assert_eq!((&hidden["verdict"], &hidden["mend"]), (&"warning".into(), &"sudo guestnet doctor".into()));
    sh(&format!("rm -r {drop_in} /etc/other.toml; systemctl daemon-reload"));

    // A socket that the file has moved is not the service's before it is restarted; a reload is not lost on the way.
    let file = "/etc/guestnet/guestnet.toml";
    sh(&format!(
        "cp -p {file} /etc/guestnet/kept; sed -i '0,/^socket = /s,^socket = .*,socket = \"/run/guestnet/moved.sock\",' {file}; grep -q moved.sock {file}"
    ));
    let moved = told("service", &doctor).unwrap();
    assert_eq!(moved["verdict"], "problem", "{moved}");
    assert!(moved["mend"].as_str().unwrap().starts_with("systemctl restart guestnet"), "{moved}");
    let reloaded = system.run("guestnet", &["reload"]);
    assert!(reloaded.contains("after systemctl restart guestnet:\n  api.socket: "), "{reloaded}");
    system.run("systemctl", &["reload", "guestnet"]);
    sh(&format!("mv /etc/guestnet/kept {file}"));
    assert_eq!(told("service", &doctor).unwrap()["verdict"], "ok");
}

/// What names guestnet in what systemd knows and keeps. The group stays, as Debian's system groups do: whose files would a later
/// group with its number get?
fn left_of_systemd(system: &System) -> Vec<String> {
    let files = "find /etc /run /usr/lib /var/lib /usr/share /dev/shm -name '*guestnet*' -not -path '/var/lib/dpkg/*' \
                 -not -path '/run/log/*' 2>/dev/null || true";
    let units = "systemctl list-units --all --plain --no-legend '*guestnet*'; \
                 systemctl list-unit-files --no-legend '*guestnet*'; systemctl list-jobs --no-legend | grep guestnet || true";
    let fragments = "systemctl show guestnet.service -P LoadState | grep -v not-found || true; getent passwd guestnet || true";
    let said = [files, units, fragments].map(|look| system.run("sh", &["-c", look]));
    said.iter().flat_map(|said| said.lines()).map(str::to_owned).collect()
}

/// The `sh` blocks of a page of docs/.
fn commands_of(page: &str) -> Vec<&str> {
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// On one host, as a newcomer does: quick start, then what a VM manager calls.
#[test]
fn every_command_of_the_quick_start_and_of_the_integration_guide_works() {
    let lab = Lab::new();
    fs::create_dir_all(lab.directory().join("given")).unwrap();
    let package = package();
    fs::copy(&package, lab.directory().join("given").join(package.file_name().unwrap())).unwrap();
    let system = System::boot(&lab);
    let pages = [include_str!("../../docs/quick-start.md"), include_str!("../../docs/integration.md")];
    let mut said = String::new();
    for block in pages.into_iter().flat_map(commands_of) {
        said += &system.run("bash", &["-euc", &format!("cd /given\n{}", crate::docs::as_read(block))]);
    }
    for told in [
        "active\n",
        "\"vm_id\": \"web-1\"",
        "\"host_dev_name\": \"tap0\"",
        "ip=10.100.0.2::10.100.0.1:255.255.0.0:web-1:eth0:off:10.100.0.1",
        "\"status\":\"SERVING\"",
        "\"workspaceId\":\"acme\"",
    ] {
        assert!(said.contains(told), "{told:?} is not in {said}");
    }
}

//! A state directory that lets the service down: a clear message, nothing half done, and guests keep their networks.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::lab::daemon::{Paths, serve_command};
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, assert_says, lan};
use crate::slots::Traced;

fn database(lab: &Lab) -> PathBuf {
    Paths::of(lab).state.join("guestnet.db")
}

/// A lab whose host has a VM and a stopped service.
fn with_a_vm(lab: &Lab) -> TapGuest {
    let daemon = Daemon::start(lab);
    let guest = TapGuest::attach(lab, &daemon.json(&["vm", "create", "vm1"]));
    assert!(daemon.stop().success());
    guest
}

/// The service refuses to start and says each of `named`; the host, its guests and the database are left as they are.
fn assert_refused(lab: &Lab, guest: &TapGuest, named: &[&str]) {
    let (before, bytes) = (lab.host_state(), fs::read(database(lab)).ok());
    let output = serve_command(lab, "").output().unwrap();
    assert_says(&output, 1, named);
    assert_same(&before, &lab.host_state());
    assert!(fs::read(database(lab)).ok() == bytes, "the database was touched");
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

pub(crate) fn connect_code(lab: &Lab, daemon: &Daemon<'_>, rpc: &str, body: &str) -> String {
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--unix-socket"]).arg(daemon.socket());
    curl.args(["-H", "Content-Type: application/json", "-d", body]);
    curl.arg(format!("http://localhost/guestnet.v1.GuestNetworkService/{rpc}"));
    let answer: serde_json::Value = serde_json::from_slice(&curl.output().unwrap().stdout).unwrap();
    answer["code"].as_str().unwrap_or("ok").to_owned()
}

/// The default network, and somebody else's plumbing beside it: reservations are for that.
fn with_a_lan(lab: &Lab) -> String {
    lan::make(lab);
    format!("[[network]]\n{}", lan::network(""))
}

/// Changes that are about no VM, each of which has to be written down.
const OTHER_CHANGES: [(&str, &str); 4] = [
    ("ApplyNetworkPolicy", r#"{"policy":{"vmId":"vm1","defaultAction":"deny"}}"#),
    ("AddPortForward", r#"{"forward":{"vmId":"vm1","hostPort":8085}}"#),
    ("SetDnsRecord", r#"{"name":"web.corp","type":"A","value":"10.9.0.8"}"#),
    ("AddReservations", r#"{"reservations":[{"macAddress":"02:00:00:00:00:77"}]}"#),
];

/// Each of them is refused with `code`, whatever it is about.
fn assert_others_refused(lab: &Lab, daemon: &Daemon<'_>, code: &str) {
    for (rpc, body) in OTHER_CHANGES {
        assert_eq!(connect_code(lab, daemon, rpc, body), code, "{rpc}");
    }
}

#[test]
fn a_full_disk_refuses_changes_by_name_and_loses_nothing() {
    let lab = Lab::new();
    let state = Paths::of(&lab).state;
    fs::create_dir(&state).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", state.to_str().unwrap()];
    lab.on_host("mount", &mount);
    let daemon = Daemon::start_with(&lab, &with_a_lan(&lab));
    let vm1 = daemon.json(&["vm", "create", "vm1"]);
    let filler = state.join("filler");
    let fill = || {
        let mut dd = lab.host_command("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=4k");
        assert!(!dd.output().unwrap().status.success(), "the disk does not get full");
    };
    fill();
    // What the write-ahead log has room for still goes in.
    let mut refused = None;
    for number in 0..500 {
        let output = daemon.client(&["vm", "create", &format!("more-{number}")]);
        if !output.status.success() {
            refused = Some(output);
            break;
        }
    }
    assert_says(&refused.expect("a refusal"), 1, &["full", "free some space", state.to_str().unwrap()]);
    let before = lab.host_state();
    assert_eq!(connect_code(&lab, &daemon, "CreateVmNetwork", r#"{"vmId":"vm2"}"#), "resource_exhausted");
    assert_eq!(connect_code(&lab, &daemon, "DeleteVmNetwork", r#"{"vmId":"vm1"}"#), "resource_exhausted");
    assert_others_refused(&lab, &daemon, "resource_exhausted");
    assert_says(&daemon.client(&["vm", "update", "vm1", "--rate-mbps", "7"]), 1, &["full"]);
    // An operator who reads the log alone sees it, with who asked; what it was about is for debug.
    let log = daemon.log();
    for verb in ["create", "delete", "update", "set DNS record"] {
        let line = log.lines().find(|line| {
            line.contains(&format!("\"verb\":\"{verb}\"")) && line.contains("\"reason\":\"DISK_FULL\"")
        });
        let line = line.unwrap_or_else(|| panic!("nothing of {verb}: {log}"));
        assert!(line.contains("\"ERROR\"") && line.contains("uid 0"), "{line}");
    }
    assert_same(&before, &lab.host_state());
    let vms = daemon.json(&["vm", "list"]);
    assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm1, "it has its network still");
    let guest = TapGuest::attach(&lab, &vm1);
    // A crash, and a start that needs more room than there is: refused, and no guest notices.
    daemon.crash();
    assert_refused(&lab, &guest, &["full", "free some space", state.to_str().unwrap()]);
    drop(guest);
    lab.on_host("rm", &[filler.to_str().unwrap()]);
    let daemon = Daemon::start(&lab);
    // What was refused is not there, and what was not is.
    assert_eq!(daemon.json(&["vm", "list"]), vms);
    daemon.guestnet(&["vm", "create", "vm2"]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_eq!(daemon.client(&["vm", "show", "vm1"]).status.code(), Some(1));
}

#[test]
fn a_read_only_state_directory_stops_the_start_and_no_guest() {
    let lab = Lab::new();
    let guest = with_a_vm(&lab);
    let state = Paths::of(&lab).state;
    let state = state.to_str().unwrap();
    lab.on_host("mount", &["--bind", state, state]);
    lab.on_host("mount", &["-o", "remount,bind,ro", state]);
    assert_refused(&lab, &guest, &[state, "Read-only", "readable and writable"]);
    lab.on_host("umount", &[state]);
    assert_eq!(Daemon::start(&lab).json(&["vm", "list"])[0]["vm_id"], "vm1");
}

/// As a file system does that the kernel has made read-only, or a disk that fails, under the service: every write is refused.
#[test]
fn a_disk_that_turns_read_only_or_fails_refuses_changes_by_name_and_loses_nothing() {
    let lab = Lab::new();
    let networks = with_a_lan(&lab);
    let daemon = Daemon::start_with(&lab, &networks);
    let vm1 = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm1);
    let before = lab.host_state();
    for (calls, error) in [("pwrite64", "EROFS"), ("pwrite64", "EIO"), ("fsync,fdatasync", "EIO")] {
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error={error}"));
        let traced = Traced::start(&lab, &daemon, &["-e", &trace, "-e", &inject]);
        let refused = |rpc, body| {
            assert_eq!(connect_code(&lab, &daemon, rpc, body), "failed_precondition", "{calls}: {error}");
        };
        refused("CreateVmNetwork", r#"{"vmId":"vm2"}"#);
        refused("UpdateVmNetwork", r#"{"vmId":"vm1","rateLimitMbps":7}"#);
        assert_others_refused(&lab, &daemon, "failed_precondition");
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        let state = Paths::of(&lab).state;
        assert_says(&daemon.client(&["vm", "create", "vm2"]), 1, &[state.to_str().unwrap(), "read-only"]);
        assert_same(&before, &lab.host_state());
        assert!(traced.stop().contains("INJECTED"));
        crate::crash::assert_consistent(&lab, &daemon);
        // And goes on as if nothing had been.
        daemon.guestnet(&["vm", "create", "vm2"]);
        daemon.guestnet(&["vm", "delete", "vm2"]);
        assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([vm1]));
    }
    daemon.crash();
    let daemon = Daemon::start_with(&lab, &networks);
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([vm1]));
    assert_same(&before, &lab.host_state());
    crate::crash::assert_consistent(&lab, &daemon);
}

/// The log may have the whole of a commit whose sync was refused: a crash right then brings nothing of it back. A sync that fails once,
/// and one that fails for good.
#[test]
fn what_a_failing_sync_refused_does_not_come_back_after_a_crash() {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab);
    let vm1 = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm1);
    let stays = daemon.json(&["vm", "create", "stays"]);
    let before = lab.host_state();
    for when in ["when=1", "when=1+"] {
        for (rpc, body) in [
            ("CreateVmNetwork", r#"{"vmId":"vm2"}"#),
            ("DeleteVmNetwork", r#"{"vmId":"stays"}"#),
            ("UpdateVmNetwork", r#"{"vmId":"vm1","rateLimitMbps":7}"#),
        ] {
            let inject = format!("inject=fsync,fdatasync:error=EIO:{when}");
            let traced = Traced::start(&lab, &daemon, &["-e", "trace=fsync,fdatasync", "-e", &inject]);
            assert_eq!(connect_code(&lab, &daemon, rpc, body), "failed_precondition", "{rpc}, {when}");
            daemon.crash();
            assert!(traced.stop().contains("INJECTED"));
            daemon = Daemon::start(&lab);
            assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([stays, vm1]), "{rpc}, {when}");
            assert_same(&before, &lab.host_state());
            crate::crash::assert_consistent(&lab, &daemon);
        }
    }
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

/// What a running service has read before it goes on with; what it has to read it says is damaged, and so does the next start.
#[test]
fn a_database_that_is_torn_under_the_service_is_written_over_by_nobody() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm1 = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm1);
    assert!(daemon.stop().success());
    let daemon = Daemon::start(&lab);
    let file = database(&lab);
    let length = fs::metadata(&file).unwrap().len() as usize;
    let torn = fs::OpenOptions::new().write(true).open(&file).unwrap();
    torn.write_all_at(&vec![0x5a; length - 100], 100).unwrap();
    let mut codes = BTreeSet::new();
    for n in 0..20 {
        let body = format!(r#"{{"vmId":"more{n}"}}"#);
        codes.insert(connect_code(&lab, &daemon, "CreateVmNetwork", &body));
        codes.insert(connect_code(&lab, &daemon, "GetUserData", r#"{"vmId":"vm1"}"#));
        let record = format!(r#"{{"name":"web{n}.corp","type":"A","value":"10.9.0.8"}}"#);
        codes.insert(connect_code(&lab, &daemon, "SetDnsRecord", &record));
    }
    let clear = |code: &String| code == "ok" || code == "data_loss";
    assert!(codes.iter().all(clear) && codes.contains("data_loss"), "{codes:?}");
    // What has been answered is there, on the host too; nothing else is.
    let vms = daemon.json(&["vm", "list"]);
    let routes = lab.on_host("ip", &["-4", "route", "show", "proto", "103", "type", "unicast"]);
    assert_eq!(routes.lines().count(), vms.as_array().unwrap().len(), "{routes}");
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    daemon.crash();
    assert_refused(&lab, &guest, &[&file.display().to_string(), "damaged", "left as it is", ".recover"]);
}

#[test]
fn a_torn_database_is_named_left_as_it_is_and_stops_no_guest() {
    let lab = Lab::new();
    let guest = with_a_vm(&lab);
    let (file, whole) = (database(&lab), fs::read(database(&lab)).unwrap());
    let name = file.display().to_string();
    type Tear = fn(&mut Vec<u8>);
    let tears: [Tear; 4] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.clear(),
        |bytes| bytes[100..].fill(0x5a),
        |bytes| bytes[..16].fill(0),
    ];
    for tear in tears {
        let mut torn = whole.clone();
        tear(&mut torn);
        fs::write(&file, torn).unwrap();
        assert_refused(&lab, &guest, &[&name, "damaged", "left as it is", ".recover"]);
    }
    // Its copy is put back: all is well.
    fs::write(&file, &whole).unwrap();
    assert_eq!(Daemon::start(&lab).json(&["vm", "list"])[0]["vm_id"], "vm1");
}

#[test]
fn a_database_of_a_newer_guestnet_is_refused_with_both_versions() {
    let lab = Lab::new();
    let guest = with_a_vm(&lab);
    let connection = rusqlite::Connection::open(database(&lab)).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    connection.close().unwrap();
    assert_refused(&lab, &guest, &["newer guestnet", "999", "run that version"]);
}

#[test]
fn a_foreign_bridge_of_our_name_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    lab.on_host("ip", &["link", "add", "br-vms", "type", "bridge"]);
    let before = lab.host_state();
    let refused = crate::lab::daemon::serve_command(&lab, "").output().unwrap();
    crate::lab::assert_says(&refused, 2, &["br-vms", "was not made by guestnet"]);
    assert!(!crate::lab::daemon::Paths::of(&lab).state.exists(), "a state directory was made");
    crate::lab::assert_same(&before, &lab.host_state());
}

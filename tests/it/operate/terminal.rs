//! What people see on a terminal and programs do not: tables that fit, progress, `top`; and what programs get instead.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::foreign::project;
use crate::lab::{Daemon, Lab, lan, text};
use crate::slots::eventually;

/// `guestnet ARGUMENTS` on a terminal of that many columns; what it draws goes to `screen`.
fn on_a_terminal(daemon: &Daemon<'_>, columns: u32, arguments: &str, screen: &Path) -> Command {
    let inside =
        format!("stty cols {columns} rows 20; exec {} {arguments}", crate::lab::guestnet_binary().display());
    let mut command = Command::new("script");
    command.args(["-qefc", &inside]).arg(screen);
    command.env("GUESTNET_SOCKET", daemon.socket()).env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

#[test]
fn top_is_live_until_q() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let long = "a-name-as-long-as-a-guests-name-may-be-in-a-table-of-networks";
    daemon.guestnet(&["vm", "create", long]);
    let screen = lab.directory().join("screen");

    let mut top = on_a_terminal(&daemon, 160, "top --interval 100", &screen).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let drawn = || String::from_utf8_lossy(&fs::read(&screen).unwrap_or_default()).into_owned();
    while !drawn().contains(long) {
        assert!(Instant::now() < deadline && top.try_wait().unwrap().is_none(), "{:?}", drawn());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.guestnet(&["vm", "create", "second"]);
    while !drawn().contains("second") {
        assert!(Instant::now() < deadline, "{:?}", drawn());
        std::thread::sleep(Duration::from_millis(20));
    }
    top.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(top.wait().unwrap().success(), "{:?}", drawn());
}

#[test]
fn top_goes_on_when_the_service_is_back() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "first"]);
    let screen = lab.directory().join("screen");
    let mut top = on_a_terminal(&daemon, 160, "top --interval 100", &screen).spawn().unwrap();
    let drawn = || String::from_utf8_lossy(&fs::read(&screen).unwrap_or_default()).into_owned();
    eventually("it is drawn", || drawn().contains("first"));
    assert!(daemon.stop().success());
    eventually("it says that the service does not answer", || drawn().contains("answer"));
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "second"]);
    eventually("it goes on", || drawn().contains("second"));
    top.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(top.wait().unwrap().success(), "{:?}", drawn());
}

#[test]
fn every_table_fits_a_terminal_of_sixty_columns() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let long = "a-name-as-long-as-a-guests-name-may-be-in-a-table-of-networks";
    daemon.guestnet(&["vm", "create", long, "b"]);
    daemon.guestnet(&["forward", "add", long, "--host-port", "8080", "--vm-port", "80"]);
    daemon.guestnet(&["dns", "record", "add", "db", "TXT", &"x".repeat(100)]);
    let policy = lab.directory().join("policy.toml");
    let rule = "[[rules]]\nname = \"a-rule-with-quite-a-long-name\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\n\
                port_range = \"8000-9000\"\nsource = \"203.0.113.0/24\"\naction = \"allow\"\n";
    fs::write(&policy, format!("vm_id = \"{long}\"\n{rule}")).unwrap();
    daemon.guestnet(&["policy", "apply", "-f", policy.to_str().unwrap()]);
    let screen = lab.directory().join("screen");
    let show = format!("policy show {long}");
    for command in [
        "vm list",
        "network list",
        "lease list",
        "reservation list",
        "policy list",
        &show,
        "policy drops",
        "forward list",
        &format!("forward add {long} --host-port 8081 --vm-port 81"),
        "stats",
        "top --once --interval 100",
        "dns record list",
        "dns record add db TXT more",
        "dns cache stats",
        "dns top",
        "dns stats",
    ] {
        let status = on_a_terminal(&daemon, 60, command, &screen).spawn().unwrap().wait().unwrap();
        let drawn = fs::read_to_string(&screen).unwrap();
        let mut lines = drawn.lines().filter(|line| !line.starts_with("Script "));
        assert!(status.success(), "{command}: {drawn}");
        assert!(lines.all(|line| line.trim_end().chars().count() <= 60), "{command}: {drawn}");
    }
    assert!(daemon.guestnet(&["vm", "list"]).contains(long), "a program gets all of it");
    let whole = daemon.guestnet(&["policy", "show", long]);
    assert!(whole.contains("a-rule-with-quite-a-long-name") && whole.contains("PACKETS\n"), "{whole}");
}

#[test]
fn what_takes_longer_than_a_second_says_how_far_it_is_on_a_terminal_only() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let service = Pid::from_raw(daemon.pid() as i32);
    let screen = lab.directory().join("screen");
    let drawn = || String::from_utf8_lossy(&fs::read(&screen).unwrap_or_default()).into_owned();
    let names: Vec<String> = (0..60).map(|n| format!("vm{n}")).collect();
    for (verb, said, table) in [("create", "made 0 of 60", true), ("delete", "deleted 0 of 60", false)] {
        let _ = fs::remove_file(&screen);
        kill(service, Signal::SIGSTOP).unwrap();
        let command = format!("vm {verb} {}", names.join(" "));
        let mut made = on_a_terminal(&daemon, 80, &command, &screen).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !drawn().contains(said) {
            assert!(Instant::now() < deadline && made.try_wait().unwrap().is_none(), "{:?}", drawn());
            std::thread::sleep(Duration::from_millis(20));
        }
        kill(service, Signal::SIGCONT).unwrap();
        assert!(made.wait().unwrap().success(), "{:?}", drawn());
        // The line is gone before anything else is written.
        let after = drawn().rsplit_once("\r\u{1b}[K").unwrap().1.to_owned();
        assert_eq!(after.contains("VM_ID"), table, "{after}");
    }

    kill(service, Signal::SIGSTOP).unwrap();
    let create = daemon.client_command(&["vm", "create", "x", "y", "--json"]);
    let create = { create }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // As long as it took there.
    std::thread::sleep(Duration::from_millis(1_500));
    kill(service, Signal::SIGCONT).unwrap();
    let made = create.wait_with_output().unwrap();
    assert!(made.status.success() && made.stderr.is_empty(), "{}", text(&made));
}

#[test]
fn building_an_image_says_what_is_done_on_a_terminal_only() {
    let lab = Lab::new();
    let images = lab.directory().join("images");
    // A recipe that waits until it has been seen.
    let recipes = lab.directory().join("vm-images");
    let build = project("vm-images");
    crate::lab::succeed(Command::new("cp").arg("-a").arg(build).arg(&recipes));
    let seen = lab.directory().join("seen");
    let recipe = format!(
        "provides=made\nbuild() {{ while [ ! -e {} ]; do sleep 0.05; done; echo made >\"$1/made\"; }}\n",
        seen.display()
    );
    fs::write(recipes.join("recipes/waits.sh"), recipe).unwrap();
    let screen = lab.directory().join("screen");
    let drawn = || String::from_utf8_lossy(&fs::read(&screen).unwrap_or_default()).into_owned();
    let script = recipes.join("build.sh");
    let mut on_terminal = Command::new("script");
    on_terminal.args(["-qefc", &format!("{} waits", script.display())]).arg(&screen);
    on_terminal.env("GUESTNET_IMAGES", &images).stdin(Stdio::null()).stdout(Stdio::null());
    let mut on_terminal = on_terminal.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !drawn().contains("waits: building, ") {
        assert!(Instant::now() < deadline && on_terminal.try_wait().unwrap().is_none(), "{:?}", drawn());
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(&seen, "").unwrap();
    assert!(on_terminal.wait().unwrap().success(), "{:?}", drawn());
    let elsewhere = Command::new(&script).arg("waits").env("GUESTNET_IMAGES", &images).output().unwrap();
    assert!(elsewhere.status.success() && elsewhere.stderr.is_empty(), "{}", text(&elsewhere));
    assert_eq!(text(&elsewhere).lines().count(), 1, "{}", text(&elsewhere));
}

#[test]
fn every_command_that_changes_something_says_in_json_what() {
    let lab = Lab::new();
    lan::make(&lab);
    let networks = format!("[[network]]\npool_size = 8\n{}", lan::network(""));
    let daemon = Daemon::start_with(&lab, &networks);
    daemon.guestnet(&["vm", "create", "a", "b"]);
    daemon.guestnet(&["forward", "add", "a", "--host-port", "8080"]);
    daemon.guestnet(&["dns", "record", "add", "db", "A", "10.100.0.9"]);
    daemon.guestnet(&["reservation", "add", "52:54:00:00:00:01", "10.9.1.1"]);
    let file = lab.directory().join("file");
    fs::write(&file, "#cloud-config\n").unwrap();
    let file = file.to_str().unwrap();
    for (command, said) in [
        (
            "forward delete --host-port 8080",
            json!({"deleted": [
            {"protocol": "tcp", "host_port": 8080, "host_address": "", "uplink": ""}]}),
        ),
        ("policy delete a", json!({"deleted": [{"vm_id": "a", "workspace_id": ""}]})),
        ("dns record delete db", json!({"deleted": 1})),
        ("dns cache flush all", json!({"flushed": 0})),
        ("dns reload", json!({"reloaded": true})),
        (
            "reservation delete 52:54:00:00:00:01 10.9.1.7",
            json!({"deleted": ["52:54:00:00:00:01", "10.9.1.7"]}),
        ),
        (&format!("user-data set a {file}"), json!({"vm_id": "a", "bytes": 14})),
        ("user-data delete a", json!({"deleted": ["a"]})),
        ("gc --apply", json!([])),
        ("reload", json!({"applied": [], "needs_restart": [], "reasons": {}, "overridden": {}})),
        ("vm delete a b never-there", json!({"deleted": ["a", "b", "never-there"]})),
    ] {
        assert_eq!(daemon.json(&command.split(' ').collect::<Vec<_>>()), said, "{command}");
    }
    assert_eq!(daemon.guestnet(&["vm", "delete", "a"]), "", "for people no news is good news");
}

//! Whatever fails or dies in the middle: the host is as it was, or as the service says it is.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::lab::daemon::{Paths, serve_command};
use crate::lab::{Daemon, Lab, TapGuest, WEB, assert_same, text};
use crate::slots::{eventually, slots};

/// Steps of a create on a slot that is ready, of one that is built for it, and of a delete.
const BIND: [&str; 6] = ["walls", "rate", "name", "neighbour", "route", "forwarding"];
const BUILD: [&str; 6] = ["namespace", "tap", "veth", "redirect", "rate", "port"];
const UNBIND: [&str; 4] = ["undo-forwarding", "undo-route", "undo-neighbour", "undo-name"];

/// A lab whose daemons carry out a fault when told to.
pub(crate) struct Faults<'lab> {
    lab: &'lab Lab,
    networks: &'static str,
}

impl<'lab> Faults<'lab> {
    pub(crate) fn new(lab: &'lab Lab, networks: &'static str) -> Self {
        Self { lab, networks }
    }

    fn file(&self) -> std::path::PathBuf {
        self.lab.directory().join("fault")
    }

    pub(crate) fn start(&self) -> Daemon<'lab> {
        Daemon::start_with_env(self.lab, self.networks, &[("GUESTNET_FAULT", self.file().as_os_str())])
    }

    /// The next time that step comes.
    pub(crate) fn inject(&self, when: &str, step: &str, how: &str) {
        // Whole at once: the daemon may be reading.
        let draft = self.lab.directory().join("fault.new");
        std::fs::write(&draft, format!("{when} {step} {how}")).unwrap();
        std::fs::rename(draft, self.file()).unwrap();
    }

    pub(crate) fn happened(&self) -> bool {
        !self.file().exists()
    }
}

/// What is in the kernel for VMs is what the service has, and each slot is whole or not at all.
pub(crate) fn assert_consistent(lab: &Lab, daemon: &Daemon<'_>) {
    let vms = daemon.json(&["vm", "list"]);
    let vms = vms.as_array().unwrap();
    let mut wanted: Vec<&str> = vms.iter().map(|vm| vm["ip_address"].as_str().unwrap()).collect();
    wanted.sort();
    let sorted = |text: String, field: usize| {
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(field))
            .map(ToOwned::to_owned)
            .collect();
        found.sort();
        found
    };
    assert_eq!(
        sorted(lab.on_host("ip", &["-4", "route", "show", "proto", "103", "type", "unicast"]), 0),
        wanted
    );
    assert_eq!(sorted(lab.on_host("ip", &["-4", "neigh", "show", "nud", "permanent"]), 0), wanted);
    let mut macs: Vec<&str> = vms.iter().map(|vm| vm["mac_address"].as_str().unwrap()).collect();
    macs.sort();
    let entries = lab.on_host("bridge", &["fdb", "show"]);
    let entries: Vec<&str> = entries.lines().filter(|l| l.contains("static") && l.contains(" gv")).collect();
    assert_eq!(sorted(entries.join("\n"), 0), macs);
    let mut names: Vec<&str> = vms.iter().map(|vm| vm["namespace"].as_str().unwrap()).collect();
    names.sort();
    let listed = || sorted(lab.on_host("ip", &["netns", "list"]), 0);
    assert_eq!(listed().into_iter().filter(|name| name.starts_with("vm-")).collect::<Vec<_>>(), names);
    assert_eq!(walled(lab), wanted);
    // Slots are built and taken away in the background.
    eventually("as many namespaces as ports of slots", || {
        listed().iter().filter(|name| name.starts_with("guestnet-")).count() == slots(lab)
    });
    for vm in vms {
        assert_eq!(&daemon.json(&["vm", "show", vm["vm_id"].as_str().unwrap()]), vm);
    }
}

/// The addresses that guests' ports may speak under, in order.
fn walled(lab: &Lab) -> Vec<String> {
    let bindings = lab.on_host("nft", &["-nn", "list", "set", "bridge", "guestnet", "bindings"]);
    let addresses = bindings.split(['{', '}', ',', '\n']).filter(|element| element.contains("\"gv"));
    let mut found: Vec<String> =
        addresses.map(|element| element.rsplit(" . ").next().unwrap().trim().to_owned()).collect();
    found.sort();
    found
}

fn failing_create(lab: &Lab, faults: &Faults<'_>, daemon: &Daemon<'_>, when: &str, step: &str) {
    let before = lab.host_state();
    faults.inject(when, step, "fail");
    let output = daemon.client(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    assert!(faults.happened(), "{when} {step} never came");
    assert!(
        !output.status.success() && text(&output).contains("fault injected"),
        "{when} {step}: {}",
        text(&output)
    );
    assert_same(&before, &lab.host_state());
    daemon.guestnet(&["vm", "create", "vm1", "--rate-mbps", "7"]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_same(&before, &lab.host_state());
}

#[test]
fn a_create_that_fails_at_any_step_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    for step in BIND {
        assert_eq!(walled(&lab), Vec::<String>::new());
        failing_create(&lab, &faults, &daemon, "before", step);
        failing_create(&lab, &faults, &daemon, "after", step);
        eventually("as many slots as before", || slots(&lab) == 4);
    }
    assert_consistent(&lab, &daemon);
}

/// A TAP's owner cannot be unset: its slot is built anew, in the background.
#[test]
fn a_tap_that_cannot_be_given_away_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let before = lab.host_state();
    let as_before = || eventually("the host is as it was", || lab.host_state() == before);
    for when in ["before", "after"] {
        faults.inject(when, "tap-options", "fail");
        let create = ["vm", "create", "vm1", "--tap-uid", "1000"];
        let output = daemon.client(&create);
        assert!(!output.status.success() && text(&output).contains("fault injected"), "{}", text(&output));
        as_before();
        daemon.guestnet(&create);
        daemon.guestnet(&["vm", "delete", "vm1"]);
        as_before();
    }
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_start_that_fails_at_any_step_leaves_the_host_as_it_was() {
    for step in ["bridge", "unreachable"] {
        for when in ["before", "after"] {
            let lab = Lab::new();
            let faults = Faults::new(&lab, "");
            let before = lab.host_state();
            faults.inject(when, step, "fail");
            let output = serve_command(&lab, "").env("GUESTNET_FAULT", faults.file()).output().unwrap();
            assert!(
                !output.status.success() && text(&output).contains("fault injected"),
                "{when} {step}: {}",
                text(&output)
            );
            assert_same(&before, &lab.host_state());
            faults.start().guestnet(&["vm", "create", "vm1"]);
        }
    }
}

#[test]
fn a_slot_that_cannot_be_built_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 0\n");
    let daemon = faults.start();
    for step in BUILD {
        failing_create(&lab, &faults, &daemon, "before", step);
        failing_create(&lab, &faults, &daemon, "after", step);
        eventually("no slot is left", || slots(&lab) == 0);
        eventually("nor a namespace", || !lab.on_host("ip", &["netns", "list"]).contains("guestnet"));
    }
}

#[test]
fn a_delete_that_fails_at_any_step_leaves_a_guest_that_works() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let before = lab.host_state();
    for (when, step) in UNBIND.iter().flat_map(|step| [("before", step), ("after", step)]) {
        faults.inject(when, step, "fail");
        let output = daemon.client(&["vm", "delete", "vm1"]);
        assert!(faults.happened() && !output.status.success(), "{when} {step}: {}", text(&output));
        assert_eq!(daemon.json(&["vm", "show", "vm1"]), vm);
        assert_same(&before, &lab.host_state());
        assert_consistent(&lab, &daemon);
    }
    TapGuest::attach(&lab, &vm).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_consistent(&lab, &daemon);
}

#[test]
fn a_delete_that_cannot_take_the_guest_out_of_the_walls_leaves_nothing_in_them() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let daemon = faults.start();
    let stays = daemon.json(&["vm", "create", "stays"]);
    for when in ["before", "after"] {
        daemon.guestnet(&["vm", "create", "vm1"]);
        faults.inject(when, "undo-walls", "fail");
        daemon.guestnet(&["vm", "delete", "vm1"]);
        assert!(faults.happened());
        assert_eq!(walled(&lab), [stays["ip_address"].as_str().unwrap()]);
        assert_consistent(&lab, &daemon);
    }
    TapGuest::attach(&lab, &stays).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
}

/// A live guest that pings the internet all the while.
pub(crate) struct Train {
    ping: Child,
    _guest: TapGuest,
}

impl Train {
    pub(crate) fn start(lab: &Lab, vm: &Value) -> Self {
        let guest = TapGuest::attach(lab, vm);
        let mut ping = guest.namespace.command("busybox");
        let ping = ping.args(["ping", "-i", "0.05", WEB]).stdout(Stdio::piped()).spawn().unwrap();
        Self { ping, _guest: guest }
    }

    /// Ends it: none may be lost.
    pub(crate) fn arrive(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.ping.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.ping.stdout.take().unwrap(), &mut said).unwrap();
        self.ping.wait().unwrap();
        let sequence = |line: &str| line.split_once("seq=")?.1.split(' ').next()?.parse::<usize>().ok();
        let (twice, once): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.contains("DUP"));
        assert!(twice.is_empty(), "answered twice: {twice:?}");
        let answered: Vec<usize> = once.into_iter().filter_map(sequence).collect();
        // The last may still have been on its way.
        let sent = answered.iter().max().expect("an answer") + 1;
        assert_eq!(sent, answered.len(), "of {sent} pings only {} were answered", answered.len());
    }
}

#[test]
fn killed_at_any_step_it_comes_back_to_what_it_has_answered() {
    let lab = Lab::new();
    let ready = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let daemon = ready.start();
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    let mut running = Some(daemon);
    let creates = BIND.iter().chain(&BUILD[..4]).chain(["port"].iter());
    let deletes = UNBIND.iter().chain(["undo-walls"].iter());
    let steps = creates.map(|step| (*step, "create")).chain(deletes.map(|step| (*step, "delete")));
    for (step, verb) in steps {
        for when in ["before", "after"] {
            let daemon = running.take().unwrap();
            daemon.guestnet(&["vm", if verb == "create" { "delete" } else { "create" }, "vm1"]);
            ready.inject(when, step, "kill");
            // Enough of them that slots have to be built, too.
            let ids = ["vm1", "vm2", "vm3"];
            for id in ids {
                daemon.client(&["vm", verb, id, "--rate-mbps", "7"][..if verb == "create" { 5 } else { 3 }]);
            }
            eventually("the daemon is dead", || ready.happened());
            daemon.crash();
            let daemon = ready.start();
            assert_eq!(daemon.json(&["vm", "show", "live"]), live);
            assert_consistent(&lab, &daemon);
            daemon.guestnet(&["vm", "delete", "vm1", "vm2", "vm3"]);
            assert_consistent(&lab, &daemon);
            running = Some(daemon);
        }
    }
    train.arrive();
}

/// Kills the daemon `times` while callers create and delete.
pub(crate) fn storm(times: usize) {
    let lab = Lab::new();
    let pool = "[[network]]\npool_size = 4\n";
    let daemon = Daemon::start_with(&lab, pool);
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    let mut running = Some(daemon);
    for round in 0..times {
        let daemon = running.take().unwrap();
        let socket = Paths::of(&lab).socket;
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (lab, socket, stop) = (&lab, &socket, &stop);
                scope.spawn(move || {
                    let mut turn = caller;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let id = format!("vm{}", turn % 6);
                        let verb = if (turn / 6 + caller) % 2 == 0 { "create" } else { "delete" };
                        let mut client = lab.host_command(crate::lab::guestnet_binary());
                        client.args(["vm", verb, &id]).env("GUESTNET_SOCKET", socket);
                        // It may find nobody there.
                        let _ = client.output();
                        turn += 1;
                    }
                });
            }
            // Another moment of the storm each time.
            std::thread::sleep(std::time::Duration::from_millis(40 + (round as u64 * 37) % 160));
            daemon.crash();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let daemon = Daemon::start_with(&lab, pool);
        assert_eq!(daemon.json(&["vm", "show", "live"]), live);
        assert_consistent(&lab, &daemon);
        running = Some(daemon);
    }
    train.arrive();
}

#[test]
fn killed_in_a_storm_of_calls_it_leaks_nothing() {
    storm(8);
}

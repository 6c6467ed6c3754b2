//! Killed in the middle of anything, the service comes back to what it has answered, and nothing is left over.

use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::Value;

use crate::attributes::OfHost;
use crate::lab::daemon::Paths;
use crate::lab::{Daemon, Lab, TapGuest, WEB, guestnet_binary};
use crate::slots::{eventually, slots};

pub(crate) use crate::consistent::{assert_consistent, walled};

/// Steps of a create on a slot that is ready, of one that is built for it, and of a delete.
pub(crate) const BIND: [&str; 6] = ["walls", "rate", "name", "neighbour", "route", "forwarding"];
pub(crate) const BUILD: [&str; 6] = ["namespace", "tap", "veth", "redirect", "rate", "port"];
pub(crate) const UNBIND: [&str; 5] =
    ["hold-tap", "undo-forwarding", "undo-route", "undo-neighbour", "undo-name"];

/// A lab whose daemons carry out a fault when told to.
pub(crate) struct Faults<'lab> {
    lab: &'lab Lab,
    networks: &'static str,
    ports: &'static str,
}

impl<'lab> Faults<'lab> {
    pub(crate) fn new(lab: &'lab Lab, networks: &'static str) -> Self {
        Self { lab, networks, ports: "512" }
    }

    /// The same with so many ports to a bridge.
    pub(crate) fn with_ports(self, ports: &'static str) -> Self {
        Self { ports, ..self }
    }

    fn file(&self) -> std::path::PathBuf {
        self.lab.directory().join("fault")
    }

    pub(crate) fn start(&self) -> Daemon<'lab> {
        self.try_start(self.networks).unwrap_or_else(|said| panic!("{said}"))
    }

    /// With another configuration; what it said when it has ended before it was ready.
    pub(crate) fn try_start(&self, networks: &str) -> Result<Daemon<'lab>, String> {
        let fault = self.file();
        let variables = [("GUESTNET_FAULT", fault.as_os_str()), ("GUESTNET_PORTS", self.ports.as_ref())];
        Daemon::try_start(self.lab, networks, &variables)
    }

    pub(crate) fn uninstall(&self) -> Output {
        let mut command = self.lab.host_command(guestnet_binary());
        command.arg("uninstall").arg("--config").arg(Paths::of(self.lab).config);
        command.env("GUESTNET_FAULT", self.file()).output().unwrap()
    }

    /// The next time that step comes.
    pub(crate) fn inject(&self, when: &str, step: &str, how: &str) {
        self.write_down(&format!("{when} {step} {how}"));
    }

    /// At so manieth operation from now on.
    pub(crate) fn fail_at(&self, number: usize) {
        self.at(number, "fail");
    }

    /// The same; the process ends there, as by kill -9.
    pub(crate) fn kill_at(&self, number: usize) {
        self.at(number, "kill");
    }

    fn at(&self, number: usize, how: &str) {
        static FAULTS: AtomicUsize = AtomicUsize::new(0);
        self.write_down(&format!("at {number} {how} {}", FAULTS.fetch_add(1, Relaxed)));
    }

    fn write_down(&self, fault: &str) {
        // Whole at once: the daemon may be reading.
        let draft = self.lab.directory().join("fault.new");
        std::fs::write(&draft, fault).unwrap();
        std::fs::rename(draft, self.file()).unwrap();
    }

    /// Nothing is to happen any more; whether it has not.
    pub(crate) fn disarm(&self) -> bool {
        std::fs::remove_file(self.file()).is_ok()
    }

    pub(crate) fn happened(&self) -> bool {
        !self.file().exists()
    }
}

/// A live guest that pings the internet all the while.
pub(crate) struct Train {
    ping: Child,
    answers: Receiver<String>,
    _guest: TapGuest,
}

impl Train {
    pub(crate) fn start(lab: &Lab, vm: &Value) -> Self {
        let guest = TapGuest::attach(lab, vm);
        let mut ping = guest.namespace.command("busybox");
        let mut ping = ping.args(["ping", "-i", "0.05", WEB]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(ping.stdout.take().unwrap()).lines();
        let (answer, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| answer.send(line)));
        Self { ping, answers, _guest: guest }
    }

    /// Ends it: answers still come, and none before the last was lost.
    pub(crate) fn arrive(mut self) {
        let sequence = |line: &String| line.split_once("seq=")?.1.split(' ').next()?.parse::<usize>().ok();
        let mut said: Vec<String> = self.answers.try_iter().collect();
        let until_now = said.iter().filter_map(sequence).max().map_or(0, |last| last + 1);
        // One that was sent after this call began, and not only on its way.
        while said.iter().filter_map(sequence).max() < Some(until_now + 2) {
            let line = self.answers.recv_timeout(Duration::from_secs(60));
            said.push(line.expect("the guest's pings are answered no more"));
        }
        self.ping.kill().unwrap();
        self.ping.wait().unwrap();
        let (twice, once): (Vec<String>, Vec<String>) =
            said.into_iter().partition(|line| line.contains("DUP"));
        assert!(twice.is_empty(), "answered twice: {twice:?}");
        let answered: Vec<usize> = once.iter().filter_map(sequence).collect();
        let sent = answered.iter().max().expect("an answer") + 1;
        assert_eq!(sent, answered.len(), "of {sent} pings only {} were answered", answered.len());
    }
}

#[test]
fn killed_at_any_step_it_comes_back_to_what_it_has_answered() {
    let lab = Lab::new();
    let ready = Faults::new(&lab, "[[network]]\npool_size = 2\n");
    let daemon = ready.start();
    let live = daemon.json(&["vm", "create", "live", "--rate-mbps", "7"]);
    let train = Train::start(&lab, &live);
    let fresh = OfHost::read(&lab).attributes(&lab, &live);
    let mut cut_off = 0;
    let mut running = Some(daemon);
    let creates = BIND.iter().chain(&BUILD[..4]).chain(["port"].iter());
    let deletes = UNBIND.iter().chain(["undo-walls", "clear"].iter());
    let steps = creates.map(|step| (*step, "create")).chain(deletes.map(|step| (*step, "delete")));
    for (step, verb) in steps {
        for when in ["before", "after"] {
            let daemon = running.take().unwrap();
            match verb {
                "create" => daemon.guestnet(&["vm", "delete", "vm1"]),
                _ => daemon.guestnet(&["vm", "create", "vm1", "--rate-mbps", "7"]),
            };
            if step == "clear" {
                eventually("one more would be too many", || slots(&lab) == 4);
            }
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
            // What was cut off and is there all the same is as it would be on a host where nothing ever was: for a guest, too.
            let host = OfHost::read(&lab);
            for vm in daemon.json(&["vm", "list"]).as_array().unwrap() {
                assert_eq!(host.attributes(&lab, vm), fresh, "{when} {step}: {vm}");
                if vm["vm_id"] != "live" {
                    let guest = TapGuest::attach(&lab, vm);
                    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
                    cut_off += 1;
                }
            }
            daemon.guestnet(&["vm", "delete", "vm1", "vm2", "vm3"]);
            assert_consistent(&lab, &daemon);
            running = Some(daemon);
        }
    }
    train.arrive();
    assert!(cut_off > 10, "only {cut_off} VMs outlived a crash");
}

#[test]
fn killed_while_it_wipes_a_slot_it_gives_it_to_nobody_unwiped() {
    let lab = Lab::new();
    // So many that one more is no reason to take any away.
    let ready = Faults::new(&lab, "[[network]]\npool_size = 4\n");
    let mut daemon = ready.start();
    for when in ["before", "after"] {
        daemon.guestnet(&["vm", "create", "vm1", "--rate-mbps", "7"]);
        ready.inject(when, "wipe", "kill");
        daemon.client(&["vm", "delete", "vm1"]);
        eventually("the daemon is dead", || ready.happened());
        daemon.crash();
        daemon = ready.start();
        assert_consistent(&lab, &daemon);
        let queues = lab.on_host("tc", &["qdisc", "show"]);
        assert!(queues.contains("rate 100Mbit") && !queues.contains("rate 7Mbit"), "{queues}");
    }
}

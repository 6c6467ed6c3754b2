//! A hostile guest, its victim, and watchers on the bridge and on the internet; and how a wall is taken down, to see that an
//! attack then comes through: a scenario that cannot fail proves nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::lab::attacker::Attacker;
use crate::lab::frames::Frame;
use crate::lab::sniffer::Sniffer;
use crate::lab::{Daemon, Lab, UPLINK, WEB};

pub(super) struct Scene<'lab> {
    pub(super) lab: &'lab Lab,
    pub(super) daemon: Option<Daemon<'lab>>,
    pub(super) attacker: Attacker,
    pub(super) victim: Attacker,
    /// What has come past the ports, on the bridge.
    pub(super) bridge: Sniffer,
    /// What has left the host.
    pub(super) inet: Sniffer,
    /// Who answers the attacker's ping when all that it sent before has been through: the web server, or its gateway where
    /// nothing gets out.
    pub(super) far: Ipv4Addr,
}

/// A wall that can be taken down.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wall {
    /// The rules of a chain: family and name.
    Chain(&'static str, &'static str),
    /// One rule: family, chain, and its comment.
    Rule(&'static str, &'static str, &'static str),
    /// A program on the host, with arguments.
    Host(&'static str),
    /// Both ports become those of an ordinary bridge, which switches between them.
    Switch,
}

/// Whose eyes an attack is looked for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watcher {
    Victim,
    Bridge,
    Inet,
}

pub(super) const TEXT: &[u8] = b"from a hostile guest";
/// Long enough for whatever has to come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The web server on the internet.
pub(super) fn web() -> Ipv4Addr {
    WEB.parse().expect("an address")
}

/// The host's address on its uplink, under which guests' packets leave.
pub(super) fn uplink() -> Ipv4Addr {
    UPLINK.parse().expect("an address")
}

/// Whether a frame is what a guest sent, as the internet sees it.
pub(super) fn left_the_host(frame: &Frame) -> bool {
    frame.has(TEXT) && frame.ipv4().is_some_and(|(_, source, ..)| source == uplink())
}

/// Destination ports of what a guest was sent with `TEXT` in it, by protocol number.
pub(super) fn ports_seen(frames: &[Frame], wanted: u8) -> Vec<u16> {
    let port = |frame: &Frame| {
        let (protocol, _, _, rest) = frame.ipv4()?;
        (protocol == wanted && frame.has(TEXT)).then(|| u16::from_be_bytes([rest[2], rest[3]]))
    };
    let mut ports: Vec<u16> = frames.iter().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Waits until `done`; panics with `what` when it takes too long.
pub(super) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl<'lab> Scene<'lab> {
    pub(super) fn new(lab: &'lab Lab) -> Self {
        Self::with(lab, "")
    }

    /// With keys of its one network.
    pub(super) fn with(lab: &'lab Lab, network: &str) -> Self {
        Self::of(lab, network, [&[], &[]])
    }

    /// With further arguments to `vm create` for attacker and victim.
    pub(super) fn of(lab: &'lab Lab, network: &str, of_vms: [&[&str]; 2]) -> Self {
        let daemon = Daemon::start_with(lab, &config(network));
        let create = |vm_id, arguments: &[&str]| {
            let arguments = [&["vm", "create", vm_id], arguments].concat();
            Attacker::new(lab, &daemon.json(&arguments))
        };
        let (attacker, victim) = (create("attacker", of_vms[0]), create("victim", of_vms[1]));
        let (bridge, inet) = (Sniffer::new(&lab.host, "br-vms"), Sniffer::new(&lab.inet, "i0"));
        attacker.settle();
        victim.settle();
        Self { lab, daemon: Some(daemon), attacker, victim, bridge, inet, far: web() }
    }

    /// A third guest.
    pub(super) fn guest(&self, vm_id: &str, arguments: &[&str]) -> Attacker {
        let arguments = [&["vm", "create", vm_id], arguments].concat();
        Attacker::new(self.lab, &self.json(&arguments))
    }

    /// Stops the service and starts it again with the same keys of its network.
    pub(super) fn restart(&mut self, network: &str) {
        assert!(self.daemon.take().expect("a daemon").stop().success());
        self.daemon = Some(Daemon::start_with(self.lab, &config(network)));
    }

    /// What `policy test` says of a flow: allow or deny.
    pub(super) fn said(&self, from: &str, to: &str, protocol: &str, port: Option<u16>) -> String {
        let port = port.map(|port| port.to_string());
        let mut arguments = vec!["policy", "test", "--from", from, "--to", to, "--protocol", protocol];
        arguments.extend(port.iter().flat_map(|port| ["--port", port]));
        self.json(&arguments)["action"].as_str().expect("an action").to_owned()
    }

    /// What was dropped of a guest: at its port, and on its way through the host.
    pub(super) fn dropped_of(&self, vm_id: &str) -> (u64, u64) {
        let drops = self.json(&["policy", "drops"]);
        let guests = drops["vms"].as_array().expect("guests");
        let of = guests.iter().find(|guest| guest["vm_id"] == vm_id).expect("the guest");
        let count = |key: &str| of[key].as_u64().unwrap_or_default();
        (count("port_packets"), count("host_packets"))
    }

    /// What each rule of a policy has counted: packets, in the order of the rules.
    pub(super) fn rule_counts(&self, scope: &[&str]) -> Vec<u64> {
        let shown = self.json(&[&["policy", "show"], scope].concat());
        let rules = shown["rules"].as_array().expect("rules");
        rules.iter().map(|rule| rule["packets"].as_u64().unwrap_or_default()).collect()
    }

    /// `guestnet ARGUMENTS`, which has to succeed.
    pub(super) fn guestnet(&self, arguments: &[&str]) -> String {
        self.daemon.as_ref().expect("a daemon").guestnet(arguments)
    }

    pub(super) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        self.daemon.as_ref().expect("a daemon").json(arguments)
    }

    /// Sets a policy that is written in TOML; what the service says of it.
    pub(super) fn apply(&self, policy: &str) -> serde_json::Value {
        let file = self.lab.directory().join("policy.toml");
        std::fs::write(&file, policy).expect("the policy's file");
        self.json(&["policy", "apply", "-f", file.to_str().expect("a path")])
    }

    /// br_netfilter on or off: whether the host's own rules see bridged packets too.
    pub(super) fn br_netfilter(&self, on: bool) {
        for key in ["call-iptables", "call-arptables", "filter-vlan-tagged"] {
            let set = format!("net.bridge.bridge-nf-{key}={}", u8::from(on));
            self.lab.on_host("sysctl", &["-qw", &set]);
        }
    }

    /// What the walls have counted under a reason.
    pub(super) fn counted(&self, family: &str, reason: &str) -> u64 {
        counted(self.lab, family, reason)
    }

    /// The service stops, and its walls are the operator's to take down.
    pub(super) fn take_down(&mut self, walls: &[Wall]) {
        if let Some(daemon) = self.daemon.take() {
            assert!(daemon.stop().success());
        }
        for wall in walls {
            match wall {
                Wall::Chain(family, chain) => {
                    self.lab.on_host("nft", &["flush", "chain", family, "guestnet", chain]);
                }
                Wall::Rule(family, chain, comment) => {
                    let listed = self.lab.on_host("nft", &["-a", "list", "chain", family, "guestnet", chain]);
                    let quoted = format!("comment \"{comment}\"");
                    let line = listed.lines().find(|line| line.contains(&quoted));
                    let line = line.unwrap_or_else(|| panic!("no rule {comment}:\n{listed}"));
                    let handle = line.rsplit("# handle ").next().expect("a handle");
                    self.lab.on_host("nft", &["delete", "rule", family, "guestnet", chain, "handle", handle]);
                }
                Wall::Switch => {
                    self.lab.on_host("nft", &["flush", "chain", "bridge", "guestnet", "between_ports"]);
                    for port in [&self.attacker.port, &self.victim.port] {
                        let flags = "isolated off locked off flood on mcast_flood on bcast_flood on";
                        let words = ["link", "set", "dev", port].into_iter().chain(flags.split(' '));
                        self.lab.on_host("bridge", &words.collect::<Vec<_>>());
                    }
                }
                Wall::Host(command) => {
                    let words: Vec<&str> = command.split(' ').collect();
                    self.lab.on_host(words[0], &words[1..]);
                }
            }
        }
    }

    /// What each watcher has seen when all that the attacker sent has been through.
    fn seen(&self) -> [Vec<Frame>; 3] {
        self.attacker.settle_with(self.far);
        let victim = self.victim.settle();
        [victim, self.bridge.drain(), self.inet.drain()]
    }

    /// Sends `frames`; none of the watchers may see what `is_it` knows, and each frame is counted under `reason`. With the
    /// walls down, `by` sees it.
    pub(super) fn stopped(
        &mut self,
        frames: &[Vec<u8>],
        is_it: impl Fn(&Frame) -> bool,
        (family, reason): (&str, &str),
        walls: &[Wall],
        by: Watcher,
    ) {
        for on in [true, false] {
            self.br_netfilter(on);
            self.seen();
            let before = self.counted(family, reason);
            // The kernel's queue holds a thousand, of all that runs.
            for some in frames.chunks(100) {
                some.iter().for_each(|frame| self.attacker.send(frame));
                self.attacker.settle();
            }
            for (watcher, seen) in ["the victim", "the host", "the internet"].iter().zip(self.seen()) {
                let it: Vec<&Frame> = seen.iter().filter(|frame| is_it(frame)).collect();
                assert!(it.is_empty(), "br_netfilter {on}: {watcher} saw {it:?}");
            }
            let counted = self.counted(family, reason) - before;
            assert_eq!(counted, frames.len() as u64, "br_netfilter {on}: counted as {reason}");
        }
        self.comes_through(frames, is_it, walls, by);
    }

    /// That without `walls` the same frames are seen: what was proved of them could have failed.
    pub(super) fn comes_through(
        &mut self,
        frames: &[Vec<u8>],
        is_it: impl Fn(&Frame) -> bool,
        walls: &[Wall],
        by: Watcher,
    ) {
        self.take_down(walls);
        for frame in frames {
            self.attacker.send(frame);
        }
        let seen = match by {
            Watcher::Victim => self.victim.wait(PATIENCE, &is_it),
            Watcher::Bridge => self.bridge.wait(PATIENCE, &is_it),
            Watcher::Inet => self.inet.wait(PATIENCE, &is_it),
        };
        assert!(seen.is_some(), "with {walls:?} down, {by:?} does not see it either: this proves nothing");
    }
}

/// No rate limit: nothing but walls holds a flood back.
fn config(network: &str) -> String {
    format!("[[network]]\nenable_rate_limit = false\npool_size = 4\n{network}\n")
}

pub(super) fn counted(lab: &Lab, family: &str, reason: &str) -> u64 {
    *counters(lab, family).get(reason).unwrap_or_else(|| panic!("no counter {reason}"))
}

/// What the walls of a family have counted, by reason.
pub(super) fn counters(lab: &Lab, family: &str) -> BTreeMap<String, u64> {
    // All of them: nft takes the name of one, "policy", for a word of its own.
    let listed = lab.on_host("nft", &["-j", "list", "counters", "table", family, "guestnet"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let entries = listed["nftables"].as_array().expect("a list");
    let count = |counter: &serde_json::Value| {
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    entries.iter().filter_map(|entry| count(&entry["counter"])).collect()
}

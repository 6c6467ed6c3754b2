//! A hostile guest, its victim, and watchers on the bridge and on the internet; and how a wall is taken down, to see that an
//! attack then comes through: a scenario that cannot fail proves nothing.

use std::time::Duration;

use crate::lab::attacker::Attacker;
use crate::lab::frames::Frame;
use crate::lab::sniffer::Sniffer;
use crate::lab::{Daemon, Lab};

pub(super) struct Scene<'lab> {
    pub(super) lab: &'lab Lab,
    pub(super) daemon: Option<Daemon<'lab>>,
    pub(super) attacker: Attacker,
    pub(super) victim: Attacker,
    /// What has come past the ports, on the bridge.
    pub(super) bridge: Sniffer,
    /// What has left the host.
    pub(super) inet: Sniffer,
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

impl<'lab> Scene<'lab> {
    pub(super) fn new(lab: &'lab Lab) -> Self {
        Self::with(lab, "")
    }

    pub(super) fn with(lab: &'lab Lab, network: &str) -> Self {
        // No rate limit: nothing but walls holds a flood back.
        let config = format!("[[network]]\nenable_rate_limit = false\n{network}\n");
        let daemon = Daemon::start_with(lab, &config);
        let [attacker, victim] =
            ["attacker", "victim"].map(|vm_id| Attacker::new(lab, &daemon.json(&["vm", "create", vm_id])));
        let (bridge, inet) = (Sniffer::new(&lab.host, "br-vms"), Sniffer::new(&lab.inet, "i0"));
        attacker.settle();
        victim.settle();
        Self { lab, daemon: Some(daemon), attacker, victim, bridge, inet }
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
        self.attacker.settle_with(crate::lab::WEB.parse().unwrap());
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
            for frame in frames {
                self.attacker.send(frame);
            }
            for (watcher, seen) in ["the victim", "the host", "the internet"].iter().zip(self.seen()) {
                let it: Vec<&Frame> = seen.iter().filter(|frame| is_it(frame)).collect();
                assert!(it.is_empty(), "br_netfilter {on}: {watcher} saw {it:?}");
            }
            let counted = self.counted(family, reason) - before;
            assert_eq!(counted, frames.len() as u64, "br_netfilter {on}: counted as {reason}");
        }
        self.take_down(walls);
        for frame in frames {
            self.attacker.send(frame);
        }
        let patience = Duration::from_secs(5);
        let seen = match by {
            Watcher::Victim => self.victim.wait(patience, &is_it),
            Watcher::Bridge => self.bridge.wait(patience, &is_it),
            Watcher::Inet => self.inet.wait(patience, &is_it),
        };
        assert!(seen.is_some(), "with {walls:?} down, {by:?} does not see it either: this proves nothing");
    }
}

pub(super) fn counted(lab: &Lab, family: &str, reason: &str) -> u64 {
    let listed = lab.on_host("nft", &["-j", "list", "counter", family, "guestnet", reason]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let counters = listed["nftables"].as_array().expect("a list");
    counters.iter().find_map(|entry| entry["counter"]["packets"].as_u64()).expect("a counter")
}

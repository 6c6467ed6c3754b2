//! The kernel decides what the pure verdict says: policies, networks, workspaces and forwards at random, put in place in the
//! kernel of a host with four guests, and packets at random really sent, each of which comes or does not.

use std::cell::Cell;
use std::collections::BTreeSet;

use guestnet::kernel::nft::Nft;
use guestnet::model::Action;
use guestnet::policy::{Decision, Flow, decide};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};

use super::cases::{Case, FORWARDED, GUESTS, Sent, To, case, possible};
use super::scene::{PATIENCE, Scene, uplink, web};
use crate::lab::attacker::{Attacker, on_every_cpu};
use crate::lab::frames::{self, Frame, Mac};
use crate::lab::{Lab, sniffer::Sniffer};

/// Four guests, the world, and the host between them, whose service has left it to the test.
struct World {
    guests: [Attacker; GUESTS],
    inet: Sniffer,
    /// Of the host's uplink, and of what is at its other end.
    macs: (Mac, Mac),
    nft: Nft,
    /// Every packet has a number of its own.
    next: Cell<u32>,
}

impl World {
    fn new(lab: &Lab) -> Self {
        let two = "[[network]]\nname = \"two\"\nbridge_name = \"br-two\"\nbridge_ip = \"10.101.0.1/16\"\n\
                   vm_subnet = \"10.101.0.0/16\"\nenable_rate_limit = false\npool_size = 4\n";
        let scene = Scene::with(lab, two);
        let (third, fourth) = (scene.guest("third", &[]), scene.guest("fourth", &["--network", "two"]));
        let Scene { daemon, attacker, victim, inet, .. } = scene;
        assert!(daemon.unwrap().stop().success());
        for subnet in ["10.100.0.0/16", "10.101.0.0/16"] {
            lab.in_inet("ip", &["route", "add", subnet, "via", "198.51.100.1"]);
        }
        let mac = |text: String| frames::mac(text.trim());
        let macs = (
            mac(lab.on_host("cat", &["/sys/class/net/up0/address"])),
            mac(lab.in_inet("sh", &["-c", "ip -o link show i0 | sed 's/.*ether //; s/ .*//'"])),
        );
        let nft = lab.host.run(|| Nft::open().unwrap());
        Self { guests: [attacker, victim, third, fourth], inet, macs, nft, next: Cell::new(1) }
    }

    /// Puts the case's walls in place, sends its flows, and says of each whether it came.
    fn came(&self, case: &Case) -> Vec<bool> {
        let (_, tables) = case.book(&self.guests);
        self.nft.replace(&tables).unwrap();
        self.nft.end(&self.nft.all_connections().unwrap()).unwrap();
        for guest in &self.guests {
            guest.drain();
        }
        self.inet.drain();
        let tokens: Vec<[u8; 4]> = case.flows.iter().map(|flow| self.send(flow)).collect();
        // What the world sent is through when the host has answered its ping, and what a guest sent when its gateway has.
        let mut world = self.ping_the_host();
        let mut seen: Vec<Vec<Frame>> = self.guests.iter().map(Attacker::settle).collect();
        for (seen, guest) in seen.iter_mut().zip(&self.guests) {
            seen.extend(guest.settle());
        }
        world.extend(self.ping_the_host());
        let came = |(flow, token): (&Sent, &[u8; 4])| match flow.to {
            To::Guest(n) | To::Forward(n) => seen[n].iter().any(|frame| frame.has(token)),
            // Not what comes back of it, in an error's quotation.
            To::World(to) => {
                let goes =
                    |frame: &Frame| frame.ipv4().is_some_and(|(_, _, destination, _)| destination == to);
                world.iter().any(|frame| goes(frame) && frame.has(token))
            }
        };
        case.flows.iter().zip(&tokens).map(came).collect()
    }

    /// Sends the first packet of a flow; the number that is in it.
    fn send(&self, flow: &Sent) -> [u8; 4] {
        let number = self.next.get();
        self.next.set(number + 1);
        // No byte of it is one that is common in headers.
        let token = number.to_be_bytes().map(|byte| byte ^ 0xa5);
        let (to, port) = match flow.to {
            To::Guest(n) => (self.guests[n].ip, flow.port),
            To::Forward(n) => (uplink(), FORWARDED + n as u16),
            To::World(to) => (to, flow.port),
        };
        let source = flow.from.map_or(web(), |n| self.guests[n].ip);
        let ports = (10_000 + (number % 20_000) as u16, port);
        let text = [&token[..], b" is the number of it"].concat();
        let payload = match flow.protocol {
            1 => frames::icmp_message(8, number as u16, &text),
            6 => frames::tcp_segment((source, to), ports, (frames::SYN, number, 0), &text),
            17 => frames::udp_payload(source, to, ports, &text),
            _ => text,
        };
        let packet = frames::ipv4(source, to, flow.protocol, &payload);
        match flow.from {
            Some(n) => {
                let guest = &self.guests[n];
                guest.send(&frames::ethernet(guest.mac, guest.gateway_mac, 0x0800, &packet));
            }
            None => self.inet.send(&frames::ethernet(self.macs.1, self.macs.0, 0x0800, &packet)),
        }
        token
    }

    /// What the world has seen until the host answered its ping.
    fn ping_the_host(&self) -> Vec<Frame> {
        let number = self.next.get() as u16;
        self.next.set(self.next.get() + 1);
        let mut seen = Vec::new();
        on_every_cpu(|| {
            self.inet.send(&frames::echo(self.macs.1, self.macs.0, web(), uplink(), number));
            loop {
                let frame = self.inet.receive(PATIENCE).expect("the host's answer to the world");
                if frame.is_echo_reply(uplink(), number) {
                    break;
                }
                seen.push(frame);
            }
        });
        seen
    }

    /// What the pure verdict says of each flow.
    fn said(&self, case: &Case) -> Vec<Decision> {
        let (book, _) = case.book(&self.guests);
        let of = |flow: &Sent| {
            let (destination, port, forwarded) = match flow.to {
                To::Guest(n) => (self.guests[n].ip, flow.port, false),
                To::Forward(n) => (self.guests[n].ip, case.forwards[n].unwrap(), true),
                To::World(to) => (to, flow.port, false),
            };
            let source = flow.from.map_or(web(), |n| self.guests[n].ip);
            let has_ports = [6, 17].contains(&flow.protocol);
            let port = has_ports.then_some(port);
            let flow = Flow { source, destination, protocol: flow.protocol, port, forwarded };
            let peer = |address| book.guest_at(address).map(|guest| book.peer(guest));
            decide(&flow, peer(source), peer(destination))
        };
        case.flows.iter().map(of).collect()
    }
}

fn runner(cases: u32) -> TestRunner {
    let config = Cases { cases, failure_persistence: None, max_shrink_iters: 500, ..Cases::default() };
    // The same cases each time: what fails here fails everywhere.
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn the_kernel_decides_what_the_pure_verdict_says() {
    let lab = Lab::new();
    let world = World::new(&lab);
    let reasons = std::cell::RefCell::new(BTreeSet::new());
    for br_netfilter in [true, false] {
        let set = format!("net.bridge.bridge-nf-call-iptables={}", u8::from(br_netfilter));
        lab.on_host("sysctl", &["-qw", &set]);
        let cases = case().prop_map(move |case| possible(case, br_netfilter));
        let result = runner(100).run(&cases, |case| {
            let (came, said) = (world.came(&case), world.said(&case));
            for ((flow, came), said) in case.flows.iter().zip(came).zip(said) {
                prop_assert_eq!(came, said.action == Action::Allow, "{:?}: {}", flow, said.reason);
                let reason = format!("{:?}", said.reason);
                let kind = reason.split([' ', '{']).next().unwrap_or_default().to_owned();
                reasons.borrow_mut().insert(format!("{kind} {}", said.action));
            }
            Ok(())
        });
        if let Err(failure) = result {
            panic!("br_netfilter {br_netfilter}: {failure}");
        }
    }
    let every = [
        "BlockedEgress deny",
        "Closed deny",
        "Forward allow",
        "NetworkEgress allow",
        "NetworkEgress deny",
        "PolicyDefault allow",
        "PolicyDefault deny",
        "Rule allow",
        "Rule deny",
        "SharedWorkspace allow",
    ];
    assert_eq!(reasons.into_inner().iter().map(String::as_str).collect::<Vec<_>>(), every);

    // Rules that the kernel does not have are noticed.
    let cases = case().prop_map(|case| possible(case, false));
    let without = runner(20).run(&cases, |case| {
        let without = Case { policies: Vec::new(), ..case.clone() };
        let said = world.said(&case).into_iter().map(|said| said.action == Action::Allow);
        prop_assert!(said.eq(world.came(&without)));
        Ok(())
    });
    assert!(without.is_err(), "the same packets pass with the policies and without");
}

//! `policy`: 4,000 VMs with 10 rules each in 50 distinct policies. How long it takes to apply the policy of one VM, what a
//! packet costs more than without policies, and how long all take to load at a start. Peers: iptables with a chain per VM, and
//! nft text with a chain per VM, both put beside nothing else.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestnet::config::Config;
use guestnet::kernel::Kernel;
use guestnet::model::{Account, Mac, Network, Slot, TapOptions, Vm};
use guestnet::policy::PolicySpec;
use guestnet::store::Store;
use guestnet::walls::{Guest, Walls};

use crate::lab::{Lab, Namespace, WEB};
use crate::measure::{milliseconds, quantile};
use crate::report::{Better, Figure, Report};

const VMS: u32 = 4_000;
const POLICIES: u32 = 50;
const RULES: u32 = 10;
const SAMPLES: u32 = 200;
/// Of a peer that takes a hundred times as long.
const PEER_SAMPLES: u32 = 20;
const PACKETS: u32 = 30_000;
const ROUNDS: usize = 7;

pub fn run() -> Report {
    let lab = Lab::new();
    let guest = guest(&lab);
    let sender = guest.run(|| UdpSocket::bind("10.100.0.2:4000").expect("the guest's socket"));
    sender.connect((WEB, 7000)).expect("the guest's route");

    let bare = cost(&sender);
    let (apply, load, ours) = guestnet(&lab, &sender);
    let iptables = iptables(&lab, &sender);
    let nft = nft(&lab, &sender);
    let figure = |name: &str, unit, guestnet, peers: [f64; 2], goal| Figure {
        name: name.into(),
        unit,
        better: Better::Lower,
        guestnet,
        peers: vec![("iptables", peers[0]), ("nft", peers[1])],
        goal,
    };
    Report(vec![
        figure("apply_p50_ms", "ms", apply, [iptables.apply, nft.apply], 3.0),
        figure("packet_cost_ratio", "x", ours, [iptables.cost / bare, nft.cost / bare], 1.3),
        figure("load_s", "s", load, [iptables.load, nft.load], 3.0),
    ])
}

struct Peer {
    apply: f64,
    load: f64,
    cost: f64,
}

/// A guest of its own namespace, on a bridge as guestnet makes it: its port, address and MAC are those of the first VM.
fn guest(lab: &Lab) -> Namespace {
    let guest = Namespace::new();
    let held = format!("/proc/{}/fd/{}", std::process::id(), guest.net_fd());
    let host = |command: &str| {
        let words: Vec<&str> = command.split(' ').collect();
        lab.on_host(words[0], &words[1..]);
    };
    let inside = |command: &str| {
        let words: Vec<&str> = command.split(' ').collect();
        crate::lab::succeed(guest.command(words[0]).args(&words[1..]));
    };
    host(
        "ip link add br-vms address 06:00:0a:64:00:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
    );
    host("ip addr add 10.100.0.1/16 dev br-vms");
    host("ip link set br-vms up");
    host(&format!("ip link add gv0 type veth peer name eth0 netns {held}"));
    host("ip link set gv0 master br-vms up");
    host("sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0");
    inside("ip link set eth0 address 06:00:0a:64:00:02 up");
    inside("ip addr add 10.100.0.2/16 dev eth0");
    inside("ip neigh add 10.100.0.1 lladdr 06:00:0a:64:00:01 dev eth0 nud permanent");
    inside("ip route add default via 10.100.0.1");
    // The internet has no way back, and nobody listens there: the way out alone is what is measured.
    lab.in_inet("iptables", &["-I", "INPUT", "-p", "udp", "--dport", "7000", "-j", "DROP"]);
    guest
}

/// Microseconds that a packet of a live connection takes from the guest's socket to the internet, the least of some rounds.
fn cost(sender: &UdpSocket) -> f64 {
    let round = || {
        let begun = Instant::now();
        for _ in 0..PACKETS {
            // Nobody listens: an error of an earlier packet is no news.
            let _ = sender.send(b"a packet");
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(PACKETS)
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 2)) + n)
}

/// The `which`th of the policies, for a VM.
fn policy(which: u32, vm: u32) -> PolicySpec {
    let mut text = format!("vm_id = \"vm-{vm}\"\ndefault_egress = \"deny\"\ndefault_ingress = \"deny\"\n");
    for rule in 0..RULES - 1 {
        let port = 10_000 + which * RULES + rule;
        let _ = write!(
            text,
            "[[rules]]\nname = \"r{rule}\"\ndirection = \"egress\"\nprotocol = \"tcp\"\nport = {port}\naction = \"allow\"\n"
        );
    }
    text += "[[rules]]\nname = \"udp\"\ndirection = \"egress\"\nprotocol = \"udp\"\naction = \"allow\"\n";
    toml::from_str(&text).expect("a policy")
}

/// How long one VM's policy takes to apply, all to load; and the ratio of a packet's cost with them and without.
fn guestnet(lab: &Lab, sender: &UdpSocket) -> (f64, f64, f64) {
    let directory = lab.directory().join("store");
    lab.host.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let networks = Config::from_parts(None, |_| None).expect("the default").networks;
            let store = Arc::new(Store::open(&directory).expect("a store"));
            let vms: Vec<Vm> = (0..VMS).map(|n| vm(n, &networks[0])).collect();
            let stored = vms.iter().map(|vm| store.insert(vm.clone(), Account::default()));
            futures_util::future::try_join_all(stored).await.expect("the VMs");
            let guests =
                || -> Vec<Guest> { vms.iter().map(|vm| Guest::new(vm, networks[0].clone())).collect() };
            let bridges = [(networks[0].name.clone(), networks[0].bridge.as_if_name().clone())];
            let open =
                || Walls::open(&networks, Kernel::open().expect("netlink"), store.clone()).expect("walls");

            let walls = open();
            walls.raise(&bridges, guests()).expect("walls");
            let without = cost(sender);
            for n in 0..VMS {
                walls.apply(policy(n % POLICIES, n), false).await.expect("a policy");
            }
            let mut applied = Vec::new();
            for n in 0..SAMPLES {
                let spec = policy((n + 1) % POLICIES, n * 7);
                let begun = Instant::now();
                walls.apply(spec, false).await.expect("a policy");
                applied.push(milliseconds(begun.elapsed()));
            }
            drop(walls);
            // What a start does: read the store, compile, one batch.
            let mut loads = Vec::new();
            let mut with = 0.0;
            for _ in 0..3 {
                let begun = Instant::now();
                let walls = open();
                walls.raise(&bridges, guests()).expect("walls");
                loads.push(begun.elapsed().as_secs_f64());
                with = cost(sender);
            }
            let walls = open();
            walls.raise(&bridges, guests()).expect("walls");
            walls.remove().expect("no walls");
            (quantile(&applied, 0.5), quantile(&loads, 0.5), with / without)
        })
    })
}

fn vm(n: u32, network: &Network) -> Vm {
    Vm {
        vm_id: format!("vm-{n}").parse().expect("a vm_id"),
        network: network.name.clone(),
        workspace: None,
        slot: Slot(n),
        mac: Mac::for_address(address(n)),
        address: address(n),
        hostname: format!("vm-{n}").parse().expect("a host name"),
        rate_limit: None,
        tap: TapOptions::default(),
        dhcp_options: guestnet::model::DhcpOptions::default(),
        created_at_us: 0,
    }
}

fn feed(lab: &Lab, program: &str, arguments: &[&str], text: &str) -> Duration {
    let begun = Instant::now();
    let mut command: Command = lab.host_command(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().expect("a peer");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("its input");
    assert!(child.wait().expect("a peer").success(), "{program} {arguments:?}");
    begun.elapsed()
}

fn iptables(lab: &Lab, sender: &UdpSocket) -> Peer {
    let chain = |n: u32, which: u32| {
        let mut text = format!(":VM-{n} -\n");
        for rule in 0..RULES - 1 {
            let port = 10_000 + which * RULES + rule;
            let _ = writeln!(text, "-A VM-{n} -p tcp --dport {port} -j ACCEPT");
        }
        text + &format!("-A VM-{n} -p udp -j ACCEPT\n")
    };
    let chains: String = (0..VMS).map(|n| chain(n, n % POLICIES)).collect();
    let jumps: String = (0..VMS).rev().map(|n| format!("-A FORWARD -s {} -j VM-{n}\n", address(n))).collect();
    let all = format!("*filter\n{chains}{jumps}COMMIT\n");
    let load = feed(lab, "iptables-restore", &["--noflush"], &all).as_secs_f64();
    let cost = cost(sender);
    let applied: Vec<f64> = (0..PEER_SAMPLES)
        .map(|n| {
            let one = format!("*filter\n{}COMMIT\n", chain(n * 7, n % POLICIES));
            milliseconds(feed(lab, "iptables-restore", &["--noflush"], &one))
        })
        .collect();
    feed(lab, "iptables-restore", &[], "*filter\nCOMMIT\n");
    Peer { apply: quantile(&applied, 0.5), load, cost }
}

fn nft(lab: &Lab, sender: &UdpSocket) -> Peer {
    let rules = |n: u32, which: u32| {
        let mut text = String::new();
        for rule in 0..RULES - 1 {
            let port = 10_000 + which * RULES + rule;
            let _ = writeln!(text, "add rule ip peer vm_{n} tcp dport {port} accept");
        }
        text + &format!("add rule ip peer vm_{n} meta l4proto udp accept\n")
    };
    let mut all = String::from("add table ip peer\n");
    for n in 0..VMS {
        let _ = writeln!(all, "add chain ip peer vm_{n}");
        all += &rules(n, n % POLICIES);
    }
    all += "add map ip peer vms { type ipv4_addr : verdict; }\nadd element ip peer vms { ";
    for n in 0..VMS {
        let _ = write!(all, "{} : jump vm_{n}, ", address(n));
    }
    all += "}\nadd chain ip peer forward { type filter hook forward priority 0; policy accept; }\n";
    all += "add rule ip peer forward ip saddr vmap @vms\n";
    let load = feed(lab, "nft", &["-f", "-"], &all).as_secs_f64();
    let cost = cost(sender);
    let applied: Vec<f64> = (0..PEER_SAMPLES)
        .map(|n| {
            let one = format!("flush chain ip peer vm_{}\n{}", n * 7, rules(n * 7, n % POLICIES));
            milliseconds(feed(lab, "nft", &["-f", "-"], &one))
        })
        .collect();
    feed(lab, "nft", &["-f", "-"], "delete table ip peer\n");
    Peer { apply: quantile(&applied, 0.5), load, cost }
}

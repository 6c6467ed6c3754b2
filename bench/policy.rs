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

use crate::lab::{Lab, Namespace, UPLINK, WEB};
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
    let ends = Ends::new(&lab, &guest);

    let bare = ends.cost();
    let ours = guestnet(&lab, &ends);
    let iptables = iptables(&lab, &ends);
    let nft = nft(&lab, &ends);
    let figure = |name: &str, unit, guestnet, peers: [f64; 2], goal| Figure {
        name: name.into(),
        unit,
        better: Better::Lower,
        guestnet,
        peers: vec![("iptables", peers[0]), ("nft", peers[1])],
        goal,
        absent: Vec::new(),
    };
    let ratio = |name: &str, of: fn(&Cost) -> f64| {
        let to_bare = |way: &Way| of(&way.with) / of(&way.without.unwrap_or(bare));
        figure(name, "x", to_bare(&ours), [to_bare(&iptables), to_bare(&nft)], 1.3)
    };
    Report(vec![
        figure("apply_p50_ms", "ms", ours.apply, [iptables.apply, nft.apply], 3.0),
        ratio("packet_cost_ratio", |cost| cost.live),
        ratio("first_packet_cost_ratio", |cost| cost.unanswered),
        figure("load_s", "s", ours.load, [iptables.load, nft.load], 3.0),
    ])
}

/// What one way of doing it costs: milliseconds, seconds, and packets with all policies.
struct Way {
    apply: f64,
    load: f64,
    with: Cost,
    /// Without any policy, when that is not without any rule.
    without: Option<Cost>,
}

/// Microseconds that a packet takes from the guest's socket to the internet.
#[derive(Clone, Copy)]
struct Cost {
    /// Of a connection that has been answered.
    live: f64,
    /// Of one that has not: to a firewall each is as the first.
    unanswered: f64,
}

/// Two sockets of the guest, one of which was answered.
struct Ends {
    live: UdpSocket,
    unanswered: UdpSocket,
    server: UdpSocket,
}

impl Ends {
    fn new(lab: &Lab, guest: &Namespace) -> Self {
        let from = |from: &str, to: u16| {
            let socket = guest.run(|| UdpSocket::bind(from).expect("the guest's socket"));
            socket.connect((WEB, to)).expect("the guest's route");
            socket
        };
        let server = lab.inet.run(|| UdpSocket::bind((WEB, 7000)).expect("the server's socket"));
        server.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
        Self { live: from("10.100.0.2:4000", 7000), unanswered: from("10.100.0.2:4001", 7001), server }
    }

    /// The server answers once: from then on the connection is a live one, whoever tracks it.
    fn answer(&self) {
        self.server.set_nonblocking(true).expect("a socket");
        while self.server.recv_from(&mut [0; 64]).is_ok() {}
        self.server.set_nonblocking(false).expect("a socket");
        self.live.send(b"hello").expect("a packet sent");
        let (_, from) = self.server.recv_from(&mut [0; 64]).expect("a packet that arrives");
        self.server.send_to(b"hello", from).expect("an answer");
        self.live.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
        self.live.recv(&mut [0; 64]).expect("an answer that arrives");
    }

    /// The least of some rounds.
    fn cost(&self) -> Cost {
        self.answer();
        Cost { live: cost(&self.live), unanswered: cost(&self.unanswered) }
    }
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
    lab.in_inet("ip", &["route", "add", "10.100.0.0/16", "via", UPLINK]);
    // Nobody listens at the other port: the way out alone is what is measured.
    lab.in_inet("iptables", &["-I", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP"]);
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

fn guestnet(lab: &Lab, ends: &Ends) -> Way {
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
            let without = ends.cost();
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
            let mut with = without;
            for _ in 0..3 {
                let begun = Instant::now();
                let walls = open();
                walls.raise(&bridges, guests()).expect("walls");
                loads.push(begun.elapsed().as_secs_f64());
                with = ends.cost();
            }
            let walls = open();
            walls.raise(&bridges, guests()).expect("walls");
            walls.remove().expect("no walls");
            Way { apply: quantile(&applied, 0.5), load: quantile(&loads, 0.5), with, without: Some(without) }
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

fn iptables(lab: &Lab, ends: &Ends) -> Way {
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
    let live = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";
    let all = format!("*filter\n{chains}{live}{jumps}COMMIT\n");
    let load = feed(lab, "iptables-restore", &["--noflush"], &all).as_secs_f64();
    let with = ends.cost();
    let applied: Vec<f64> = (0..PEER_SAMPLES)
        .map(|n| {
            let one = format!("*filter\n{}COMMIT\n", chain(n * 7, n % POLICIES));
            milliseconds(feed(lab, "iptables-restore", &["--noflush"], &one))
        })
        .collect();
    feed(lab, "iptables-restore", &[], "*filter\nCOMMIT\n");
    Way { apply: quantile(&applied, 0.5), load, with, without: None }
}

fn nft(lab: &Lab, ends: &Ends) -> Way {
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
    all += "add rule ip peer forward ct state established,related accept\n";
    all += "add rule ip peer forward ip saddr vmap @vms\n";
    let load = feed(lab, "nft", &["-f", "-"], &all).as_secs_f64();
    let with = ends.cost();
    let applied: Vec<f64> = (0..PEER_SAMPLES)
        .map(|n| {
            let one = format!("flush chain ip peer vm_{}\n{}", n * 7, rules(n * 7, n % POLICIES));
            milliseconds(feed(lab, "nft", &["-f", "-"], &one))
        })
        .collect();
    feed(lab, "nft", &["-f", "-"], "delete table ip peer\n");
    Way { apply: quantile(&applied, 0.5), load, with, without: None }
}

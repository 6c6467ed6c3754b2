//! `dhcp`: how fast leases are given, beside dnsmasq, Kea and ISC dhcpd with the same reservations. Each server has one core,
//! the clients the other.

mod clients;
mod generator;
mod servers;

use std::time::Duration;

use crate::debian;
use crate::measure::{cpu_time, milliseconds, quantile};
use crate::report::{Better, Figure, Report};
use generator::{Generator, Outcome};
use servers::{CLIENTS, Kind, LOAD_CORE, Link, start};

/// Clients under way at a time in the steady load.
const WINDOW: usize = 16;
const STEADY: Duration = Duration::from_secs(4);
const COUNTS: [usize; 3] = [100, 1_000, 10_000];
/// What dnsmasq serves at most here: the kernel's ARP table is full then.
const DNSMASQ_CLIENTS: usize = 1_000;
const FLOOD: u32 = 40_000;

pub fn run() -> Report {
    debian::install(&["dnsmasq-base", "kea-dhcp4-server", "isc-dhcp-server", "iproute2"]);
    debian::install(&["isc-dhcp-client", "dhcpcd-base", "klibc-utils", "systemd"]);
    let mut figures = Vec::new();
    for count in COUNTS {
        figures.extend(steady(count));
    }
    for count in [1_000, 10_000] {
        figures.push(storm(count));
    }
    figures.push(flood());
    figures.extend(clients::figures());
    Report(figures)
}

/// Runs a load against a server with `count` reservations, both in place and warm; what it came to and the processor
/// time that the server took.
fn load<T: Send>(kind: Kind, count: usize, work: impl FnOnce(&mut Generator) -> T + Send) -> (T, Duration) {
    let link = Link::new();
    let server = start(kind, &link, count);
    link.clients.run(|| {
        servers::pin_this_thread(LOAD_CORE);
        let mut generator = Generator::new(CLIENTS, count);
        generator.steadily(WINDOW, Duration::from_millis(300));
        let before = cpu_time(server.pid());
        let done = work(&mut generator);
        (done, cpu_time(server.pid()) - before)
    })
}

fn peers(count: usize) -> impl Iterator<Item = Kind> {
    Kind::PEERS.into_iter().filter(move |kind| *kind != Kind::Dnsmasq || count <= DNSMASQ_CLIENTS)
}

fn steady(count: usize) -> [Figure; 2] {
    let measure = |kind| {
        let (outcome, cpu) = load(kind, count, |generator| generator.steadily(WINDOW, STEADY));
        (outcome.per_second(), cpu.as_secs_f64() * 1e6 / outcome.exchanges.len() as f64)
    };
    let (rate, cpu) = measure(Kind::Guestnet);
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for peer in peers(count) {
        let (rate, cpu) = measure(peer);
        rates.push((peer.name(), rate));
        cpus.push((peer.name(), cpu));
    }
    let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    [
        Figure {
            name: format!("exchanges_per_s_{count}"),
            unit: "1/s",
            better: Better::Higher,
            guestnet: rate,
            peers: rates,
            goal: f64::max(50_000.0, 5.0 * best),
            absent: Vec::new(),
        },
        Figure {
            name: format!("cpu_us_per_exchange_{count}"),
            unit: "us",
            better: Better::Lower,
            guestnet: cpu,
            peers: cpus,
            goal: 15.0,
            absent: Vec::new(),
        },
    ]
}

fn storm(count: usize) -> Figure {
    let measure = |kind| {
        let (outcome, _): (Outcome, _) = load(kind, count, Generator::storm);
        milliseconds(outcome.elapsed)
    };
    Figure {
        name: format!("storm_{count}_ms"),
        unit: "ms",
        better: Better::Lower,
        guestnet: measure(Kind::Guestnet),
        peers: peers(count).map(|peer| (peer.name(), measure(peer))).collect(),
        goal: if count == 1_000 { 200.0 } else { 2_000.0 },
        absent: Vec::new(),
    }
}

/// One client boots again and again beside one that floods.
fn flood() -> Figure {
    let measure = |kind| {
        let (outcome, _) = load(kind, 2, |generator| generator.beside_a_flood(FLOOD, 500));
        quantile(&outcome.exchanges, 0.99)
    };
    Figure {
        name: "flood_neighbour_p99_ms".into(),
        unit: "ms",
        better: Better::Lower,
        guestnet: measure(Kind::Guestnet),
        peers: Vec::new(),
        goal: 5.0,
        absent: Vec::new(),
    }
}

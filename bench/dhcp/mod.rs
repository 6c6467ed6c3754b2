//! `dhcp`: how fast leases are given, beside dnsmasq, Kea and ISC dhcpd with the same reservations. Each server has one core,
//! the clients the other. Every case has an end: what a peer cannot do by then is told as such.

pub mod behaviour;
mod clients;
mod generator;
mod relayed;
mod servers;

use std::time::{Duration, Instant};

use crate::debian;
use crate::measure::{cpu_time, milliseconds, quantile};
use crate::report::{Better, Figure, Report};
use generator::Generator;
use servers::{CLIENTS, Kind, LOAD_CORE, Link, start};

/// Clients under way at a time in the steady load: as many as keep the fastest server at work.
const WINDOW: usize = 64;
const STEADY: Duration = Duration::from_secs(3);
const COUNTS: [usize; 3] = [100, 1_000, 10_000];
/// Clients without a lease after that long go without.
const STORM: Duration = Duration::from_secs(15);
const FLOOD: usize = 40_000;
const FLOOD_LIMIT: Duration = Duration::from_secs(6);

/// What a server came to, or why it did not.
type Measured = Result<f64, String>;

pub fn run() -> Report {
    debian::install(&["dnsmasq-base", "kea-dhcp4-server", "kea-admin", "isc-dhcp-server", "iproute2"]);
    debian::install(&["isc-dhcp-client", "dhcpcd-base", "klibc-utils", "systemd"]);
    let mut figures = Vec::new();
    for count in COUNTS {
        figures.extend(steady(count));
    }
    for count in [1_000, 10_000] {
        figures.extend(storm(count));
    }
    figures.extend(flood());
    figures.extend(relayed::figures());
    figures.extend(clients::figures());
    figures.push(import());
    Report(figures)
}

/// A figure of ours beside the peers'.
fn figure(name: String, unit: &'static str, better: Better, goal: f64, of: &[(Kind, Measured)]) -> Figure {
    let number = |measured: &Measured| *measured.as_ref().unwrap_or(&f64::NAN);
    let (ours, peers): (Vec<_>, Vec<_>) = of.iter().partition(|(kind, _)| *kind == Kind::Guestnet);
    let why = |(kind, measured): &&(Kind, Measured)| Some((kind.name(), measured.as_ref().err()?.clone()));
    Figure {
        name,
        unit,
        better,
        guestnet: ours.first().map_or(f64::NAN, |(_, measured)| number(measured)),
        peers: peers.iter().map(|(kind, measured)| (kind.name(), number(measured))).collect(),
        goal,
        absent: of.iter().filter_map(|each| why(&each)).collect(),
    }
}

/// The best of the peers, by `better`; `none` without any.
fn best_peer(of: &[(Kind, Measured)], none: f64, better: fn(f64, f64) -> f64) -> f64 {
    let peers = of.iter().filter(|(kind, _)| *kind != Kind::Guestnet);
    peers.filter_map(|(_, measured)| measured.as_ref().ok().copied()).reduce(better).unwrap_or(none)
}

fn each_server<T>(measure: impl Fn(Kind) -> Result<T, String>) -> Vec<(Kind, Result<T, String>)> {
    let mut measured = vec![(Kind::Guestnet, measure(Kind::Guestnet))];
    measured.extend(Kind::PEERS.map(|peer| (peer, measure(peer))));
    measured
}

/// One number of what each server came to.
fn of<T>(measured: &[(Kind, Result<T, String>)], number: impl Fn(&T) -> f64) -> Vec<(Kind, Measured)> {
    measured
        .iter()
        .map(|(kind, result)| (*kind, result.as_ref().map(&number).map_err(Clone::clone)))
        .collect()
}

/// Runs a load against a server with `count` reservations, both in place and warm; what it came to and the processor
/// time that the server took.
fn load<T: Send>(
    kind: Kind,
    count: usize,
    work: impl FnOnce(&mut Generator) -> T + Send,
) -> Result<(T, Duration), String> {
    let link = Link::new();
    let server = start(kind, &link, count)?;
    Ok(link.clients.run(|| {
        servers::pin_this_thread(LOAD_CORE);
        let mut generator = Generator::new(CLIENTS, count);
        generator.steadily(WINDOW, Duration::from_millis(300));
        let before = cpu_time(server.pid());
        let done = work(&mut generator);
        (done, cpu_time(server.pid()) - before)
    }))
}

fn steady(count: usize) -> [Figure; 2] {
    let measured = each_server(|kind| {
        let (outcome, cpu) = load(kind, count, |generator| generator.steadily(WINDOW, STEADY))?;
        let done = outcome.exchanges.len();
        if done == 0 {
            return Err(format!("no exchange within {STEADY:?}"));
        }
        Ok((outcome.per_second(), cpu.as_secs_f64() * 1e6 / done as f64))
    });
    let (rates, costs) = (of(&measured, |(rate, _)| *rate), of(&measured, |(_, cost)| *cost));
    let goal = f64::max(50_000.0, 5.0 * best_peer(&rates, 0.0, f64::max));
    [
        figure(format!("exchanges_per_s_{count}"), "1/s", Better::Higher, goal, &rates),
        figure(format!("cpu_us_per_exchange_{count}"), "us", Better::Lower, 15.0, &costs),
    ]
}

fn storm(count: usize) -> [Figure; 2] {
    let measured = each_server(|kind| {
        let (outcome, _) = load(kind, count, |generator| generator.storm(STORM))?;
        match outcome.unfinished {
            0 => Ok((milliseconds(outcome.elapsed), outcome.retransmitted as f64)),
            without => Err(format!("{without} of {count} had no lease after {STORM:?}")),
        }
    });
    let goal = if count == 1_000 { 200.0 } else { 2_000.0 };
    let (times, again) = (of(&measured, |(time, _)| *time), of(&measured, |(_, again)| *again));
    [
        figure(format!("storm_{count}_ms"), "ms", Better::Lower, goal, &times),
        figure(format!("storm_{count}_retransmissions"), "", Better::Lower, 0.0, &again),
    ]
}

/// One client boots again and again beside one that floods.
fn flood() -> [Figure; 2] {
    let measured = each_server(|kind| {
        let (outcome, _) = load(kind, 2, |generator| generator.beside_a_flood(FLOOD, 2_000, FLOOD_LIMIT))?;
        Ok((quantile(&outcome.exchanges, 0.99), outcome.flooded as f64 / outcome.elapsed.as_secs_f64()))
    });
    let (times, rates) = (of(&measured, |(time, _)| *time), of(&measured, |(_, rate)| *rate));
    [
        figure("flood_neighbour_p99_ms".into(), "ms", Better::Lower, 5.0, &times),
        figure("flood_discovers_per_s".into(), "1/s", Better::Higher, FLOOD as f64, &rates),
    ]
}

/// `guestnet reservation import` of as many lines, from its start until it has ended: durable and live.
fn import() -> Figure {
    const COUNT: usize = 10_000;
    let link = Link::new();
    let daemon = servers::empty(&link);
    let file = link.lab.directory().join("reservations");
    let lines: String =
        servers::reservations(COUNT).map(|(mac, address)| format!("{mac} {address}\n")).collect();
    std::fs::write(&file, lines).expect("a file of reservations");
    let begun = Instant::now();
    daemon.guestnet(&["reservation", "import", &file.display().to_string()]);
    let time = milliseconds(begun.elapsed());
    figure(format!("import_{COUNT}_ms"), "ms", Better::Lower, 1_000.0, &[(Kind::Guestnet, Ok(time))])
}

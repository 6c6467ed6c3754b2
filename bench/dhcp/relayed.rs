//! The same load by a foreign hand: Kea's perfdhcp, which always plays a relay agent.

use std::process::{Command, Stdio};

use super::servers::{CLIENTS, Kind, LOAD_CORE, Link, start};
use super::{best_peer, each_server, figure, of};
use crate::lab::{succeed, text};
use crate::measure::cpu_time;
use crate::report::{Better, Figure};

const CLIENTS_COUNT: usize = 200;
/// More than any of the servers does, so that it is asked as fast as it answers. perfdhcp itself is full at about 15,000.
const RATE: &str = "60000";
const SECONDS: u32 = 4;

pub fn figures() -> [Figure; 2] {
    let measured = each_server(measure);
    let (rates, costs) = (of(&measured, |(rate, _)| *rate), of(&measured, |(_, cost)| *cost));
    let goal = 0.8 * best_peer(&rates, 0.0, f64::max);
    let cost = 0.5 * best_peer(&costs, f64::MAX, f64::min);
    [
        figure("relayed_exchanges_per_s".into(), "1/s", Better::Higher, goal, &rates),
        figure("relayed_cpu_us_per_exchange".into(), "us", Better::Lower, cost, &costs),
    ]
}

/// Four-way exchanges a second by perfdhcp's own count, and the server's processor time for each.
fn measure(kind: Kind) -> Result<(f64, f64), String> {
    let link = Link::new();
    let server = start(kind, &link, CLIENTS_COUNT)?;
    succeed(link.clients.command("ip").args(["addr", "add", "10.9.0.9/16", "dev", CLIENTS]));
    let mut perfdhcp: Command = link.clients.command("taskset");
    let (core, seconds, count) = (LOAD_CORE.to_string(), SECONDS.to_string(), CLIENTS_COUNT.to_string());
    perfdhcp.args(["-c", &core, "perfdhcp", "-4", "-B", "-l", CLIENTS, "-r", RATE, "-p", &seconds]);
    perfdhcp.args(["-R", &count, "-b", "mac=06:00:0a:09:01:00"]);
    let before = cpu_time(server.pid());
    let output = perfdhcp.stdin(Stdio::null()).output().map_err(|error| format!("perfdhcp: {error}"))?;
    let cpu = cpu_time(server.pid()) - before;
    let said = text(&output);
    let rate =
        said.lines().find_map(|line| line.strip_prefix("Rate: ")?.split_whitespace().next()?.parse().ok());
    let rate: f64 = rate.filter(|rate| *rate > 0.0).ok_or_else(|| format!("perfdhcp: {said}"))?;
    Ok((rate, cpu.as_secs_f64() * 1e6 / (rate * f64::from(SECONDS))))
}

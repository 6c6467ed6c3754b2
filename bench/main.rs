//! `bench/run NAME [--json]`: measures guestnet and its peers in the same run, in a lab of its own. Figures only: what is
//! right or wrong is for the tests.
#![allow(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "not shipped"
)]

#[allow(unused_imports, reason = "the tests' part of it")]
#[path = "../tests/lab/mod.rs"]
mod lab;

mod bind;
mod cni;
mod debian;
mod dhcp;
mod dns;
mod measure;
mod packet;
mod policy;
mod report;
mod stats;

use std::process::ExitCode;

use report::Report;

type Benchmark = (&'static str, fn() -> Report);

/// Each benchmark by the name it is called by.
const BENCHMARKS: &[Benchmark] = &[
    ("bind", bind::run),
    ("dhcp", dhcp::run),
    ("dhcp-behaviour", dhcp::behaviour::run),
    ("packet", packet::run),
    ("dns", dns::run),
    ("dns-memory", dns::memory),
    ("policy", policy::run),
    ("stats", stats::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (names, options): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| !argument.starts_with("--"));
    let benchmark = match (&names[..], &options[..]) {
        ([name], [] | [_]) if options.iter().all(|option| *option == "--json") => {
            BENCHMARKS.iter().find(|(known, _)| known == name)
        }
        _ => None,
    };
    let Some((name, run)) = benchmark else {
        let known: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: bench/run NAME [--json]; NAME is one of: {}", known.join(", "));
        return ExitCode::from(2);
    };
    let report = run();
    if options.is_empty() {
        print!("{report}")
    } else {
        println!("{}", report.json(name))
    }
    ExitCode::SUCCESS
}

//! The lab: a host, and an internet behind its uplink, in throwaway namespaces. Tests, demo and benchmarks share it.
//!
//! ```text
//!   host  up0 198.51.100.1/24 ──veth── i0 198.51.100.10/24  inet: web server, 8.8.8.8 and 8.8.4.4 as DNS upstreams
//! ```
//!
//! The host's namespaces (network and mount, with a /run of its own) have no name: they live as long as this process
//! holds them, so nothing can be left behind, whatever ends it. The inet has no route back to the guests' subnet: an
//! answer comes only to what left under the host's address.
#![allow(dead_code, unreachable_pub, reason = "each of tests, demo and benchmarks uses its part")]

pub mod api;
pub mod attacker;
pub mod daemon;
pub mod debian;
pub mod frames;
pub mod guest;
pub mod inet;
pub mod lan;
pub mod namespace;
pub mod port;
pub mod scenario;
pub mod sniffer;
pub mod state;
pub mod system;
pub mod tap_guest;
pub mod validators;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use daemon::Daemon;
pub use guest::{Accelerator, Guest, Machine};
pub use namespace::Namespace;
pub use system::System;
pub use tap_guest::TapGuest;

/// The host's address on its uplink: what the internet sees of a guest.
pub const UPLINK: &str = "198.51.100.1";
/// The web server on the internet.
pub const WEB: &str = "198.51.100.10";
/// A name that the upstream DNS servers resolve to `WEB`.
pub const WEB_NAME: &str = "web.example.com";

pub struct Lab {
    pub host: Namespace,
    pub inet: Namespace,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Builds the lab. Needs root; fails with what is missing.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run as root");
        let host = Namespace::new_with_mounts();
        let inet = Namespace::new();
        let lab = Self { host, inet, directory: tempfile::tempdir().expect("a temporary directory") };
        lab.wire();
        inet::start(&lab.inet);
        lab
    }

    /// The uplink: addresses are of TEST-NET-2 (RFC 5737), so they can mean nothing outside.
    fn wire(&self) {
        let uplink = format!("/proc/{}/fd/{}", std::process::id(), self.inet.net_fd());
        self.on_host("ip", &["link", "set", "lo", "up"]);
        self.on_host("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "i0", "netns", &uplink]);
        self.on_host("ip", &["addr", "add", &format!("{UPLINK}/24"), "dev", "up0"]);
        self.on_host("ip", &["link", "set", "up0", "up"]);
        self.in_inet("ip", &["link", "set", "lo", "up"]);
        self.in_inet("ip", &["addr", "add", &format!("{WEB}/24"), "dev", "i0"]);
        for resolver in inet::RESOLVERS {
            self.in_inet("ip", &["addr", "add", &format!("{resolver}/32"), "dev", "lo"]);
        }
        self.in_inet("ip", &["link", "set", "i0", "up"]);
        self.on_host("ip", &["route", "add", "default", "via", WEB]);
    }

    /// A directory of this lab's own, gone with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that will run on the lab's host.
    pub fn host_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.host.command(program)
    }

    /// Runs a program on the host; it has to succeed. Its standard output.
    pub fn on_host(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.host.command(program).args(arguments))
    }

    pub fn in_inet(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.inet.command(program).args(arguments))
    }
}

/// Panics with the lines that differ, one that is there more often among them.
pub fn assert_same(before: &str, after: &str) {
    let only = |mine: &str, other: &str, mark: char| -> Vec<String> {
        let mut others: Vec<&str> = other.lines().collect();
        let mut is_there = |line: &str| {
            let at = others.iter().position(|other| *other == line);
            at.map(|at| others.swap_remove(at)).is_some()
        };
        mine.lines().filter(|line| !is_there(line)).map(|line| format!("{mark} {line}")).collect()
    };
    let differ = [only(before, after, '-'), only(after, before, '+')].concat();
    assert!(differ.is_empty(), "the host is not as it was:\n{}", differ.join("\n"));
}

/// Panics unless the program ended with `code` and said each of `named`.
pub fn assert_says(output: &Output, code: i32, named: &[&str]) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for name in named {
        assert!(said.contains(name), "no {name:?} in: {said}");
    }
}

/// The guestnet binary of the build that this test or demo belongs to.
pub fn guestnet_binary() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    // target/PROFILE/deps/it-… or target/PROFILE/examples/demo
    let binary = own.parent().and_then(Path::parent).expect("a build directory").join("guestnet");
    assert!(binary.exists(), "{} is not built: cargo build", binary.display());
    binary
}

/// Runs a command that has to succeed; its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8(output.stdout).expect("UTF-8 output")
}

/// Both streams of a finished program, for messages.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

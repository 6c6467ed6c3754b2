//! The resolver with real clients in a guest's place and real servers as upstreams.

mod clients;
mod dnssec;
mod operator;
mod rules;
pub(crate) mod signed;
mod updates;
mod upstreams;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::port::PortGuest;
use crate::lab::{Daemon, Lab};

/// The address that the tests' own servers have on the lab's internet.
pub(crate) const SERVER: &str = "198.51.100.53";

fn guest(lab: &Lab, daemon: &Daemon<'_>) -> PortGuest {
    PortGuest::of(lab, &daemon.json(&["vm", "create", "web-1"]))
}

/// A server on the lab's internet, ended when dropped.
pub(crate) struct Server(Child);

impl Server {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives the lab's internet the address of the tests' own servers.
fn with_server_address(lab: &Lab) {
    lab.in_inet("ip", &["addr", "add", &format!("{SERVER}/24"), "dev", "i0"]);
}

/// unbound with `text` for its configuration beside what keeps it within the lab.
fn unbound(lab: &Lab, text: &str) -> Server {
    let path = lab.directory().join("unbound.conf");
    let common = "server:\n  username: \"\"\n  chroot: \"\"\n  directory: \"/tmp\"\n  pidfile: \"\"\n  use-syslog: no\n  \
                  num-threads: 1\n  module-config: \"iterator\"\nremote-control:\n  control-enable: no\n";
    fs::write(&path, format!("{common}{text}")).unwrap();
    let mut command = lab.inet.command("unbound");
    command.args(["-d", "-c"]).arg(path);
    Server::start(command)
}

/// Tries until it is so, for a minute; says what was last seen.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > Duration::from_secs(60) => panic!("{what}: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Each yes of the table beside other servers is a link with the names of its tests, or the figure of a benchmark.
#[test]
fn every_link_of_the_table_in_the_docs_leads_to_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/dns.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains("](../"));
    let mut links = 0;
    for row in rows {
        for link in row.split("](../").skip(1) {
            let (path, rest) = link.split_once(' ').unwrap();
            let names = rest.trim_start_matches('"').split('"').next().unwrap();
            let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            for name in names.split("; ") {
                let there = if path.starts_with("bench") {
                    text.contains(&format!("\"{name}\""))
                } else {
                    text.contains(&format!("fn {name}("))
                };
                assert!(there, "{path} has no {name}");
                links += 1;
            }
        }
    }
    assert!(links > 25, "{links}");
}

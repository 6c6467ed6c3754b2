//! The clients that guests have: from their start until the interface has its address.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::generator::{address, mac};
use super::servers::{CLIENTS, Kind, Link, start};
use super::{Measured, best_peer, each_server};
use crate::lab::succeed;
use crate::measure::{milliseconds, quantile};
use crate::report::{Better, Figure};

const NAMES: [&str; 5] = ["udhcpc", "dhclient", "dhcpcd", "networkd", "ipconfig"];
const SAMPLES: usize = 7;
/// A client that takes longer has not managed.
const LIMIT: Duration = Duration::from_secs(6);

/// For udhcpc and dhclient, in the words of each.
const SCRIPT: &str = r#"#!/bin/sh
case "${reason:-$1}" in
  bound|BOUND) ip addr add ${new_ip_address:-$ip}/16 dev $interface ;;
esac
"#;

/// One figure for each client, guestnet beside its peers.
pub fn figures() -> Vec<Figure> {
    let servers = each_server(measure);
    let figure = |n: usize| {
        let times: Vec<(Kind, Measured)> = servers
            .iter()
            .map(|(kind, times)| {
                (*kind, times.as_ref().map_err(Clone::clone).and_then(|times| times[n].clone()))
            })
            .collect();
        let goal = best_peer(&times, LIMIT.as_secs_f64() * 1000.0, f64::min) + 10.0;
        super::figure(format!("client_ms_{}", NAMES[n]), "ms", Better::Lower, goal, &times)
    };
    (0..NAMES.len()).map(figure).collect()
}

/// The median of each client's times.
fn measure(kind: Kind) -> Result<Vec<Measured>, String> {
    let link = Link::new();
    let _server = start(kind, &link, 1)?;
    let own: Vec<String> = mac(address(0)).iter().map(|octet| format!("{octet:02x}")).collect();
    let script = link.lab.directory().join("script");
    fs::write(&script, SCRIPT).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("an executable script");
    let ip = |arguments: &[&str]| succeed(link.clients.command("ip").args(arguments));
    ip(&["link", "set", CLIENTS, "down"]);
    ip(&["link", "set", CLIENTS, "address", &own.join(":")]);
    ip(&["link", "set", CLIENTS, "up"]);
    let once = |name: &str| {
        let mut command = client(&link, name, &script.display().to_string());
        let time = link.clients.run(|| until_it_has_its_address(&mut command));
        ip(&["addr", "flush", "dev", CLIENTS]);
        ip(&["link", "set", CLIENTS, "up"]);
        time.ok_or_else(|| format!("no address within {LIMIT:?}"))
    };
    // The first that fails is the last that is tried.
    let median = |name: &&str| {
        let times: Result<Vec<f64>, String> = (0..SAMPLES).map(|_| once(name)).collect();
        Ok(quantile(&times?, 0.5))
    };
    Ok(NAMES.iter().map(median).collect())
}

/// Milliseconds; none if it has none by the limit.
fn until_it_has_its_address(command: &mut Command) -> Option<f64> {
    let wanted = IpAddr::V4(address(0));
    let begun = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut time = None;
    while time.is_none() && begun.elapsed() < LIMIT {
        let addresses = nix::ifaddrs::getifaddrs().expect("the addresses here");
        let mut addresses =
            addresses.filter_map(|each| Some(IpAddr::V4(each.address?.as_sockaddr_in()?.ip())));
        if addresses.any(|address| address == wanted) {
            time = Some(milliseconds(begun.elapsed()));
        } else {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
    time
}

fn client(link: &Link, name: &str, script: &str) -> Command {
    let file = |file: &str| link.lab.directory().join(file).display().to_string();
    let program = match name {
        "udhcpc" => "busybox",
        "networkd" => "sh",
        "ipconfig" => "/usr/lib/klibc/bin/ipconfig",
        other => other,
    };
    let mut command = link.clients.command(program);
    match name {
        "udhcpc" => command.args(["udhcpc", "-f", "-q", "-n", "-i", CLIENTS, "-s", script]),
        "dhclient" => {
            let (leases, pid) = (file("client-leases"), file("client-pid"));
            let _ = fs::remove_file(&leases);
            command.args([
                "-4",
                "-1",
                "-d",
                "-sf",
                script,
                "-lf",
                &leases,
                "-pf",
                &pid,
                "-cf",
                "/dev/null",
                CLIENTS,
            ])
        }
        // Without its own ARP check of five seconds, and without the second at most that it waits by chance before it begins.
        "dhcpcd" => {
            let options = ["-4", "-B", "-A", "--nodelay", "-f", "/dev/null", "-c", "/bin/true", CLIENTS];
            command.args(options)
        }
        "networkd" => {
            let network = format!(
                "[Match]\nName={CLIENTS}\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            );
            fs::write(file("c.network"), network).expect("a .network file");
            command.arg("-c").arg(format!(
                "mount -o remount,ro /sys; rm -rf /run/systemd; mkdir -p /run/systemd/network /run/systemd/netif/leases /run/systemd/netif/links; cp {} \
                 /run/systemd/network; chown -R systemd-network: /run/systemd/netif; exec /lib/systemd/systemd-networkd",
                file("c.network")
            ))
        }
        _ => command.args(["-t", "10", "-c", "dhcp", "-d", CLIENTS]),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // dhcpcd is several processes: they end together.
    command.process_group(0);
    command
}

//! One guest's way, hop by hop from its TAP to its answer: where packets stop.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::look::{flags, read};
use super::{Finding, Verdict, probe};
use crate::proto::guestnet::v1;

/// What was seen on the way of one guest.
#[derive(Debug, Clone, Default)]
pub struct VmFacts {
    pub vm_id: String,
    pub namespace_exists: bool,
    /// Flags of the TAP and of the other end of the veth in the namespace; none where there is no such device.
    pub tap: Option<u32>,
    pub inner: Option<u32>,
    pub port: String,
    pub port_flags: Option<u32>,
    pub bridge: Option<String>,
    pub is_isolated: Option<bool>,
    pub lease_state: String,
    /// What it last asked for by DHCP and what became of it; empty when it never did.
    pub last_exchange: String,
    pub address: String,
    pub mac: String,
    pub has_route: bool,
    pub neighbour: Option<String>,
    /// Packets that the guest has sent and received.
    pub sent: u64,
    pub received: u64,
    pub answers_ping: Option<bool>,
}

const UP: u32 = libc::IFF_UP as u32;
/// Somebody has the TAP open: a VMM runs. IFF_RUNNING follows only within a second.
const LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;

pub async fn look(
    vm: &v1::VmNetwork,
    lease: Option<&v1::Lease>,
    stats: Option<&v1::NetworkStats>,
) -> VmFacts {
    let namespace = Path::new("/run/netns").join(&vm.namespace);
    let (tap, inner) = devices_in(&namespace, &vm.tap_device);
    let port = Path::new("/sys/class/net").join(&vm.host_device);
    let is_isolated = read(&port.join("brport/isolated").display().to_string()).map(|text| text == "1");
    let bridge = std::fs::read_link(port.join("brport/bridge"));
    let bridge = bridge.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    let address: Option<Ipv4Addr> = vm.ip_address.parse().ok();
    let ping = tokio::task::spawn_blocking(move || probe::answers_ping(address?).ok());
    VmFacts {
        vm_id: vm.vm_id.clone(),
        namespace_exists: namespace.exists(),
        tap,
        inner,
        port: vm.host_device.clone(),
        port_flags: flags(&vm.host_device),
        bridge,
        is_isolated,
        lease_state: lease.map(|lease| lease.state.clone()).unwrap_or_default(),
        last_exchange: lease.map(|lease| lease.last_exchange.clone()).unwrap_or_default(),
        address: vm.ip_address.clone(),
        mac: vm.mac_address.clone(),
        has_route: address.is_some_and(has_route),
        neighbour: neighbour(&vm.ip_address),
        sent: stats.map_or(0, |stats| stats.tx_packets),
        received: stats.map_or(0, |stats| stats.rx_packets),
        answers_ping: ping.await.ok().flatten(),
    }
}

/// Flags of the two devices of a VM's namespace, read by a thread inside it.
fn devices_in(namespace: &Path, tap: &str) -> (Option<u32>, Option<u32>) {
    let Ok(file) = File::open(namespace) else { return (None, None) };
    let tap = tap.to_owned();
    let read = std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET).ok()?;
        let entries: Vec<_> = nix::ifaddrs::getifaddrs().ok()?.collect();
        let flags = |name: &str| {
            let entry = entries.iter().find(|entry| entry.interface_name == name)?;
            u32::try_from(entry.flags.bits()).ok()
        };
        Some((flags(&tap), flags("in0")))
    });
    read.join().ok().flatten().unwrap_or_default()
}

/// /proc/net/route has destinations in hex, in host order.
fn has_route(address: Ipv4Addr) -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let wanted = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    routes.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&wanted.as_str()) && words.get(7) == Some(&"FFFFFFFF")
    })
}

/// The MAC that the host sends to for an address.
fn neighbour(address: &str) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/arp").ok()?;
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(address))?;
    line.split_whitespace().nth(3).map(str::to_owned)
}

/// A finding for each hop, in the order a packet of the guest takes them.
pub fn check(facts: &VmFacts) -> Vec<Finding> {
    let VmFacts { vm_id, port, .. } = facts;
    let recreate = format!("guestnet vm delete {vm_id} && guestnet vm create {vm_id}");
    let restart = "systemctl restart guestnet";
    let mut found = Vec::new();
    found.push(if facts.namespace_exists {
        Finding::ok("namespace", format!("/run/netns/vm-{vm_id} is there"))
    } else {
        Finding::problem("namespace", format!("/run/netns/vm-{vm_id} is gone"), "the VMM cannot start in it")
            .mended_by(restart)
    });
    found.push(match facts.tap {
        None => Finding::problem("tap", "tap0 is gone", "the guest has no cable").mended_by(recreate.clone()),
        Some(flags) if flags & UP == 0 => {
            Finding::problem("tap", "tap0 is down", "the guest's packets stop at its TAP")
                .mended_by(format!("ip -n vm-{vm_id} link set tap0 up"))
        }
        Some(flags) if flags & LOWER_UP == 0 => {
            Finding::problem("tap", "nobody has tap0 open", "no VMM runs on it: the guest is not there")
                .mended_by(format!("start the VM with tap0 inside /run/netns/vm-{vm_id}"))
        }
        Some(_) => Finding::ok("tap", "tap0 is up and a VMM has it open"),
    });
    found.push(match facts.inner {
        Some(flags) if flags & UP != 0 => Finding::ok("veth", "in0 is up"),
        Some(_) => Finding::problem("veth", "in0 is down", "packets stop between TAP and bridge")
            .mended_by(format!("ip -n vm-{vm_id} link set in0 up")),
        None => Finding::problem("veth", "in0 is gone", "nothing leaves the namespace")
            .mended_by(recreate.clone()),
    });
    found.push(match facts.port_flags {
        Some(flags) if flags & UP != 0 => Finding::ok("port", format!("{port} is up")),
        Some(_) => Finding::problem("port", format!("{port} is down"), "packets stop at the bridge's port")
            .mended_by(format!("ip link set {port} up")),
        None => Finding::problem("port", format!("{port} is gone"), "the VM has no port on the bridge")
            .mended_by(recreate),
    });
    found.push(match (&facts.bridge, facts.is_isolated) {
        (Some(bridge), Some(false)) => Finding::problem(
            "bridge",
            format!("{port} is a port of {bridge} and not isolated"),
            "the guest reaches its neighbours past every policy",
        )
        .mended_by(format!("bridge link set dev {port} isolated on")),
        (Some(bridge), _) => Finding::ok("bridge", format!("{port} is an isolated port of {bridge}")),
        (None, _) => {
            Finding::problem("bridge", format!("{port} is a port of no bridge"), "packets stop there")
                .mended_by(restart)
        }
    });
    found.push(if facts.has_route {
        Finding::ok("route", format!("the host has a route to {}", facts.address))
    } else {
        Finding::problem(
            "route",
            format!("the host has no route to {}", facts.address),
            "answers do not come back",
        )
        .mended_by(restart)
    });
    found.push(match &facts.neighbour {
        Some(mac) if *mac == facts.mac => Finding::ok("neighbour", format!("{} is at {mac}", facts.address)),
        seen => Finding::problem(
            "neighbour",
            format!("{} is at {}", facts.address, seen.as_deref().unwrap_or("no MAC")),
            format!("answers do not go to the guest's MAC {}", facts.mac),
        )
        .mended_by(restart),
    });
    found.push(traffic(facts));
    found.push(lease(facts));
    found.push(match facts.answers_ping {
        Some(true) => Finding::ok("ping", format!("{} answers a ping", facts.address)),
        Some(false) => Finding::warning(
            "ping",
            format!("{} does not answer a ping of the host", facts.address),
            "the guest is not configured with its address, is down, or drops pings itself",
        )
        .mended_by(format!("guestnet capture {vm_id} | tcpdump -n -r -")),
        None => Finding::warning("ping", "the guest could not be pinged", "run doctor as root"),
    });
    found
}

fn traffic(facts: &VmFacts) -> Finding {
    let seen = format!("the guest has sent {} packets and received {}", facts.sent, facts.received);
    match facts.sent {
        0 => Finding::warning(
            "traffic",
            seen,
            "the guest has never sent anything: it has not booted, or has no driver",
        )
        .mended_by("look at the VM's console"),
        _ => Finding::ok("traffic", seen),
    }
}

fn lease(facts: &VmFacts) -> Finding {
    let VmFacts { vm_id, lease_state, last_exchange, .. } = facts;
    let seen = match last_exchange.as_str() {
        "" => format!("its lease is {lease_state}, it has never asked by DHCP"),
        last => format!("its lease is {lease_state}, last heard: {last}"),
    };
    match lease_state.as_str() {
        "bound" => Finding::ok("lease", seen),
        "declined" => Finding::problem("lease", seen, "another host answers for the address")
            .mended_by("guestnet events --kind address_declined --no-follow"),
        "offered" => Finding::warning(
            "lease",
            seen,
            "the guest has not taken its offer: it does not hear the answer, or took another server's",
        )
        .mended_by(format!("guestnet capture {vm_id} | tcpdump -n -e -r - port 67 or port 68")),
        _ if last_exchange.contains("no answer") || last_exchange.contains("nak") => {
            Finding::problem("lease", seen, "the guest asks by DHCP, in a way that cannot be answered")
                .mended_by(format!("guestnet capture {vm_id} | tcpdump -n -e -v -r - port 67 or port 68"))
        }
        _ => Finding::warning(
            "lease",
            seen,
            "the guest does not ask by DHCP now: fine if it is configured statically",
        )
        .mended_by(format!("guestnet gen cmdline {vm_id}")),
    }
}

/// Where packets stop, in a sentence.
pub fn conclusion(found: &[Finding]) -> String {
    match found.iter().find(|finding| finding.verdict == Verdict::Problem) {
        Some(finding) => format!("packets stop at: {} ({})", finding.check, finding.seen),
        None => "every hop is as it should be".into(),
    }
}

//! One guest's way, hop by hop from its TAP to its answer: where packets stop.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sched::{CloneFlags, setns};

use super::host::ago;
use super::look::{flags, read};
use super::{Finding, Verdict, probe};
use crate::kernel;
use crate::proto::guestnet::v1;

/// What was seen on the way of one guest.
#[derive(Debug, Clone, Default)]
pub struct VmFacts {
    pub vm_id: String,
    pub namespace_exists: bool,
    /// Flags of the TAP and of the other end of the veth in the namespace; none where there is no such device.
    pub tap: Option<u32>,
    pub inner: Option<u32>,
    /// Whether frames get from TAP to veth, and back; none where that could not be looked at.
    pub redirects: Option<[bool; 2]>,
    pub port: String,
    pub port_flags: Option<u32>,
    pub bridge: Option<String>,
    pub is_isolated: Option<bool>,
    pub lease_state: String,
    /// What it last asked for by DHCP and what became of it; empty when it never did.
    pub last_exchange: String,
    /// Seconds since it did.
    pub last_asked: Option<u64>,
    pub address: String,
    pub mac: String,
    pub has_route: bool,
    pub neighbour: Option<String>,
    /// Packets that the guest has sent and received, and sent while it was pinged.
    pub sent: u64,
    pub received: u64,
    pub sent_meanwhile: u64,
    pub answers_ping: Option<bool>,
    pub drops: Drops,
}

/// What the walls have dropped.
#[derive(Debug, Clone, Default)]
pub struct Drops {
    /// Of this guest's, at its port and on the way through the host.
    pub at_port: u64,
    pub in_host: u64,
    /// Of all guests' on this host, by reason, as counted at ports and on the way through it.
    pub at_ports: Vec<(String, u64)>,
    pub in_hosts: Vec<(String, u64)>,
}

impl Drops {
    pub fn of(vm_id: &str, drops: &v1::GetWallDropsResponse) -> Self {
        let of_vm = drops.by_vm.iter().find(|guest| guest.vm_id == vm_id);
        let reasons = |reasons: &[v1::WallReason]| {
            let counted = reasons.iter().filter(|reason| reason.packets > 0);
            let mut counted: Vec<_> = counted.map(|reason| (reason.reason.clone(), reason.packets)).collect();
            counted.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
            counted
        };
        Self {
            at_port: of_vm.map_or(0, |guest| guest.port_packets),
            in_host: of_vm.map_or(0, |guest| guest.host_packets),
            at_ports: reasons(&drops.at_ports),
            in_hosts: reasons(&drops.in_host),
        }
    }
}

const UP: u32 = libc::IFF_UP as u32;
/// Somebody has the TAP open: a VMM runs. IFF_RUNNING follows only within a second.
const LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;

pub async fn look(vm: &v1::VmNetwork, lease: Option<&v1::Lease>) -> VmFacts {
    let namespace = Path::new("/run/netns").join(&vm.namespace);
    let (tap, inner, redirects) = devices_in(&namespace, &vm.tap_device);
    let port = Path::new("/sys/class/net").join(&vm.host_device);
    let is_isolated = read(&port.join("brport/isolated").display().to_string()).map(|text| text == "1");
    let bridge = std::fs::read_link(port.join("brport/bridge"));
    let bridge = bridge.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    let address: Option<Ipv4Addr> = vm.ip_address.parse().ok();
    let ping = tokio::task::spawn_blocking(move || probe::answers_ping(address?).ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let asked = lease.and_then(|lease| lease.last_seen.as_option());
    let asked = asked.and_then(|at| u64::try_from(at.seconds).ok());
    VmFacts {
        vm_id: vm.vm_id.clone(),
        namespace_exists: namespace.exists(),
        tap,
        inner,
        redirects,
        port: vm.host_device.clone(),
        port_flags: flags(&vm.host_device),
        bridge,
        is_isolated,
        lease_state: lease.map(|lease| lease.state.clone()).unwrap_or_default(),
        last_exchange: lease.map(|lease| lease.last_exchange.clone()).unwrap_or_default(),
        last_asked: asked.map(|asked| now.saturating_sub(asked)),
        address: vm.ip_address.clone(),
        mac: vm.mac_address.clone(),
        has_route: address.is_some_and(has_route),
        neighbour: neighbour(&vm.ip_address),
        answers_ping: ping.await.ok().flatten(),
        ..VmFacts::default()
    }
}

type Inside = (Option<u32>, Option<u32>, Option<[bool; 2]>);

/// Flags of the two devices of a VM's namespace and what joins them, read by a thread inside it.
fn devices_in(namespace: &Path, tap: &str) -> Inside {
    let Ok(file) = File::open(namespace) else { return Inside::default() };
    let tap = tap.to_owned();
    let read = std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET).ok()?;
        let entries: Vec<_> = nix::ifaddrs::getifaddrs().ok()?.collect();
        let flags = |name: &str| {
            let entry = entries.iter().find(|entry| entry.interface_name == name)?;
            u32::try_from(entry.flags.bits()).ok()
        };
        Some((flags(&tap), flags("in0"), kernel::redirects(&tap).ok()))
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
    let words: Vec<&str> = line.split_whitespace().collect();
    // Without ATF_COM the kernel still asks, or has asked in vain: its MAC is zeros (arp(7)).
    let is_complete = words.get(2).is_some_and(|flags| *flags != "0x0");
    words.get(3).filter(|_| is_complete).map(|mac| (*mac).to_owned())
}

/// Checks of the host that are hops of every guest's way, in the order a packet takes them.
const HOST_HOPS: [&str; 11] = [
    "dhcp",
    "input",
    "resolver",
    "upstreams",
    "ip_forward",
    "forward",
    "nat",
    "conntrack",
    "uplink",
    "mtu",
    "kernel",
];

/// A finding for each hop, in the order a packet of the guest takes them: those of the guest's own, those of the host (`host`, of
/// the guest's network), its answer.
pub fn check(facts: &VmFacts, host: &[Finding]) -> Vec<Finding> {
    let VmFacts { vm_id, port, .. } = facts;
    let restart = "systemctl restart guestnet";
    let mut found = Vec::new();
    found.push(if facts.namespace_exists {
        Finding::ok("namespace", format!("/run/netns/vm-{vm_id} is there"))
    } else {
        Finding::problem("namespace", format!("/run/netns/vm-{vm_id} is gone"), "the VMM cannot start in it")
            .mended_by(restart)
    });
    found.push(match facts.tap {
        None => Finding::problem("tap", "tap0 is gone", "the guest has no cable").mended_by(restart),
        Some(flags) if flags & UP == 0 => {
            Finding::problem("tap", "tap0 is down", "the guest's packets stop at its TAP")
                .mended_by(format!("ip -n vm-{vm_id} link set tap0 up"))
        }
        Some(flags) if flags & LOWER_UP == 0 => {
            Finding::problem("tap", "nobody has tap0 open", "no VMM runs on it: the guest is not there")
                .advised(format!("start the VM with tap0 inside /run/netns/vm-{vm_id}"))
        }
        Some(_) => Finding::ok("tap", "tap0 is up and a VMM has it open"),
    });
    found.extend(redirect(facts, restart));
    found.push(match facts.inner {
        Some(flags) if flags & UP != 0 => Finding::ok("veth", "in0 is up"),
        Some(_) => Finding::problem("veth", "in0 is down", "packets stop between TAP and bridge")
            .mended_by(format!("ip -n vm-{vm_id} link set in0 up")),
        None => Finding::problem("veth", "in0 is gone", "nothing leaves the namespace").mended_by(restart),
    });
    found.push(match facts.port_flags {
        Some(flags) if flags & UP != 0 => Finding::ok("port", format!("{port} is up")),
        Some(_) => Finding::problem("port", format!("{port} is down"), "packets stop at the bridge's port")
            .mended_by(format!("ip link set {port} up")),
        None => Finding::problem("port", format!("{port} is gone"), "the VM has no port on the bridge")
            .mended_by(restart),
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
    found.extend(walls(facts));
    found.push(lease(facts));
    let hops = HOST_HOPS.iter().flat_map(|hop| host.iter().filter(move |finding| finding.check == *hop));
    found.extend(hops.cloned());
    found.push(match facts.answers_ping {
        Some(true) => Finding::ok("ping", format!("{} answers a ping", facts.address)),
        Some(false) => Finding::warning(
            "ping",
            format!("{} does not answer a ping of the host", facts.address),
            "the guest is not configured with its address, is down, or drops pings itself",
        )
        .mended_by(format!("guestnet capture {vm_id} | tcpdump -n -r -")),
        None => Finding::warning("ping", "the guest could not be pinged", "that takes root")
            .mended_by(format!("sudo guestnet doctor {vm_id}")),
    });
    found
}

fn redirect(facts: &VmFacts, restart: &str) -> Option<Finding> {
    let [out, back] = facts.redirects.filter(|_| facts.tap.is_some() && facts.inner.is_some())?;
    let seen = match (out, back) {
        (true, true) => return Some(Finding::ok("redirect", "frames pass between tap0 and in0, both ways")),
        (false, true) => "what the guest sends is not redirected from tap0 to in0",
        (true, false) => "what is for the guest is not redirected from in0 to tap0",
        (false, false) => "nothing is redirected between tap0 and in0",
    };
    Some(Finding::problem("redirect", seen, "frames stop inside the VM's namespace").mended_by(restart))
}

fn traffic(facts: &VmFacts) -> Finding {
    let VmFacts { vm_id, sent, received, sent_meanwhile, .. } = facts;
    let look = format!("guestnet capture {vm_id} | tcpdump -n -e -r -");
    if *sent == 0 {
        let (seen, meaning) = (
            format!("no frame has ever come from the guest; {received} have gone to it"),
            "it has not booted, has no driver for its network card, or does not take it up: see its console",
        );
        return Finding::problem("traffic", seen, meaning).mended_by(look);
    }
    let seen = format!("the guest has sent {sent} frames and received {received}");
    if *sent_meanwhile > 0 || facts.answers_ping != Some(false) {
        return Finding::ok("traffic", format!("{seen}, {sent_meanwhile} sent just now"));
    }
    let seen = format!("{seen}, and sent none in the 2 s that doctor pinged it");
    Finding::warning("traffic", seen, "it was there once, and is silent now: see its console").mended_by(look)
}

/// What the walls drop of it; they drop something of many a guest in good health, IPv6 or mDNS.
fn walls(facts: &VmFacts) -> Vec<Finding> {
    let list = |reasons: &[(String, u64)]| {
        let first = reasons.iter().take(4).map(|(reason, packets)| format!("{reason} {packets}"));
        first.collect::<Vec<_>>().join(", ")
    };
    let Drops { at_port, in_host, at_ports, in_hosts } = &facts.drops;
    let well = (facts.lease_state == "bound" && refused(facts).is_none()) || facts.answers_ping == Some(true);
    let told = |seen: String, meaning: String| {
        let finding =
            if well { Finding::ok("walls", seen) } else { Finding::warning("walls", seen, meaning) };
        if well { finding } else { finding.mended_by("guestnet policy drops") }
    };
    let mut found = Vec::new();
    if *at_port > 0 {
        let meaning = format!(
            "a lease is asked for in vain under another MAC than {}, and nothing passes under another address than {}",
            facts.mac, facts.address
        );
        let seen =
            format!("{at_port} of its frames were dropped at its port (all guests: {})", list(at_ports));
        found.push(told(seen, meaning));
    }
    if *in_host > 0 {
        let seen =
            format!("{in_host} of its packets were dropped in the host (all guests: {})", list(in_hosts));
        found.push(told(seen, "a policy or a limit closes the way".to_owned()));
    }
    if found.is_empty() {
        found.push(Finding::ok("walls", "nothing of it was dropped, at its port or in the host"));
    }
    found
}

/// Reasons of drops at a port that leave a guest without a lease: its requests never get to the server.
const COST_LEASES: [&str; 3] = ["spoofed_mac", "spoofed_address", "dhcp_rate"];

/// What its last message by DHCP was refused for, if it was.
fn refused(facts: &VmFacts) -> Option<&str> {
    let (_, outcome) = facts.last_exchange.split_once(": ")?;
    let why = outcome.strip_prefix("no answer: ").or_else(|| outcome.strip_prefix("nak: "));
    why.or((outcome == "nak").then_some(outcome))
}

/// What was dropped at its port that may have been requests: how much, and the reasons as counted for all guests. Ports are not
/// counted by reason.
fn requests_dropped(Drops { at_port, at_ports, .. }: &Drops) -> Option<String> {
    let reasons = at_ports.iter().filter(|(reason, _)| COST_LEASES.contains(&reason.as_str()));
    let reasons: Vec<_> = reasons.map(|(reason, packets)| format!("{reason} {packets}")).collect();
    let some = *at_port > 0 && !reasons.is_empty();
    some.then(|| {
        format!("{at_port} of its frames were dropped at its port (all guests: {})", reasons.join(", "))
    })
}

fn lease(facts: &VmFacts) -> Finding {
    let VmFacts { vm_id, lease_state, last_exchange, .. } = facts;
    let when = facts.last_asked.map(|age| format!(", {} ago", ago(age))).unwrap_or_default();
    let seen = match last_exchange.as_str() {
        "" if when.is_empty() => format!("its lease is {lease_state}, it has never asked by DHCP"),
        "" => format!("its lease is {lease_state}, it last asked by DHCP{}", when.replace(',', "")),
        last => format!("its lease is {lease_state}, last heard: {last}{when}"),
    };
    let capture =
        |more: &str| format!("guestnet capture {vm_id} | tcpdump -n -e {more}-r - port 67 or port 68");
    let answers = facts.answers_ping == Some(true);
    if let Some(why) = refused(facts) {
        let meaning = if lease_state == "bound" {
            format!(
                "its last message was refused ({why}): what it has ends with its lease, and it gets no other"
            )
        } else {
            format!("the guest asks by DHCP, in a way that cannot be answered: {why}")
        };
        let told = if lease_state == "bound" && answers { Finding::warning } else { Finding::problem };
        return told("lease", seen, meaning).mended_by(capture("-v "));
    }
    match lease_state.as_str() {
        "bound" => return Finding::ok("lease", seen),
        "declined" => {
            return Finding::problem("lease", seen, "another host answers for the address")
                .mended_by("guestnet events --kind address_declined --no-follow");
        }
        _ => {}
    }
    if let Some(dropped) = requests_dropped(&facts.drops).filter(|_| !answers) {
        let meaning = format!(
            "its requests do not reach the DHCP server: it asks under another MAC than {} or another address than its own, or \
             more often than any client needs",
            facts.mac
        );
        // No problem that is proven: whose drops have which reason is not counted.
        return Finding::warning("lease", format!("{seen}; {dropped}"), meaning).mended_by(capture(""));
    }
    match lease_state.as_str() {
        "offered" => Finding::warning(
            "lease",
            seen,
            "the guest has not taken its offer: it does not hear the answer, or took another server's",
        ),
        _ if answers => return Finding::ok("lease", format!("{seen}: it has its address otherwise")),
        _ => Finding::warning(
            "lease",
            seen,
            "no request reaches the DHCP server: the guest does not ask, or what it sends is dropped before",
        ),
    }
    .mended_by(capture(""))
}

/// Where packets stop, in a sentence.
pub fn conclusion(found: &[Finding]) -> String {
    let first = |verdict| found.iter().find(|finding| finding.verdict == verdict);
    match (first(Verdict::Problem), first(Verdict::Warning)) {
        (Some(finding), _) => format!("packets stop at: {} ({})", finding.check, finding.seen),
        (None, Some(finding)) => {
            format!(
                "no hop of the host stops packets; not as it should be: {} ({})",
                finding.check, finding.seen
            )
        }
        (None, None) => "every hop is as it should be".into(),
    }
}

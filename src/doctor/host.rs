//! What the facts about a host mean. Pure.

use std::net::Ipv4Addr;

use super::network::{self, NetworkFacts};
use super::{Finding, firewall};
use crate::kernel::features::Missing;
use crate::walls::foreign::Ruleset;

/// What was seen on the host; none where it could not be read.
#[derive(Debug, Clone)]
pub struct Facts {
    pub service: Service,
    pub configuration: Configuration,
    pub ip_forward: Option<String>,
    /// `iptables -S FORWARD`, line by line, or why it could not be read.
    pub forward: Option<Vec<String>>,
    /// `iptables -S INPUT`, likewise.
    pub input: Option<Vec<String>>,
    /// Others' tables of nf_tables, those that iptables-nft keeps among them, or why they could not be read.
    pub foreign: Result<Ruleset, String>,
    /// What the kernel does not have, or why that could not be looked at.
    pub missing: Result<Vec<Missing>, String>,
    /// `iptables -t nat -S POSTROUTING`.
    pub postrouting: Option<Vec<String>>,
    pub bridge_nf_call_iptables: Option<String>,
    pub send_redirects_all: Option<String>,
    pub has_default_route: Option<bool>,
    pub conntrack: Option<(u64, u64)>,
    /// Whether the kernel says that the clock is synchronised.
    pub clock_synchronised: Option<bool>,
    /// Seconds since 1970.
    pub now: u64,
    pub tun: Device,
    pub kvm: Device,
    /// Who listens on UDP port 67.
    pub dhcp_sockets: Vec<Listener>,
    /// Namespaces called as a VM's whose VM the service does not know.
    pub stale_namespaces: Vec<String>,
    /// What the service remembers of other DHCP servers, and of guests that sent as another.
    pub rogue_dhcp: Vec<Said>,
    pub spoofing: Vec<Said>,
    /// Ports of the host that lead to guests.
    pub port_forwards: usize,
    pub uplink_mtu: Option<(String, u32)>,
    pub networks: Vec<NetworkFacts>,
}

/// A socket that takes packets: on all devices, or on one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub address: Ipv4Addr,
    pub device: Option<String>,
}

/// The file that the next start reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configuration {
    Fits,
    /// Why it does not.
    Refused(String),
    /// Who asks may not read it.
    Hidden(String),
}

/// What the service says when it is asked how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    Answers,
    /// Nobody is behind its socket.
    Silent(String),
    /// The same, and systemd says that it runs.
    Elsewhere(String),
    /// Nobody is behind the socket that who asks has named, and somebody behind that of the service.
    Misnamed {
        why: String,
        socket: String,
    },
    /// Who asks may not open its socket.
    Closed(String),
    /// It is there, and what it says is no answer.
    Fails(String),
}

/// What was said of something that happened, and how many seconds ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub age: u64,
    pub detail: String,
}

/// Seconds for which it says something of now.
const LATELY: u64 = 3_600;

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Device {
    #[default]
    Missing,
    /// Something else is in its place.
    Replaced,
    Refused(String),
    Usable,
}

/// One finding for each check, worst matters first within a subject.
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![service(facts)];
    found.extend(configuration(facts));
    found.extend([tun(facts), kvm(facts), kernel(facts)]);
    found.extend([ip_forward(facts), default_route(facts)]);
    let iptables = firewall::iptables(facts);
    // What iptables-nft shows of a chain is told once; a rule that only may drop hides nothing of what surely does behind it.
    let told = |chain: &str| {
        let at = usize::from(chain == "INPUT");
        ["FORWARD", "INPUT"].contains(&chain) && iptables[at].verdict == super::Verdict::Problem
    };
    let mut others = facts.clone();
    if let Ok(foreign) = &mut others.foreign {
        foreign.chains.retain(|(family, table, chain), _| {
            (*family, table.as_str()) != ("ip", "filter") || !told(chain)
        });
    }
    found.extend(iptables);
    found.extend(firewall::unread(facts));
    found.push(br_netfilter(facts));
    found.push(redirects(facts));
    found.push(conntrack(facts));
    found.push(clock(facts));
    found.push(dhcp_servers(facts));
    found.push(stale(facts));
    found.extend(spoofing(facts));
    for network in &facts.networks {
        found.extend(network::check(facts, &others, network));
    }
    found
}

fn service(facts: &Facts) -> Finding {
    let log = "journalctl -u guestnet -e";
    match &facts.service {
        Service::Answers => Finding::ok("service", "the service answers"),
        Service::Silent(why) => Finding::problem(
            "service",
            why.clone(),
            "running guests keep their traffic; no VM is made or removed, and no lease is given",
        )
        .mended_by(format!("systemctl start guestnet; {log}")),
        Service::Elsewhere(why) => Finding::problem(
            "service",
            format!("{why} (systemd says that it runs)"),
            "guests have all they had; clients find nobody where the configuration has the socket now: the service keeps the one that \
             it was started with",
        )
        .mended_by(format!("systemctl restart guestnet; {log}")),
        Service::Misnamed { why, socket } => Finding::problem(
            "service",
            format!("{why} (nobody is at that socket; the service's is {socket})"),
            "how the service does has not been asked: what follows is what can be seen without it",
        )
        .mended_by(format!("guestnet --socket {socket} doctor")),
        Service::Closed(why) => Finding::warning(
            "service",
            why.clone(),
            "how it does is not known: what follows is what can be seen without it",
        )
        .mended_by("sudo guestnet doctor"),
        Service::Fails(why) => Finding::problem(
            "service",
            why.clone(),
            "something is behind its socket and does not say how it does: calls may fail",
        )
        .mended_by(log),
    }
}

/// The file that the next start reads, whatever the service runs with now.
fn configuration(facts: &Facts) -> Option<Finding> {
    let why = match &facts.configuration {
        Configuration::Fits => return None,
        Configuration::Refused(why) => why,
        Configuration::Hidden(why) => {
            let meaning = "whether the service would start with it is not known";
            let hidden = Finding::warning("configuration", why.clone(), meaning);
            return Some(hidden.mended_by("sudo guestnet doctor"));
        }
    };
    let (severe, meaning): (fn(_, String, _) -> _, _) = match facts.service {
        Service::Answers => {
            (Finding::warning, "the service goes on with what it has read before; it would not start again")
        }
        _ => (Finding::problem, "the service does not start with it"),
    };
    // All of a file's problems are one finding.
    let seen = why.lines().collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    Some(
        severe("configuration", seen, meaning)
            .advised("edit what is named there, then systemctl restart guestnet"),
    )
}

fn device(
    check: &'static str,
    path: &str,
    device: &Device,
    [make, open]: [&str; 2],
    meaning: &str,
    severe: fn(&'static str, String, String) -> Finding,
) -> Finding {
    let (seen, mend) = match device {
        Device::Usable => return Finding::ok(check, format!("{path} can be opened")),
        Device::Missing => (format!("{path} does not exist"), make.to_owned()),
        Device::Replaced => {
            (format!("{path} is not the device that it should be"), format!("rm {path}; {make}"))
        }
        Device::Refused(why) => (format!("{path} cannot be opened: {why}"), open.to_owned()),
    };
    severe(check, seen, meaning.to_owned()).mended_by(mend)
}

fn tun(facts: &Facts) -> Finding {
    let make = "modprobe tun; mkdir -p /dev/net; mknod -m 0666 /dev/net/tun c 10 200";
    let open = "ls -l /dev/net/tun; chmod 0666 /dev/net/tun";
    let meaning = "no TAP can be made, so no VM gets a network";
    device("tun", "/dev/net/tun", &facts.tun, [make, open], meaning, Finding::problem)
}

fn kvm(facts: &Facts) -> Finding {
    // Where the processor has nothing of the kind, no device file helps.
    let make = "modprobe kvm_intel || modprobe kvm_amd";
    let open = "ls -l /dev/kvm; sudo usermod --append --groups kvm \"$(id -un)\"";
    let meaning = "VMs do not start, or run emulated and slowly; networks are made all the same";
    device("kvm", "/dev/kvm", &facts.kvm, [make, open], meaning, Finding::warning)
}

fn kernel(facts: &Facts) -> Finding {
    let check = "kernel";
    let missing = facts.missing.as_ref().map(|missing| {
        // Where the device file is what is wrong, `tun` tells.
        let told = |missing: &&Missing| missing.feature == "CONFIG_TUN" && facts.tun != Device::Usable;
        missing.iter().filter(|missing| !told(missing)).collect::<Vec<_>>()
    });
    match missing {
        Ok(missing) if missing.is_empty() => {
            Finding::ok(check, "the kernel has all that guestnet asks of it")
        }
        Ok(missing) => {
            let each: Vec<String> =
                missing.iter().map(|missing| format!("{} ({})", missing.feature, missing.why)).collect();
            Finding::problem(
                check,
                format!("the kernel lacks {}", each.join(" and ")),
                "networks cannot be made, or not with walls and limits",
            )
            .mended_by("modprobe -a bridge veth tun sch_ingress cls_u32 act_mirred sch_tbf nf_tables nf_conntrack; uname -r")
        }
        Err(why) => Finding::warning(
            check,
            format!("what the kernel has could not be looked at: {why}"),
            "something may be missing",
        )
        .mended_by("sudo guestnet doctor"),
    }
}

fn ip_forward(facts: &Facts) -> Finding {
    let seen = |value: &str| format!("net.ipv4.ip_forward is {value}");
    match facts.ip_forward.as_deref() {
        Some("1") => Finding::ok("ip_forward", seen("1")),
        value => Finding::problem(
            "ip_forward",
            seen(value.unwrap_or("not readable")),
            "guests reach the gateway and nothing beyond it",
        )
        .mended_by("sysctl -w net.ipv4.ip_forward=1"),
    }
}

fn default_route(facts: &Facts) -> Finding {
    match facts.has_default_route {
        Some(true) => Finding::ok("uplink", "the host has a default route"),
        _ => Finding::problem(
            "uplink",
            "the host has no default route",
            "guests reach what the host has a route for, and no internet",
        )
        .advised("ip route add default via ROUTER, with the address of this host's router"),
    }
}

fn br_netfilter(facts: &Facts) -> Finding {
    let value = facts.bridge_nf_call_iptables.as_deref().unwrap_or("0");
    let seen = format!("net.bridge.bridge-nf-call-iptables is {value}");
    // For all else either is fine: ports are isolated, and what passes between guests is routed.
    if value == "0" || facts.port_forwards == 0 {
        return Finding::ok("br_netfilter", seen);
    }
    Finding::warning(
        "br_netfilter",
        format!("{seen}, and {} ports of the host lead to guests", facts.port_forwards),
        "a guest that asks such a port of a guest on its own bridge gets no answer: the kernel switches what it has translated",
    )
    .mended_by("sysctl -w net.bridge.bridge-nf-call-iptables=0")
}

fn redirects(facts: &Facts) -> Finding {
    match facts.send_redirects_all.as_deref() {
        Some("0") | None => Finding::ok("redirects", "net.ipv4.conf.all.send_redirects is 0"),
        Some(value) => Finding::warning(
            "redirects",
            format!("net.ipv4.conf.all.send_redirects is {value}"),
            "the host tells guests to reach each other directly, which isolated ports do not allow",
        )
        .mended_by("sysctl -w net.ipv4.conf.all.send_redirects=0"),
    }
}

fn conntrack(facts: &Facts) -> Finding {
    let Some((count, max)) = facts.conntrack.filter(|(_, max)| *max > 0) else {
        return Finding::warning(
            "conntrack",
            "connection tracking is not there",
            "NAT cannot work without it",
        )
        .mended_by("modprobe nf_conntrack");
    };
    let seen = format!("{count} of {max} tracked connections");
    let meaning = "when the table is full, new connections of every guest and of the host are dropped";
    let mend = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2));
    match count.saturating_mul(100) / max {
        0..80 => Finding::ok("conntrack", seen),
        80..95 => Finding::warning("conntrack", seen, meaning).mended_by(mend),
        _ => Finding::problem("conntrack", seen, meaning).mended_by(mend),
    }
}

/// 2024-01-01: no guestnet ran before.
const EARLIEST: u64 = 1_704_067_200;

fn clock(facts: &Facts) -> Finding {
    let meaning =
        "leases, certificates and events have wrong times; addresses may rest too long or too short";
    let mend = "timedatectl set-ntp true";
    if facts.now < EARLIEST {
        let seen = format!("the clock says {} s after 1970", facts.now);
        return Finding::problem("clock", seen, meaning).mended_by(mend);
    }
    match facts.clock_synchronised {
        Some(false) => {
            Finding::warning("clock", "the kernel says that the clock is not synchronised", meaning)
                .mended_by(mend)
        }
        _ => Finding::ok("clock", "the clock is set"),
    }
}

fn dhcp_servers(facts: &Facts) -> Finding {
    let last = facts.rogue_dhcp.iter().min_by_key(|said| said.age);
    if let Some(last) = last.filter(|last| last.age <= LATELY) {
        return Finding::problem(
            "dhcp",
            format!("another DHCP server answers guests: {} ({} ago)", last.detail, ago(last.age)),
            "a guest that takes its answer has a wrong address, gateway or DNS server",
        )
        .mended_by("guestnet events --kind rogue_dhcp_server --no-follow")
        .advised("that server has to go: what has been heard of it is among the events");
    }
    let bridges: Vec<&str> =
        facts.networks.iter().flat_map(|network| &network.bridges).map(String::as_str).collect();
    // One that is bound to another's bridge, as libvirt's dnsmasq is, hears none of our guests.
    let hears = |listener: &&Listener| {
        let ours = listener.device.as_ref().is_none_or(|device| bridges.contains(&device.as_str()));
        listener.address.is_unspecified() && ours
    };
    match facts.dhcp_sockets.iter().find(hears) {
        Some(Listener { device, .. }) => Finding::warning(
            "dhcp",
            match device {
                Some(bridge) => format!("another program listens on UDP 0.0.0.0:67 of {bridge}"),
                None => "another program listens on UDP 0.0.0.0:67".to_owned(),
            },
            format!(
                "a second DHCP server on this host may answer guests too: keep it off the bridges (dnsmasq: except-interface={})",
                bridges.join(",")
            ),
        )
        .mended_by("ss -lunp 'sport = :67'"),
        None => Finding::ok(
            "dhcp",
            match last {
                Some(last) => format!("no other DHCP server was seen for {}", ago(last.age)),
                None => "no other DHCP server was seen".to_owned(),
            },
        ),
    }
}

/// A length of time for people.
pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn stale(facts: &Facts) -> Finding {
    if facts.stale_namespaces.is_empty() {
        return Finding::ok("stale", "every vm- namespace belongs to a VM");
    }
    let first: Vec<&str> = facts.stale_namespaces.iter().take(3).map(String::as_str).collect();
    Finding::warning(
        "stale",
        format!("{} namespaces without a VM: {}", facts.stale_namespaces.len(), first.join(", ")),
        "left behind by somebody; a VM of that name cannot be made",
    )
    .mended_by(format!("ip netns delete {}", first[0]))
}

fn spoofing(facts: &Facts) -> Option<Finding> {
    let last = facts.spoofing.iter().min_by_key(|said| said.age).filter(|last| last.age <= LATELY)?;
    let meaning = "a guest sends under another's MAC or address; it is stopped";
    Some(
        Finding::warning("spoofing", format!("{} ({} ago)", last.detail, ago(last.age)), meaning)
            .mended_by("guestnet events --kind spoof_denied --no-follow"),
    )
}

#[cfg(test)]
pub(super) mod tests;

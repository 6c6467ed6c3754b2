//! What the facts about a host mean. Pure.

use super::Finding;
use crate::model::Upstream;

/// What was seen on the host; none where it could not be read.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Why the service does not answer, if it does not.
    pub service: Option<String>,
    pub ip_forward: Option<String>,
    /// `iptables -S FORWARD`, line by line, or why it could not be read.
    pub forward: Option<Vec<String>>,
    /// Chains of others' tables of nf_tables that drop what is forwarded: `inet firewalld filter_FORWARD`.
    pub closed: Vec<String>,
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
    /// Addresses on which UDP port 67 is open.
    pub dhcp_sockets: Vec<String>,
    /// Namespaces called as a VM's whose VM the service does not know.
    pub stale_namespaces: Vec<String>,
    /// What the service said of other DHCP servers lately.
    pub rogue_dhcp: Vec<String>,
    pub spoofing: Vec<String>,
    pub uplink_mtu: Option<(String, u32)>,
    pub networks: Vec<NetworkFacts>,
}

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

#[derive(Debug, Clone, Default)]
pub struct NetworkFacts {
    pub name: String,
    pub bridge: String,
    pub gateway: String,
    pub subnet: String,
    pub mtu: u32,
    /// Whether guestnet makes the bridge.
    pub managed: bool,
    pub bridge_exists: bool,
    pub bridge_is_up: bool,
    pub bridge_has_gateway: bool,
    pub rp_filter: Option<String>,
    /// A route of the host inside the subnet.
    pub overlap: Option<String>,
    /// Each upstream, and whether it answered.
    pub upstreams: Vec<(Upstream, bool)>,
    /// Whether the resolver on the gateway answered; none where there is none to be.
    pub resolver: Option<bool>,
    pub free_addresses: Option<u64>,
}

/// One finding for each check, worst matters first within a subject.
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![service(facts), tun(facts), kvm(facts), ip_forward(facts), default_route(facts)];
    found.push(forward(facts));
    found.extend(closed(facts));
    found.push(br_netfilter(facts));
    found.push(redirects(facts));
    found.push(conntrack(facts));
    found.push(clock(facts));
    found.push(dhcp_servers(facts));
    found.push(stale(facts));
    found.extend(spoofing(facts));
    for network in &facts.networks {
        found.extend(bridge(network));
        found.extend([overlap(network), rp_filter(network)]);
        found.extend(nat(facts, network));
        found.extend(resolver(network));
        found.push(upstreams(network));
        found.extend(addresses(network));
        found.extend(mtu(facts, network));
    }
    found
}

fn service(facts: &Facts) -> Finding {
    match &facts.service {
        None => Finding::ok("service", "the service answers"),
        Some(why) => Finding::problem(
            "service",
            why.clone(),
            "running guests keep their traffic; no VM is made or removed, and no lease is given",
        )
        .mended_by("systemctl start guestnet; journalctl -u guestnet -e"),
    }
}

fn device(
    check: &'static str,
    path: &str,
    device: &Device,
    meaning: &str,
    severe: fn(&'static str, String, String) -> Finding,
) -> Finding {
    let (seen, mend) = match device {
        Device::Usable => return Finding::ok(check, format!("{path} can be opened")),
        Device::Missing => (format!("{path} does not exist"), format!("modprobe {check}")),
        Device::Replaced => (
            format!("{path} is no character device"),
            format!("rm {path} && modprobe {check} && udevadm trigger"),
        ),
        Device::Refused(why) => {
            (format!("{path} cannot be opened: {why}"), format!("ls -l {path}; chmod 0666 {path}"))
        }
    };
    severe(check, seen, meaning.to_owned()).mended_by(mend)
}

fn tun(facts: &Facts) -> Finding {
    device("tun", "/dev/net/tun", &facts.tun, "no TAP can be made, so no VM gets a network", Finding::problem)
}

fn kvm(facts: &Facts) -> Finding {
    let meaning = "VMs do not start, or run emulated and slowly; networks are made all the same";
    device("kvm", "/dev/kvm", &facts.kvm, meaning, Finding::warning)
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
        .mended_by("ip route add default via GATEWAY"),
    }
}

/// Docker, ufw and firewalld close FORWARD; what stands before our jump is decided before us.
fn forward(facts: &Facts) -> Finding {
    let check = "forward";
    let Some(lines) = &facts.forward else {
        return Finding::warning(
            check,
            "the FORWARD chain could not be read",
            "run doctor as root to have it checked",
        );
    };
    let closed = lines.iter().any(|line| line == "-P FORWARD DROP");
    let rules: Vec<&String> = lines.iter().filter(|line| line.starts_with("-A FORWARD")).collect();
    let Some(ours) = rules.iter().position(|rule| is_ours(rule)) else {
        return Finding::problem(
            check,
            if closed {
                "FORWARD drops by policy and has no rule of guestnet"
            } else {
                "FORWARD has no rule of guestnet"
            },
            "guests are cut off, or not walled off from each other: somebody has flushed the firewall",
        )
        .mended_by("systemctl restart guestnet");
    };
    let cuts = |rule: &&&String| {
        rule.ends_with("-j DROP") || rule.contains("-j REJECT") || rule.contains("-j DROP ")
    };
    match rules[..ours].iter().find(cuts) {
        Some(rule) => Finding::problem(
            check,
            format!("before guestnet's rules stands {rule}"),
            "a foreign rule decides over guests' packets before guestnet does",
        )
        .mended_by(format!("iptables {}", rule.replacen("-A ", "-D ", 1))),
        None => Finding::ok(
            check,
            format!(
                "guestnet's rules come first in FORWARD, whose policy is {}",
                if closed { "DROP" } else { "ACCEPT" }
            ),
        ),
    }
}

/// A table of somebody else's decides over guests' packets too, whatever iptables and ours say.
fn closed(facts: &Facts) -> Option<Finding> {
    let first = facts.closed.first()?;
    let meaning = "guests are cut off, unless that chain's own rules accept their packets";
    let seen = format!("chain {} of nf_tables drops by policy what is forwarded", facts.closed.join(" and "));
    let mend =
        format!("nft add rule {first} iifname br-vms accept; nft add rule {first} oifname br-vms accept");
    Some(Finding::warning("forward", seen, meaning).mended_by(mend))
}

fn is_ours(rule: &str) -> bool {
    rule.to_ascii_lowercase().contains("guestnet")
}

fn br_netfilter(facts: &Facts) -> Finding {
    let value = facts.bridge_nf_call_iptables.as_deref().unwrap_or("0");
    // Either is fine, for ports are isolated: told because it explains what other rules see.
    Finding::ok("br_netfilter", format!("net.bridge.bridge-nf-call-iptables is {value}"))
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
    if let Some(last) = facts.rogue_dhcp.last() {
        return Finding::problem(
            "dhcp",
            format!("another DHCP server answers guests: {last}"),
            "a guest that takes its answer has a wrong address, gateway or DNS server",
        )
        .mended_by("guestnet events --kind rogue_dhcp_server --no-follow; stop that server");
    }
    match facts.dhcp_sockets.iter().find(|address| *address == "0.0.0.0") {
        Some(_) => Finding::warning(
            "dhcp",
            "another program listens on UDP 0.0.0.0:67",
            "a second DHCP server on this host may answer guests too",
        )
        .mended_by("ss -lunp 'sport = :67'; keep it off the bridges (dnsmasq: except-interface=br-vms)"),
        None => Finding::ok("dhcp", "no other DHCP server was seen"),
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
    let last = facts.spoofing.last()?;
    let meaning = "a guest sends under another's MAC or address; it is stopped";
    Some(
        Finding::warning("spoofing", last.clone(), meaning)
            .mended_by("guestnet events --kind spoof_denied --no-follow"),
    )
}

fn bridge(network: &NetworkFacts) -> Vec<Finding> {
    let NetworkFacts { name, bridge, gateway, .. } = network;
    let restart = if network.managed { "systemctl restart guestnet" } else { "ip link show" };
    let cut_off = format!("every guest of network {name} is cut off");
    if !network.bridge_exists {
        return vec![
            Finding::problem("bridge", format!("{bridge} does not exist"), cut_off).mended_by(restart),
        ];
    }
    let mut found = Vec::new();
    if !network.bridge_is_up {
        found.push(
            Finding::problem("bridge", format!("{bridge} is down"), cut_off.clone())
                .mended_by(format!("ip link set {bridge} up")),
        );
    }
    if !network.bridge_has_gateway {
        found.push(
            Finding::problem(
                "bridge",
                format!("{bridge} does not have the gateway address {gateway}"),
                cut_off,
            )
            .mended_by(restart),
        );
    }
    if found.is_empty() {
        found.push(Finding::ok("bridge", format!("{bridge} is up and has {gateway}")));
    }
    found
}

fn overlap(network: &NetworkFacts) -> Finding {
    match &network.overlap {
        None => Finding::ok("routes", format!("no route of the host is inside {}", network.subnet)),
        Some(route) => Finding::problem(
            "routes",
            format!("the host's route {route} overlaps {}", network.subnet),
            format!(
                "guests of network {} in it are not reached, or the host's own network is not",
                network.name
            ),
        )
        .mended_by(format!("ip route del {}", route.split(' ').next().unwrap_or(route))),
    }
}

fn rp_filter(network: &NetworkFacts) -> Finding {
    match network.rp_filter.as_deref() {
        Some("0") if network.managed => Finding::warning(
            "rp_filter",
            format!("net.ipv4.conf.{}.rp_filter is 0, and so is all's", network.bridge),
            "one wall less against packets with addresses that are not a guest's",
        )
        .mended_by(format!("sysctl -w net.ipv4.conf.{}.rp_filter=1", network.bridge)),
        Some(value) => Finding::ok("rp_filter", format!("{value} on {}", network.bridge)),
        None => Finding::ok("rp_filter", format!("not readable on {}", network.bridge)),
    }
}

fn nat(facts: &Facts, network: &NetworkFacts) -> Option<Finding> {
    let lines = facts.postrouting.as_ref().filter(|_| network.managed)?;
    let ours = lines.iter().any(|line| line.contains(&network.subnet) && line.contains("MASQUERADE"));
    Some(if ours {
        Finding::ok("nat", format!("{} leaves under the host's address", network.subnet))
    } else {
        Finding::problem(
            "nat",
            format!("POSTROUTING has no MASQUERADE for {}", network.subnet),
            "guests' packets leave under addresses that nobody can answer to",
        )
        .mended_by("systemctl restart guestnet")
    })
}

fn resolver(network: &NetworkFacts) -> Option<Finding> {
    Some(match network.resolver? {
        true => Finding::ok("resolver", format!("{}:53 answers", network.gateway)),
        false => Finding::problem(
            "resolver",
            format!("{}:53 does not answer", network.gateway),
            format!("guests of network {} cannot resolve names", network.name),
        )
        .mended_by("systemctl restart guestnet; ss -lnp 'sport = :53'"),
    })
}

fn upstreams(network: &NetworkFacts) -> Finding {
    let of = |answers: bool| -> Vec<String> {
        network
            .upstreams
            .iter()
            .filter(|(_, up)| *up == answers)
            .map(|(address, _)| address.to_string())
            .collect()
    };
    let (up, down) = (of(true), of(false));
    let seen = format!("{} of network {} did not answer in 2 s", down.join(" and "), network.name);
    let mend = "check the uplink, or set other dns_servers and guestnet reload";
    if down.is_empty() {
        Finding::ok("upstreams", format!("{} answer", up.join(" and ")))
    } else if up.is_empty() {
        Finding::problem("upstreams", seen, "guests resolve only each other's names").mended_by(mend)
    } else {
        Finding::warning("upstreams", seen, "the others are asked instead").mended_by(mend)
    }
}

fn addresses(network: &NetworkFacts) -> Option<Finding> {
    Some(match network.free_addresses? {
        0 => Finding::problem(
            "addresses",
            format!("network {} has no free address", network.name),
            "no further VM can be made on it",
        )
        .mended_by("guestnet vm list; guestnet vm delete VM_ID of those that are gone"),
        free => Finding::ok("addresses", format!("network {} has {free} free", network.name)),
    })
}

fn mtu(facts: &Facts, network: &NetworkFacts) -> Option<Finding> {
    let (uplink, mtu) = facts.uplink_mtu.as_ref()?;
    (network.mtu > *mtu).then(|| {
        Finding::warning(
            "mtu",
            format!("guests have an MTU of {}, {uplink} one of {mtu}", network.mtu),
            "large packets are fragmented, or lost where fragments are not allowed",
        )
        .mended_by(format!("set mtu = {mtu} for network {} and restart guestnet", network.name))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn healthy() -> Facts {
        Facts {
            ip_forward: Some("1".into()),
            forward: Some(vec!["-P FORWARD ACCEPT".into(), "-A FORWARD -j GUESTNET-FORWARD".into()]),
            postrouting: Some(vec![
                "-A POSTROUTING -s 10.100.0.0/16 ! -d 10.100.0.0/16 -j MASQUERADE".into(),
            ]),
            has_default_route: Some(true),
            conntrack: Some((10, 1_000)),
            now: EARLIEST + 1,
            tun: Device::Usable,
            kvm: Device::Usable,
            networks: vec![NetworkFacts {
                name: "default".into(),
                bridge: "br-vms".into(),
                subnet: "10.100.0.0/16".into(),
                managed: true,
                bridge_exists: true,
                bridge_is_up: true,
                bridge_has_gateway: true,
                upstreams: vec![("8.8.8.8".parse().unwrap(), true)],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn wrong(facts: &Facts) -> Vec<(&'static str, Verdict)> {
        let found = check(facts);
        for finding in &found {
            assert_eq!(finding.verdict == Verdict::Ok, finding.meaning.is_empty(), "{finding:?}");
        }
        found.iter().filter(|f| f.verdict != Verdict::Ok).map(|f| (f.check, f.verdict)).collect()
    }

    #[test]
    fn a_healthy_host_has_nothing_to_complain_of() {
        assert_eq!(wrong(&healthy()), []);
    }

    #[test]
    fn what_cannot_be_broken_in_a_lab_is_found_too() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = healthy();
            change(&mut facts);
            wrong(&facts)
        };
        assert_eq!(with(|f| f.conntrack = Some((850, 1_000))), [("conntrack", Verdict::Warning)]);
        assert_eq!(with(|f| f.conntrack = Some((1_000, 1_000))), [("conntrack", Verdict::Problem)]);
        assert_eq!(with(|f| f.closed.push("inet strict forward".into())), [("forward", Verdict::Warning)]);
        assert_eq!(with(|f| f.now = 7), [("clock", Verdict::Problem)]);
        assert_eq!(with(|f| f.clock_synchronised = Some(false)), [("clock", Verdict::Warning)]);
        assert_eq!(with(|f| f.tun = Device::Missing), [("tun", Verdict::Problem)]);
        assert_eq!(with(|f| f.kvm = Device::Refused("EACCES".into())), [("kvm", Verdict::Warning)]);
        assert_eq!(with(|f| f.networks[0].free_addresses = Some(0)), [("addresses", Verdict::Problem)]);
        assert_eq!(with(|f| f.rogue_dhcp.push("192.0.2.9".into())), [("dhcp", Verdict::Problem)]);
        assert_eq!(with(|f| f.spoofing.push("a".into())), [("spoofing", Verdict::Warning)]);
    }
}

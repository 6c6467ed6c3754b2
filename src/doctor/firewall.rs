//! What the host's firewalls, others' and our rules among them, do to guests' packets. Pure.

use ipnetwork::Ipv4Network;

use super::Finding;
use super::host::{Facts, NetworkFacts};
use crate::model::Metadata;
use crate::walls::foreign::{self, Cut, Packet};

/// Docker, ufw and firewalld close FORWARD and INPUT of iptables; what stands before our jump is decided before us.
pub(super) fn iptables(facts: &Facts) -> [Finding; 2] {
    let forward = "guests are cut off from all beyond the gateway";
    let input = "guests are cut off from DNS and metadata of the gateway";
    [
        chain(facts, "forward", "FORWARD", facts.forward.as_deref(), forward),
        chain(facts, "input", "INPUT", facts.input.as_deref(), input),
    ]
}

fn chain(
    facts: &Facts,
    check: &'static str,
    chain: &str,
    lines: Option<&[String]>,
    meaning: &str,
) -> Finding {
    let Some(lines) = lines else {
        return Finding::warning(
            check,
            format!("the {chain} chain of iptables could not be read"),
            "it may cut guests off",
        )
        .mended_by("sudo guestnet doctor");
    };
    let closed = lines.iter().any(|line| *line == format!("-P {chain} DROP"));
    let begins = format!("-A {chain} ");
    let rules: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(&begins)).collect();
    let Some(ours) = rules.iter().position(|rule| rule.to_ascii_lowercase().contains("guestnet")) else {
        let policy = if closed { " and drops by policy" } else { "" };
        return Finding::problem(
            check,
            format!("{chain} of iptables has no rule of guestnet{policy}"),
            format!("{meaning} by the first rule or policy that drops: somebody has flushed the firewall"),
        )
        .mended_by("systemctl restart guestnet");
    };
    let before = rules[..ours].iter().filter_map(|rule| Some((*rule, hits(facts, chain, rule)?)));
    let before: Vec<(&str, Hit)> = before.collect();
    let worst = before.iter().find(|(_, hit)| *hit == Hit::Surely).or(before.first());
    let Some((rule, hit)) = worst else {
        let first = match ours {
            0 => "guestnet's rules come first in",
            _ => "nothing before guestnet's rules drops guests' packets in",
        };
        let policy = if closed { "DROP" } else { "ACCEPT" };
        return Finding::ok(check, format!("{first} {chain} of iptables, whose policy is {policy}"));
    };
    let (severe, meaning): (fn(_, _, _) -> _, _) = match hit {
        Hit::Surely => {
            (Finding::problem, "a foreign rule drops guests' packets before guestnet lets them by")
        }
        Hit::Perhaps => {
            (Finding::warning, "a foreign rule may drop some of guests' packets before guestnet lets them by")
        }
    };
    // What it keeps out beside guests stays out: ours go before it, and it stays where it is.
    let jump = rules[ours];
    severe(check, format!("before guestnet's rules stands -A {chain} {rule}"), meaning)
        .mended_by(format!("iptables -D {chain} {jump}; iptables -I {chain} 1 {jump}"))
}

/// Whether a rule drops packets of guests or to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Surely,
    Perhaps,
}

/// Of a rule as `iptables -S` shows it, behind its chain's name; none of one that drops nothing of guests'.
fn hits(facts: &Facts, chain: &str, rule: &str) -> Option<Hit> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words.windows(2).find(|pair| pair[0] == "-j" && ["DROP", "REJECT"].contains(&pair[1]))?;
    let hook = if chain == "INPUT" { INPUT } else { FORWARD };
    let mut found = Vec::new();
    for network in facts.networks.iter().filter(|network| network.managed) {
        let subnet: Option<Ipv4Network> = network.subnet.parse().ok();
        for bridge in &network.bridges {
            let flows = flows(facts, network, bridge);
            let through = flows.iter().filter(|flow| flow.hooks.contains(&hook));
            found.extend(through.filter_map(|flow| matches(&words, &flow.packet, hook, subnet?)));
        }
    }
    found.into_iter().max_by_key(|hit| *hit == Hit::Surely)
}

/// Whether a rule's conditions are true of a packet and of all like it. One that is not known here may be.
fn matches(words: &[&str], packet: &Packet, hook: u32, guests: Ipv4Network) -> Option<Hit> {
    let device = |named: &str, device: &str| {
        Some(match named.strip_suffix('+') {
            Some(begin) => device.starts_with(begin),
            None => device == named,
        })
    };
    // The packet's guest stands for all of its network, the one it talks with for all the world.
    let address = |named: &str, address: Option<[u8; 4]>| {
        let (named, address) = (named.parse::<Ipv4Network>().ok()?, address?.into());
        let apart = !guests.contains(named.network()) && !named.contains(guests.network());
        let known = named.contains(address) || (guests.contains(address) && apart);
        known.then_some(named.contains(address))
    };
    // Guests ask the host for little, and the world for anything.
    let of_all = |fits: bool| (fits || hook == INPUT).then_some(fits);
    let port = |named: &str, port: Option<u16>| {
        let (first, last) = named.split_once(':').unwrap_or((named, named));
        of_all((first.parse::<u16>().ok()?..=last.parse().ok()?).contains(&port?))
    };
    let state = if packet.established { "ESTABLISHED" } else { "NEW" };
    let mut hit = Hit::Surely;
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let negated = word == "!";
        let condition = if negated { words.next()? } else { word };
        if ["-j", "--reject-with", "-m", "--comment"].contains(&condition) {
            words.next();
            continue;
        }
        let fits = match condition {
            "-i" => device(words.next()?, &packet.input),
            "-o" => device(words.next()?, &packet.output),
            "-s" => address(words.next()?, packet.source),
            "-d" => address(words.next()?, packet.destination),
            "-p" => {
                let protocol = if packet.protocol == TCP { "tcp" } else { "udp" };
                of_all(words.next()? == protocol)
            }
            "--dport" => port(words.next()?, packet.destination_port),
            "--sport" => port(words.next()?, packet.source_port),
            // INVALID is none of these.
            "--ctstate" => Some(words.next()?.split(',').any(|named| named == state)),
            _ => None,
        };
        match fits {
            Some(fits) if fits == negated => return None,
            Some(_) => {}
            None => hit = Hit::Perhaps,
        }
    }
    Some(hit)
}

/// A packet that has to get through, and the hooks it passes in the families of IPv4 and in that of bridges.
struct Flow {
    what: &'static str,
    check: &'static str,
    packet: Packet,
    hooks: &'static [u32],
    bridge_hooks: &'static [u32],
}

// Numbers of hooks (linux/netfilter.h).
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Somebody on the internet.
const WORLD: [u8; 4] = [1, 1, 1, 1];

fn flows(facts: &Facts, network: &NetworkFacts, bridge: &str) -> Vec<Flow> {
    let gateway: Option<std::net::Ipv4Addr> = network.gateway.parse().ok();
    let gateway = gateway.map(|gateway| gateway.octets());
    let guest = gateway.map(|[a, b, c, d]| [a, b, c, d.wrapping_add(1)]);
    let uplink = facts.uplink_mtu.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
    let asks = |destination, protocol, port| Packet {
        input: bridge.to_owned(),
        source: guest,
        destination,
        protocol,
        destination_port: Some(port),
        ..Packet::default()
    };
    let answers = |source, port| Packet {
        output: bridge.to_owned(),
        source,
        destination: guest,
        protocol: TCP,
        source_port: Some(port),
        established: true,
        ..Packet::default()
    };
    let to_host = |what, packet| Flow {
        what,
        check: "input",
        packet,
        hooks: &[PREROUTING, INPUT],
        bridge_hooks: &[PREROUTING, INPUT],
    };
    let mut flows = vec![
        Flow {
            what: "guests' connections to the world",
            check: "forward",
            packet: Packet { output: uplink.clone(), ..asks(Some(WORLD), TCP, 443) },
            hooks: &[PREROUTING, FORWARD],
            bridge_hooks: &[PREROUTING, INPUT],
        },
        Flow {
            what: "the world's answers to guests",
            check: "forward",
            packet: Packet { input: uplink, ..answers(Some(WORLD), 443) },
            hooks: &[PREROUTING, FORWARD, POSTROUTING],
            bridge_hooks: &[OUTPUT, POSTROUTING],
        },
        // guestnet's packet socket takes these before any chain but a bridge's own.
        Flow {
            hooks: &[],
            ..to_host(
                "guests' DHCP requests",
                Packet { source: Some([0; 4]), source_port: Some(68), ..asks(Some([255; 4]), UDP, 67) },
            )
        },
    ];
    if network.resolver.is_some() {
        flows.push(to_host("guests' DNS questions", asks(gateway, UDP, 53)));
        flows.push(Flow {
            what: "answers to guests' DNS questions",
            check: "input",
            packet: Packet { protocol: UDP, ..answers(gateway, 53) },
            hooks: &[OUTPUT, POSTROUTING],
            bridge_hooks: &[OUTPUT, POSTROUTING],
        });
    }
    if network.metadata {
        flows.push(to_host("guests' metadata requests", asks(gateway, TCP, Metadata::PORT)));
    }
    flows
}

/// Chains of somebody else's tables that cut guests of a network off, whatever iptables and ours say; all packets that one chain
/// drops in one finding.
pub(super) fn foreign(facts: &Facts, network: &NetworkFacts) -> Vec<Finding> {
    let mut found: Vec<(Cut, &'static str, bool, Vec<&'static str>)> = Vec::new();
    // That they could not be read is told once, for all networks.
    let Ok(ruleset) = &facts.foreign else { return Vec::new() };
    // What holds for one bridge of a network holds for all, unless somebody names one: each is looked at.
    for bridge in &network.bridges {
        for flow in flows(facts, network, bridge) {
            let of = |families: &[&str], hooks| foreign::cut(ruleset, families, hooks, &flow.packet);
            let cuts = [of(&["inet", "ip"], flow.hooks), of(&["bridge"], flow.bridge_hooks)];
            for cut in cuts.into_iter().flatten() {
                let to_guests = flow.packet.input != *bridge;
                match found.iter_mut().find(|(known, _, to, _)| *known == cut && *to == to_guests) {
                    Some((.., whats)) if whats.contains(&flow.what) => {}
                    Some((.., whats)) => whats.push(flow.what),
                    None => found.push((cut, flow.check, to_guests, vec![flow.what])),
                }
            }
        }
    }
    found
        .into_iter()
        .map(|(cut, check, to_guests, whats)| told(network, &cut, check, to_guests, &whats))
        .collect()
}

/// Others' tables that could not be read.
pub(super) fn unread(facts: &Facts) -> Option<Finding> {
    let why = facts.foreign.as_ref().err()?;
    let seen = format!("the tables of nf_tables could not be read: {why}");
    Some(
        Finding::warning("firewall", seen, "a firewall beside guestnet's may cut guests off")
            .mended_by("sudo guestnet doctor"),
    )
}

fn told(network: &NetworkFacts, cut: &Cut, check: &'static str, to_guests: bool, whats: &[&str]) -> Finding {
    let Cut { family, table, chain, rule, certain } = cut;
    let by = match rule {
        Some((in_chain, handle)) if in_chain == chain => {
            format!("rule {handle} of chain {family} {table} {chain}")
        }
        Some((in_chain, handle)) => {
            format!("rule {handle} of chain {family} {table} {in_chain}, which {chain} leads to,")
        }
        None => format!("the policy of chain {family} {table} {chain}"),
    };
    let severe = if *certain { Finding::problem } else { Finding::warning };
    let unless = if *certain { "" } else { ", unless an earlier rule of that chain lets them by" };
    let finding = severe(
        check,
        format!("{by} drops {}{unless}", whats.join(" and ")),
        format!("network {}: a firewall beside guestnet's decides over guests' packets too", network.name),
    );
    let each = |command: &dyn Fn(&str) -> String| {
        network.bridges.iter().map(|bridge| command(bridge)).collect::<Vec<_>>().join("; ")
    };
    finding.mended_by(match (*family, table.as_str(), rule) {
        // firewalld writes its table anew at each reload: what it is not told does not last.
        (_, "firewalld", _) => {
            let zones = each(&|bridge| {
                format!("firewall-cmd --permanent --zone=trusted --change-interface={bridge}")
            });
            format!("{zones}; firewall-cmd --reload")
        }
        ("bridge", _, Some((in_chain, handle))) => {
            format!("nft delete rule bridge {table} {in_chain} handle {handle}")
        }
        ("bridge", _, None) => format!("nft chain bridge {table} {chain} '{{ policy accept; }}'"),
        _ => {
            let side = if to_guests { "oifname" } else { "iifname" };
            each(&|bridge| format!("nft insert rule {family} {table} {chain} {side} {bridge} accept"))
        }
    })
}

pub(super) fn nat(facts: &Facts, network: &NetworkFacts) -> Option<Finding> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_of_iptables_rules_drop_guests_packets_is_read_off_their_conditions() {
        let guest = Packet {
            input: "br-vms".into(),
            output: "eth0".into(),
            source: Some([10, 100, 0, 2]),
            destination: Some(WORLD),
            protocol: TCP,
            destination_port: Some(443),
            ..Packet::default()
        };
        let asks = Packet {
            output: String::new(),
            destination: Some([10, 100, 0, 1]),
            protocol: UDP,
            destination_port: Some(53),
            ..guest.clone()
        };
        let guests = "10.100.0.0/16".parse().unwrap();
        let (surely, perhaps) = (Some(Hit::Surely), Some(Hit::Perhaps));
        for (rule, forwarded, to_host) in [
            ("-j DROP", surely, surely),
            ("-i br-vms -j DROP", surely, surely),
            ("-i br-+ -j REJECT --reject-with icmp-port-unreachable", surely, surely),
            ("-i eth9 -j DROP", None, None),
            ("! -i br-vms -j DROP", None, None),
            ("-i br-vms -p udp -j DROP", perhaps, surely),
            ("-p tcp -m tcp --dport 22 -j DROP", perhaps, None),
            ("-p udp -m udp --dport 50:60 -j DROP", perhaps, surely),
            ("-m conntrack --ctstate INVALID -j DROP", None, None),
            ("-m conntrack --ctstate NEW -j DROP", surely, surely),
            ("-s 192.168.0.0/16 -j DROP", None, None),
            ("-s 10.0.0.0/8 -j DROP", surely, surely),
            ("-s 10.100.0.77/32 -j DROP", perhaps, perhaps),
            ("-d 203.0.113.7/32 -j DROP", perhaps, None),
            ("-m limit --limit 1/sec -j DROP", perhaps, perhaps),
        ] {
            let words: Vec<&str> = rule.split_whitespace().collect();
            assert_eq!(matches(&words, &guest, FORWARD, guests), forwarded, "forwarded: {rule}");
            assert_eq!(matches(&words, &asks, INPUT, guests), to_host, "to the host: {rule}");
        }
    }
}

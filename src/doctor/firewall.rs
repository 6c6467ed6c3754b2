//! What the host's firewalls, others' and our rules among them, do to guests' packets. Pure.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Finding;
use super::host::Facts;
use super::network::NetworkFacts;
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
            _ if facts.networks.is_empty() => {
                "the networks are not known, and no rule before guestnet's drops by itself in"
            }
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
    // What it keeps out beside guests stays out: ours go before it, and it stays where it is. Guests are let by all the while:
    // the later jump goes once the first one stands; rules count from 1, and the first has moved it down by one. Nothing is done
    // unless our jump is where it was seen: repeated, the command would take what stands there now.
    let (jump, at, later) = (rules[ours], ours + 1, ours + 2);
    let still = format!("iptables -S {chain} {at} | grep -qi guestnet");
    severe(check, format!("before guestnet's rules stands -A {chain} {rule}"), meaning)
        .mended_by(format!("{still} && iptables -I {chain} 1 {jump} && iptables -D {chain} {later}"))
}

/// Whether a rule drops packets of guests or to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Surely,
    Perhaps,
}

/// Of a rule as `iptables -S` shows it, behind its chain's name; none of one that drops nothing of guests'.
fn hits(facts: &Facts, chain: &str, rule: &str) -> Option<Hit> {
    let words = words(rule);
    words.windows(2).find(|pair| pair[0] == "-j" && ["DROP", "REJECT"].contains(&pair[1]))?;
    // Whose packets it hits is not known where the networks are not.
    if facts.networks.is_empty() {
        return Some(Hit::Perhaps);
    }
    let hook = if chain == "INPUT" { INPUT } else { FORWARD };
    let mut found = Vec::new();
    for network in facts.networks.iter().filter(|network| network.managed) {
        let (guests, gateway) = (network.subnet.parse().ok(), network.gateway.parse().ok());
        let parties = guests.zip(gateway).map(|(guests, gateway)| Parties { guests, gateway });
        for bridge in &network.bridges {
            let flows = flows(facts, network, bridge);
            let through = flows.iter().filter(|flow| flow.hooks.contains(&hook));
            found.extend(through.filter_map(|flow| matches(&words, &flow.packet, hook, parties?)));
        }
    }
    found.into_iter().max_by_key(|hit| *hit == Hit::Surely)
}

/// A rule's words; what is in quotes, a comment, is one.
fn words(rule: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let ends_word = |letter: char| {
        let literal = std::mem::take(&mut escaped);
        match letter {
            _ if literal => {}
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        letter == ' ' && !quoted
    };
    rule.split(ends_word).filter(|word| !word.is_empty()).collect()
}

/// Whom a packet's addresses stand for: the gateway for itself, another of the subnet for every guest, one beyond for all the
/// world.
#[derive(Debug, Clone, Copy)]
struct Parties {
    guests: Ipv4Network,
    gateway: Ipv4Addr,
}

impl Parties {
    /// Whether all that an address stands for are in the prefix, or none is.
    fn are_in(self, named: Ipv4Network, address: Ipv4Addr) -> Option<bool> {
        let Self { guests, gateway } = self;
        if address == gateway {
            return Some(named.contains(address));
        }
        let (all, none) = if guests.contains(address) {
            (named.is_supernet_of(guests), !named.overlaps(guests))
        } else {
            (named.prefix() == 0, named.is_subnet_of(guests))
        };
        (all || none).then_some(all)
    }
}

/// Whether a rule's conditions are true of a packet and of all like it. One that is not known here may be.
fn matches(words: &[&str], packet: &Packet, hook: u32, parties: Parties) -> Option<Hit> {
    let device = |named: &str, device: &str| {
        Some(match named.strip_suffix('+') {
            Some(begin) => device.starts_with(begin),
            None => device == named,
        })
    };
    let address =
        |named: &str, address: Option<[u8; 4]>| parties.are_in(named.parse().ok()?, address?.into());
    let port = |named: &str, port: Option<u16>| {
        let (first, last) = named.split_once(':').unwrap_or((named, named));
        Some((first.parse::<u16>().ok()?..=last.parse().ok()?).contains(&port?))
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
        // Guests ask the host for little, and the world for anything: a rule that lets this packet by may hit another.
        let of_any = hook == FORWARD && ["-p", "--dport", "--sport"].contains(&condition);
        let fits = match condition {
            "-i" => device(words.next()?, &packet.input),
            "-o" => device(words.next()?, &packet.output),
            "-s" => address(words.next()?, packet.source),
            "-d" => address(words.next()?, packet.destination),
            "-p" => {
                let protocol = if packet.protocol == TCP { "tcp" } else { "udp" };
                Some(words.next()? == protocol)
            }
            "--dport" => port(words.next()?, packet.destination_port),
            "--sport" => port(words.next()?, packet.source_port),
            // INVALID is none of these.
            "--ctstate" => Some(words.next()?.split(',').any(|named| named == state)),
            _ => None,
        };
        match fits {
            Some(fits) if fits == negated && of_any => hit = Hit::Perhaps,
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
    let gateway: Option<Ipv4Addr> = network.gateway.parse().ok();
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
        flows.push(to_host("guests' DNS questions by TCP", asks(gateway, TCP, 53)));
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
    use super::super::Verdict;
    use super::super::host::tests::healthy;
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
        let parties = Parties { guests: "10.100.0.0/16".parse().unwrap(), gateway: [10, 100, 0, 1].into() };
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
            ("! -p tcp -j DROP", perhaps, surely),
            ("! -p udp -j DROP", surely, None),
            ("-p tcp -m tcp ! --dport 443 -j DROP", perhaps, None),
            ("-p tcp -m tcp ! --dport 22 -j DROP", surely, None),
            ("-p udp -m udp ! --dport 53 -j DROP", perhaps, None),
            ("-d 1.1.1.1/32 -j DROP", perhaps, None),
            ("! -d 1.1.1.1/32 -j DROP", perhaps, surely),
            ("-d 0.0.0.0/0 -j DROP", surely, surely),
            ("-d 10.100.0.0/16 -j DROP", None, surely),
            ("! -d 10.100.0.0/16 -j DROP", surely, None),
            ("! -d 10.0.0.0/8 -j DROP", perhaps, None),
            ("-s 10.100.0.2/32 -j DROP", perhaps, perhaps),
            ("! -s 10.100.0.2/32 -j DROP", perhaps, perhaps),
            ("! -s 10.100.0.0/16 -j DROP", None, None),
            ("-d 10.100.0.1/32 -j DROP", None, surely),
            ("-d 10.100.0.2/32 -j DROP", None, None),
            (r#"-m comment --comment "no \" -j one ! -i two" -j DROP"#, surely, surely),
        ] {
            let words = words(rule);
            assert_eq!(matches(&words, &guest, FORWARD, parties), forwarded, "forwarded: {rule}");
            assert_eq!(matches(&words, &asks, INPUT, parties), to_host, "to the host: {rule}");
        }
    }

    /// The lines of a chain with a foreign rule before guestnet's.
    fn behind(facts: &mut Facts, chain: &str, rule: &str) {
        let jump = format!("-A {chain} -m comment --comment guestnet -j GUESTNET-{chain}");
        let lines = vec![format!("-P {chain} ACCEPT"), format!("-A {chain} {rule}"), jump];
        *if chain == "INPUT" { &mut facts.input } else { &mut facts.forward } = Some(lines);
    }

    fn verdict(facts: &Facts, chain: &str) -> Verdict {
        iptables(facts)[usize::from(chain == "INPUT")].verdict
    }

    #[test]
    fn a_rule_is_held_against_all_that_guests_send_and_get() {
        for (chain, rule, expected) in [
            ("INPUT", "-i br-vms -p udp -m udp --dport 53 -j DROP", Verdict::Problem),
            ("INPUT", "-i br-vms -p tcp -m tcp --dport 53 -j DROP", Verdict::Problem),
            ("INPUT", "-i br-vms -p tcp -m tcp --dport 80 -j DROP", Verdict::Ok),
            ("FORWARD", "! -p tcp -j DROP", Verdict::Warning),
            ("FORWARD", "-d 10.100.0.2/32 -j DROP", Verdict::Warning),
            ("FORWARD", "-d 10.100.0.0/16 -m conntrack --ctstate ESTABLISHED -j DROP", Verdict::Problem),
            ("FORWARD", "-i eth9 -j DROP", Verdict::Ok),
        ] {
            let mut facts = of_guests();
            behind(&mut facts, chain, rule);
            assert_eq!(verdict(&facts, chain), expected, "{chain} {rule}");
        }
    }

    fn of_guests() -> Facts {
        let mut facts = healthy();
        let network = &mut facts.networks[0];
        (network.gateway, network.bridges) = ("10.100.0.1".into(), vec!["br-vms".into()]);
        network.resolver = Some(true);
        facts
    }

    #[test]
    fn where_the_networks_are_not_known_a_rule_that_drops_may_hit_guests() {
        let with = |change: fn(&mut Facts), rule: &str| {
            let mut facts = of_guests();
            change(&mut facts);
            behind(&mut facts, "FORWARD", rule);
            iptables(&facts)[0].clone()
        };
        let unknown = with(|facts| facts.networks.clear(), "-j DROP");
        assert_eq!(unknown.verdict, Verdict::Warning);
        let unknown = with(|facts| facts.networks.clear(), "-j DOCKER-USER");
        assert!(unknown.verdict == Verdict::Ok && unknown.seen.contains("not known"), "{unknown:?}");
        // Of networks that others make, others say what gets through.
        let external = with(|facts| facts.networks[0].managed = false, "-j DROP");
        assert_eq!(external.verdict, Verdict::Ok);
    }

    #[test]
    fn guestnets_jump_stands_first_before_the_later_one_goes() {
        let mut facts = of_guests();
        behind(&mut facts, "FORWARD", "-j DROP");
        let jump = "-m comment --comment guestnet -j GUESTNET-FORWARD";
        let still = "iptables -S FORWARD 2 | grep -qi guestnet";
        let mend = format!("{still} && iptables -I FORWARD 1 {jump} && iptables -D FORWARD 3");
        assert_eq!(iptables(&facts)[0].mend.as_deref(), Some(mend.as_str()));
    }
}

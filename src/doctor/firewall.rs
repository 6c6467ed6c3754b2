//! What the host's firewalls, others' and our rules among them, do to guests' packets. Pure.

use super::Finding;
use super::host::{Facts, NetworkFacts};
use crate::model::Metadata;
use crate::walls::foreign::{self, Cut, Packet};

/// Docker, ufw and firewalld close FORWARD and INPUT of iptables; what stands before our jump is decided before us.
pub(super) fn iptables(facts: &Facts) -> [Finding; 2] {
    [
        chain(
            "forward",
            "FORWARD",
            facts.forward.as_deref(),
            "guests are cut off from all beyond the gateway",
        ),
        chain(
            "input",
            "INPUT",
            facts.input.as_deref(),
            "guests are cut off from DNS and metadata of the gateway",
        ),
    ]
}

fn chain(check: &'static str, chain: &str, lines: Option<&[String]>, meaning: &str) -> Finding {
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
    let rules: Vec<&String> = lines.iter().filter(|line| line.starts_with(&begins)).collect();
    let Some(ours) = rules.iter().position(|rule| rule.to_ascii_lowercase().contains("guestnet")) else {
        let policy = if closed { " and drops by policy" } else { "" };
        return Finding::problem(
            check,
            format!("{chain} of iptables has no rule of guestnet{policy}"),
            format!("{meaning} by the first rule or policy that drops: somebody has flushed the firewall"),
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
        .mended_by("systemctl restart guestnet"),
        None => Finding::ok(
            check,
            format!(
                "guestnet's rules come first in {chain} of iptables, whose policy is {}",
                if closed { "DROP" } else { "ACCEPT" }
            ),
        ),
    }
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
    // What holds for one bridge of a network holds for all, unless somebody names one: each is looked at.
    for bridge in &network.bridges {
        for flow in flows(facts, network, bridge) {
            let of = |families: &[&str], hooks| foreign::cut(&facts.foreign, families, hooks, &flow.packet);
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

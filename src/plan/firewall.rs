use crate::model::{IfName, Network, Subnet};

/// The chains that hold our rules, each with the built-in chain that jumps to it first.
pub const CHAINS: [(&str, &str); 2] = [("GUESTNET-FORWARD", "FORWARD"), ("GUESTNET-INPUT", "INPUT")];

/// The comment of every rule outside our own chains.
pub const COMMENT: &str = "-m comment --comment guestnet";

/// The host-wide rules, as iptables-extensions(8) writes them. Their number depends on the networks' bridges, never on the VMs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostRules {
    /// nat POSTROUTING.
    pub postrouting: Vec<String>,
    /// filter GUESTNET-FORWARD.
    pub forward: Vec<String>,
    /// filter GUESTNET-INPUT.
    pub input: Vec<String>,
}

fn comment(what: &str) -> String {
    format!("-m comment --comment guestnet:{what}")
}

/// A guest's packet to anywhere but its own subnet leaves under the host's address.
pub fn nat_rule(subnet: Subnet) -> String {
    format!("-s {subnet} ! -d {subnet} {} -j MASQUERADE", comment("nat"))
}

/// What the host lets through for these networks, each with its bridges: all that our own tables of nf_tables (`walls`), which
/// decide before, let through. A policy of others that drops what it does not know must not cut guests off.
pub fn host_rules(networks: &[(&Network, Vec<&IfName>)]) -> HostRules {
    let mut rules = HostRules::default();
    rules.postrouting.extend(networks.iter().map(|(network, _)| nat_rule(network.subnet)));
    for (_, bridges) in networks.iter().filter(|(network, _)| network.dns_only_resolver) {
        for bridge in bridges {
            // DNS over TLS and over QUIC would go past the network's resolver (RFC 7858, RFC 9250); refused, a client falls back.
            let blocked = comment("dns-only");
            rules
                .forward
                .push(format!("-i {bridge} -p tcp --dport 853 {blocked} -j REJECT --reject-with tcp-reset"));
            rules.forward.push(format!("-i {bridge} -p udp --dport 853 {blocked} -j REJECT"));
        }
    }
    for bridge in networks.iter().flat_map(|(_, bridges)| bridges) {
        rules.forward.push(format!("-i {bridge} {} -j ACCEPT", comment("from-guests")));
        rules.forward.push(format!("-o {bridge} {} -j ACCEPT", comment("to-guests")));
        rules.input.push(format!("-i {bridge} {} -j ACCEPT", comment("host")));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    #[test]
    fn what_the_walls_let_through_is_accepted_and_nothing_is_decided_here() {
        let network = testing::network();
        let rules = host_rules(&[(&network, vec![network.bridge.as_if_name()])]);
        let filter = [rules.forward, rules.input].concat();
        assert!(
            filter.iter().all(|rule| rule.contains("br-vms") && rule.ends_with("-j ACCEPT")),
            "{filter:?}"
        );
    }
}

use crate::model::{IfName, Metadata, Network, Subnet};

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

/// What the host lets through for these networks, each with its bridges, first match first.
pub fn host_rules(networks: &[(&Network, Vec<&IfName>)]) -> HostRules {
    let mut rules = HostRules::default();
    rules.postrouting.extend(networks.iter().map(|(network, _)| nat_rule(network.subnet)));
    let bridges = || networks.iter().flat_map(|(network, bridges)| bridges.iter().map(move |b| (network, b)));
    for (_, bridge) in bridges() {
        rules.forward.push(format!("-i {bridge} -o {bridge} {} -j DROP", comment("isolation")));
    }
    for (_, bridge) in bridges() {
        rules.forward.push(format!(
            "-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED {} -j ACCEPT",
            comment("answers")
        ));
        // Neither another network nor the world opens a connection to a guest.
        rules.forward.push(format!("-o {bridge} {} -j DROP", comment("closed")));
    }
    for (_, bridge) in bridges() {
        rules.forward.push(format!("-i {bridge} {} -j ACCEPT", comment("egress")));
    }
    for (network, bridge) in bridges() {
        let from_guest = format!("-i {bridge} -d {}", network.gateway);
        if network.metadata.is_some() {
            // Only what was sent to the service's own address and redirected here (`kernel::metadata`).
            rules.input.push(format!(
                "{from_guest} -p tcp --dport {} -m conntrack --ctorigdst {} {} -j ACCEPT",
                Metadata::PORT,
                Metadata::ADDRESS,
                comment("metadata")
            ));
        }
        rules.input.extend([
            format!(
                "-i {bridge} -m conntrack --ctstate RELATED,ESTABLISHED {} -j ACCEPT",
                comment("answers")
            ),
            format!("{from_guest} -p udp --dport 67 {} -j ACCEPT", comment("dhcp")),
            format!("{from_guest} -p udp --dport 53 {} -j ACCEPT", comment("dns")),
            format!("{from_guest} -p tcp --dport 53 {} -j ACCEPT", comment("dns")),
            format!("{from_guest} -p icmp --icmp-type echo-request {} -j ACCEPT", comment("echo")),
            // The DHCP server takes its frames before netfilter; what is left here is nobody's.
            format!("-i {bridge} {} -j DROP", comment("host")),
        ]);
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    #[test]
    fn isolation_stands_before_every_accept() {
        let bridges = ["br-vms", "br-vms-1", "br-two"].map(|name| name.parse::<IfName>().unwrap());
        let (a, b) = (testing::network(), testing::network());
        let rules = host_rules(&[(&a, vec![&bridges[0], &bridges[1]]), (&b, vec![&bridges[2]])]).forward;
        let first_accept = rules.iter().position(|rule| rule.ends_with("ACCEPT")).unwrap();
        let last_isolation = rules.iter().rposition(|rule| rule.contains("isolation")).unwrap();
        assert!(last_isolation < first_accept);
        let first_egress = rules.iter().position(|rule| rule.contains("egress")).unwrap();
        let last_closed = rules.iter().rposition(|rule| rule.contains("closed")).unwrap();
        assert!(last_closed < first_egress, "a guest of one network must not reach the other");
    }

    #[test]
    fn what_the_host_does_not_offer_is_dropped_last() {
        let network = testing::network();
        let rules = host_rules(&[(&network, vec![network.bridge.as_if_name()])]).input;
        assert!(rules.last().unwrap().contains("-i br-vms") && rules.last().unwrap().ends_with("DROP"));
    }
}

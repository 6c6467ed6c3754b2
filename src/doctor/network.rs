//! What the facts about one network mean. Pure.

use super::host::Facts;
use super::{Finding, firewall};
use crate::model::Upstream;

#[derive(Debug, Clone, Default)]
pub struct NetworkFacts {
    pub name: String,
    pub bridge: String,
    /// It and those beside it that hold further guests of the network.
    pub bridges: Vec<String>,
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
    /// Whether guests are to reach metadata.
    pub metadata: bool,
}

/// One finding for each check. `others`: the facts with those tables of nf_tables that are not told of already.
pub(super) fn check(facts: &Facts, others: &Facts, network: &NetworkFacts) -> Vec<Finding> {
    let mut found = bridge(network);
    found.extend([overlap(network), rp_filter(network)]);
    if network.managed {
        found.extend(firewall::foreign(others, network));
    }
    found.extend(firewall::nat(facts, network));
    found.extend(resolver(network));
    found.push(upstreams(network));
    found.extend(addresses(network));
    found.extend(mtu(facts, network));
    found
}

fn bridge(network: &NetworkFacts) -> Vec<Finding> {
    let NetworkFacts { name, bridge, gateway, .. } = network;
    let made_anew = |finding: Finding| match network.managed {
        true => finding.mended_by("systemctl restart guestnet"),
        false => finding
            .advised(format!("{bridge} is not of guestnet's making: whoever makes it gives it {gateway}")),
    };
    let cut_off = format!("every guest of network {name} is cut off");
    if !network.bridge_exists {
        return vec![made_anew(Finding::problem("bridge", format!("{bridge} does not exist"), cut_off))];
    }
    let mut found = Vec::new();
    if !network.bridge_is_up {
        found.push(
            Finding::problem("bridge", format!("{bridge} is down"), cut_off.clone())
                .mended_by(format!("ip link set {bridge} up")),
        );
    }
    if !network.bridge_has_gateway {
        found.push(made_anew(Finding::problem(
            "bridge",
            format!("{bridge} does not have the gateway address {gateway}"),
            cut_off,
        )));
    }
    if found.is_empty() {
        found.push(Finding::ok("bridge", format!("{bridge} is up and has {gateway}")));
    }
    found
}

fn overlap(network: &NetworkFacts) -> Finding {
    match &network.overlap {
        None => Finding::ok("routes", format!("no route of the host is inside {}", network.subnet)),
        Some(route) => {
            let meaning = format!(
                "guests of network {} in it are not reached, or the host's own network is not",
                network.name
            );
            let seen = format!("the host's route {route} overlaps {}", network.subnet);
            // One that a gateway has been named for is somebody's choice; another one is how the host reaches its own network.
            let found = Finding::problem("routes", seen, meaning);
            match route.split_once(" via ") {
                Some((destination, _)) => found.mended_by(format!("ip route del {destination}")),
                None => found.advised(format!("choose another vm_subnet for network {}", network.name)),
            }
        }
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
    let advice = "check the uplink, or set other dns_servers and guestnet reload";
    if down.is_empty() {
        Finding::ok("upstreams", format!("{} answer", up.join(" and ")))
    } else if up.is_empty() {
        Finding::problem("upstreams", seen, "guests resolve only each other's names").advised(advice)
    } else {
        Finding::warning("upstreams", seen, "the others are asked instead").advised(advice)
    }
}

fn addresses(network: &NetworkFacts) -> Option<Finding> {
    Some(match network.free_addresses? {
        0 => Finding::problem(
            "addresses",
            format!("network {} has no free address", network.name),
            "no further VM can be made on it",
        )
        .advised("guestnet vm list, and guestnet vm delete VM_ID of those that are gone"),
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
        .advised(format!("set mtu = {mtu} for network {} and restart guestnet", network.name))
    })
}

//! Every key of the configuration: what a reload makes of its change, as the table in docs/configuration.md has it. Pure.

/// What comes of a changed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// In force at once; for whom.
    Live(&'static str),
    /// In force after a restart; why not before.
    Restart(&'static str),
}

use Effect::{Live, Restart};

const SOCKETS: &str = "sockets are opened at the start";
const GROUP: &str = "for new connections, where the socket is open since the start";
const IDS: &str =
    "where listen is open since the start, from the next request on; a watch that is open goes on";
const PLUMBING: &str = "bridges and ports of guests that run are made with it";
const RESOLVER: &str = "where the network has a resolver; answers are kept where they hold";
const WALLS: &str = "the tables of nf_tables are made with it at the start";
const LIMIT: &str = "for VMs made from now on that ask for no limit of their own";
const TOLD: &str = "from each guest's next DHCP request on";

/// Keys of arrays of tables without their numbers; what is below a key goes with it.
const KEYS: [(&str, Effect); 61] = [
    ("api.socket", Restart(SOCKETS)),
    ("api.socket_group", Live(GROUP)),
    ("api.read_only_socket", Restart(SOCKETS)),
    ("api.read_only_group", Live(GROUP)),
    ("api.listen", Restart(SOCKETS)),
    (
        "api.tls_certificate",
        Restart("another path is opened at the start; what is in the file is read whenever it changes"),
    ),
    ("api.tls_key", Restart("as tls_certificate")),
    ("api.tls_client_ca", Restart("as tls_certificate")),
    ("api.spiffe_ids", Live(IDS)),
    ("api.read_only_spiffe_ids", Live(IDS)),
    ("metrics.socket", Restart(SOCKETS)),
    ("metrics.listen", Restart(SOCKETS)),
    ("metrics.vm_labels", Live("from the next look on")),
    ("telemetry.endpoint", Restart("spans are led to the collector from the start")),
    ("telemetry.metrics_interval_seconds", Restart("as endpoint")),
    ("log.filter", Live("unless the environment has GUESTNET_LOG")),
    (
        "state.directory",
        Restart("what is stored there is this service's state: stop it and move the directory"),
    ),
    ("network.name", Restart("VMs are stored with it")),
    ("network.plumbing", Restart(PLUMBING)),
    ("network.bridge_name", Restart(PLUMBING)),
    ("network.bridge_ip", Restart(PLUMBING)),
    ("network.vm_subnet", Restart("guests that run have addresses of it")),
    ("network.router", Restart("guests that run have it as their route")),
    ("network.reserved_ranges", Restart("free addresses are counted at the start")),
    ("network.mtu", Restart(PLUMBING)),
    ("network.metadata", Restart("its server is started or not, and guests are led to it by the walls")),
    ("network.metadata_hop_limit", Restart("as metadata")),
    ("network.enable_rate_limit", Live(LIMIT)),
    ("network.rate_limit_mbps", Live(LIMIT)),
    ("network.rate_limit_burst_kib", Live(LIMIT)),
    ("network.pool_size", Live("slots are built or taken away in the background")),
    ("network.lease_seconds", Live(TOLD)),
    ("network.dhcp_options", Live(TOLD)),
    ("network.dhcp_relays", Live("from the next request on")),
    ("network.reservation", Restart("guestnet reservation add makes others while it runs")),
    ("network.intra_workspace", Restart(WALLS)),
    ("network.egress_default", Restart(WALLS)),
    ("network.blocked_egress", Restart(WALLS)),
    ("network.new_connections_per_second", Restart(WALLS)),
    ("network.live_connections", Restart(WALLS)),
    ("network.dhcp_per_second", Restart(WALLS)),
    ("network.dns_per_second", Restart(WALLS)),
    ("network.dns_only_resolver", Restart(WALLS)),
    ("network.dns", Restart("its resolver is started or not, and guests have been told of it")),
    ("network.dns_servers", Live(RESOLVER)),
    ("network.domain", Restart("guests that run have been told it")),
    ("network.resolver.cache_mib", Live(RESOLVER)),
    ("network.resolver.min_ttl", Live(RESOLVER)),
    ("network.resolver.max_ttl", Live(RESOLVER)),
    ("network.resolver.rebind_protection", Live(RESOLVER)),
    ("network.resolver.rebind_exempt", Live(RESOLVER)),
    ("network.resolver.dnssec", Live(RESOLVER)),
    ("network.resolver.trust_anchor", Live(RESOLVER)),
    ("network.resolver.upstream_ca", Live(RESOLVER)),
    ("network.resolver.query_log", Live(RESOLVER)),
    ("network.resolver.queries_per_second", Live(RESOLVER)),
    ("network.resolver.zones", Live(RESOLVER)),
    ("network.resolver.hosts_file", Live(RESOLVER)),
    ("network.resolver.record", Live(RESOLVER)),
    ("network.resolver.forward", Live(RESOLVER)),
    ("network.resolver.rule", Live(RESOLVER)),
];

/// Of a key with its path, like `network[0].dhcp_options.ntp_servers`.
pub(super) fn effect(key: &str) -> Effect {
    let mut plain = String::with_capacity(key.len());
    let mut numbered = false;
    for c in key.chars() {
        match c {
            '[' => numbered = true,
            ']' => numbered = false,
            c if !numbered => plain.push(c),
            _ => {}
        }
    }
    let found = KEYS.iter().find(|(known, _)| {
        plain.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    // A key that is in no list is refused long before.
    found.map_or(Restart("it is read at the start"), |(_, effect)| *effect)
}

/// What of a network its guests and VMs to come get while it runs.
pub(super) const OF_GUESTS: [&str; 7] = [
    "enable_rate_limit",
    "rate_limit_mbps",
    "rate_limit_burst_kib",
    "pool_size",
    "lease_seconds",
    "dhcp_options",
    "dhcp_relays",
];

/// Why a changed key waits for a restart.
pub fn why(key: &str) -> &'static str {
    match effect(key) {
        Restart(why) => why,
        Live(_) if key.starts_with("api.") => "what it is about is opened at the start, and was not",
        Live(_) => "the network in this place has another name now, or no resolver that runs",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;

    /// The keys that a configuration may have, as its errors list them.
    fn known() -> BTreeSet<String> {
        let sections = ["api", "metrics", "telemetry", "log", "state", "[network]"];
        let mut text: String = sections.map(|section| format!("[{section}]\nx = 1\n")).concat();
        text += "[network.resolver]\nx = 1\n";
        let refused = Config::from_parts(Some(&text), |_| None).unwrap_err();
        let keys = |problem: &crate::config::Problem| -> Vec<String> {
            let table = problem.key.trim_end_matches(".x").replace("[0]", "");
            let listed = problem.message.split_once("known here: ").unwrap().1;
            listed.split(", ").map(|key| format!("{table}.{key}")).collect()
        };
        refused.0.iter().flat_map(keys).filter(|key| key != "network.resolver").collect()
    }

    #[test]
    fn every_key_says_what_a_reload_makes_of_it() {
        let listed: BTreeSet<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(listed, known());
        assert_eq!(listed.len(), KEYS.len(), "one is there twice");
        let nested = "network[3].dhcp_options.ntp_servers";
        assert_eq!(effect(nested), Live(TOLD));
        assert_eq!(effect("network[0].resolver.rule[2].name"), Live(RESOLVER));
    }

    #[test]
    fn what_is_said_to_be_live_is_what_parts_take() {
        let open = "[api]\nread_only_socket = \"/r\"\nlisten = \"127.0.0.1:1\"\ntls_certificate = \"/c\"\n\
                    tls_key = \"/k\"\ntls_client_ca = \"/a\"\n";
        let config = Config::from_parts(Some(open), |_| None).unwrap();
        let reloader = super::super::Reloader::new(None, &config);
        let taken: BTreeSet<String> = reloader
            .keys()
            .into_iter()
            .chain(OF_GUESTS.map(|key| format!("network.{key}")))
            .chain(crate::dns::DnsAdmin::live_keys(&config.networks))
            .map(|key| key.replace("[0]", ""))
            .collect();
        for (key, effect) in KEYS {
            let is_taken = taken.iter().any(|taken| super::super::is_at_or_below(key, taken));
            assert_eq!(matches!(effect, Live(_)), is_taken, "{key}");
        }
    }

    #[test]
    fn the_table_in_the_docs_is_this_one() {
        let row = |(key, effect): &(&str, Effect)| match effect {
            Live(what) => format!("| `{key}` | live: {what} |\n"),
            Restart(why) => format!("| `{key}` | after a restart: {why} |\n"),
        };
        let table: String = KEYS.iter().map(row).collect();
        let page = include_str!("../../docs/configuration.md");
        assert!(page.contains(&table), "docs/configuration.md is not current; put this there:\n{table}");
    }
}

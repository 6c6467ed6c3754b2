//! Guests' questions to DNS servers elsewhere, answered by ours: two rules a bridge, in nat PREROUTING. What they ask stays
//! within the rules of their network.

use iptables::IPTables;

use super::error::KernelError;
use super::firewall::{open, run};
use crate::model::IfName;

fn rules(bridge: &IfName) -> [String; 2] {
    ["udp", "tcp"].map(|protocol| {
        format!(
            "-i {bridge} -p {protocol} --dport 53 -m comment --comment guestnet:dns-only -j REDIRECT --to-ports 53"
        )
    })
}

/// Brings the rules of `bridge` to be there or not to be. How many changes that took.
pub(super) fn redirect(bridge: &IfName, wanted: bool) -> Result<usize, KernelError> {
    let tables = open()?;
    let mut changes = 0;
    for rule in rules(bridge) {
        let doing = |what: &str| format!("{what} nat PREROUTING {rule}");
        let stands = run(|| doing("looking for"), || tables.exists("nat", "PREROUTING", &rule))?;
        let change = match (stands, wanted) {
            (false, true) => IPTables::append,
            (true, false) => IPTables::delete,
            _ => continue,
        };
        run(|| doing("changing"), || change(&tables, "nat", "PREROUTING", &rule))?;
        changes += 1;
    }
    Ok(changes)
}

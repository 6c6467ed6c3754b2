//! The way of a guest's packet to 169.254.169.254: one rule a bridge, in nat PREROUTING, redirects it to the gateway. The
//! address itself is on no interface of the host, which may ask its own cloud there.

use iptables::IPTables;

use super::error::KernelError;
use super::firewall::{open, run};
use crate::model::{IfName, Metadata};

fn rule(bridge: &IfName) -> String {
    format!(
        "-i {bridge} -d {}/32 -p tcp --dport 80 -m comment --comment guestnet:metadata -j REDIRECT --to-ports {}",
        Metadata::ADDRESS,
        Metadata::PORT
    )
}

/// Brings the rule of `bridge` to be there or not to be. How many changes that took.
pub(super) fn redirect(bridge: &IfName, wanted: bool) -> Result<usize, KernelError> {
    let (tables, rule) = (open()?, rule(bridge));
    let doing = |what: &str| format!("{what} nat PREROUTING {rule}");
    let stands = run(|| doing("looking for"), || tables.exists("nat", "PREROUTING", &rule))?;
    let change = match (stands, wanted) {
        (false, true) => IPTables::append,
        (true, false) => IPTables::delete,
        _ => return Ok(0),
    };
    run(|| doing("changing"), || change(&tables, "nat", "PREROUTING", &rule))?;
    Ok(1)
}

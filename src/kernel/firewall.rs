//! The host-wide iptables rules, checked before added. The `iptables` crate runs the `iptables` program, a constant few
//! times at the start and the end, never for a VM.

use iptables::IPTables;

use super::error::KernelError;
use crate::plan::{CHAINS, COMMENT, HostRules};

pub(super) fn failed(doing: String, error: impl std::fmt::Display) -> KernelError {
    KernelError::new(doing, std::io::Error::other(error.to_string().trim().to_owned()))
}

pub(super) fn open() -> Result<IPTables, KernelError> {
    iptables::new(false)
        .map_err(|error| failed("running iptables (Debian: apt-get install iptables)".into(), error))
}

/// Whether iptables can be used here at all, without changing anything.
pub(super) fn check() -> Result<(), KernelError> {
    open()?
        .list("nat", "POSTROUTING")
        .map(|_| ())
        .map_err(|error| failed("listing the rules of iptables".into(), error))
}

/// Whether our chains stand.
pub(super) fn present() -> Result<bool, KernelError> {
    let (tables, (chain, _)) = (open()?, CHAINS[0]);
    has_chain(&tables, chain)
}

/// Not by the crate's `chain_exists`: that has iptables look the rules' addresses up in DNS, which may not answer.
fn has_chain(tables: &IPTables, chain: &str) -> Result<bool, KernelError> {
    let chains = tables.list_chains("filter");
    Ok(chains
        .map_err(|error| failed(format!("looking for chain {chain}"), error))?
        .iter()
        .any(|name| name == chain))
}

/// Brings the host's rules to `rules`. Rules that stand are left alone; the others come first before old ones go, so
/// that there is no moment without them.
pub(super) fn apply(rules: &HostRules) -> Result<usize, KernelError> {
    let tables = open()?;
    let mut changes = 0;
    for rule in &rules.postrouting {
        let exists = tables.exists("nat", "POSTROUTING", rule);
        if !exists.map_err(|error| failed(format!("looking for nat POSTROUTING {rule}"), error))? {
            let added = tables.append("nat", "POSTROUTING", rule);
            added.map_err(|error| failed(format!("adding nat POSTROUTING {rule}"), error))?;
            changes += 1;
        }
    }
    for ((chain, hook), wanted) in CHAINS.iter().zip([&rules.forward, &rules.input]) {
        changes += fill(&tables, chain, wanted)? + jump_first(&tables, chain, hook)?;
    }
    Ok(changes)
}

/// The jump to our chain is the hook's first rule: behind somebody's DROP it would do nothing.
fn jump_first(tables: &IPTables, chain: &str, hook: &str) -> Result<usize, KernelError> {
    let jump = format!("{COMMENT} -j {chain}");
    let listed = tables.list("filter", hook).map_err(|error| failed(format!("listing {hook}"), error))?;
    let rules: Vec<&String> = listed.iter().filter(|line| line.starts_with("-A")).collect();
    let ours = |rule: &str| rule.ends_with(&format!("-j {chain}"));
    if rules.first().is_some_and(|rule| ours(rule)) {
        return Ok(0);
    }
    let added = tables.insert("filter", hook, &jump, 1);
    added.map_err(|error| failed(format!("adding {hook} {jump}"), error))?;
    // Rules count from 1, and the new one has moved all down by one. The last goes first: numbers above it stay right.
    let behind = rules.iter().enumerate().filter(|(_, rule)| ours(rule)).map(|(at, _)| at + 2);
    for number in behind.collect::<Vec<_>>().into_iter().rev() {
        let removed = tables.delete("filter", hook, &number.to_string());
        removed.map_err(|error| failed(format!("removing the later {hook} {jump}"), error))?;
    }
    Ok(1)
}

/// Takes away the NAT rule of a subnet that no network has any more.
pub(super) fn remove_nat(rule: &str) -> Result<(), KernelError> {
    let tables = open()?;
    if tables.exists("nat", "POSTROUTING", rule).unwrap_or(false) {
        let removed = tables.delete("nat", "POSTROUTING", rule);
        removed.map_err(|error| failed(format!("removing nat POSTROUTING {rule}"), error))?;
    }
    Ok(())
}

fn fill(tables: &IPTables, chain: &str, wanted: &[String]) -> Result<usize, KernelError> {
    if !has_chain(tables, chain)? {
        tables.new_chain("filter", chain).map_err(|error| failed(format!("adding chain {chain}"), error))?;
    }
    // The first line of the listing is the chain itself.
    let listed = tables.list("filter", chain);
    let standing = listed.map_err(|error| failed(format!("listing chain {chain}"), error))?.len() - 1;
    if standing == wanted.len()
        && wanted.iter().all(|rule| tables.exists("filter", chain, rule).unwrap_or(false))
    {
        return Ok(0);
    }
    for (position, rule) in wanted.iter().enumerate() {
        let added = tables.insert("filter", chain, rule, position as i32 + 1);
        added.map_err(|error| failed(format!("adding {chain} {rule}"), error))?;
    }
    let first_old = (wanted.len() + 1).to_string();
    for _ in 0..standing {
        let removed = tables.delete("filter", chain, &first_old);
        removed.map_err(|error| failed(format!("removing an old rule of {chain}"), error))?;
    }
    Ok(wanted.len().max(1))
}

/// Takes the host's rules back; what is gone already is fine. Goes on past errors and reports the last.
pub(super) fn remove(rules: &HostRules) -> Result<(), KernelError> {
    let tables = open()?;
    let mut result = Ok(());
    let mut note = |doing: String, done: Result<(), Box<dyn std::error::Error>>| {
        if let Err(error) = done {
            result = Err(failed(doing, error));
        }
    };
    for (chain, hook) in CHAINS {
        let jump = format!("{COMMENT} -j {chain}");
        if tables.exists("filter", hook, &jump).unwrap_or(false) {
            note(format!("removing {hook} {jump}"), tables.delete("filter", hook, &jump));
        }
        if has_chain(&tables, chain).unwrap_or(false) {
            note(format!("emptying chain {chain}"), tables.flush_chain("filter", chain));
            note(format!("removing chain {chain}"), tables.delete_chain("filter", chain));
        }
    }
    for rule in &rules.postrouting {
        if tables.exists("nat", "POSTROUTING", rule).unwrap_or(false) {
            note(format!("removing nat POSTROUTING {rule}"), tables.delete("nat", "POSTROUTING", rule));
        }
    }
    result
}

//! The host-wide iptables rules, checked before added. The `iptables` crate runs the `iptables` program, a constant few
//! times at the start and the end, never for a VM.

use iptables::IPTables;

use super::error::{Doing, KernelError};
use super::fault;
use crate::plan::{CHAINS, COMMENT, HostRules};

/// One run of iptables.
pub(super) fn run<T>(
    doing: impl Fn() -> String,
    iptables: impl FnOnce() -> Result<T, Box<dyn std::error::Error>>,
) -> Result<T, KernelError> {
    fault::operation().doing(&doing)?;
    iptables().map_err(|error| {
        KernelError::new(doing(), std::io::Error::other(error.to_string().trim().to_owned()))
    })
}

pub(super) fn open() -> Result<IPTables, KernelError> {
    run(|| "running iptables (Debian: apt-get install iptables)".into(), || iptables::new(false))
}

/// Whether iptables can be used here at all, without changing anything.
pub(super) fn check() -> Result<(), KernelError> {
    let tables = open()?;
    run(|| "listing the rules of iptables".into(), || tables.list("nat", "POSTROUTING")).map(drop)
}

/// Whether our chains stand.
pub(super) fn present() -> Result<bool, KernelError> {
    let (tables, (chain, _)) = (open()?, CHAINS[0]);
    has_chain(&tables, chain)
}

/// Not by the crate's `chain_exists`: that has iptables look the rules' addresses up in DNS, which may not answer.
fn has_chain(tables: &IPTables, chain: &str) -> Result<bool, KernelError> {
    let chains = run(|| format!("looking for chain {chain}"), || tables.list_chains("filter"))?;
    Ok(chains.iter().any(|name| name == chain))
}

/// Brings the host's rules to `rules`. Rules that stand are left alone; the others come first before old ones go, so
/// that there is no moment without them.
pub(super) fn apply(rules: &HostRules) -> Result<usize, KernelError> {
    let tables = open()?;
    let mut changes = 0;
    for rule in &rules.postrouting {
        let looking = || format!("looking for nat POSTROUTING {rule}");
        if !run(looking, || tables.exists("nat", "POSTROUTING", rule))? {
            let adding = || format!("adding nat POSTROUTING {rule}");
            run(adding, || tables.append("nat", "POSTROUTING", rule))?;
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
    let listed = run(|| format!("listing {hook}"), || tables.list("filter", hook))?;
    let rules: Vec<&String> = listed.iter().filter(|line| line.starts_with("-A")).collect();
    let ours = |rule: &str| rule.ends_with(&format!("-j {chain}"));
    if rules.first().is_some_and(|rule| ours(rule)) {
        return Ok(0);
    }
    run(|| format!("adding {hook} {jump}"), || tables.insert("filter", hook, &jump, 1))?;
    // Rules count from 1, and the new one has moved all down by one. The last goes first: numbers above it stay right.
    let behind = rules.iter().enumerate().filter(|(_, rule)| ours(rule)).map(|(at, _)| at + 2);
    for number in behind.collect::<Vec<_>>().into_iter().rev() {
        let removing = || format!("removing the later {hook} {jump}");
        run(removing, || tables.delete("filter", hook, &number.to_string()))?;
    }
    Ok(1)
}

/// Takes away the NAT rule of a subnet that no network has any more.
pub(super) fn remove_nat(rule: &str) -> Result<(), KernelError> {
    let tables = open()?;
    if tables.exists("nat", "POSTROUTING", rule).unwrap_or(false) {
        let removing = || format!("removing nat POSTROUTING {rule}");
        run(removing, || tables.delete("nat", "POSTROUTING", rule))?;
    }
    Ok(())
}

fn fill(tables: &IPTables, chain: &str, wanted: &[String]) -> Result<usize, KernelError> {
    if !has_chain(tables, chain)? {
        run(|| format!("adding chain {chain}"), || tables.new_chain("filter", chain))?;
    }
    // The first line of the listing is the chain itself.
    let standing = run(|| format!("listing chain {chain}"), || tables.list("filter", chain))?.len() - 1;
    if standing == wanted.len()
        && wanted.iter().all(|rule| tables.exists("filter", chain, rule).unwrap_or(false))
    {
        return Ok(0);
    }
    for (position, rule) in wanted.iter().enumerate() {
        let adding = || format!("adding {chain} {rule}");
        run(adding, || tables.insert("filter", chain, rule, position as i32 + 1))?;
    }
    let first_old = (wanted.len() + 1).to_string();
    for _ in 0..standing {
        let removing = || format!("removing an old rule of {chain}");
        run(removing, || tables.delete("filter", chain, &first_old))?;
    }
    Ok(wanted.len().max(1))
}

/// Takes the host's rules back; what is gone already is fine. Goes on past errors and reports the last.
pub(super) fn remove(rules: &HostRules) -> Result<(), KernelError> {
    let tables = open()?;
    let mut result = Ok(());
    let mut note = |done: Result<(), KernelError>| {
        if done.is_err() {
            result = done;
        }
    };
    for (chain, hook) in CHAINS {
        let jump = format!("{COMMENT} -j {chain}");
        if tables.exists("filter", hook, &jump).unwrap_or(false) {
            note(run(|| format!("removing {hook} {jump}"), || tables.delete("filter", hook, &jump)));
        }
        if has_chain(&tables, chain).unwrap_or(false) {
            note(run(|| format!("emptying chain {chain}"), || tables.flush_chain("filter", chain)));
            note(run(|| format!("removing chain {chain}"), || tables.delete_chain("filter", chain)));
        }
    }
    for rule in &rules.postrouting {
        if tables.exists("nat", "POSTROUTING", rule).unwrap_or(false) {
            let removing = || format!("removing nat POSTROUTING {rule}");
            note(run(removing, || tables.delete("nat", "POSTROUTING", rule)));
        }
    }
    result
}

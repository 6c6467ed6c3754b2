//! Policies as callers set, read and test them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::book::Change;
use super::flows::is_denied;
use super::ruleset::INET;
use super::{Walls, WallsError, batch};
use crate::kernel::nft::{Connection, Count};
use crate::model::{Action, DnsMode};
use crate::policy::{Decision, Direction, Flow, Policy, PolicySpec, Protocol, Reason, RuleSpec, Scope};
use crate::policy::{decide, findings};

/// What became of a policy, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub policy: Arc<Policy>,
    /// What is different from before, one a line: `+` comes, `-` goes.
    pub changes: Vec<String>,
    /// What is odd about the rules.
    pub findings: Vec<String>,
    /// VMs that it decides for now.
    pub governed: usize,
    /// Live connections that it denies, and ends.
    pub ended: usize,
}

/// What a rule has counted, by its index; the default rules of a direction have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleCount {
    pub index: usize,
    pub count: Count,
}

/// The verdict on a connection that somebody asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    pub flow: Flow,
    pub decision: Decision,
}

impl Walls {
    /// Sets a policy in the place of its scope's; with `dry_run` only says what that would change.
    pub async fn apply(&self, spec: PolicySpec, dry_run: bool) -> Result<Applied, WallsError> {
        let policy = Arc::new(Policy::try_from(spec)?);
        let _turn = self.0.changing.lock().await;
        let (scope, findings) = (policy.scope.clone(), findings(&policy));
        let (addresses, before) = {
            let standing = self.standing();
            if let Scope::Vm(vm_id) = &scope
                && standing.book.guest(vm_id).is_none()
            {
                return Err(WallsError::NoVm { vm_id: vm_id.clone() });
            }
            let addresses: Vec<Ipv4Addr> =
                standing.book.governed(&scope).iter().map(|guest| guest.address).collect();
            (addresses, standing.book.policy(&scope).cloned())
        };
        let governed = addresses.len();
        let changes = differences(before.as_ref().map(|policy| &policy.spec), Some(&policy.spec));
        if !dry_run {
            self.set(&scope, Some(policy.clone())).await?;
        }
        let ending = async {
            let denied = self.denied_by(addresses, &scope, Some(policy.clone())).await?;
            let ended = denied.len();
            if !dry_run {
                self.end(denied).await?;
            }
            Ok(ended)
        };
        match ending.await {
            Ok(ended) => Ok(Applied { policy, changes, findings, governed, ended }),
            Err(error) if dry_run => Err(error),
            Err(error) => self.set(&scope, before).await.and(Err(error)),
        }
    }

    /// Takes a policy away; whether there was one. The network decides then, or the workspace's policy.
    pub async fn delete_policy(&self, scope: &Scope) -> Result<bool, WallsError> {
        let _turn = self.0.changing.lock().await;
        let (before, addresses): (_, Vec<Ipv4Addr>) = {
            let standing = self.standing();
            let Some(policy) = standing.book.policy(scope).cloned() else { return Ok(false) };
            (policy, standing.book.governed(scope).iter().map(|guest| guest.address).collect())
        };
        self.set(scope, None).await?;
        let walls = self.clone();
        let now_denied = move |connection: &Connection| is_denied(&walls.standing().book, None, connection);
        let ending = async { self.end(self.denied(addresses, now_denied).await?).await };
        match ending.await {
            Ok(()) => Ok(true),
            Err(error) => self.set(scope, Some(before)).await.and(Err(error)),
        }
    }

    /// In the store first, then in the kernel at once; in neither when either fails.
    async fn set(&self, scope: &Scope, policy: Option<Arc<Policy>>) -> Result<(), WallsError> {
        let before = self.standing().book.policy(scope).cloned();
        let spec = policy.as_ref().map(|policy| policy.spec.clone());
        let stored = self.0.store.set_policy(scope.clone(), spec).await?;
        if !stored
            && policy.is_some()
            && let Scope::Vm(vm_id) = scope
        {
            return Err(WallsError::NoVm { vm_id: vm_id.clone() });
        }
        let done = {
            let mut standing = self.standing();
            let changes = standing.book.set_policy(scope, policy);
            // What a packet meets in the middle of a change is the rules before and the maps after it: a new chain has to be there,
            // full, before a map leads to it.
            let leads = changes.iter().position(Change::leads_guests).unwrap_or(changes.len());
            let (chains, leading) = changes.split_at(leads);
            let commit = |changes: &[Change]| match changes {
                [] => Ok(()),
                changes => self.0.nft.commit("policy", batch(changes)),
            };
            let done = commit(chains).and_then(|()| commit(leading));
            if done.is_err() {
                standing.book.set_policy(scope, before.clone());
            }
            done
        };
        if let Err(error) = done {
            let spec = before.map(|policy| policy.spec.clone());
            self.0.store.set_policy(scope.clone(), spec).await?;
            self.put_back();
            return Err(error.into());
        }
        Ok(())
    }

    async fn denied_by(
        &self,
        addresses: Vec<Ipv4Addr>,
        scope: &Scope,
        policy: Option<Arc<Policy>>,
    ) -> Result<Vec<Connection>, WallsError> {
        let (walls, scope) = (self.clone(), scope.clone());
        let judge = move |connection: &Connection| {
            let instead = super::flows::InPlace { scope: &scope, policy: policy.as_deref() };
            is_denied(&walls.standing().book, Some(&instead), connection)
        };
        self.denied(addresses, judge).await
    }

    /// A scope's policy with what its rules have counted since it was set. Policies with equal rules count together.
    pub async fn policy(&self, scope: &Scope) -> Result<(Arc<Policy>, Vec<RuleCount>), WallsError> {
        let (policy, id) = {
            let standing = self.standing();
            let found = standing.book.policy(scope).cloned().zip(standing.book.policy_number(scope));
            found.ok_or_else(|| WallsError::NoPolicy { scope: scope.clone() })?
        };
        let (nft, counted) = (self.0.nft.clone(), policy.clone());
        let counts =
            super::flows::blocking(move || {
                let chains = [
                    (Direction::Egress, super::compile::egress_chain(id)),
                    (Direction::Ingress, super::compile::ingress_chain(id)),
                ];
                let mut counts = Vec::new();
                for (direction, chain) in chains {
                    let rules = counted.rules.iter().filter(|rule| rule.direction == direction);
                    let counters = nft.rule_counts(INET, &chain)?;
                    counts.extend(rules.zip(counters).map(|(rule, count)| RuleCount {
                        index: rule.index,
                        count: count.unwrap_or_default(),
                    }));
                }
                Ok(counts)
            });
        Ok((policy, counts.await?))
    }

    pub fn policies(&self) -> Vec<Arc<Policy>> {
        self.standing().book.policies().cloned().collect()
    }

    /// Whether a connection from one end to the other would be allowed, and by what. An end is a VM or an address.
    pub fn test(
        &self,
        from: &str,
        to: &str,
        protocol: Option<Protocol>,
        port: Option<u16>,
    ) -> Result<Tested, WallsError> {
        let protocol = protocol.unwrap_or(if port.is_some() { Protocol::Tcp } else { Protocol::Icmp });
        match (protocol.has_ports(), port) {
            (true, None) => return Err(WallsError::PortMissing { protocol: protocol.to_string() }),
            (false, Some(_)) => return Err(WallsError::NoPorts { protocol: protocol.to_string() }),
            _ => {}
        }
        let standing = self.standing();
        let book = &standing.book;
        let end = |given: &str| -> Result<Ipv4Addr, WallsError> {
            let guest = given.parse().ok().and_then(|vm_id| book.guest(&vm_id));
            let address = guest.map(|guest| guest.address).or_else(|| given.parse().ok());
            address.ok_or_else(|| WallsError::NoEndpoint { given: given.chars().take(64).collect() })
        };
        let flow = Flow {
            source: end(from)?,
            destination: end(to)?,
            // `any` is asked about as what has no ports: ICMP.
            protocol: protocol.number().unwrap_or(1),
            port,
            forwarded: false,
        };
        let (source, destination) = (book.guest_at(flow.source), book.guest_at(flow.destination));
        let decision = match (source, destination) {
            (Some(guest), None) if guest.network.gateway == flow.destination => {
                let dns = guest.network.dns == DnsMode::On;
                let offered = match (flow.protocol, flow.port) {
                    (1, None) | (17, Some(67)) => true,
                    (6 | 17, Some(53)) => dns,
                    _ => false,
                };
                let action = if offered { Action::Allow } else { Action::Deny };
                Decision { action, reason: Reason::Host { network: guest.network.name.clone() } }
            }
            _ => {
                decide(&flow, source.map(|guest| book.peer(guest)), destination.map(|guest| book.peer(guest)))
            }
        };
        Ok(Tested { flow, decision })
    }
}

/// One policy's text against the other's, for people.
fn differences(before: Option<&PolicySpec>, after: Option<&PolicySpec>) -> Vec<String> {
    let rules = |spec: Option<&PolicySpec>| -> Vec<RuleSpec> {
        spec.map(|spec| spec.rules.clone()).unwrap_or_default()
    };
    let defaults = |spec: Option<&PolicySpec>| {
        let spec = spec.cloned().unwrap_or_default();
        [
            ("default_action", spec.default_action),
            ("default_ingress", spec.default_ingress),
            ("default_egress", spec.default_egress),
        ]
    };
    let mut lines = Vec::new();
    for ((key, was), (_, is)) in defaults(before).into_iter().zip(defaults(after)) {
        if was != is {
            let text = |value: String| if value.is_empty() { "unset".to_owned() } else { value };
            lines.push(format!("{key}: {} -> {}", text(was), text(is)));
        }
    }
    let (was, is) = (rules(before), rules(after));
    let line = |mark: char, rule: &RuleSpec| format!("{mark} {}", describe(rule));
    lines.extend(was.iter().filter(|rule| !is.contains(rule)).map(|rule| line('-', rule)));
    lines.extend(is.iter().filter(|rule| !was.contains(rule)).map(|rule| line('+', rule)));
    lines
}

/// A rule in one line.
fn describe(rule: &RuleSpec) -> String {
    let mut words = vec![rule.priority.to_string(), rule.direction.clone(), rule.action.clone()];
    let mut add = |word: &str, value: &str| {
        if !value.is_empty() {
            words.push(format!("{word} {value}").trim().to_owned());
        }
    };
    add("", &rule.protocol);
    add("port", &rule.port.map(|port| port.to_string()).unwrap_or_default());
    add("ports", &rule.port_range);
    add("from", &rule.source);
    add("to", &rule.destination);
    add("workspace", &rule.peer_workspace);
    let name: String = rule.name.chars().take(64).collect();
    format!("{}  ({name})", words.join(" "))
}

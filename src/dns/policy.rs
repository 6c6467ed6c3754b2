//! What guests may look up. In: the network's rules, with their lists read from files; then a guest and a name, or all names
//! that an answer leads through. Out: what becomes of the question. Rules are switched as a whole, so no query sees half a list or none.

use std::iter;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::guests::Guest;
use super::name::Name;
use super::suffixes::Suffixes;
use crate::model::{DnsAction, DnsRule, VmId, WorkspaceId};

#[derive(Debug, Default)]
pub(super) struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    names: Suffixes,
    action: DnsAction,
    vms: Vec<VmId>,
    workspaces: Vec<WorkspaceId>,
    dry_run: bool,
    hits: AtomicU64,
}

/// What a rule says of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    NxDomain,
    NoData,
    Refused,
    Address(Vec<IpAddr>),
}

/// A rule and how often it matched, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleReport {
    pub name: String,
    pub action: &'static str,
    pub names: u64,
    pub hits: u64,
    pub dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the list {} of rule {rule}: {source}", path.display())]
pub struct PolicyError {
    /// Which, from 0.
    pub(super) at: usize,
    rule: String,
    path: PathBuf,
    source: std::io::Error,
}

impl Policy {
    /// Reads the rules' lists.
    pub(super) fn load(rules: &[DnsRule]) -> Result<Self, PolicyError> {
        let rules = rules.iter().enumerate().map(|(at, rule)| Rule::load(at, rule));
        rules.collect::<Result<_, _>>().map(|rules| Self { rules })
    }

    /// Goes on counting where `before` was, rule by rule of the same name.
    pub(super) fn continue_from(&self, before: &Self) {
        for rule in &self.rules {
            if let Some(same) = before.rules.iter().find(|same| same.name == rule.name) {
                rule.hits.store(same.hits.load(Relaxed), Relaxed);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule for this guest that has the name decides, and is named; those that are only tried out are counted.
    pub(super) fn decide(
        &self,
        guest: &Guest,
        name: &Name,
        mut tried: impl FnMut(&str),
    ) -> Option<(&str, Verdict)> {
        for rule in self.about(guest, name) {
            rule.hits.fetch_add(1, Relaxed);
            if !rule.dry_run {
                return Some((&rule.name, rule.verdict()));
            }
            tried(&rule.name);
        }
        None
    }

    /// The same for people: nothing is counted.
    pub(super) fn says(&self, guest: &Guest, name: &Name) -> Option<(&str, Verdict)> {
        self.about(guest, name).find(|rule| !rule.dry_run).map(|rule| (&*rule.name, rule.verdict()))
    }

    /// What the rules say of an answer that leads from the name asked for, which `decide` has let pass, through `targets`: the
    /// first of these names that a rule has decides, and is told. So who is allowed the name asked for is allowed what it leads
    /// to. A rule that is tried out is counted once for a question, as it would be in force.
    pub(super) fn decide_beyond(
        &self,
        guest: &Guest,
        asked: &Name,
        targets: impl Iterator<Item = Name> + Clone,
        mut tried: impl FnMut(&str, &Name),
    ) -> Option<(&str, Name, Verdict)> {
        // Judged and counted when it was asked for; the rules may be others since.
        if let Some(rule) = self.about(guest, asked).find(|rule| !rule.dry_run) {
            return match rule.verdict() {
                Verdict::Allow => None,
                verdict => {
                    rule.hits.fetch_add(1, Relaxed);
                    Some((&rule.name, *asked, verdict))
                }
            };
        }
        for (at, name) in targets.clone().enumerate() {
            for rule in self.about(guest, &name) {
                if !rule.dry_run {
                    rule.hits.fetch_add(1, Relaxed);
                    return Some((&rule.name, name, rule.verdict()));
                }
                let mut before = iter::once(*asked).chain(targets.clone().take(at));
                if !before.any(|name| rule.names.covers(&name)) {
                    rule.hits.fetch_add(1, Relaxed);
                    tried(&rule.name, &name);
                }
            }
        }
        None
    }

    /// The rules for this guest that have the name, in their order.
    fn about(&self, guest: &Guest, name: &Name) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.is_for(guest) && rule.names.covers(name))
    }

    pub(super) fn reports(&self) -> Vec<RuleReport> {
        let report = |rule: &Rule| RuleReport {
            name: rule.name.to_string(),
            action: rule.action.as_str(),
            names: rule.names.len() as u64,
            hits: rule.hits.load(Relaxed),
            dry_run: rule.dry_run,
        };
        self.rules.iter().map(report).collect()
    }
}

impl Rule {
    fn load(at: usize, rule: &DnsRule) -> Result<Self, PolicyError> {
        let mut names = Suffixes::default();
        for name in rule.names.iter().filter_map(|name| Name::from_text(name.as_str())) {
            names.add(&name);
        }
        if let Some(path) = &rule.file {
            let text = read(path).map_err(|source| PolicyError {
                at,
                rule: rule.name.clone(),
                path: path.clone(),
                source,
            })?;
            let strange = names.add_list(&text);
            if strange > 0 {
                tracing::warn!(rule = rule.name, file = %path.display(), strange, "a DNS list has words that are no names");
            }
        }
        Ok(Self {
            name: rule.name.as_str().into(),
            names,
            action: rule.action.clone(),
            vms: rule.vms.clone(),
            workspaces: rule.workspaces.clone(),
            dry_run: rule.dry_run,
            hits: AtomicU64::new(0),
        })
    }

    fn verdict(&self) -> Verdict {
        match &self.action {
            DnsAction::Allow => Verdict::Allow,
            DnsAction::NxDomain => Verdict::NxDomain,
            DnsAction::NoData => Verdict::NoData,
            DnsAction::Refused => Verdict::Refused,
            DnsAction::Address(addresses) => Verdict::Address(addresses.clone()),
        }
    }

    fn is_for(&self, guest: &Guest) -> bool {
        if self.vms.is_empty() && self.workspaces.is_empty() {
            return true;
        }
        let named = guest.vm.as_ref().is_some_and(|vm| self.vms.contains(vm));
        named || guest.workspace.as_ref().is_some_and(|workspace| self.workspaces.contains(workspace))
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&super::file::read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: DnsAction, names: &[&str]) -> DnsRule {
        DnsRule {
            name: action.as_str().into(),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            file: None,
            action,
            vms: vec![],
            workspaces: vec![],
            dry_run: false,
        }
    }

    fn guest(vm: &str, workspace: &str) -> Guest {
        let mut guest = Guest::default();
        (guest.vm, guest.workspace) = (vm.parse().ok(), workspace.parse().ok());
        guest
    }

    fn decided(policy: &Policy, guest: &Guest, name: &str) -> Option<Verdict> {
        policy.decide(guest, &Name::from_text(name).unwrap(), |_| {}).map(|(_, verdict)| verdict)
    }

    #[test]
    fn the_first_rule_that_has_the_name_decides() {
        let rules = [rule(DnsAction::Allow, &["good.example"]), rule(DnsAction::Refused, &["."])];
        let policy = Policy::load(&rules).unwrap();
        assert_eq!(decided(&policy, &Guest::default(), "www.good.example"), Some(Verdict::Allow));
        assert_eq!(decided(&policy, &Guest::default(), "bad.example"), Some(Verdict::Refused));
        assert_eq!(policy.reports()[1].hits, 1);
    }

    #[test]
    fn a_rule_for_some_leaves_the_others_alone() {
        let mut only = rule(DnsAction::NxDomain, &["ads.example"]);
        only.vms = vec!["web".parse().unwrap()];
        only.workspaces = vec!["acme".parse().unwrap()];
        let policy = Policy::load(&[only]).unwrap();
        assert!(decided(&policy, &guest("web", "other"), "ads.example").is_some());
        assert!(decided(&policy, &guest("db", "acme"), "ads.example").is_some());
        assert!(decided(&policy, &guest("db", "other"), "ads.example").is_none());
        assert!(decided(&policy, &Guest::default(), "ads.example").is_none());
    }

    #[test]
    fn a_rule_tried_out_counts_and_decides_nothing() {
        let mut dry = rule(DnsAction::Refused, &["ads.example"]);
        dry.dry_run = true;
        let policy = Policy::load(&[dry, rule(DnsAction::NoData, &["ads.example"])]).unwrap();
        assert_eq!(decided(&policy, &Guest::default(), "ads.example"), Some(Verdict::NoData));
        assert_eq!(policy.reports()[0].hits, 1);
    }

    /// The name that decided, and how, of an answer from the first of these names through the others.
    fn beyond(policy: &Policy, names: &[&str]) -> Option<(String, Verdict)> {
        let names: Vec<_> = names.iter().map(|name| Name::from_text(name).unwrap()).collect();
        let (asked, targets) = names.split_first().unwrap();
        let decided = policy.decide_beyond(&Guest::default(), asked, targets.iter().copied(), |_, _| {});
        decided.map(|(_, name, verdict)| (name.to_string(), verdict))
    }

    #[test]
    fn the_first_name_of_a_chain_that_a_rule_has_decides() {
        let rules = [
            rule(DnsAction::NxDomain, &["ads.example"]),
            rule(DnsAction::Allow, &["good.example"]),
            rule(DnsAction::Refused, &["bad.example"]),
        ];
        let policy = Policy::load(&rules).unwrap();
        let told = |name: &str, verdict| Some((format!("{name}."), verdict));
        assert_eq!(beyond(&policy, &["a.example", "b.example"]), None);
        assert_eq!(
            beyond(&policy, &["a.example", "x.bad.example", "ads.example"]),
            told("x.bad.example", Verdict::Refused)
        );
        // Not the first rule of the list, but the first name of the chain.
        assert_eq!(
            beyond(&policy, &["a.example", "good.example", "ads.example"]),
            told("good.example", Verdict::Allow)
        );
        assert_eq!(
            beyond(&policy, &["a.example", "ads.example", "good.example"]),
            told("ads.example", Verdict::NxDomain)
        );
        let hits = |at: usize| policy.reports()[at].hits;
        assert_eq!((hits(0), hits(1), hits(2)), (1, 1, 1));
        // Who is allowed the name asked for is allowed what it leads to; that has been counted.
        assert_eq!(beyond(&policy, &["good.example", "ads.example"]), None);
        assert_eq!((hits(0), hits(1), hits(2)), (1, 1, 1));
        // With rules that are others than those it was asked under.
        assert_eq!(beyond(&policy, &["bad.example", "good.example"]), told("bad.example", Verdict::Refused));
    }

    #[test]
    fn a_list_of_what_is_allowed_allows_what_that_leads_to() {
        let rules = [rule(DnsAction::Allow, &["good.example"]), rule(DnsAction::Refused, &["."])];
        let policy = Policy::load(&rules).unwrap();
        assert_eq!(beyond(&policy, &["www.good.example", "edge.cdn.example"]), None);
    }

    #[test]
    fn a_rule_tried_out_counts_a_chain_once() {
        let mut dry = rule(DnsAction::Refused, &["ads.example"]);
        dry.dry_run = true;
        let policy = Policy::load(&[dry]).unwrap();
        assert_eq!(beyond(&policy, &["www.example", "a.ads.example", "b.ads.example"]), None);
        assert_eq!(policy.reports()[0].hits, 1);
        let name = Name::from_text("a.ads.example").unwrap();
        policy.decide(&Guest::default(), &name, |_| {});
        assert_eq!(beyond(&policy, &["a.ads.example", "b.ads.example"]), None);
        assert_eq!(policy.reports()[0].hits, 2);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_named() {
        let mut missing = rule(DnsAction::NxDomain, &[]);
        missing.file = Some("/nowhere/list.txt".into());
        let error = Policy::load(&[missing]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/list.txt") && error.contains("nxdomain"), "{error}");
    }
}

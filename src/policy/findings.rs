use super::check::{Policy, Rule, rule_label};

/// Findings are for people; a policy with many has one cause.
const MOST: usize = 20;

/// What is odd about a policy's rules, though it is clear what they do: a rule that never decides, and rules that
/// contradict each other where they overlap. Priority decides, then the order they are written in.
pub fn findings(policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    for (at, later) in policy.rules.iter().enumerate() {
        let earlier = || policy.rules[..at].iter().filter(|rule| rule.direction == later.direction);
        if let Some(rule) = earlier().find(|rule| covers(rule, later)) {
            found.push(format!("{} never decides: {} comes first and covers it", label(later), label(rule)));
        } else if let Some(rule) =
            earlier().find(|rule| rule.action != later.action && overlap(rule, later) && !covers(later, rule))
        {
            let action = rule.action;
            found.push(format!(
                "{} and {} contradict each other where they overlap: {} decides ({action}), as it {}",
                label(rule),
                label(later),
                label(rule),
                if rule.priority < later.priority {
                    "has the lower priority number"
                } else {
                    "is written first"
                },
            ));
        }
        if found.len() == MOST {
            found.push("and maybe more like these".into());
            break;
        }
    }
    found
}

fn label(rule: &Rule) -> String {
    rule_label(rule.index, &rule.name)
}

/// Whether everything that `b` is about is what `a` is about too.
fn covers(a: &Rule, b: &Rule) -> bool {
    let protocol = a.protocol.number().is_none() || a.protocol == b.protocol;
    let ports = a.ports.is_none_or(|a| b.ports.is_some_and(|b| a.first <= b.first && b.last <= a.last));
    let prefix = |a: Option<ipnetwork::Ipv4Network>, b: Option<ipnetwork::Ipv4Network>| {
        a.is_none_or(|a| {
            a.prefix() == 0 || b.is_some_and(|b| a.prefix() <= b.prefix() && a.contains(b.network()))
        })
    };
    let peer = a.peer_workspace.is_none() || a.peer_workspace == b.peer_workspace;
    protocol && ports && prefix(a.source, b.source) && prefix(a.destination, b.destination) && peer
}

/// Whether some connection is what both are about.
fn overlap(a: &Rule, b: &Rule) -> bool {
    let both = |a: Option<ipnetwork::Ipv4Network>, b: Option<ipnetwork::Ipv4Network>| match (a, b) {
        (Some(a), Some(b)) => a.contains(b.network()) || b.contains(a.network()),
        _ => true,
    };
    let protocol = a.protocol.number().is_none() || b.protocol.number().is_none() || a.protocol == b.protocol;
    let ports = match (a.ports, b.ports) {
        (Some(a), Some(b)) => a.first <= b.last && b.first <= a.last,
        _ => true,
    };
    let peer = match (&a.peer_workspace, &b.peer_workspace) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    protocol && ports && both(a.source, b.source) && both(a.destination, b.destination) && peer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicySpec;

    fn found(rules: &str) -> Vec<String> {
        let spec: PolicySpec = toml::from_str(&format!("vm_id = \"a\"\n{rules}")).unwrap();
        findings(&Policy::try_from(spec).unwrap())
    }

    const HTTP: &str = "[[rules]]\nname = \"http\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\nport = 80\naction = \"allow\"\n";

    #[test]
    fn a_rule_behind_one_that_covers_it_never_decides() {
        let all = "[[rules]]\nname = \"all\"\ndirection = \"ingress\"\naction = \"deny\"\n";
        let said = found(&format!("{all}{HTTP}"));
        assert_eq!(said, ["rules[1] \"http\" never decides: rules[0] \"all\" comes first and covers it"]);
        assert!(
            found(&format!("{HTTP}{all}")).is_empty(),
            "an exception before its rule is how rules are written"
        );
    }

    #[test]
    fn rules_that_cross_are_told_with_the_one_that_decides() {
        let some = "[[rules]]\nname = \"some\"\ndirection = \"ingress\"\nsource = \"10.0.0.0/8\"\naction = \"deny\"\npriority = 5\n";
        let said = found(&format!("{some}{HTTP}"));
        assert!(
            said[0].contains("rules[1] \"http\" decides (allow)") && said[0].contains("lower priority"),
            "{said:?}"
        );
    }
}

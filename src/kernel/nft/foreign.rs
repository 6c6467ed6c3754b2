//! Others' chains, rules and sets of nf_tables as they stand, for `walls::foreign` to work out what they do to a packet.

use super::super::error::{Doing, KernelError};
use super::wire::{attribute, attributes, number, string};
use super::{GETCHAIN, GETRULE, GETSETELEM, Nft};
use crate::walls::foreign::{Chain, Decision, Element, Expression, Place, Rule, Ruleset};

/// Numbers of families (linux/netfilter.h) and nft's names for them.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (7, "bridge")];

/// Our own tables' name.
const OURS: &str = "guestnet";

impl Nft {
    /// All but ours, and but what translates addresses.
    pub fn foreign(&self) -> Result<Ruleset, KernelError> {
        let mut ruleset = Ruleset::default();
        for (number, family) in FAMILIES {
            self.chains_of(number, family, &mut ruleset)?;
            let read = |_, body: &[u8]| {
                let (place, handle) = (place(family, body, 1, 2)?, number_of(body, 3));
                Some((place, Rule { handle, expressions: expressions(attribute(body, 4)?) }))
            };
            let rules = self.socket().dump(GETRULE, number, |_| {}, read);
            for (place, rule) in rules.doing(|| format!("listing rules of family {family}"))? {
                if let Some(chain) = ruleset.chains.get_mut(&place) {
                    chain.rules.push(rule);
                }
            }
            self.sets_of(number, family, &mut ruleset)?;
        }
        Ok(ruleset)
    }

    fn chains_of(&self, number: u8, family: &'static str, ruleset: &mut Ruleset) -> Result<(), KernelError> {
        let read = |_, body: &[u8]| {
            let place = place(family, body, 1, 3)?;
            let hook =
                attribute(body, 4).map(|hook| number_of(hook, 1)).and_then(|hook| u32::try_from(hook).ok());
            let translates = attribute(body, 7).is_some_and(|kind| string(kind) == "nat");
            // NF_DROP; the policy is told for base chains only.
            let drops_by_policy = attribute(body, 5).is_some_and(|_| number_of(body, 5) == 0);
            let chain = Chain { hook: hook.filter(|_| !translates), drops_by_policy, rules: Vec::new() };
            (place.1 != OURS).then_some((place, chain))
        };
        let chains = self.socket().dump(GETCHAIN, number, |_| {}, read);
        ruleset.chains.extend(chains.doing(|| format!("listing chains of family {family}"))?);
        Ok(())
    }

    /// The sets that rules look into.
    fn sets_of(&self, number: u8, family: &'static str, ruleset: &mut Ruleset) -> Result<(), KernelError> {
        let of_family = ruleset.chains.iter().filter(|(place, _)| place.0 == family);
        let wanted = of_family.flat_map(|(place, chain)| {
            let all = chain.rules.iter().flat_map(|rule| &rule.expressions);
            all.filter_map(|expression| match expression {
                Expression::Lookup { set, .. } => Some((place.0, place.1.clone(), set.clone())),
                _ => None,
            })
        });
        for place in wanted.collect::<std::collections::BTreeSet<Place>>() {
            let read = |_, body: &[u8]| {
                Some(attributes(attribute(body, 3)?).map(|(_, bytes)| element(bytes)).collect::<Vec<_>>())
            };
            let elements = self.socket().dump(
                GETSETELEM,
                number,
                |buffer| {
                    buffer.text(1, &place.1);
                    buffer.text(2, &place.2);
                },
                read,
            );
            let elements = elements.doing(|| format!("reading the elements of set {}", place.2))?.concat();
            ruleset.sets.insert(place, elements);
        }
        Ok(())
    }
}

fn place(family: &'static str, body: &[u8], table: u16, name: u16) -> Option<Place> {
    Some((family, string(attribute(body, table)?), string(attribute(body, name)?)))
}

fn number_of(body: &[u8], kind: u16) -> u64 {
    attribute(body, kind).and_then(number).unwrap_or_default()
}

/// NFTA_SET_ELEM_*.
fn element(bytes: &[u8]) -> Element {
    let value = |kind| attribute(bytes, kind).and_then(|key| attribute(key, 1)).map(<[u8]>::to_vec);
    let flags = number_of(bytes, 3);
    Element {
        // NFT_SET_ELEM_CATCHALL has none.
        key: value(1).unwrap_or_default(),
        key_end: value(10),
        // NFT_SET_ELEM_INTERVAL_END.
        ends_range: flags & 1 != 0,
        decision: attribute(bytes, 2).and_then(decision),
    }
}

/// A verdict in nested data.
fn decision(data: &[u8]) -> Option<Decision> {
    let verdict = attribute(data, 2)?;
    let chain = || attribute(verdict, 2).map(string).unwrap_or_default();
    let code = u32::try_from(number_of(verdict, 1)).ok()?.cast_signed();
    match code {
        0 => Some(Decision::Drop),
        -3 => Some(Decision::Jump(chain())),
        -4 => Some(Decision::Goto(chain())),
        -5 => Some(Decision::Return),
        -1 => None,
        // NF_ACCEPT, and NF_QUEUE, of which a program decides.
        _ => Some(Decision::Accept),
    }
}

fn expressions(list: &[u8]) -> Vec<Expression> {
    attributes(list)
        .map(|(_, bytes)| {
            let name = attribute(bytes, 1).map(string).unwrap_or_default();
            expression(&name, attribute(bytes, 2).unwrap_or_default())
        })
        .collect()
}

/// NFTA_REG*: a register of sixteen bytes by its number, of four by its number from eight on, as a count of words.
fn register(data: &[u8], kind: u16) -> usize {
    match usize::try_from(number_of(data, kind)).unwrap_or(usize::MAX) {
        number @ 0..=4 => number * 4,
        number => number.saturating_sub(4),
    }
}

fn expression(name: &str, data: &[u8]) -> Expression {
    let small = |kind| u32::try_from(number_of(data, kind)).unwrap_or(u32::MAX);
    let size = |kind| usize::try_from(number_of(data, kind)).unwrap_or(usize::MAX).min(256);
    let value = |kind| attribute(data, kind).and_then(|data| attribute(data, 1)).unwrap_or_default().to_vec();
    let loads = |kind| attribute(data, kind).is_some();
    match name {
        "meta" if loads(1) => Expression::Meta { key: small(2), to: register(data, 1) },
        "ct" if loads(1) => Expression::Ct { key: small(2), to: register(data, 1) },
        "payload" if loads(1) => {
            Expression::Payload { base: small(2), offset: size(3), len: size(4), to: register(data, 1) }
        }
        "cmp" => Expression::Compare { register: register(data, 1), operation: small(2), value: value(3) },
        "range" => {
            let (from, to) = (value(3), value(4));
            Expression::Range { register: register(data, 1), inverted: small(2) == 1, from, to }
        }
        // Operation 0 is the mask; the others shift.
        "bitwise" if small(6) == 0 => {
            let (from, to) = (register(data, 1), register(data, 2));
            Expression::Mask { from, to, mask: value(4), xor: value(5) }
        }
        "lookup" => Expression::Lookup {
            set: attribute(data, 1).map(string).unwrap_or_default(),
            register: register(data, 2),
            inverted: small(5) & 1 == 1,
            decides: loads(3) && small(3) == 0,
        },
        "immediate" => match attribute(data, 2).and_then(decision) {
            Some(decision) => Expression::Decide(decision),
            // A value for what translates or sends on.
            None => Expression::Nothing,
        },
        "reject" => Expression::Decide(Decision::Drop),
        // What iptables-nft(8) has no expression for.
        "target" => match attribute(data, 1).map(string).as_deref() {
            Some("REJECT") => Expression::Decide(Decision::Drop),
            _ => Expression::Nothing,
        },
        "match" if attribute(data, 1).is_some_and(|name| string(name) == "comment") => Expression::Nothing,
        "counter" | "log" | "notrack" | "objref" | "meta" | "ct" | "payload" => Expression::Nothing,
        _ => Expression::Unknown,
    }
}

//! What others' rules of nf_tables do to a packet, worked out as the kernel does it: registers, comparisons, verdicts. In: their
//! chains as they stand, a packet. Out: the chain that drops it. What cannot be known of a packet (a mark, an address list of
//! another's making, a rate) is neither taken for a match nor for none. Pure.

use std::collections::BTreeMap;

/// Where a chain or a set is: `inet`, `firewalld`, its name.
pub type Place = (&'static str, String, String);

/// Others' chains and the sets that their rules look into.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    pub chains: BTreeMap<Place, Chain>,
    pub sets: BTreeMap<Place, Vec<Element>>,
}

#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Number of the hook (linux/netfilter.h; the bridge family's first five are the same); none of a chain that is jumped to.
    pub hook: Option<u32>,
    pub drops_by_policy: bool,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default)]
pub struct Rule {
    pub handle: u64,
    pub expressions: Vec<Expression>,
}

/// The kernel's own names and numbers of fields (linux/netfilter/nf_tables.h). Registers count words of four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    Meta {
        key: u32,
        to: usize,
    },
    Payload {
        base: u32,
        offset: usize,
        len: usize,
        to: usize,
    },
    Ct {
        key: u32,
        to: usize,
    },
    Compare {
        register: usize,
        operation: u32,
        value: Vec<u8>,
    },
    Range {
        register: usize,
        inverted: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Mask {
        from: usize,
        to: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Lookup {
        set: String,
        register: usize,
        inverted: bool,
        decides: bool,
    },
    Decide(Decision),
    /// Says or counts something and lets every packet by.
    Nothing,
    /// Matches some packets, and which is not known here.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Empty of the element that stands for all other keys.
    pub key: Vec<u8>,
    /// The last key of a range of several fields.
    pub key_end: Option<Vec<u8>>,
    /// The first key behind a range of one field.
    pub ends_range: bool,
    pub decision: Option<Decision>,
}

/// A packet of a guest or to one. What is not known of it is none.
#[derive(Debug, Clone, Default)]
pub struct Packet {
    /// Names of the devices it came in and leaves by; empty for none.
    pub input: String,
    pub output: String,
    pub source: Option<[u8; 4]>,
    pub destination: Option<[u8; 4]>,
    pub protocol: u8,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// Whether it belongs to a connection that is there, and is not its first.
    pub established: bool,
}

/// What cuts a packet off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub family: &'static str,
    pub table: String,
    /// The base chain.
    pub chain: String,
    /// The chain of the rule that drops it, with the rule's handle; none where a policy does.
    pub rule: Option<(String, u64)>,
    /// Whether no rule before may have let it by.
    pub certain: bool,
}

/// The first of the chains at `hooks` that drops the packet.
pub fn cut(ruleset: &Ruleset, families: &[&str], hooks: &[u32], packet: &Packet) -> Option<Cut> {
    let bases = ruleset.chains.iter().filter_map(|(place, chain)| {
        let at = chain.hook.filter(|hook| hooks.contains(hook) && families.contains(&place.0))?;
        Some((at, place, chain))
    });
    let mut bases: Vec<_> = bases.collect();
    bases.sort_by_key(|(hook, ..)| hooks.iter().position(|at| at == hook));
    bases.into_iter().find_map(|(hook, place, chain)| {
        let mut walk = Walk { ruleset, place, hook, packet, certain: true };
        let rule = match walk.chain(&place.2, chain, 0)? {
            End::Accept => return None,
            End::Drop(rule) => rule,
        };
        let (family, table, chain) = place.clone();
        Some(Cut { family, table, chain, rule, certain: walk.certain })
    })
}

enum End {
    Accept,
    Drop(Option<(String, u64)>),
}

/// Whether a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Maybe,
}

/// As deep as the kernel lets chains jump (NFT_JUMP_STACK_SIZE).
const DEEPEST: usize = 16;
/// Words of registers (NFT_REG32_NUM + the verdict's four).
const WORDS: usize = 20;

type Registers = [Option<u8>; WORDS * 4];

struct Walk<'a> {
    ruleset: &'a Ruleset,
    place: &'a Place,
    hook: u32,
    packet: &'a Packet,
    certain: bool,
}

impl Walk<'_> {
    /// How the packet ends in a base chain, its policy included, or in a chain that is jumped to: none goes on behind the jump.
    fn chain(&mut self, name: &str, chain: &Chain, depth: usize) -> Option<End> {
        for rule in &chain.rules {
            let mut registers = [None; WORDS * 4];
            let (matched, decision) = self.rule(rule, &mut registers);
            let Some(decision) = decision.filter(|_| matched != Match::No) else { continue };
            let (ends, last) = match decision {
                Decision::Accept => (Some(End::Accept), true),
                Decision::Drop => (Some(End::Drop(Some((name.to_owned(), rule.handle)))), true),
                Decision::Return => (None, true),
                Decision::Jump(to) => (self.jump(&to, depth), false),
                Decision::Goto(to) => (self.jump(&to, depth), true),
            };
            match (matched, ends) {
                (Match::Yes, Some(end)) => return Some(end),
                (Match::Yes, None) if last => break,
                // It may have been let by, or have gone where the rest of this chain is not.
                (Match::Maybe, Some(End::Accept)) => self.certain = false,
                (Match::Maybe, None) if last => self.certain = false,
                _ => {}
            }
        }
        match chain.hook {
            Some(_) if chain.drops_by_policy => Some(End::Drop(None)),
            Some(_) => Some(End::Accept),
            None => None,
        }
    }

    fn jump(&mut self, to: &str, depth: usize) -> Option<End> {
        let place = (self.place.0, self.place.1.clone(), to.to_owned());
        let chain = self.ruleset.chains.get(&place).filter(|_| depth < DEEPEST)?;
        self.chain(to, chain, depth + 1)
    }

    fn rule(&self, rule: &Rule, registers: &mut Registers) -> (Match, Option<Decision>) {
        let mut matched = Match::Yes;
        for expression in &rule.expressions {
            let here = match expression {
                Expression::Decide(decision) => return (matched, Some(decision.clone())),
                Expression::Lookup { set, register, inverted, decides } => {
                    let found = self.lookup(set, &registers[bytes_from(*register)..]);
                    match found {
                        Found::Element(element) if *decides => {
                            return (matched, element.decision.clone());
                        }
                        Found::Element(_) => yes_or_no(!inverted),
                        Found::None => yes_or_no(*inverted),
                        Found::Unknown if *decides => return (Match::Maybe, Some(Decision::Accept)),
                        Found::Unknown => Match::Maybe,
                    }
                }
                other => self.expression(other, registers),
            };
            match here {
                Match::No => return (Match::No, None),
                Match::Maybe => matched = Match::Maybe,
                Match::Yes => {}
            }
        }
        (matched, None)
    }

    fn expression(&self, expression: &Expression, registers: &mut Registers) -> Match {
        match expression {
            Expression::Meta { key, to } => load(registers, *to, &self.meta(*key)),
            Expression::Ct { key, to } => load(registers, *to, &self.connection(*key)),
            Expression::Payload { base, offset, len, to } => {
                load(registers, *to, &self.payload(*base, *offset, *len));
            }
            Expression::Mask { from, to, mask, xor } => {
                let masked: Vec<_> = (mask.iter().zip(xor))
                    .zip(registers[bytes_from(*from)..].iter())
                    .map(
                        |((mask, xor), byte)| {
                            if *mask == 0 { Some(*xor) } else { byte.map(|b| b & mask ^ xor) }
                        },
                    )
                    .collect();
                load(registers, *to, &masked);
            }
            Expression::Compare { register, operation, value } => {
                let held = &registers[bytes_from(*register)..];
                return compare(held, *operation, value);
            }
            Expression::Range { register, inverted, from, to } => {
                let held = &registers[bytes_from(*register)..];
                let inside = and(compare(held, AT_LEAST, from), compare(held, AT_MOST, to));
                return if *inverted { not(inside) } else { inside };
            }
            Expression::Unknown => return Match::Maybe,
            Expression::Nothing | Expression::Decide(_) | Expression::Lookup { .. } => {}
        }
        Match::Yes
    }

    /// NFT_META_*: those that a packet of ours has a value of.
    fn meta(&self, key: u32) -> Vec<Option<u8>> {
        let name = |name: &str| {
            let padded = name.bytes().chain(std::iter::repeat(0)).take(16);
            // A bridge's own chains see its ports, which are not known here.
            padded.map(|byte| (self.place.0 != "bridge").then_some(byte)).collect()
        };
        match key {
            1 => vec![Some(8), Some(0)],
            // Nobody has marked it.
            2 | 3 => vec![Some(0); 4],
            6 => name(&self.packet.input),
            7 if self.hook < 2 => vec![Some(0); 16],
            7 => name(&self.packet.output),
            15 => vec![Some(2)],
            16 => vec![Some(self.packet.protocol)],
            _ => vec![None; 16],
        }
    }

    /// NFT_CT_STATE, _DIRECTION and _STATUS of a connection that nothing has translated.
    fn connection(&self, key: u32) -> Vec<Option<u8>> {
        let number = |number: u32| number.to_ne_bytes().map(Some).to_vec();
        match (key, self.packet.established) {
            (0, true) => number(1 << 1),
            (0, false) => number(1 << 3),
            (2, true) => number(0b1110),
            (2, false) => number(0),
            _ => vec![None; 16],
        }
    }

    fn payload(&self, base: u32, offset: usize, len: usize) -> Vec<Option<u8>> {
        let mut header = vec![None; 60];
        let mut put = |at: usize, bytes: Option<&[u8]>| {
            for (to, byte) in header[at..].iter_mut().zip(bytes.unwrap_or_default()) {
                *to = Some(*byte);
            }
        };
        let packet = self.packet;
        match base {
            1 => {
                put(0, Some(&[0x45]));
                put(9, Some(&[packet.protocol]));
                put(12, packet.source.as_ref().map(<[u8; 4]>::as_slice));
                put(16, packet.destination.as_ref().map(<[u8; 4]>::as_slice));
            }
            2 => {
                put(0, packet.source_port.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice));
                put(2, packet.destination_port.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice));
            }
            _ => {}
        }
        header.into_iter().skip(offset).chain(std::iter::repeat(None)).take(len).collect()
    }

    fn lookup(&self, set: &str, held: &[Option<u8>]) -> Found<'_> {
        let place = (self.place.0, self.place.1.clone(), set.to_owned());
        let Some(elements) = self.ruleset.sets.get(&place) else { return Found::Unknown };
        let length = elements.iter().map(|element| element.key.len()).max().unwrap_or_default();
        let Some(key) = held.iter().take(length).copied().collect::<Option<Vec<u8>>>() else {
            return Found::Unknown;
        };
        let found = if elements.iter().any(|element| element.ends_range) {
            // Ranges of one field: the last one that begins at or before the key, unless that is where one ends.
            let before = elements.iter().filter(|element| !element.key.is_empty() && element.key <= key);
            before.max_by_key(|element| (&element.key, !element.ends_range)).filter(|last| !last.ends_range)
        } else {
            elements.iter().find(|element| match &element.key_end {
                Some(end) => {
                    let fields = element.key.chunks(4).zip(end.chunks(4)).zip(key.chunks(4));
                    element.key.len() == key.len()
                        && fields.into_iter().all(|((from, to), field)| from <= field && field <= to)
                }
                None => element.key == key,
            })
        };
        match found.or_else(|| elements.iter().find(|element| element.key.is_empty())) {
            Some(element) => Found::Element(element),
            None => Found::None,
        }
    }
}

enum Found<'a> {
    Element(&'a Element),
    None,
    Unknown,
}

// NFT_CMP_*.
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

fn compare(held: &[Option<u8>], operation: u32, value: &[u8]) -> Match {
    if held.len() < value.len() {
        return Match::Maybe;
    }
    // Bytes that are known decide before one that is not.
    let differs = held.iter().zip(value).find(|(held, value)| **held != Some(**value));
    let order = match differs {
        None => std::cmp::Ordering::Equal,
        Some((Some(held), value)) => held.cmp(value),
        Some((None, _)) => {
            let never = held.iter().zip(value).any(|(held, value)| held.is_some_and(|held| held != *value));
            return match operation {
                0 if never => Match::No,
                1 if never => Match::Yes,
                _ => Match::Maybe,
            };
        }
    };
    yes_or_no(match operation {
        0 => order.is_eq(),
        1 => order.is_ne(),
        2 => order.is_lt(),
        AT_MOST => order.is_le(),
        4 => order.is_gt(),
        _ => order.is_ge(),
    })
}

fn yes_or_no(yes: bool) -> Match {
    if yes { Match::Yes } else { Match::No }
}

fn and(a: Match, b: Match) -> Match {
    match (a, b) {
        (Match::No, _) | (_, Match::No) => Match::No,
        (Match::Yes, Match::Yes) => Match::Yes,
        _ => Match::Maybe,
    }
}

fn not(of: Match) -> Match {
    match of {
        Match::Yes => Match::No,
        Match::No => Match::Yes,
        Match::Maybe => Match::Maybe,
    }
}

/// A register that there is not holds nothing.
fn bytes_from(register: usize) -> usize {
    register.min(WORDS) * 4
}

fn load(registers: &mut Registers, to: usize, value: &[Option<u8>]) {
    let words = value.len().next_multiple_of(4);
    let padded = value.iter().copied().chain(std::iter::repeat(Some(0))).take(words);
    for (to, byte) in registers[bytes_from(to)..].iter_mut().zip(padded) {
        *to = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        ("inet", "theirs".into(), name.into())
    }

    fn from_a_guest(protocol: u8, port: u16) -> Packet {
        Packet {
            input: "br-vms".into(),
            output: "up0".into(),
            source: Some([10, 100, 0, 2]),
            destination: Some([1, 1, 1, 1]),
            protocol,
            destination_port: Some(port),
            ..Packet::default()
        }
    }

    fn ruleset(rules: &[&[Expression]]) -> Ruleset {
        let rules = rules
            .iter()
            .zip(1..)
            .map(|(expressions, handle)| Rule { handle, expressions: expressions.to_vec() });
        let chain = Chain { hook: Some(2), drops_by_policy: false, rules: rules.collect() };
        Ruleset { chains: [(place("forward"), chain)].into(), sets: BTreeMap::new() }
    }

    fn dropped(ruleset: &Ruleset, packet: &Packet) -> Option<(Option<(String, u64)>, bool)> {
        cut(ruleset, &["inet"], &[2], packet).map(|cut| (cut.rule, cut.certain))
    }

    const DROP: Expression = Expression::Decide(Decision::Drop);
    const ACCEPT: Expression = Expression::Decide(Decision::Accept);

    fn port_is(port: u16) -> [Expression; 2] {
        [
            Expression::Payload { base: 2, offset: 2, len: 2, to: 4 },
            Expression::Compare { register: 4, operation: 0, value: port.to_be_bytes().to_vec() },
        ]
    }

    #[test]
    fn a_rule_that_does_not_match_lets_by_and_one_that_does_drops() {
        let [load, is] = port_is(25);
        let rules = ruleset(&[&[load, is, DROP]]);
        assert_eq!(dropped(&rules, &from_a_guest(6, 443)), None);
        assert_eq!(dropped(&rules, &from_a_guest(6, 25)), Some((Some(("forward".into(), 1)), true)));
    }

    #[test]
    fn what_cannot_be_known_neither_saves_a_packet_for_certain_nor_condemns_it() {
        let sometimes = ruleset(&[&[Expression::Unknown, DROP]]);
        assert_eq!(dropped(&sometimes, &from_a_guest(6, 443)), None, "a rate limit is no wall");
        let unless = ruleset(&[&[Expression::Unknown, ACCEPT], &[DROP]]);
        assert_eq!(dropped(&unless, &from_a_guest(6, 443)), Some((Some(("forward".into(), 2)), false)));
        // A guest's answer to a port that is not known.
        let [load, is] = port_is(443);
        let answer = Packet { destination_port: None, ..from_a_guest(6, 0) };
        assert_eq!(dropped(&ruleset(&[&[load, is, DROP]]), &answer), None);
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        let mut rules = ruleset(&[
            &[Expression::Decide(Decision::Jump("aside".into()))],
            &[Expression::Decide(Decision::Goto("aside".into()))],
            &[DROP],
        ]);
        rules.chains.insert(place("aside"), Chain::default());
        assert_eq!(dropped(&rules, &from_a_guest(6, 443)), None, "behind a goto comes the policy");
        if let Some(chain) = rules.chains.get_mut(&place("forward")) {
            chain.drops_by_policy = true;
        }
        assert_eq!(dropped(&rules, &from_a_guest(6, 443)), Some((None, true)));
        // Chains that jump to each other without end.
        let round = Rule { handle: 1, expressions: vec![Expression::Decide(Decision::Jump("aside".into()))] };
        rules.chains.insert(place("aside"), Chain { rules: vec![round], ..Chain::default() });
        assert_eq!(dropped(&rules, &from_a_guest(6, 443)), Some((None, true)));
    }

    #[test]
    fn sets_of_keys_of_ranges_and_of_verdicts_are_looked_into() {
        let lookup = |decides| Expression::Lookup { set: "s".into(), register: 4, inverted: false, decides };
        let load = Expression::Payload { base: 1, offset: 12, len: 4, to: 4 };
        let key = |key: [u8; 4]| Element { key: key.to_vec(), ..Element::default() };
        let with = |elements: Vec<Element>, decides| {
            let mut rules = match decides {
                true => ruleset(&[&[load.clone(), lookup(true)]]),
                false => ruleset(&[&[load.clone(), lookup(false), DROP]]),
            };
            rules.sets.insert(place("s"), elements);
            dropped(&rules, &from_a_guest(6, 443)).is_some()
        };
        assert!(with(vec![key([10, 100, 0, 2])], false));
        assert!(!with(vec![key([10, 100, 0, 3])], false));
        let end = |of: [u8; 4]| Element { ends_range: true, ..key(of) };
        assert!(with(vec![end([0, 0, 0, 0]), key([10, 0, 0, 0]), end([11, 0, 0, 0])], false));
        assert!(!with(vec![end([0, 0, 0, 0]), key([10, 0, 0, 0]), end([10, 100, 0, 0])], false));
        let decision = Some(Decision::Drop);
        assert!(with(vec![Element { decision: decision.clone(), ..key([10, 100, 0, 2]) }], true));
        assert!(
            with(vec![key([1, 2, 3, 4]), Element { decision, ..Element::default() }], true),
            "all others"
        );
    }
}

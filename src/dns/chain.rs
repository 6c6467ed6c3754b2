//! PURE: the names that an upstream's answer leads through. In: its message and what was asked. Out: where these names stand in it,
//! in the order in which aliases lead from one to the next, so that rules can be asked about each.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::answer::Question;
use super::query::{HEADER, qtype};
use super::records;

/// Aliases of an answer, and names it has records of, at most: resolvers follow some ten to twenty aliases.
const MOST: usize = 32;
/// A pointer to the question's name as the whole name (RFC 1035 section 4.1.4).
const SAME: [u8; 2] = [0xc0, HEADER as u8];

/// The names beside the one asked for in the `count` records at `start`: first those that its aliases lead to, then others that
/// have records, as a stub may take these whatever leads to them. A DNAME comes with the alias made from it (RFC 6672 section
/// 3.1), and its own name is above one of these. `None` if a record is broken, or of so many.
pub(super) fn targets(message: &[u8], start: usize, count: u16, question: &Question) -> Option<Vec<u16>> {
    let (mut aliases, mut owners) = (vec![], vec![]);
    let mut at = start;
    for _ in 0..count {
        let record = records::read(message, at)?;
        // Asked for by its own type, an alias is data and leads nowhere.
        let is_alias = record.rtype == qtype::CNAME && question.qtype != qtype::CNAME;
        let is_of_asked = message[at..].starts_with(&SAME);
        if is_alias || !is_of_asked {
            let owner = if is_of_asked { question.name } else { records::name(message, at)? };
            if is_alias {
                aliases.push((owner, records::name(message, record.rdata_at)?, record.rdata_at));
            }
            if owner != question.name && !owners.iter().any(|(seen, _)| *seen == owner) {
                owners.push((owner, at));
            }
            if aliases.len().max(owners.len()) > MOST {
                return None;
            }
        }
        at = record.end;
    }
    if aliases.is_empty() && owners.is_empty() {
        return Some(vec![]);
    }
    let mut names = vec![(question.name, HEADER)];
    let mut next = 0;
    while let Some(&(from, _)) = names.get(next) {
        for (owner, target, at) in &aliases {
            if *owner == from && !names.iter().any(|(seen, _)| seen == target) {
                names.push((*target, *at));
            }
        }
        next += 1;
    }
    for (owner, at) in owners {
        // A rule that has a name has those below it.
        if !names.iter().any(|(seen, _)| seen.is_in(&owner)) {
            names.push((owner, at));
        }
    }
    names[1..].iter().map(|(_, at)| u16::try_from(*at).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::name::Name;
    use super::*;

    const A: u16 = 1;
    const CNAME: u16 = 5;
    const DNAME: u16 = 39;

    fn wire(text: &str) -> Vec<u8> {
        // As written: what stands in a message may be in capitals.
        let mut wire: Vec<u8> = vec![];
        for label in text.split('.').filter(|label| !label.is_empty()) {
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        [wire, vec![0]].concat()
    }

    /// Where an answer to `asked` with these records leads; of an address record the data is not looked at.
    fn through(asked: (&str, u16), records: &[(&str, u16, &str)]) -> Option<Vec<String>> {
        let name = Name::from_text(asked.0).unwrap();
        let question = Question { name, qtype: asked.1, dnssec_ok: false, checking_disabled: false };
        let mut message = [&[0; HEADER][..], &wire(asked.0), &[0, 1, 0, 1]].concat();
        let start = message.len();
        for (owner, rtype, data) in records {
            let owner = if *owner == "@" { SAME.to_vec() } else { wire(owner) };
            let data = if *rtype == A { vec![198, 51, 100, 1] } else { wire(data) };
            message.extend([owner, rtype.to_be_bytes().to_vec(), vec![0, 1, 0, 0, 0, 60, 0]].concat());
            message.push(data.len() as u8);
            message.extend(data);
        }
        let places = targets(&message, start, records.len() as u16, &question)?;
        let name = |at: u16| records::name(&message, at.into()).unwrap().to_string();
        Some(places.into_iter().map(name).collect())
    }

    #[test]
    fn most_answers_lead_nowhere() {
        for owner in ["@", "www.Example"] {
            assert_eq!(through(("www.example", A), &[(owner, A, ""), (owner, A, "")]).unwrap(), [""; 0]);
        }
        assert_eq!(through(("www.example", CNAME), &[("@", CNAME, "ads.example")]).unwrap(), [""; 0]);
    }

    #[test]
    fn aliases_lead_from_one_to_the_next_in_whatever_order_they_stand() {
        let mut records = [
            ("@", CNAME, "One.example"),
            ("one.example", CNAME, "two.example"),
            ("TWO.example", CNAME, "three.example"),
            ("three.example", A, ""),
        ];
        let chain = ["one.example.", "two.example.", "three.example."];
        for _ in 0..records.len() {
            assert_eq!(through(("www.example", A), &records).unwrap(), chain);
            records.rotate_left(1);
        }
        records.reverse();
        assert_eq!(through(("www.example", A), &records).unwrap(), chain);
    }

    #[test]
    fn a_name_to_which_nothing_leads_comes_last_and_one_above_another_not_at_all() {
        let records = [
            ("stray.example", A, ""),
            ("dname.example", DNAME, "other.example"),
            ("@", CNAME, "www.other.example"),
            ("www.other.example", A, ""),
            ("stray.example", A, ""),
        ];
        assert_eq!(
            through(("www.dname.example", A), &records).unwrap(),
            ["www.other.example.", "stray.example."]
        );
    }

    #[test]
    fn a_loop_ends_and_a_chain_that_goes_on_and_on_is_no_answer() {
        let looped = [("@", CNAME, "b.example"), ("b.example", CNAME, "www.example")];
        assert_eq!(through(("www.example", A), &looped).unwrap(), ["b.example."]);
        let names: Vec<_> = (0..=MOST).map(|n| format!("n{n}.example")).collect();
        let chain: Vec<_> = names.windows(2).map(|pair| (&*pair[0], CNAME, &*pair[1])).collect();
        assert_eq!(through(("n0.example", A), &chain).unwrap().len(), MOST);
        let longer = [chain, vec![(&*names[MOST], CNAME, "end.example")]].concat();
        assert_eq!(through(("n0.example", A), &longer), None);
        let strays: Vec<_> = names.iter().map(|name| (&**name, A, "")).collect();
        assert_eq!(through(("www.example", A), &strays), None);
    }
}

//! PURE: a set of names, each meaning itself and all below it; a million of them in one piece of memory. In: names, or the
//! text of a list. Out: whether a name is one of them or below one.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use hashbrown::HashTable;

use super::name::Name;

#[derive(Debug, Default)]
pub(super) struct Suffixes {
    /// The names in wire form, one after the other.
    arena: Vec<u8>,
    /// Offsets into it, by the hash of the name there.
    table: HashTable<u32>,
    /// Keyed at random: who writes the lists and who asks must not be able to make names collide.
    hasher: RandomState,
}

impl Suffixes {
    /// Adds a name. What does not fit any more (4 GiB of names) is left out.
    pub(super) fn add(&mut self, name: &Name) {
        let wire = name.as_wire();
        let Self { arena, table, hasher } = self;
        let hash = hasher.hash_one(wire);
        let Ok(at) = u32::try_from(arena.len()) else { return };
        let same = |at: &u32| stands_at(arena, *at, wire);
        if table.find(hash, same).is_none() {
            arena.extend_from_slice(wire);
            table.insert_unique(hash, at, |at| hasher.hash_one(name_at(arena, *at)));
        }
    }

    /// Adds each name of a list: a name a line, or an address and names as in hosts(5); `#` begins a comment; `*.` before a
    /// name adds nothing, as all below it is meant anyway. How much there is that is neither: lists of other kinds (`||name^`)
    /// and their comments are not made names of, and no line means everything.
    pub(super) fn add_list(&mut self, text: &str) -> usize {
        let mut strange = 0;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let first = words.clone().next();
            if first.is_some_and(|first| first.parse::<IpAddr>().is_ok()) {
                words.next();
            } else if words.clone().nth(1).is_some() {
                strange += 1;
                continue;
            }
            for word in words {
                match listed(word) {
                    // The names of the host itself stand in every list of this form.
                    Some(_) if matches!(word, "localhost" | "localhost.localdomain" | "local") => {}
                    Some(name) => self.add(&name),
                    None => strange += 1,
                }
            }
        }
        strange
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether `name`, or a name above it, is in the set.
    pub(super) fn covers(&self, name: &Name) -> bool {
        if self.table.is_empty() {
            return false;
        }
        let mut rest = name.as_wire();
        loop {
            let hash = self.hasher.hash_one(rest);
            if self.table.find(hash, |at| stands_at(&self.arena, *at, rest)).is_some() {
                return true;
            }
            match rest.first() {
                None | Some(0) => return false,
                Some(length) => rest = &rest[1 + usize::from(*length)..],
            }
        }
    }
}

/// A name in a list, of what host names and service names are made of (RFC 952, RFC 8552); not the root.
fn listed(word: &str) -> Option<Name> {
    let word = word.strip_prefix("*.").unwrap_or(word);
    let is_ours = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let name = Name::from_text(word).filter(|_| word.bytes().all(is_ours))?;
    (name != Name::root()).then_some(name)
}

fn stands_at(arena: &[u8], at: u32, wire: &[u8]) -> bool {
    arena.get(at as usize..).is_some_and(|rest| rest.starts_with(wire))
}

/// A name ends with its root label, so it says itself how long it is.
fn name_at(arena: &[u8], at: u32) -> &[u8] {
    let start = at as usize;
    let mut end = start;
    while let Some(&length) = arena.get(end)
        && length != 0
    {
        end += 1 + usize::from(length);
    }
    &arena[start..(end + 1).min(arena.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[test]
    fn a_name_covers_itself_and_all_below_it() {
        let mut set = Suffixes::default();
        for text in ["ads.example", "Tracker.Example.net", "tv"] {
            set.add(&name(text));
            set.add(&name(text));
        }
        assert_eq!(set.len(), 3);
        for covered in ["ads.example", "a.b.ads.example", "tracker.example.net", "x.tv"] {
            assert!(set.covers(&name(covered)), "{covered}");
        }
        for free in ["example", "xads.example", "example.net", "tv.example", ""] {
            assert!(!set.covers(&name(free)), "{free}");
        }
        set.add(&Name::root());
        assert!(set.covers(&name("anything")));
    }

    #[test]
    fn lists_of_both_forms_are_read() {
        let mut set = Suffixes::default();
        let text = "# a list\nads.example\n0.0.0.0 a.example b.example # two\n127.0.0.1 localhost\n\n*.wild.example\n::1 c.example\n";
        let long = "x".repeat(64);
        assert_eq!(set.add_list(&format!("{text}{long}.example\n")), 1);
        assert_eq!(set.len(), 5);
        for covered in ["ads.example", "b.example", "x.wild.example", "c.example"] {
            assert!(set.covers(&name(covered)), "{covered}");
        }
        assert!(!set.covers(&name("localhost")));
    }

    /// Lists of other kinds, comments in them, and what would deny everything.
    #[test]
    fn a_line_that_is_not_a_name_adds_nothing_and_is_counted() {
        let lines = [
            "! Blocks ads and info",
            "[Adblock Plus 2.0]",
            "||ads.example^",
            "@@||good.example^",
            "||ads.example^$third-party",
            "address=/ads.example/0.0.0.0",
            "server=/ads.example/",
            "local-zone: \"ads.example\" always_nxdomain",
            "ads.example CNAME .",
            "ads.example other.example",
            "http://ads.example/",
            "; a zone file's comment",
            "/^ads[0-9]/",
            ".",
            "*.",
            "*",
            "..",
            "0.0.0.0 .",
            "a*.example",
        ];
        for line in lines {
            let mut set = Suffixes::default();
            let strange = set.add_list(line);
            assert_eq!((strange, set.len()), (1, 0), "{line}");
        }
        let mut set = Suffixes::default();
        assert_eq!(set.add_list("0.0.0.0 0.0.0.0\n\n \n# ads and info\n0.0.0.0 _x.a-1.example. # info\r\nB.example\r\n*.c.example"), 0);
        for covered in ["_x.a-1.example", "b.example", "x.c.example"] {
            assert!(set.covers(&name(covered)), "{covered}");
        }
        assert!(!set.covers(&name("x.info")));
    }

    #[test]
    fn a_hundred_thousand_names_are_each_found() {
        let mut set = Suffixes::default();
        let text: String = (0..100_000).map(|n| format!("host-{n}.list.example\n")).collect();
        assert_eq!(set.add_list(&text), 0);
        assert_eq!(set.len(), 100_000);
        assert!((0..100_000).step_by(997).all(|n| set.covers(&name(&format!("www.host-{n}.list.example")))));
        assert!(!set.covers(&name("host-100000.list.example")));
    }
}

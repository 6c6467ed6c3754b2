//! PURE: a domain name in wire form, lowercase, so that comparing and hashing it is comparing and hashing bytes. In: the
//! bytes of a question, or a name from the configuration. Out: the name, its labels, and what lies above a suffix.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

/// A name of at most 255 bytes (RFC 1035 section 3.1), never compressed, ASCII letters lowercase (RFC 4343 section 3).
#[derive(Clone, Copy)]
pub(super) struct Name {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Name {
    const MAX: usize = 255;

    /// The name at the start of `wire`. `None` if it is cut short, too long, or compressed: nothing stands before the
    /// first name of a message that a pointer could point to.
    pub(super) fn read(wire: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX];
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at)?);
            // The two top bits mark pointers and label types that were never put to use (RFC 6891 section 5).
            if length > 63 {
                return None;
            }
            let end = at + 1 + length;
            if end > Self::MAX {
                return None;
            }
            bytes[at..end].copy_from_slice(wire.get(at..end)?);
            at = end;
            if length == 0 {
                break;
            }
        }
        // A length byte is at most 63 and no letter is below 65, so this changes labels only.
        bytes[..at].make_ascii_lowercase();
        Some(Self { bytes, len: u8::try_from(at).ok()? })
    }

    pub(super) fn root() -> Self {
        Self { bytes: [0; Self::MAX], len: 1 }
    }

    /// A name from dotted text of plain labels. `None` if it does not fit the wire form.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        Self::from_labels(text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes))
    }

    pub(super) fn from_labels<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            wire.push(u8::try_from(label.len()).ok()?);
            wire.extend_from_slice(label);
        }
        wire.push(0);
        Self::read(&wire)
    }

    pub(super) fn as_wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Its labels from left to right, the root's empty one left out.
    pub(super) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(self.as_wire())
    }

    /// The labels before `zone`, none for `zone` itself; `None` if the name is not in `zone`.
    pub(super) fn labels_above<'a>(&'a self, zone: &Name) -> Option<Vec<&'a [u8]>> {
        let (wire, zone) = (self.as_wire(), zone.as_wire());
        let cut = wire.len().checked_sub(zone.len()).filter(|&cut| wire[cut..] == *zone)?;
        let mut above = Vec::new();
        let mut at = 0;
        while at < cut {
            let end = at + 1 + usize::from(wire[at]);
            above.push(&wire[at + 1..end]);
            at = end;
        }
        // A zone's bytes can also be the tail of a longer label; then the walk steps over the cut.
        (at == cut).then_some(above)
    }

    pub(super) fn is_in(&self, zone: &Name) -> bool {
        self.labels_above(zone).is_some()
    }

    /// The same name without its first `count` labels; the root if it has no more.
    pub(super) fn parent(&self, count: usize) -> Self {
        let mut rest = self.as_wire();
        for _ in 0..count {
            if rest[0] == 0 {
                break;
            }
            rest = &rest[1 + usize::from(rest[0])..];
        }
        let mut bytes = [0; Self::MAX];
        bytes[..rest.len()].copy_from_slice(rest);
        // No longer than `self`, whose length fits.
        Self { bytes, len: rest.len() as u8 }
    }
}

impl Name {
    /// `*.` before the name; `None` if that is too long.
    pub(super) fn wildcard(&self) -> Option<Self> {
        let mut bytes = [0; Self::MAX];
        let len = self.as_wire().len() + 2;
        bytes.get_mut(2..len)?.copy_from_slice(self.as_wire());
        bytes[..2].copy_from_slice(b"\x01*");
        Some(Self { bytes, len: u8::try_from(len).ok()? })
    }
}

fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::from(*wire.first()?);
        let label = wire.get(1..1 + length).filter(|label| !label.is_empty())?;
        wire = &wire[1 + length..];
        Some(label)
    })
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_wire() == other.as_wire()
    }
}

impl Eq for Name {}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.len == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[test]
    fn case_does_not_matter_and_the_root_is_a_name() {
        assert_eq!(name("WWW.Example.COM"), name("www.example.com."));
        assert_eq!(name("").to_string(), ".");
        assert_eq!(name("a.B").to_string(), "a.b.");
    }

    #[test]
    fn a_suffix_ends_at_a_label() {
        let zone = name("vm.internal");
        assert_eq!(name("web.vm.internal").labels_above(&zone).unwrap(), [b"web"]);
        assert!(name("vm.internal").labels_above(&zone).unwrap().is_empty());
        assert!(!name("xvm.internal").is_in(&zone));
        assert!(!name("internal").is_in(&zone));
        // One label whose last bytes spell the zone, length bytes and all.
        let forged = Name::read(b"\x0dx\x02vm\x08internal\x00").unwrap();
        assert!(!forged.is_in(&zone));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert!(Name::read(b"").is_none());
        assert!(Name::read(b"\x03ab").is_none());
        assert!(Name::read(b"\xc0\x0c").is_none());
        assert!(Name::read(b"\x40").is_none());
        assert!(Name::read(&[1; 300]).is_none());
        // 255 bytes are the most: 127 labels of one byte and the root.
        let longest = [[1, b'a'].repeat(127), vec![0]].concat();
        assert_eq!(Name::read(&longest).unwrap().labels().count(), 127);
        assert!(Name::read(&[[1, b'a'].repeat(128), vec![0]].concat()).is_none());
    }

    #[test]
    fn a_parent_drops_labels_and_stops_at_the_root() {
        assert_eq!(name("a.b.c").parent(1), name("b.c"));
        assert_eq!(name("a.b.c").parent(9), name(""));
    }
}

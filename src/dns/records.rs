//! PURE: walking over resource records where they stand in a message. In: bytes and an offset. Out: the record's fixed
//! fields and where it ends. Nothing is copied; names are followed only to see that they end.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

use super::name::Name;
use super::query::HEADER;

/// Labels and pointers of a name at most: 127 labels of one byte, each with a pointer to the next.
const LABELS: usize = 255;

/// A record's fixed fields (RFC 1035 section 4.1.3) and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) rtype: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) ttl_at: usize,
    pub(super) rdata_at: usize,
    pub(super) end: usize,
}

impl Record {
    pub(super) fn rdata<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        &message[self.rdata_at..self.end]
    }
}

/// The record at `at`. `None` if it is cut short, its owner is no name, or a name in its data is none.
pub(super) fn read(message: &[u8], at: usize) -> Option<Record> {
    let fixed_at = name_end(message, at)?;
    let fixed = message.get(fixed_at..)?.first_chunk::<10>()?;
    let rdata_at = fixed_at + 10;
    let end = rdata_at + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let record = Record {
        rtype: u16::from_be_bytes([fixed[0], fixed[1]]),
        class: u16::from_be_bytes([fixed[2], fixed[3]]),
        ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ttl_at: fixed_at + 4,
        rdata_at,
        end,
    };
    (end <= message.len() && has_whole_names(message.get(..end)?, record.rtype, rdata_at)).then_some(record)
}

/// Whether the data of a type that may have compressed names (RFC 3597 section 4) is names that end, with what stands
/// before and after them as long as the type has it. `message` ends with the data. A guest's stub is not to be handed a loop.
fn has_whole_names(message: &[u8], rtype: u16, at: usize) -> bool {
    let (before, names, after) = match rtype {
        2..=5 | 7..=9 | 12 | 39 => (0, 1, 0), // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
        6 => (0, 2, 20),                      // SOA
        14 | 17 => (0, 2, 0),                 // MINFO, RP
        15 | 18 | 21 | 36 => (2, 1, 0),       // MX, AFSDB, RT, KX
        26 => (2, 2, 0),                      // PX
        33 => (6, 1, 0),                      // SRV
        _ => return true,
    };
    let mut end = Some(at + before);
    for _ in 0..names {
        end = end.and_then(|at| name_end(message, at));
    }
    end.is_some_and(|end| end + after == message.len())
}

/// The addresses that a record leads to: of A and AAAA, and the hints of SVCB and HTTPS (RFC 9460 section 7.3), which a browser
/// may take in their place. `rdata` as it stands in the message; names in it are not compressed (RFC 9460 section 2.2).
pub(super) fn addresses(rtype: u16, rdata: &[u8]) -> Vec<IpAddr> {
    let v4 = |octets: &[u8]| octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets));
    let v6 = |octets: &[u8]| octets.first_chunk::<16>().map(|octets| IpAddr::from(*octets));
    match (rtype, rdata.len()) {
        (1, 4) => v4(rdata).into_iter().collect(),
        (28, 16) => v6(rdata).into_iter().collect(),
        (64 | 65, 3..) => {
            let Some(at) = name_end(rdata, 2) else { return vec![] };
            let (mut rest, mut found) = (&rdata[at..], vec![]);
            while let Some((head, after)) = rest.split_first_chunk::<4>() {
                let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
                let Some((value, after)) = after.split_at_checked(length) else { break };
                match u16::from_be_bytes([head[0], head[1]]) {
                    4 => found.extend(value.chunks_exact(4).filter_map(v4)),
                    6 => found.extend(value.chunks_exact(16).filter_map(v6)),
                    _ => {}
                }
                rest = after;
            }
            found
        }
        _ => vec![],
    }
}

/// The name at `at`, with what its pointers point to.
pub(super) fn name(message: &[u8], mut at: usize) -> Option<Name> {
    // From here on every pointer points back, and there is an end.
    name_end(message, at)?;
    let (mut wire, mut len) = ([0; 255], 0);
    loop {
        match *message.get(at)? {
            // What is left of the buffer begins with the root label.
            0 => return Name::read(&wire),
            label @ 1..=63 => {
                let end = at + 1 + usize::from(label);
                let label = message.get(at..end)?;
                wire.get_mut(len..len + label.len())?.copy_from_slice(label);
                (at, len) = (end, len + label.len());
            }
            high => at = usize::from(high & 0x3f) << 8 | usize::from(*message.get(at + 1)?),
        }
    }
}

/// Where the name at `at` ends: after its root label or its first pointer. `None` if it is no name: cut short, of more than
/// 255 bytes with what it points to (RFC 1035 section 3.1), or with a pointer that does not point back to behind the header
/// (section 4.1.4: "a prior occurrence"), so each is followed once.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    // A segment lies before the one that points to it.
    let (mut length, mut end, mut before, mut limit) = (0, None, at, message.len());
    for _ in 0..LABELS {
        match *message.get(..limit)?.get(at)? {
            0 => return (length < 255).then(|| end.unwrap_or(at + 1)),
            label @ 1..=63 => {
                length += 1 + usize::from(label);
                at += 1 + usize::from(label);
            }
            high @ 0xc0.. => {
                let target = usize::from(high & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                if !(HEADER..before).contains(&target) {
                    return None;
                }
                end.get_or_insert(at + 2);
                (at, limit, before) = (target, before, target);
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_a_compressed_owner_is_read() {
        let message =
            [&[0; 12][..], b"\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04"]
                .concat();
        let record = read(&message, 19).unwrap();
        assert_eq!((record.rtype, record.class, record.ttl, record.end), (1, 1, 60, message.len()));
        assert_eq!(record.rdata(&message), [1, 2, 3, 4]);
        assert_eq!(name(&message, 19).unwrap().to_string(), "a.");
    }

    /// A record of this owner and data behind an empty header and, at 12, the name `a.`.
    fn record(owner: &[u8], rtype: u8, rdata: &[u8]) -> Option<Record> {
        let head = [&[0; 12][..], b"\x01a\0", owner, &[0, rtype, 0, 1, 0, 0, 0, 60, 0, rdata.len() as u8]];
        read(&[&head.concat(), rdata].concat(), 15)
    }

    #[test]
    fn pointers_forward_to_itself_or_into_the_header_are_no_names() {
        assert!(record(b"\xc0\x0c", 1, &[1; 4]).is_some());
        for owner in [b"\xc0\x0f", b"\xc0\x11", b"\xc0\x00", b"\xc0\x0b", b"\x80a", b"\xff\xff"] {
            assert!(record(owner, 1, &[1; 4]).is_none(), "{owner:?}");
        }
        assert!(read(&[1; 600], 0).is_none());
        assert!(read(b"\0", 9).is_none());
    }

    #[test]
    fn a_name_is_no_longer_than_255_bytes_with_what_it_points_to() {
        let long = |count: usize| [[1, b'a'].repeat(count), vec![0xc0, 12]].concat();
        assert!(record(&long(125), 1, &[1; 4]).is_some());
        assert!(record(&long(126), 1, &[1; 4]).is_some());
        assert!(record(&long(127), 1, &[1; 4]).is_none());
        for (count, labels) in [(126, Some(127)), (127, None)] {
            let message = [&[0; 12][..], b"\x01A\0", &long(count)].concat();
            assert_eq!(name(&message, 15).map(|name| name.labels().count()), labels);
        }
        // Labels that a header's counts cannot bound.
        assert!(record(&[[1, b'a'].repeat(255), vec![0]].concat(), 1, &[1; 4]).is_none());
    }

    #[test]
    fn names_in_data_end_where_the_data_does() {
        let soa = |tail: usize| [b"\xc0\x0c\x01b\xc0\x0c".to_vec(), vec![0; tail]].concat();
        for (rtype, rdata) in [(5, &b"\xc0\x0c"[..]), (2, b"\x01b\0"), (15, b"\0\x0a\xc0\x0c"), (6, &soa(20))]
        {
            assert!(record(b"\xc0\x0c", rtype, rdata).is_some(), "{rtype}");
        }
        // At 29 the data itself.
        for (rtype, rdata) in [
            (5, &b"\xc0\x1d"[..]),
            (5, b"\x01b\xc0\x1d"),
            (12, b"\xc0\x0c\0"),
            (5, b"\x03b"),
            (15, b"\xc0\x0c"),
            (6, &soa(19)),
            (6, &soa(21)),
        ] {
            assert!(record(b"\xc0\x0c", rtype, rdata).is_none(), "{rtype} {rdata:?}");
        }
        // Of a type that is not compressed, nobody but the guest knows.
        assert!(record(b"\xc0\x0c", 16, b"\xc0\x1d").is_some());
    }

    #[test]
    fn rdata_beyond_the_end_is_refused() {
        assert!(read(b"\0\0\x01\0\x01\0\0\0\0\0\x01", 0).is_none());
    }
}

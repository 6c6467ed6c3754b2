//! PURE: walking over resource records where they stand in a message. In: bytes and an offset. Out: the record's fixed
//! fields and where it ends. Nothing is decompressed or copied, so any bytes cost one pass.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// A record's fixed fields (RFC 1035 section 4.1.3) and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) rtype: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) ttl_at: usize,
    rdata_at: usize,
    pub(super) end: usize,
}

impl Record {
    pub(super) fn rdata<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        &message[self.rdata_at..self.end]
    }
}

/// The record at `at`. `None` if it is cut short or its owner is no name.
pub(super) fn read(message: &[u8], at: usize) -> Option<Record> {
    let fixed_at = skip_name(message, at)?;
    let fixed = message.get(fixed_at..)?.first_chunk::<10>()?;
    let rdata_at = fixed_at + 10;
    let end = rdata_at + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    (end <= message.len()).then_some(Record {
        rtype: u16::from_be_bytes([fixed[0], fixed[1]]),
        class: u16::from_be_bytes([fixed[2], fixed[3]]),
        ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ttl_at: fixed_at + 4,
        rdata_at,
        end,
    })
}

/// Where the name at `at` ends: after its root label or its pointer, which is not followed but must point back
/// (RFC 1035 section 4.1.4: "a prior occurrence").
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    while at - start <= 255 {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            high @ 0xc0.. => {
                let target = usize::from(high & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                return (target < start).then_some(at + 2);
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
    }

    #[test]
    fn pointers_forward_and_to_itself_are_no_names() {
        assert!(read(b"\xc0\x00\0\x01\0\x01\0\0\0\0\0\0", 0).is_none());
        assert!(read(b"\xc0\x0a\0\x01\0\x01\0\0\0\0\0\0", 0).is_none());
        assert!(read(b"\x80a\0\0\x01\0\x01\0\0\0\0\0\0", 0).is_none());
        assert!(read(&[1; 600], 0).is_none());
        assert!(read(b"\0", 9).is_none());
    }

    #[test]
    fn rdata_beyond_the_end_is_refused() {
        assert!(read(b"\0\0\x01\0\x01\0\0\0\0\0\x01", 0).is_none());
    }
}

//! PURE: what a guest asks. In: a message's bytes, hostile. Out: one checked question with its EDNS, or why it gets an error
//! or no answer at all. Made for the path every datagram takes: it allocates nothing and reads each byte once.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::name::Name;
use super::records;

/// Type numbers that decide something here (IANA "DNS parameters").
pub(super) mod qtype {
    pub(in crate::dns) const NS: u16 = 2;
    pub(in crate::dns) const CNAME: u16 = 5;
    pub(in crate::dns) const SOA: u16 = 6;
    pub(in crate::dns) const OPT: u16 = 41;
    pub(in crate::dns) const DS: u16 = 43;
    pub(in crate::dns) const DNSKEY: u16 = 48;
    pub(in crate::dns) const TKEY: u16 = 249;
    pub(in crate::dns) const MAILA: u16 = 254;
    pub(in crate::dns) const ANY: u16 = 255;
}

/// Option code of DNS cookies (RFC 7873 section 8).
pub(super) const COOKIE: u16 = 10;
pub(super) const CLASS_IN: u16 = 1;
pub(super) const HEADER: usize = 12;
/// The longest query worth reading: one question, an OPT record and its options.
pub(super) const LONGEST: usize = 4_096;

/// Bits of the header's second 16-bit word (RFC 1035 section 4.1.1, RFC 4035 section 3.2).
pub(super) mod flag {
    pub(in crate::dns) const QR: u16 = 0x8000;
    pub(in crate::dns) const OPCODE: u16 = 0x7800;
    pub(in crate::dns) const AA: u16 = 0x0400;
    pub(in crate::dns) const TC: u16 = 0x0200;
    pub(in crate::dns) const RD: u16 = 0x0100;
    pub(in crate::dns) const RA: u16 = 0x0080;
    pub(in crate::dns) const AD: u16 = 0x0020;
    pub(in crate::dns) const CD: u16 = 0x0010;
    pub(in crate::dns) const RCODE: u16 = 0x000f;
}

/// The OPT record of a query (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edns {
    /// The largest datagram the asker can take.
    pub(super) payload: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
    pub(super) cookie: Option<Cookie>,
}

/// A DNS cookie (RFC 7873 section 4): what the asker sent, and our part, which `resolve` fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cookie {
    pub(super) client: [u8; 8],
    /// The server's part that the asker sent: ours from before, or anything else.
    pub(super) sent: Sent,
    pub(super) server: [u8; 16],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Nothing,
    /// As long as ours.
    Whole([u8; 16]),
    Other,
}

impl Cookie {
    /// Whether the asker sent a server's part, and that is not the one that is ours.
    pub(super) fn is_bad(&self) -> bool {
        !matches!(self.sent, Sent::Nothing) && self.sent != Sent::Whole(self.server)
    }
}

/// A query with one question. What is not checked here is decided by `route`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) name: Name,
    pub(super) qtype: u16,
    pub(super) qclass: u16,
    pub(super) edns: Option<Edns>,
}

/// A message that is not a query with one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reject {
    /// No answer: too short to have an id, or itself a response, which answered would make a loop.
    Silent,
    FormErr,
    NotImp,
    /// No question, but a cookie: the asker wants our part of it, or to know if it still is (RFC 7873 section 5.4).
    CookieOnly(Edns),
}

impl Query {
    pub(super) fn parse(message: &[u8]) -> Result<Self, Reject> {
        let header = message.first_chunk::<HEADER>().ok_or(Reject::Silent)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = word(2);
        if flags & flag::QR != 0 {
            return Err(Reject::Silent);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Reject::NotImp);
        }
        // By TCP; a datagram of that length is not even read (`batch`).
        if message.len() > LONGEST {
            return Err(Reject::FormErr);
        }
        if (word(4), word(6), word(8)) == (0, 0, 0)
            && let Some(edns) = additional(message, HEADER, word(10))?
            && edns.cookie.is_some()
        {
            return Err(Reject::CookieOnly(edns));
        }
        // One question, no answers, no authority: RFC 9619 section 4 for the first count; the rest no query has but IXFR
        // (RFC 1995 section 3), which is refused anyway.
        if (word(4), word(6), word(8)) != (1, 0, 0) {
            return Err(Reject::FormErr);
        }
        let name = Name::read(&message[HEADER..]).ok_or(Reject::FormErr)?;
        let at = HEADER + name.as_wire().len();
        let tail = message.get(at..at + 4).ok_or(Reject::FormErr)?;
        Ok(Self {
            id: word(0),
            flags,
            name,
            qtype: u16::from_be_bytes([tail[0], tail[1]]),
            qclass: u16::from_be_bytes([tail[2], tail[3]]),
            edns: additional(message, at + 4, word(10))?,
        })
    }

    /// Bytes of the question section. It stands right after the header.
    pub(super) fn question_len(&self) -> usize {
        self.name.as_wire().len() + 4
    }

    pub(super) fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the asker understands the AD bit: it set DO, or AD itself (RFC 6840 section 5.7).
    pub(super) fn wants_ad(&self) -> bool {
        self.dnssec_ok() || self.has(flag::AD)
    }
}

/// The OPT record among the `count` additional records from `at` on. The message must end with the last of them.
fn additional(message: &[u8], mut at: usize, count: u16) -> Result<Option<Edns>, Reject> {
    let mut edns = None;
    for _ in 0..count {
        let record = records::read(message, at).ok_or(Reject::FormErr)?;
        if record.rtype == qtype::OPT {
            // One only, of the root's name (RFC 6891 sections 6.1.1 and 6.1.2).
            if edns.is_some() || message[at] != 0 {
                return Err(Reject::FormErr);
            }
            let cookie = options(record.rdata(message))?;
            edns = Some(Edns {
                payload: record.class,
                version: (record.ttl >> 16) as u8,
                dnssec_ok: record.ttl & 0x8000 != 0,
                cookie,
            });
        }
        at = record.end;
    }
    if at == message.len() { Ok(edns) } else { Err(Reject::FormErr) }
}

/// The cookie among the options, all of which must be whole. No other option is for us: the client subnet (RFC 7871), NSID
/// (RFC 5001) and the rest are neither answered nor sent on.
fn options(mut rdata: &[u8]) -> Result<Option<Cookie>, Reject> {
    let mut cookie = None;
    while let Some((head, rest)) = rdata.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (option, rest) = rest.split_at_checked(length).ok_or(Reject::FormErr)?;
        if u16::from_be_bytes([head[0], head[1]]) == COOKIE {
            // RFC 7873 section 5.2.2: 8 bytes, or 16 to 40 with a server's part.
            if length != 8 && !(16..=40).contains(&length) {
                return Err(Reject::FormErr);
            }
            let client = option.first_chunk::<8>().ok_or(Reject::FormErr)?;
            let sent = match option[8..].first_chunk::<16>() {
                _ if length == 8 => Sent::Nothing,
                Some(whole) if length == 24 => Sent::Whole(*whole),
                _ => Sent::Other,
            };
            cookie.get_or_insert(Cookie { client: *client, sent, server: [0; 16] });
        }
        rdata = rest;
    }
    if rdata.is_empty() { Ok(cookie) } else { Err(Reject::FormErr) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = 1;

    const PLAIN: &[u8] = b"\xab\xcd\x01\x00\0\x01\0\0\0\0\0\0\x03WwW\x07example\x03com\0\0\x01\0\x01";
    const OPT: &[u8] = b"\0\0\x29\x10\0\0\0\x80\0\0\0";

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Query, Reject> {
        let mut message = PLAIN.to_vec();
        change(&mut message);
        Query::parse(&message)
    }

    #[test]
    fn a_plain_question_is_read_as_asked() {
        let query = Query::parse(PLAIN).unwrap();
        assert_eq!((query.id, query.qtype, query.qclass, query.edns), (0xabcd, A, CLASS_IN, None));
        assert_eq!(query.name.to_string(), "www.example.com.");
        assert_eq!(HEADER + query.question_len(), PLAIN.len());
    }

    #[test]
    fn edns_says_size_version_and_do() {
        let query = with(|m| {
            m[11] = 1;
            m.extend_from_slice(OPT);
        });
        let edns = Edns { payload: 4096, version: 0, dnssec_ok: true, cookie: None };
        assert_eq!(query.unwrap().edns, Some(edns));
    }

    #[test]
    fn a_response_is_never_answered() {
        assert_eq!(with(|m| m[2] |= 0x80).unwrap_err(), Reject::Silent);
        assert_eq!(Query::parse(&PLAIN[..11]).unwrap_err(), Reject::Silent);
        assert_eq!(Query::parse(b"").unwrap_err(), Reject::Silent);
    }

    #[test]
    fn other_opcodes_are_not_implemented() {
        assert_eq!(with(|m| m[2] = 0x28).unwrap_err(), Reject::NotImp);
    }

    #[test]
    fn none_or_two_questions_are_a_format_error() {
        for count in [0, 2, 255] {
            assert_eq!(with(|m| m[5] = count).unwrap_err(), Reject::FormErr);
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_a_format_error() {
        for cut in 12..PLAIN.len() {
            assert_eq!(Query::parse(&PLAIN[..cut]).unwrap_err(), Reject::FormErr, "{cut}");
        }
        assert_eq!(with(|m| m.push(0)).unwrap_err(), Reject::FormErr);
        assert_eq!(with(|m| m[11] = 1).unwrap_err(), Reject::FormErr);
    }

    #[test]
    fn two_opt_records_or_a_broken_option_are_a_format_error() {
        let two = with(|m| {
            m[11] = 2;
            m.extend_from_slice(OPT);
            m.extend_from_slice(OPT);
        });
        assert_eq!(two.unwrap_err(), Reject::FormErr);
        let broken = with(|m| {
            m[11] = 1;
            m.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\x05\0\x0a\0\x08x");
        });
        assert_eq!(broken.unwrap_err(), Reject::FormErr);
    }

    #[test]
    fn a_cookie_of_a_wrong_length_is_a_format_error() {
        let with_cookie = |length: u8| {
            with(|m| {
                m[11] = 1;
                m.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0");
                m.push(length + 4);
                m.extend_from_slice(&[0, 10, 0, length]);
                m.extend(1..=length);
            })
        };
        for length in [8, 16, 24, 40] {
            let cookie = with_cookie(length).unwrap().edns.unwrap().cookie.unwrap();
            assert_eq!(cookie.client, [1, 2, 3, 4, 5, 6, 7, 8]);
        }
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(with_cookie(length).unwrap_err(), Reject::FormErr, "{length}");
        }
    }
}

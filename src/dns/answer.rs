//! PURE: an upstream's answer in wire form. In: the bytes an upstream sent for a question. Out: an answer that is whole, is to
//! that question, and knows how long it holds; and from it, for any guest that asks the same, a message with its own id, the
//! TTLs as they are now, and no more bytes than it can take.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

use hickory_proto::op::{Message, Query as UpstreamQuery};
use hickory_proto::rr;

use super::chain;
use super::name::Name;
use super::query::{CLASS_IN, COOKIE, Edns, HEADER, Query, flag, qtype};
use super::records;
use super::reply::{Ede, UDP_PAYLOAD};

/// Seconds. No answer is held longer, whatever `max_ttl` says (RFC 8767 section 4 finds a week sensible).
const MOST: u32 = 604_800;
/// Seconds. No denial is held longer (RFC 2308 section 5 found one to three hours to work well).
const MOST_NEGATIVE: u32 = 3_600;
/// Bytes of our OPT record with an extended error and a cookie.
const OPT_MOST: usize = 11 + 6 + 28;
/// Seconds a stale answer is told to hold (RFC 8767 section 5.2).
const STALE_TTL: u32 = 30;

const NOERROR: u16 = 0;
const FORMERR: u16 = 1;
const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
const NOTIMP: u16 = 4;
const BADVERS: u16 = 16;

/// What was asked upstream: all that decides the answer. Guests that ask the same share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) qtype: u16,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

impl Question {
    pub(super) fn of(query: &Query) -> Self {
        Self {
            name: query.name,
            qtype: query.qtype,
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.has(flag::CD),
        }
    }

    /// A name in the zone that holds the answer.
    pub(super) fn side(&self) -> Name {
        side(&self.name, self.qtype)
    }
}

/// The same of any name and type: what a zone's delegation says of it is on the parent's side (RFC 4035 section 3.1.4.1).
pub(super) fn side(name: &Name, qtype: u16) -> Name {
    if qtype == qtype::DS { name.parent(1) } else { *name }
}

/// What a message from an upstream is worth.
#[derive(Debug)]
// An answer is what it almost always is.
#[allow(clippy::large_enum_variant)]
pub(super) enum Verdict {
    Answer(Answer),
    /// Too long for a datagram: ask by TCP.
    Truncated,
    /// It does not understand EDNS, or says so: ask without (RFC 6891 section 6.2.2).
    NoEdns,
    /// It cannot or will not say: another upstream may (the rcode).
    Unable(u16),
    /// It sends us to other servers (RFC 1034 section 4.3.1): it is no resolver, or not of this name. To a stub that is NODATA.
    Referral,
    /// Not an answer to this question.
    Foreign,
}

/// A whole answer without its OPT record.
#[derive(Debug)]
pub(super) struct Answer {
    wire: Box<[u8]>,
    /// Offset of each record's TTL; then, of the last `targets`, those of the names it leads through (`chain`).
    marks: Box<[u16]>,
    targets: u8,
    /// Seconds it may be given to others; 0 is not at all.
    lifetime: u32,
    /// That something is not there: the SOA tells for how long.
    denial: bool,
    /// Why it is not what the upstream said.
    ede: Option<Ede>,
}

/// How old an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Seconds(u32),
    /// Past its lifetime, given because nothing better can be had (RFC 8767).
    Stale,
}

/// Reads what came back for `question` under `id`.
pub(super) fn read(message: &[u8], id: u16, question: &Question) -> Verdict {
    let Some(header) = message.first_chunk::<HEADER>() else { return Verdict::Foreign };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let flags = word(2);
    if word(0) != id || flags & flag::QR == 0 || flags & flag::OPCODE != 0 {
        return Verdict::Foreign;
    }
    let rcode = flags & flag::RCODE;
    // Servers without EDNS may answer with the header alone (RFC 6891 section 7).
    if word(4) == 0 && matches!(rcode, FORMERR | NOTIMP) {
        return Verdict::NoEdns;
    }
    let asked = Name::read(&message[HEADER..]);
    let is_asked = |at: usize| {
        let tail = message.get(at..at + 4);
        tail.is_some_and(|tail| {
            tail[..2] == question.qtype.to_be_bytes() && tail[2..] == CLASS_IN.to_be_bytes()
        })
    };
    let Some(name) = asked.filter(|name| word(4) == 1 && *name == question.name) else {
        return Verdict::Foreign;
    };
    let question_end = HEADER + name.as_wire().len() + 4;
    if !is_asked(question_end - 4) {
        return Verdict::Foreign;
    }
    if flags & flag::TC != 0 {
        return Verdict::Truncated;
    }
    match rcode {
        NOERROR | NXDOMAIN => {}
        FORMERR | NOTIMP => return Verdict::NoEdns,
        other => return Verdict::Unable(other),
    }
    let counts = [word(6), word(8), word(10)];
    match sections(message, question_end, counts, question, rcode) {
        // RFC 6891 section 6.1.3: the rcode's upper bits stand in the OPT record.
        Some(Sections { upper_rcode: upper @ 1.., .. }) => match u16::from(upper) << 4 | rcode {
            BADVERS => Verdict::NoEdns,
            other => Verdict::Unable(other),
        },
        Some(Sections { refers: true, .. }) if rcode == NOERROR && flags & (flag::AA | flag::RA) == 0 => {
            Verdict::Referral
        }
        Some(Sections { opt: Opt::Inside, .. }) => match without_opt(message) {
            // The OPT record stands before others: written anew, the answer has it no more.
            Some(rewritten) => read(&rewritten, id, question),
            None => Verdict::Unable(rcode),
        },
        Some(sections) => Verdict::Answer(sections.into_answer(message)),
        None => Verdict::Unable(rcode),
    }
}

/// Where the OPT record stands.
enum Opt {
    None,
    /// Last, at this offset: to be cut off.
    Last(usize),
    Inside,
}

struct Sections {
    ttl_at: Vec<u16>,
    targets: Vec<u16>,
    lifetime: u32,
    denial: bool,
    /// Name servers instead of an answer.
    refers: bool,
    opt: Opt,
    upper_rcode: u8,
    end: usize,
}

/// Walks all records once. `None` if one is broken.
fn sections(
    message: &[u8],
    start: usize,
    counts: [u16; 3],
    question: &Question,
    rcode: u16,
) -> Option<Sections> {
    let asked = question.qtype;
    let mut found = Sections {
        ttl_at: vec![],
        targets: chain::targets(message, start, counts[0], question)?,
        lifetime: MOST,
        denial: false,
        refers: false,
        opt: Opt::None,
        upper_rcode: 0,
        end: start,
    };
    let (mut has_asked, mut has_servers) = (false, false);
    let mut denial = None;
    for (section, count) in counts.into_iter().enumerate() {
        for _ in 0..count {
            let record = records::read(message, found.end)?;
            if matches!(found.opt, Opt::Last(_)) {
                found.opt = Opt::Inside;
            }
            if record.rtype == qtype::OPT {
                // It belongs into the additional section (RFC 6891 section 6.1.1): nowhere else is it cut off.
                if section != 2 {
                    return None;
                }
                found.opt = if matches!(found.opt, Opt::None) { Opt::Last(found.end) } else { Opt::Inside };
                found.upper_rcode = record.ttl.to_be_bytes()[0];
            } else {
                found.ttl_at.push(u16::try_from(record.ttl_at).ok()?);
                let ttl = held(record.ttl);
                if section == 0 {
                    found.lifetime = found.lifetime.min(ttl);
                    has_asked |= record.rtype == asked || asked == qtype::ANY;
                }
                has_servers |= section == 1 && record.rtype == qtype::NS;
                if section == 1 && record.rtype == qtype::SOA {
                    // RFC 2308 section 3: the lesser of the SOA's own TTL and its last field.
                    let minimum =
                        record.rdata(message).last_chunk::<4>().map(|last| u32::from_be_bytes(*last));
                    denial = Some(ttl.min(held(minimum?)).min(MOST_NEGATIVE));
                }
            }
            found.end = record.end;
        }
    }
    found.refers = counts[0] == 0 && has_servers && denial.is_none();
    // A denial without SOA is not held (RFC 2308 section 5); that of a CNAME's target no longer than the CNAME.
    if rcode == NXDOMAIN || !has_asked {
        found.denial = true;
        found.lifetime = found.lifetime.min(denial.unwrap_or(0));
    }
    Some(found)
}

/// RFC 2181 section 8: a TTL with the top bit set is 0.
fn held(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl.min(MOST) }
}

fn without_opt(message: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Message::from_vec(message).ok()?;
    whole.edns = None;
    whole.to_vec().ok()
}

impl Sections {
    fn into_answer(self, message: &[u8]) -> Answer {
        let end = if let Opt::Last(at) = self.opt { at } else { self.end };
        let mut wire: Box<[u8]> = message[..end].into();
        if matches!(self.opt, Opt::Last(_)) {
            let additional = u16::from_be_bytes([wire[10], wire[11]]).saturating_sub(1);
            wire[10..HEADER].copy_from_slice(&additional.to_be_bytes());
        }
        // No more than `chain` lets pass.
        let targets = self.targets.len() as u8;
        let marks = [self.ttl_at, self.targets].concat().into();
        Answer { wire, marks, targets, lifetime: self.lifetime, denial: self.denial, ede: None }
    }
}

impl Answer {
    /// No records for `question`, and why; held for `lifetime` seconds.
    pub(super) fn withheld(question: &Question, ede: Ede, lifetime: u32) -> Self {
        let mut wire = vec![0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        wire.extend_from_slice(question.name.as_wire());
        wire.extend_from_slice(&question.qtype.to_be_bytes());
        wire.extend_from_slice(&CLASS_IN.to_be_bytes());
        Self { wire: wire.into(), marks: [].into(), targets: 0, lifetime, denial: true, ede: Some(ede) }
    }

    /// Offset of each record's TTL.
    fn ttls(&self) -> &[u16] {
        &self.marks[..self.marks.len() - usize::from(self.targets)]
    }

    /// Whether it leads through other names than the one that was asked for.
    pub(super) fn leads_on(&self) -> bool {
        self.targets > 0
    }

    /// These names, in the order in which its aliases lead to them.
    pub(super) fn targets(&self) -> impl Iterator<Item = Name> + Clone {
        let places = &self.marks[self.ttls().len()..];
        places.iter().filter_map(|at| records::name(&self.wire, usize::from(*at)))
    }

    pub(super) fn lifetime(&self) -> u32 {
        self.lifetime
    }

    /// Holds it no shorter than `least` and no longer than `most` seconds, and tells guests so: no record has a TTL outside
    /// these. What may not be held stays so. A denial is told to hold as long as it is held.
    pub(super) fn hold(&mut self, least: u32, most: u32) {
        let within = |ttl: u32| if ttl == 0 { 0 } else { ttl.max(least).min(most) };
        self.lifetime = within(self.lifetime);
        let most = if self.denial && self.lifetime > 0 { self.lifetime } else { most };
        let (ttls, _) = self.marks.split_at(self.marks.len() - usize::from(self.targets));
        for &at in ttls {
            let field = self.wire.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut::<4>);
            if let Some(field) = field {
                let ttl = held(u32::from_be_bytes(*field));
                // With TTL 0 beside it, it is not held, and told as it is.
                let told = if self.lifetime == 0 { ttl } else { within(ttl) };
                *field = told.min(most).to_be_bytes();
            }
        }
    }

    /// Whether it is `withheld`.
    pub(super) fn is_withheld(&self) -> bool {
        self.ede.is_some()
    }

    /// What a guest is told beside it.
    pub(super) fn ede(&self, age: Age) -> Option<Ede> {
        if age == Age::Stale { Some(Ede::StaleAnswer) } else { self.ede }
    }

    /// Seconds that its longest record is told to hold.
    pub(super) fn longest(&self) -> u32 {
        let ttl = |at: &u16| self.wire.get(usize::from(*at)..).and_then(<[u8]>::first_chunk::<4>);
        self.ttls().iter().filter_map(ttl).map(|ttl| held(u32::from_be_bytes(*ttl))).max().unwrap_or(0)
    }

    pub(super) fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// The message with the TTLs that are left after `age` seconds.
    pub(super) fn aged(&self, age: u32) -> Vec<u8> {
        let mut message = self.wire.to_vec();
        age_ttls(&mut message, self.ttls(), Age::Seconds(age));
        message
    }

    pub(super) fn rcode(&self) -> u16 {
        u16::from(self.wire[3]) & flag::RCODE
    }

    pub(super) fn is_positive(&self) -> bool {
        self.rcode() == NOERROR && self.wire[6..8] != [0, 0]
    }

    /// Whether the name itself does not exist, not only an alias' target (RFC 2308 section 2.1).
    pub(super) fn is_plain_nxdomain(&self) -> bool {
        self.rcode() == NXDOMAIN && self.wire[6..8] == [0, 0]
    }

    /// Every address that the answer section leads to.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let addresses =
            |(_, record): (_, records::Record)| records::addresses(record.rtype, record.rdata(&self.wire));
        self.answers().flat_map(addresses).collect()
    }

    /// The aliases of its answer section: name, TTL and target.
    pub(super) fn aliases(&self) -> impl Iterator<Item = (Name, u32, Name)> {
        let aliases = self.answers().filter(|(_, record)| record.rtype == qtype::CNAME);
        aliases.filter_map(|(at, record)| {
            let target = records::name(&self.wire, record.rdata_at)?;
            Some((records::name(&self.wire, at)?, record.ttl, target))
        })
    }

    /// The records of its answer section, each with where it stands.
    fn answers(&self) -> impl Iterator<Item = (usize, records::Record)> {
        let count = u16::from_be_bytes([self.wire[6], self.wire[7]]);
        let question = Name::read(&self.wire[HEADER..]).map_or(0, |name| name.as_wire().len() + 4);
        let mut next = HEADER + question;
        (0..count).map_while(move |_| {
            let (at, record) = (next, records::read(&self.wire, next)?);
            next = record.end;
            Some((at, record))
        })
    }

    /// What a name's not existing says of a name below it: that does not exist either (RFC 8020 section 2).
    pub(super) fn cut(&self, below: &Question, age: u32) -> Option<Self> {
        let mut message = Message::from_vec(&self.wire).ok()?;
        let name = rr::Name::from_labels(below.name.labels()).ok()?;
        message.queries = vec![UpstreamQuery::query(name, below.qtype.into())];
        for record in &mut message.authorities {
            record.ttl = record.ttl.saturating_sub(age);
        }
        let bytes = message.to_vec().ok()?;
        match read(&bytes, message.metadata.id, below) {
            Verdict::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    /// The same with the AD bit as validation found it.
    pub(super) fn authentic(mut self, secure: bool) -> Self {
        let ad = flag::AD as u8;
        self.wire[3] = if secure { self.wire[3] | ad } else { self.wire[3] & !ad };
        self
    }

    /// Bytes it holds in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.wire.len() + self.marks.len() * size_of::<u16>()
    }

    /// Writes the answer to `query`, which asks its question, into `out`; `message` is the guest's own.
    pub(super) fn write(&self, message: &[u8], query: &Query, age: Age, limit: usize, out: &mut Vec<u8>) {
        let question_end = HEADER + query.question_len();
        let fits =
            |opt: &Option<(_, usize)>| self.wire.len() + opt.as_ref().map_or(0, |(_, len)| *len) <= limit;
        let over_tcp = limit == usize::from(u16::MAX);
        let mut opt_record = query.edns.map(|edns| opt(&edns, self.ede(age)));
        if over_tcp && !fits(&opt_record) {
            // An answer without a cookie is one still (RFC 7873 section 5.3).
            opt_record = query.edns.map(|edns| opt(&Edns { cookie: None, ..edns }, None));
        }
        let whole = fits(&opt_record);
        let opt = opt_record.as_ref().map_or(&[][..], |(bytes, len)| &bytes[..*len]);

        out.clear();
        out.extend_from_slice(&self.wire[..HEADER]);
        // The name in the case the guest wrote it: some check that.
        out.extend_from_slice(&message[HEADER..question_end]);
        if whole {
            out.extend_from_slice(&self.wire[question_end..]);
            age_ttls(out, self.ttls(), age);
        } else {
            // RFC 2181 section 9: whoever sees TC asks again by TCP, so half an answer serves nobody.
            out[6..HEADER].fill(0);
        }
        let additional = u16::from_be_bytes([out[10], out[11]]).saturating_add(u16::from(!opt.is_empty()));
        out[10..HEADER].copy_from_slice(&additional.to_be_bytes());
        out.extend_from_slice(opt);
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        let flags = match self.flags(query, whole) {
            // By TCP there is nowhere else to ask.
            flags if over_tcp && !whole => flags & !(flag::TC | flag::RCODE | flag::AD) | SERVFAIL,
            flags => flags,
        };
        out[2..4].copy_from_slice(&flags.to_be_bytes());
    }

    /// From the upstream only AD and the rcode. AA is left out: the answer is not ours and may be from the cache.
    fn flags(&self, query: &Query, whole: bool) -> u16 {
        let upstream = u16::from_be_bytes([self.wire[2], self.wire[3]]);
        let ad = if query.wants_ad() { upstream & flag::AD } else { 0 };
        let tc = if whole { 0 } else { flag::TC };
        flag::QR | flag::RA | tc | ad | (query.flags & (flag::RD | flag::CD)) | (upstream & flag::RCODE)
    }
}

fn age_ttls(message: &mut [u8], ttl_at: &[u16], age: Age) {
    for &at in ttl_at {
        let at = usize::from(at);
        let Some(field) = message.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) else { continue };
        *field = ttl_now(u32::from_be_bytes(*field), age).to_be_bytes();
    }
}

/// What is left of a record's TTL.
pub(super) fn ttl_now(ttl: u32, age: Age) -> u32 {
    match age {
        Age::Seconds(age) => held(ttl).saturating_sub(age),
        Age::Stale => STALE_TTL,
    }
}

/// Our OPT record (RFC 6891 section 6.1.2), with an extended error if there is one (RFC 8914 section 2), and the cookie if
/// the guest sent one.
pub(super) fn opt(edns: &Edns, ede: Option<Ede>) -> ([u8; OPT_MOST], usize) {
    let mut bytes = [0; OPT_MOST];
    bytes[2] = qtype::OPT as u8;
    bytes[3..5].copy_from_slice(&UDP_PAYLOAD.to_be_bytes());
    bytes[7] = u8::from(edns.dnssec_ok) << 7;
    let mut len = 11;
    if let Some(ede) = ede {
        bytes[len + 1] = 15;
        bytes[len + 3] = 2;
        bytes[len + 4..len + 6].copy_from_slice(&ede.code().to_be_bytes());
        len += 6;
    }
    if let Some(cookie) = edns.cookie {
        bytes[len + 1] = COOKIE as u8;
        bytes[len + 3] = 24;
        bytes[len + 4..len + 12].copy_from_slice(&cookie.client);
        bytes[len + 12..len + 28].copy_from_slice(&cookie.server);
        len += 28;
    }
    // All options together are below 256 bytes.
    bytes[10] = (len - 11) as u8;
    (bytes, len)
}

#[cfg(test)]
mod tests;

//! PURE: our own answers as bytes: local data, refusals, failures. In: the guest's message and what to say. Out: a message
//! no longer than its transport takes. Requests are read and responses encoded by hickory; forwarded answers pass by in wire
//! form (`answer`).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;

use hickory_proto::op::{Edns, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;

use super::answer;
use super::name::Name;
use super::query::{self, COOKIE, HEADER, Query, Reject, flag};
use super::route::Refusal;
use super::zone;

/// The largest datagram we send and the size we tell: it passes every path unfragmented (RFC 9715 section 3.1).
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// What a datagram may hold for who sent no OPT record (RFC 1035 section 4.2.1).
const UDP_PLAIN: usize = 512;

/// How a guest asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// Bytes an answer to `query` may have.
    pub(super) fn limit(self, query: &Query) -> usize {
        match (self, query.edns) {
            (Self::Tcp, _) => usize::from(u16::MAX),
            (Self::Udp, None) => UDP_PLAIN,
            // RFC 6891 section 6.2.3: less than 512 means 512.
            (Self::Udp, Some(edns)) => usize::from(edns.payload.min(UDP_PAYLOAD)).max(UDP_PLAIN),
        }
    }
}

/// Extended DNS errors (RFC 8914 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ede {
    Other,
    StaleAnswer,
    ForgedAnswer,
    DnssecBogus,
    CachedError,
    Blocked,
    Filtered,
    Prohibited,
    NoReachableAuthority,
    NetworkError,
    InvalidQueryType,
}

impl Ede {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Other => 0,
            Self::StaleAnswer => 3,
            Self::ForgedAnswer => 4,
            Self::DnssecBogus => 6,
            Self::CachedError => 13,
            Self::Blocked => 15,
            Self::Filtered => 17,
            Self::Prohibited => 18,
            Self::NoReachableAuthority => 22,
            Self::NetworkError => 23,
            Self::InvalidQueryType => 30,
        }
    }
}

/// An answer that is only a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) rcode: ResponseCode,
    pub(super) ede: Option<Ede>,
}

impl Code {
    pub(super) fn failed(ede: Ede) -> Self {
        Self { rcode: ResponseCode::ServFail, ede: Some(ede) }
    }

    /// Who asks is not a guest of this network.
    pub(super) fn prohibited() -> Self {
        Self { rcode: ResponseCode::Refused, ede: Some(Ede::Prohibited) }
    }
}

impl From<Refusal> for Code {
    fn from(refusal: Refusal) -> Self {
        let (rcode, ede) = match refusal {
            Refusal::EdnsVersion => (ResponseCode::BADVERS, None),
            Refusal::Class | Refusal::NoRecursion => (ResponseCode::Refused, None),
            Refusal::Transfer => (ResponseCode::Refused, Some(Ede::Prohibited)),
            Refusal::MetaType => (ResponseCode::FormErr, Some(Ede::InvalidQueryType)),
        };
        Self { rcode, ede }
    }
}

impl From<Code> for zone::Answer {
    fn from(code: Code) -> Self {
        Self { rcode: code.rcode, ..Self::empty() }
    }
}

/// A header and nothing else, to a message whose question could not be read. `None` where silence is the answer.
pub(super) fn reject(message: &[u8], reject: Reject) -> Option<Vec<u8>> {
    let rcode = match reject {
        Reject::Silent => return None,
        Reject::FormErr => ResponseCode::FormErr,
        Reject::NotImp => ResponseCode::NotImp,
        Reject::CookieOnly(edns) => return Some(cookie_only(message, &edns)),
    };
    let [id_high, id_low, flags, ..] = *message else { return None };
    let op_code = OpCode::from_u8(flags >> 3 & 0xf);
    let mut reply = Message::error_msg(u16::from_be_bytes([id_high, id_low]), op_code, rcode);
    reply.metadata.recursion_desired = flags & 1 != 0;
    reply.metadata.recursion_available = true;
    reply.to_vec().ok()
}

/// Whether an answer's rcode has upper bits, which are in the OPT record (RFC 6891 section 6.1.3): only an answer that is nothing
/// but a code can.
pub(super) fn is_extended(answer: &[u8]) -> bool {
    if answer.get(6..HEADER) != Some(&[0, 0, 0, 0, 0, 1]) {
        return false;
    }
    let question = if answer[5] == 0 { Some(0) } else { question_len(answer) };
    question.and_then(|len| answer.get(HEADER + len + 5)).is_some_and(|upper| *upper != 0)
}

fn question_len(message: &[u8]) -> Option<usize> {
    Name::read(&message[HEADER..]).map(|name| name.as_wire().len() + 4)
}

/// The answer to a query without a question: the cookie, and whether the server's part that came with it is still ours (RFC 7873
/// section 5.4).
fn cookie_only(message: &[u8], edns: &query::Edns) -> Vec<u8> {
    let rcode = match edns.cookie {
        _ if edns.version != 0 => ResponseCode::BADVERS,
        Some(cookie) if cookie.is_bad() => ResponseCode::BADCOOKIE,
        _ => ResponseCode::NoError,
    };
    let rcode = u16::from(rcode);
    let (mut opt, len) = answer::opt(edns, None);
    // The upper bits of the rcode (RFC 6891 section 6.1.3).
    opt[5] = (rcode >> 4) as u8;
    let rd = message.get(2).map_or(0, |flags| u16::from(flags & 1) << 8);
    let words = [flag::QR | flag::RA | rd | (rcode & flag::RCODE), 0, 0, 0, 1];
    let mut bytes = message[..2].to_vec();
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    bytes.extend_from_slice(&opt[..len]);
    bytes
}

/// `code` with the question, and an OPT record if the guest sent one.
pub(super) fn code(
    message: &[u8],
    query: &Query,
    from: SocketAddr,
    how: Transport,
    code: Code,
) -> Option<Vec<u8>> {
    encode(message, query, from, how, &code.into(), code.ede, false)
}

/// An answer of our own zone or of a special name: authoritative.
pub(super) fn local(
    message: &[u8],
    query: &Query,
    from: SocketAddr,
    how: Transport,
    answer: &zone::Answer,
) -> Option<Vec<u8>> {
    encode(message, query, from, how, answer, answer.ede, true)
}

fn encode(
    message: &[u8],
    query: &Query,
    from: SocketAddr,
    how: Transport,
    answer: &zone::Answer,
    ede: Option<Ede>,
    authoritative: bool,
) -> Option<Vec<u8>> {
    let protocol = if how == Transport::Udp { Protocol::Udp } else { Protocol::Tcp };
    // Only what decides the answer: `Query` has read the rest, and hickory could refuse some of it.
    let mut asked = message.get(..HEADER + query.question_len())?.to_vec();
    asked[6..HEADER].fill(0);
    let Ok(request) = Request::from_bytes(asked, from, protocol) else {
        return reject(message, Reject::FormErr);
    };
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = answer.rcode;
    metadata.authoritative = authoritative;
    metadata.recursion_available = true;
    let edns = query.edns.map(|_| edns(query, ede));
    let emit = |answers: &[Record], authority: &[Record]| {
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = response.build(metadata, answers, authority, [], []);
        let mut bytes = Vec::with_capacity(256);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::try_from(how.limit(query)).unwrap_or(u16::MAX));
        response.destructive_emit(&mut encoder).ok()?;
        Some(bytes)
    };
    let bytes = emit(&answer.answers, &answer.authority)?;
    let truncated = (flag::TC >> 8) as u8;
    if bytes[2] & truncated == 0 {
        return Some(bytes);
    }
    // What hickory leaves of a record that does not fit are bytes that nothing counts.
    let mut bytes = emit(&[], &[])?;
    bytes[2] |= truncated;
    Some(bytes)
}

fn edns(query: &Query, ede: Option<Ede>) -> Edns {
    let mut edns = Edns::new();
    // RFC 3225 section 3: DO is copied.
    edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(query.dnssec_ok());
    if let Some(ede) = ede {
        edns.options_mut().insert(EdnsOption::Unknown(15, ede.code().to_be_bytes().to_vec()));
    }
    if let Some(cookie) = query.edns.and_then(|edns| edns.cookie) {
        edns.options_mut().insert(EdnsOption::Unknown(COOKIE, [&cookie.client[..], &cookie.server].concat()));
    }
    edns
}

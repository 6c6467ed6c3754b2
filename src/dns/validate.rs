//! DNSSEC validation, for a network that asks for it: hickory walks the chain of trust, and asks for keys as guests' questions
//! are asked for. In: a question. Out: the upstream's answer with AD as found, without signatures for who did not ask for
//! them; or that it is bogus.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{Stream, StreamExt, once};
use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::{DnsHandle, NetError};
use hickory_proto::dnssec::{Proof, TrustAnchors};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message, Query, ResponseCode};
use hickory_proto::rr::{self, RecordType};
use hickory_proto::serialize::txt::trust_anchor::{Entry, Parser};
use tokio::time::timeout;

use super::answer::{self, Age, Answer, Question, Verdict};
use super::cache::{Cache, Held, Key};
use super::forward::{BUDGET, Failure, Forwarder};
use super::name::Name;
use super::query::qtype;

/// Chains longer than this are none: a name has that many zones above it at most in practice.
const DEPTH: usize = 26;
/// Bytes of keys, delegations and proofs that are held beside the guests' cache: each answer's chain of trust needs the same
/// few again.
const CHAINS: usize = 2 << 20;

#[derive(Debug, thiserror::Error)]
#[error("cannot read trust_anchor {}: {detail}", path.display())]
pub struct AnchorError {
    path: PathBuf,
    detail: String,
}

impl AnchorError {
    pub(super) fn new(path: &Path, problem: &impl ToString) -> Self {
        Self { path: path.to_owned(), detail: problem.to_string() }
    }
}

#[derive(Clone)]
pub(super) struct Validator {
    handle: DnssecDnsHandle<Upstreams>,
    upstreams: Upstreams,
    /// Names below which answers are validated from keys of their own, the root aside.
    anchors: Arc<[Name]>,
}

/// The forwarder as hickory's validator sees it, with what chains of trust are made of.
#[derive(Clone)]
struct Upstreams {
    forwarder: Arc<Forwarder>,
    chains: Arc<Cache>,
}

impl Validator {
    pub(super) fn new(forwarder: Arc<Forwarder>, anchor: Option<&Path>) -> Result<Self, AnchorError> {
        let upstreams = Upstreams { forwarder, chains: Arc::new(Cache::new(CHAINS)) };
        let Some(path) = anchor else {
            let handle = DnssecDnsHandle::new(upstreams.clone());
            return Ok(Self { handle, upstreams, anchors: [].into() });
        };
        let text = super::file::read_text(path).map_err(|error| AnchorError::new(path, &error))?;
        let refused = |error| AnchorError::new(path, &error);
        let keys = text.parse::<TrustAnchors>().map_err(refused)?;
        let entries = Parser::new(&text).parse().map_err(refused)?;
        let names = entries.iter().filter_map(|entry| match entry {
            Entry::DNSKEY(key) => Name::from_labels(key.name().iter()),
            _ => None,
        });
        let anchors = names.filter(|name| *name != Name::root()).collect();
        let handle = DnssecDnsHandle::with_trust_anchor(upstreams.clone(), Arc::new(keys));
        Ok(Self { handle, upstreams, anchors })
    }

    /// Whether the answer is judged: not for who wants to judge for itself, nor of a suffix with upstreams of its own. That is
    /// a private zone, most likely, which the world's signatures deny or know nothing of (a negative trust anchor, RFC 7646),
    /// unless there is a key for it.
    pub(super) fn judges(&self, question: &Question) -> bool {
        let forwarder = &self.upstreams.forwarder;
        let domain = forwarder.domain(&question.name);
        let anchored = || self.anchors.iter().any(|anchor| anchor.is_in(domain) || domain.is_in(anchor));
        !question.checking_disabled && (!forwarder.is_conditional(&question.name) || anchored())
    }

    /// Forgets what chains of trust of `name` and all below it were made of.
    pub(super) fn flush(&self, name: &Name) {
        self.upstreams.chains.flush(name);
    }

    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let name = rr::Name::from_labels(question.name.labels()).map_err(|_| Failure::Unable)?;
        let mut options = DnsRequestOptions::default();
        (options.use_edns, options.edns_set_dnssec_ok, options.max_request_depth) = (true, true, DEPTH);
        let query = Query::query(name, question.qtype.into());
        let mut responses = self.handle.lookup(query, options);
        let response = timeout(BUDGET, responses.next()).await.map_err(|_| Failure::Silence)?;
        let (message, secure) = match response {
            Some(Ok(response)) => judge(response.into_message())?,
            // Denials that hickory could not prove come as an error with the message in it.
            Some(Err(NetError::Dns(hickory_net::DnsError::Nsec { response, proof, .. }))) => {
                if proof == Proof::Bogus {
                    return Err(Failure::Bogus);
                }
                (response.into_message(), false)
            }
            Some(Err(error)) => return Err(failure(&error)),
            None => return Err(Failure::Silence),
        };
        write(message, question, secure).ok_or(Failure::Unable)
    }
}

/// Whether all of it is proven. Bogus is none of it.
fn judge(message: Message) -> Result<(Message, bool), Failure> {
    let judged = message.answers.iter().chain(&message.authorities);
    let mut proofs =
        judged.filter(|record| record.record_type() != RecordType::RRSIG).map(|record| record.proof);
    if proofs.clone().any(|proof| proof == Proof::Bogus) {
        return Err(Failure::Bogus);
    }
    let some = !message.answers.is_empty() || !message.authorities.is_empty();
    let secure = some && proofs.all(|proof| proof == Proof::Secure);
    Ok((message, secure))
}

/// The message as the guests' cache keeps it.
fn write(mut message: Message, question: &Question, secure: bool) -> Option<Answer> {
    if !question.dnssec_ok {
        // RFC 4035 section 3.2.1: signatures and proofs are for who set DO, unless they were asked for.
        let asked = RecordType::from(question.qtype);
        let proof = |rtype: RecordType| {
            rtype != asked && matches!(rtype, RecordType::RRSIG | RecordType::NSEC | RecordType::NSEC3)
        };
        message.answers.retain(|record| !proof(record.record_type()));
        message.authorities.retain(|record| !proof(record.record_type()));
        message.additionals.retain(|record| !proof(record.record_type()));
    }
    message.edns = None;
    let bytes = message.to_vec().ok()?;
    match answer::read(&bytes, message.metadata.id, question) {
        Verdict::Answer(answer) => Some(answer.authentic(secure)),
        _ => None,
    }
}

fn failure(error: &NetError) -> Failure {
    match error {
        NetError::Timeout => Failure::Silence,
        NetError::Io(io) if io.kind() == io::ErrorKind::TimedOut => Failure::Silence,
        NetError::Dns(_) => Failure::Bogus,
        _ => Failure::Unable,
    }
}

impl DnsHandle for Upstreams {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let Self { forwarder, chains } = self.clone();
        Box::pin(once(async move {
            let query =
                request.queries.first().ok_or_else(|| NetError::from("a request without a question"))?;
            let name = Name::from_labels(query.name().iter())
                .ok_or_else(|| NetError::from("a name that does not fit"))?;
            let question = Question {
                name,
                qtype: query.query_type().into(),
                dnssec_ok: true,
                // The upstream is not to withhold what we want to judge ourselves.
                checking_disabled: true,
            };
            let key = Key::of(&question);
            let of_chain = matches!(question.qtype, qtype::NS | qtype::DS | qtype::DNSKEY);
            if of_chain
                && let Some(Held::Fresh { answer, age: Age::Seconds(age), .. }) =
                    chains.get(&key, Instant::now())
            {
                return DnsResponse::from_buffer(answer.aged(age)).map_err(NetError::from);
            }
            match forwarder.ask(&question, None).await {
                Ok(answer) => {
                    let answer = Arc::new(answer);
                    if of_chain {
                        chains.put(&key, answer.clone(), Instant::now());
                    }
                    DnsResponse::from_buffer(answer.as_wire().to_vec()).map_err(NetError::from)
                }
                Err(Failure::Silence) => Err(NetError::Timeout),
                Err(_) => Err(NetError::from(io::Error::other(ResponseCode::ServFail.to_string()))),
            }
        }))
    }
}

//! DNSSEC validation, for a network that asks for it: hickory walks the chain of trust, and asks for keys as guests' questions
//! are asked for. In: a question. Out: the upstream's answer with AD as found, without signatures for who did not ask for
//! them; or that it is bogus.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_util::stream::{Stream, StreamExt, once};
use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::{DnsHandle, NetError};
use hickory_proto::dnssec::{Proof, TrustAnchors};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message, Query, ResponseCode};
use hickory_proto::rr::{self, RData, Record, RecordType};
use hickory_proto::serialize::txt::trust_anchor::{Entry, Parser};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{self, Age, Answer, Question, Verdict};
use super::cache::{Cache, Held, Key};
use super::forward::{BUDGET, Failure, Forwarder};
use super::judge::{Judged, bound, judge, signature, target};
use super::name::Name;
use super::query::qtype;

/// Chains longer than this are none: a name has that many zones above it at most in practice.
const DEPTH: usize = 26;
/// Bytes of keys, delegations and proofs that are held beside the guests' cache: each answer's chain of trust needs the same
/// few again.
const CHAINS: usize = 2 << 20;
/// Seconds. None of that is held longer, whatever its TTL: it is held before anybody has looked whether it is right.
const CHAINS_FOR: u32 = 3_600;
/// Seconds. A bogus name has what its chain is made of asked for again, up to the root, of which every other name's chain is made too:
/// not what has been asked for within this. Else a flood of names of one broken zone would have everybody wait for keys.
const ANEW_AFTER: u32 = 2;
/// Of what a chain of trust is made.
const OF_CHAINS: [u16; 3] = [qtype::NS, qtype::DS, qtype::DNSKEY];
/// RRsets whose proofs hickory holds, beside that: by default a million, some 200 MB. A test fills it.
const PROOFS: usize = if cfg!(test) { 64 } else { 4_096 };
/// Questions upstream for one of a guest's: the labels of the longest IPv6 reverse name and the zones above it take some 50.
const LOOKUPS: usize = 128;
/// Aliases that are followed where an upstream does not (as unbound's `MAX_RESTART_COUNT`).
pub(super) const ALIASES: usize = 11;

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
    handle: Arc<ArcSwap<Handle>>,
    upstreams: Upstreams,
    /// Names below which answers are validated from keys of their own, the root aside.
    anchors: Arc<[Name]>,
}

type Handle = DnssecDnsHandle<Upstreams>;

tokio::task_local! {
    /// Of the guest's question that is being validated: hickory passes nothing of ours on to its own.
    static SPENT: Arc<Spent>;
}

/// What a question has used of what it may ask upstream.
struct Spent {
    /// One is asked after the other.
    turn: Semaphore,
    asked: AtomicUsize,
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
        let (keys, anchors) = match anchor {
            None => (TrustAnchors::default(), vec![]),
            Some(path) => read_anchors(path)?,
        };
        let handle = DnssecDnsHandle::with_trust_anchor(upstreams.clone(), Arc::new(keys));
        let handle = Arc::new(ArcSwap::from_pointee(handle.validation_cache_size(PROOFS)));
        Ok(Self { handle, upstreams, anchors: anchors.into() })
    }

    /// Whether the answer is judged: not for who wants to judge for itself, nor of a suffix with upstreams of its own. That is
    /// a private zone, most likely, which the world's signatures deny or know nothing of (a negative trust anchor, RFC 7646),
    /// unless there is a key for the name.
    pub(super) fn judges(&self, question: &Question) -> bool {
        let side = question.side();
        let anchored = || self.anchors.iter().any(|anchor| side.is_in(anchor));
        !question.checking_disabled && (!self.upstreams.forwarder.is_conditional(&side) || anchored())
    }

    /// Forgets what chains of trust of `name` and all below it were made of, and what was found of any.
    pub(super) fn flush(&self, name: &Name) {
        self.upstreams.chains.flush(name);
        self.upstreams.forget_chain(name, 0);
        self.handle.store(Arc::new(anew(&self.handle.load())));
    }

    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let spent = Arc::new(Spent { turn: Semaphore::new(1), asked: AtomicUsize::new(0) });
        let asked = SPENT.scope(spent, self.ask_twice(question));
        timeout(BUDGET, asked).await.map_err(|_| Failure::Silence)?
    }

    /// What is held of a chain may be what is wrong: then it is asked for once more.
    async fn ask_twice(&self, question: &Question) -> Result<Answer, Failure> {
        let handle = self.handle.load_full();
        match self.follow(&handle, question).await {
            Err(Failure::Bogus) => {}
            outcome => return outcome,
        }
        let anew = anew(&handle);
        let outcome = self.follow(&anew, question).await;
        if outcome.is_ok() {
            self.handle.store(Arc::new(anew));
        }
        outcome.map_err(|_| Failure::Bogus)
    }

    /// The answer, with what aliases lead to asked for where the upstream's message does not prove it.
    async fn follow(&self, handle: &Handle, question: &Question) -> Result<Answer, Failure> {
        let asked = RecordType::from(question.qtype);
        let first = rr::Name::from_labels(question.name.labels()).map_err(|_| Failure::Unable)?;
        let (mut name, mut proven) = (first.clone(), true);
        let (mut links, mut proofs) = (vec![], vec![]);
        for _ in 0..ALIASES {
            if let Judged::Whole(mut message, secure) = self.look_up(handle, &name, asked).await? {
                message.queries = vec![Query::query(first, asked)];
                message.answers.splice(0..0, links);
                message.authorities.splice(0..0, proofs);
                return write(*message, question, proven && secure).ok_or(Failure::Unable);
            }
            let Judged::Whole(link, secure) = self.look_up(handle, &name, RecordType::CNAME).await? else {
                return Err(Failure::Bogus);
            };
            // There it is none: they do not agree.
            name = link.answers.iter().find_map(target).ok_or(Failure::Bogus)?.clone();
            proven &= secure;
            links.extend(link.answers);
            proofs.extend(link.authorities.into_iter().filter(is_proof));
        }
        Err(Failure::Unable)
    }

    async fn look_up(&self, handle: &Handle, name: &rr::Name, asked: RecordType) -> Result<Judged, Failure> {
        let mut options = DnsRequestOptions::default();
        (options.use_edns, options.edns_set_dnssec_ok, options.max_request_depth) = (true, true, DEPTH);
        let mut responses = handle.lookup(Query::query(name.clone(), asked), options);
        let response = responses.next().await.ok_or(Failure::Silence)?;
        let (message, proof) = match response {
            Ok(response) => (response.into_message(), Proof::Secure),
            // Denials that hickory could not prove come as an error with the message in it.
            Err(NetError::Dns(hickory_net::DnsError::Nsec { response, proof, .. })) => {
                (response.into_message(), proof)
            }
            Err(error) => {
                let failure = failure(&error);
                if failure == Failure::Bogus {
                    self.upstreams.forget_chains([name]);
                }
                return Err(failure);
            }
        };
        let owners: Vec<_> = message.answers.iter().map(|record| record.name.clone()).collect();
        judge(message, name, asked, proof).ok_or_else(|| {
            self.upstreams.forget_chains(owners.iter().chain([name]));
            Failure::Bogus
        })
    }
}

/// The same, with nothing found yet.
fn anew(handle: &Handle) -> Handle {
    handle.clone().validation_cache_size(PROOFS)
}

/// The keys, and names below which answers are validated from keys of their own, the root aside.
fn read_anchors(path: &Path) -> Result<(TrustAnchors, Vec<Name>), AnchorError> {
    let text = super::file::read_text(path).map_err(|error| AnchorError::new(path, &error))?;
    let refused = |error| AnchorError::new(path, &error);
    let keys = text.parse::<TrustAnchors>().map_err(refused)?;
    let entries = Parser::new(&text).parse().map_err(refused)?;
    let names = entries.iter().filter_map(|entry| match entry {
        Entry::DNSKEY(key) => Name::from_labels(key.name().iter()),
        _ => None,
    });
    Ok((keys, names.filter(|name| *name != Name::root()).collect()))
}

/// Whether it says that there is nothing closer than a wildcard, or signs what does.
fn is_proof(record: &Record) -> bool {
    let rtype = signature(record).map_or(record.record_type(), |signature| signature.input().type_covered);
    matches!(rtype, RecordType::NSEC | RecordType::NSEC3)
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

impl Upstreams {
    /// Forgets what the chain of trust of `name` is made of, as far as it has been held for so many seconds.
    fn forget_chain(&self, name: &Name, held_for: u32) {
        for count in 0..=name.labels().count() {
            let zone = name.parent(count);
            for qtype in OF_CHAINS {
                let key = Key::of(&of_chain(zone, qtype));
                let held = self.chains.peek(&key, Instant::now());
                let young = |age| matches!(age, Age::Seconds(age) if age < held_for);
                if !matches!(held, Some(Held::Fresh { age, .. }) if young(age)) {
                    self.chains.forget(&key);
                }
            }
        }
    }

    /// The same for names that have come out bogus.
    fn forget_chains<'a>(&self, names: impl IntoIterator<Item = &'a rr::Name>) {
        for name in names.into_iter().filter_map(|name| Name::from_labels(name.iter())) {
            self.forget_chain(&name, ANEW_AFTER);
        }
    }

    async fn exchange(&self, query: &Query) -> Result<DnsResponse, NetError> {
        let name = Name::from_labels(query.name().iter())
            .ok_or_else(|| NetError::from("a name that does not fit"))?;
        let question = of_chain(name, query.query_type().into());
        let (key, is_of_chain) = (Key::of(&question), OF_CHAINS.contains(&question.qtype));
        if is_of_chain
            && let Some(Held::Fresh { answer, age: Age::Seconds(age), .. }) =
                self.chains.get(&key, Instant::now())
        {
            return bounded(&answer.aged(age));
        }
        let spent = SPENT.try_with(Arc::clone).map_err(|_| NetError::from("nobody's question"))?;
        let _turn = spent.turn.acquire().await.map_err(|_| NetError::from("no turn"))?;
        if spent.asked.fetch_add(1, Relaxed) >= LOOKUPS {
            return Err(NetError::from(io::Error::other("it takes too many questions")));
        }
        let mut answer = match self.forwarder.ask(&question, None).await {
            Ok(answer) => answer,
            Err(Failure::Silence) => return Err(NetError::Timeout),
            Err(_) => return Err(NetError::from(io::Error::other(ResponseCode::ServFail.to_string()))),
        };
        let response = bounded(answer.as_wire())?;
        if is_of_chain {
            answer.hold(0, CHAINS_FOR);
            self.chains.put(&key, Arc::new(answer), Instant::now());
        }
        Ok(response)
    }
}

fn bounded(bytes: &[u8]) -> Result<DnsResponse, NetError> {
    let mut message = Message::from_vec(bytes).map_err(NetError::from)?;
    canonical(&mut message);
    if bound(&mut message) {
        DnsResponse::from_message(message).map_err(NetError::from)
    } else {
        Err(NetError::from(io::Error::other("it has too many RRsets or signatures")))
    }
}

/// Brings DNAMEs into the form that is signed (RFC 4034 section 6.2): hickory knows of no name in them. No length of a label is a letter.
fn canonical(message: &mut Message) {
    for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
        if let RData::Unknown { code: RecordType::DNAME, rdata } = &mut record.data {
            rdata.anything.make_ascii_lowercase();
        }
    }
}

/// A question of the validator's own.
fn of_chain(name: Name, qtype: u16) -> Question {
    // The upstream is not to withhold what we want to judge ourselves.
    Question { name, qtype, dnssec_ok: true, checking_disabled: true }
}

impl DnsHandle for Upstreams {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let upstreams = self.clone();
        Box::pin(once(async move {
            let query =
                request.queries.first().ok_or_else(|| NetError::from("a request without a question"))?;
            upstreams.exchange(query).await
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{NS, NULL};

    use super::super::server::{DnsEndpoints, resolver};
    use super::*;
    use crate::config::Config;
    use crate::registry::Registry;

    fn validator() -> Validator {
        validator_of(Arc::default())
    }

    /// A validator whose upstream, on loopback, gives every question a record that holds for a day, and counts what it is asked.
    fn validator_of(asked_of_it: Arc<AtomicUsize>) -> Validator {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = upstream.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1_024];
            while let Ok((length, from)) = upstream.recv_from(&mut buffer) {
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                asked_of_it.fetch_add(1, Relaxed);
                let mut answer = Message::response(asked.metadata.id, OpCode::Query);
                let question = asked.queries[0].clone();
                let data = match question.query_type() {
                    RecordType::A => RData::A(std::net::Ipv4Addr::new(198, 51, 100, 10).into()),
                    RecordType::NS => RData::NS(NS(question.name().clone())),
                    // Flags, protocol and algorithm of a key, or tag, algorithm and digest type; then 64 bytes.
                    code => {
                        RData::Unknown { code, rdata: NULL::with([&[1, 1, 3, 8][..], &[7; 64]].concat()) }
                    }
                };
                answer.add_answer(Record::from_rdata(question.name().clone(), 86_400, data));
                answer.add_query(question);
                upstream.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        });
        let text = format!("[[network]]\ndns_servers = [\"{address}\"]\n[network.resolver]\ndnssec = true\n");
        let network = Config::from_parts(Some(&text), |_| None).unwrap().networks[0].clone();
        let resolver = resolver(network.clone(), Registry::default(), &DnsEndpoints::of(&network)).unwrap();
        let setup = resolver.setup.load_full();
        setup.validator.clone().unwrap()
    }

    async fn ask_for(validator: &Validator, name: &str, rtype: RecordType) {
        let query = Query::query(rr::Name::from_ascii(name).unwrap(), rtype);
        let spent = Arc::new(Spent { turn: Semaphore::new(1), asked: AtomicUsize::new(0) });
        SPENT.scope(spent, validator.upstreams.exchange(&query)).await.unwrap();
    }

    #[tokio::test]
    async fn what_chains_are_made_of_is_held_for_an_hour_and_nothing_else_is() {
        let validator = validator();
        let held = |qtype, after| {
            let question = of_chain(Name::from_text("example.com").unwrap(), qtype);
            let at = Instant::now() + Duration::from_secs(after);
            matches!(validator.upstreams.chains.get(&Key::of(&question), at), Some(Held::Fresh { .. }))
        };
        for qtype in OF_CHAINS {
            ask_for(&validator, "example.com.", qtype.into()).await;
            // Its TTL is a day. With a minute for the test itself.
            let hour = u64::from(CHAINS_FOR);
            assert_eq!((held(qtype, hour - 60), held(qtype, hour + 1)), (true, false), "{qtype}");
        }
        ask_for(&validator, "example.com.", RecordType::A).await;
        assert!(!held(RecordType::A.into(), 0));
    }

    #[tokio::test]
    async fn what_chains_are_made_of_never_takes_more_than_its_bytes() {
        let validator = validator();
        let held = || validator.upstreams.chains.usage();
        let mut asked = 0;
        // Twice as many as have room.
        while asked == 0 || held().entries * 2 > asked {
            ask_for(&validator, &format!("n{asked}.example.com."), RecordType::DS).await;
            asked += 1;
            assert!(held().bytes <= CHAINS as u64, "{:?}", held());
        }
        assert!(asked > 1_000 && held().bytes > CHAINS as u64 / 2, "{asked} {:?}", held());
    }

    /// What a name's chain of trust is made of is asked for again only where nothing is held of what was found by it.
    #[tokio::test]
    async fn what_was_found_of_a_name_goes_when_as_much_as_is_held_was_found_of_others() {
        let asked = Arc::new(AtomicUsize::new(0));
        let validator = validator_of(asked.clone());
        let questions = async |name: &str| {
            validator.upstreams.chains.flush(&Name::root());
            let before = asked.load(Relaxed);
            let name = rr::Name::from_ascii(name).unwrap();
            let spent = Arc::new(Spent { turn: Semaphore::new(1), asked: AtomicUsize::new(0) });
            let handle = validator.handle.load_full();
            let _ = SPENT.scope(spent, validator.look_up(&handle, &name, RecordType::A)).await;
            asked.load(Relaxed) - before
        };
        // As it is made, and as it is after a flush.
        for _ in 0..2 {
            let first = questions("first.example.com.").await;
            assert_eq!((first > 1, questions("first.example.com.").await), (true, 1));
            for n in 0..PROOFS {
                questions(&format!("other{n}.example.com.")).await;
            }
            assert_eq!(questions("first.example.com.").await, first);
            validator.flush(&Name::root());
        }
    }

    #[test]
    fn a_dname_is_verified_in_small_letters_and_nothing_else_is_changed() {
        let mut message = Message::response(7, OpCode::Query);
        let owner = rr::Name::from_ascii("Old.example.").unwrap();
        for code in [RecordType::DNAME, RecordType::Unknown(65_280)] {
            let rdata = NULL::with(b"\x03NeW\x07Example\0".to_vec());
            message.add_answer(Record::from_rdata(owner.clone(), 60, RData::Unknown { code, rdata }));
        }
        let bounded = bounded(&message.to_vec().unwrap()).unwrap();
        let data = |n: usize| match &bounded.answers[n].data {
            RData::Unknown { rdata, .. } => rdata.anything.to_vec(),
            other => panic!("{other}"),
        };
        assert_eq!(data(0), b"\x03new\x07example\0");
        assert_eq!(data(1), b"\x03NeW\x07Example\0");
    }

    #[test]
    fn a_bogus_name_has_nothing_asked_for_again_that_was_asked_for_just_now() {
        let validator = validator();
        let chains = &validator.upstreams.chains;
        let names = ["", "example", "broken.example"].map(|name| Name::from_text(name).unwrap());
        let held = |name: &Name| {
            let question = of_chain(*name, qtype::DNSKEY);
            chains.peek(&Key::of(&question), Instant::now()).is_some()
        };
        let bogus = rr::Name::from_ascii("n1.broken.example.").unwrap();
        for (before, stays) in [(0, true), (3, false)] {
            for name in &names {
                let question = of_chain(*name, qtype::DNSKEY);
                let answer = Arc::new(Answer::withheld(&question, super::super::reply::Ede::Other, 60));
                chains.put(&Key::of(&question), answer, Instant::now() - Duration::from_secs(before));
            }
            validator.upstreams.forget_chains([&bogus]);
            assert_eq!(names.each_ref().map(held), [stays; 3], "{before}");
        }
    }

    #[test]
    fn what_chains_are_made_of_goes_with_a_flush_of_what_they_lead_to() {
        let validator = validator();
        let name = |text: &str| Name::from_text(text).unwrap();
        let held = |name: &Name, qtype| {
            let question = of_chain(*name, qtype);
            let chains = &validator.upstreams.chains;
            let held = chains.get(&Key::of(&question), Instant::now()).is_some();
            chains.put(
                &Key::of(&question),
                Arc::new(Answer::withheld(&question, super::super::reply::Ede::Other, 60)),
                Instant::now(),
            );
            held
        };
        let all = || {
            let zones = ["", "com", "example.com", "www.example.com", "other.com"].map(name);
            zones.iter().flat_map(|zone| OF_CHAINS.map(|qtype| held(zone, qtype))).collect::<Vec<_>>()
        };
        all();
        assert_eq!(all(), [true; 15]);
        validator.flush(&name("www.example.com"));
        assert_eq!(all(), [[false; 12].as_slice(), &[true; 3]].concat());
    }
}

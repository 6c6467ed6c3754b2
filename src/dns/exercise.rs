//! The whole way of a query and of an upstream's answer, bytes to bytes, for fuzzers and the replay of their corpus. In: any
//! bytes. Out: nothing, or a panic that says which promise about answers was broken. Nothing is sent anywhere.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "for fuzzers and tests only")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hickory_proto::op::Message;
use tokio::runtime::{Builder, Runtime};

use super::DnsEndpoints;
use super::answer::{self, Age, Answer, Question, Verdict};
use super::cache::Key;
use super::name::Name;
use super::query::{CLASS_IN, HEADER, Query, Reject, flag, qtype};
use super::records;
use super::reply::{Ede, Transport};
use super::resolve::{Resolver, Step};
use super::server::resolver;
use crate::config::Config;
use crate::registry::Registry;

/// One network with some of everything that decides an answer.
const NETWORK: &str = r#"
[[network]]
dns_servers = ["192.0.2.1"]
[network.resolver]
cache_mib = 1
zones = ["corp"]
[[network.resolver.record]]
name = "db"
type = "A"
value = "10.9.0.1"
[[network.resolver.record]]
name = "*.apps"
type = "CNAME"
value = "db.vm.internal"
[[network.resolver.record]]
name = "out"
type = "CNAME"
value = "www.example.com"
[[network.resolver.rule]]
name = "ads"
names = ["ads.example"]
[[network.resolver.forward]]
domain = "lab.example"
servers = ["192.0.2.2"]
"#;

fn fixture() -> &'static (Runtime, Arc<Resolver>) {
    static FIXTURE: OnceLock<(Runtime, Arc<Resolver>)> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let network = Config::from_parts(Some(NETWORK), |_| None).unwrap().networks[0].clone();
        let endpoints = DnsEndpoints::of(&network);
        let resolver = resolver(network, Registry::default(), &endpoints).unwrap();
        (runtime, Arc::new(resolver))
    })
}

const GUEST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 100, 0, 7)), 40_000);

/// A guest's message by UDP and by TCP; what has to be asked upstream is answered in each of three ways. Panics when an
/// answer is not whole.
pub fn exercise_query(message: &[u8]) {
    let (_, resolver) = fixture();
    for how in [Transport::Udp, Transport::Tcp] {
        for outcome in [some_answer, no_such_name, failed] {
            resolver.cache.flush(&Name::root());
            let asked = serve(message, how, outcome);
            // From the cache, if it may be held.
            let again = serve(message, how, outcome);
            assert_eq!(asked.is_empty(), again.is_empty());
        }
    }
}

/// What an upstream sent for the question that it repeats. The first byte says how it was asked.
pub fn exercise_answer(bytes: &[u8]) {
    let Some((how, message)) = bytes.split_first() else { return };
    let (_, resolver) = fixture();
    resolver.cache.flush(&Name::root());
    let question = question(message, *how).unwrap_or_else(|| Question {
        name: Name::from_text("www.example.com").unwrap(),
        qtype: 1,
        dnssec_ok: false,
        checking_disabled: false,
    });
    let id = message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    let Verdict::Answer(read) = answer::read(message, id, &question) else { return };
    let kept = resolver.keep(&resolver.setup.load_full(), &question, &Key::of(&question), read);
    let transport = if how & 4 == 0 { Transport::Udp } else { Transport::Tcp };
    let size = u16::from(*how) << 8;
    let query = ask(&question, (how & 8 == 0).then_some(size));
    let answered = serve(&query, transport, |_| Ok(kept.clone()));
    let parsed = Query::parse(&query).unwrap();
    for age in [Age::Seconds(0), Age::Seconds(86_400), Age::Stale] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut out = vec![];
            kept.write(&query, &parsed, age, transport.limit(&parsed), &mut out);
            check(&query, &parsed, transport, &out);
            same_records(kept.as_wire(), &out);
        }
    }
    if kept.is_plain_nxdomain() && answered[3] & 0xf == 3 {
        let labels = [&b"below"[..]].into_iter().chain(question.name.labels());
        if let Some(name) = Name::from_labels(labels) {
            serve(&ask(&Question { name, ..question }, None), transport, failed);
        }
    }
}

/// The question that a message repeats.
fn question(message: &[u8], how: u8) -> Option<Question> {
    let name = Name::read(message.get(HEADER..)?)?;
    let rtype = message.get(HEADER + name.as_wire().len()..)?.first_chunk::<2>()?;
    let (dnssec_ok, checking_disabled) = (how & 1 != 0, how & 2 != 0);
    Some(Question { name, qtype: u16::from_be_bytes(*rtype), dnssec_ok, checking_disabled })
}

/// A guest's query with that question, with EDNS if a size is given.
fn ask(question: &Question, size: Option<u16>) -> Vec<u8> {
    let flags = flag::RD | if question.checking_disabled { flag::CD } else { 0 };
    let size = if question.dnssec_ok { Some(size.unwrap_or(512)) } else { size };
    let words = [7, flags, 1, 0, 0, u16::from(size.is_some())];
    let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    message.extend(question.name.as_wire().to_ascii_uppercase().iter());
    message.extend(question.qtype.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    if let Some(size) = size {
        message.extend([0, 0, qtype::OPT as u8]);
        message.extend(size.to_be_bytes());
        message.extend([0, 0, u8::from(question.dnssec_ok) << 7, 0, 0, 0]);
    }
    message
}

type Outcome = Result<Arc<Answer>, Ede>;

/// The answer to a guest's message, checked; empty if there is none.
fn serve(message: &[u8], how: Transport, outcome: impl Fn(&Question) -> Outcome) -> Vec<u8> {
    let (runtime, resolver) = fixture();
    let mut out = vec![];
    match resolver.begin(message, GUEST, how, &mut out) {
        Step::Silent => return vec![],
        Step::Answered => {}
        Step::Wait(pending) => {
            let key = Key::of(&pending.question);
            let outcome = outcome(&pending.question);
            resolver.flights.landed(&key, Some(outcome));
            assert!(runtime.block_on(resolver.finish(pending, &mut out)), "no answer to what had to wait");
            resolver.flights.landed(&key, None);
        }
    }
    match Query::parse(message) {
        Ok(query) => check(message, &query, how, &out),
        Err(Reject::CookieOnly(_)) => {
            // The header and the OPT record.
            assert_eq!((&out[..2], &out[4..HEADER]), (&message[..2], &[0, 0, 0, 0, 0, 0, 0, 1][..]));
            assert_eq!(
                records::read(&out, HEADER).map(|opt| (opt.rtype, opt.end)),
                Some((qtype::OPT, out.len()))
            );
        }
        // The header alone.
        Err(_) => {
            assert_eq!(out.len(), HEADER);
            assert_eq!(out[..2], message[..2]);
            assert_eq!((out[2] & 0xf8, &out[4..]), (message[2] & 0x78 | 0x80, &[0; 8][..]));
        }
    }
    out
}

/// What is true of every answer to a query: its header, the question word for word, records that are whole, nothing behind
/// them, an OPT record if and only if there was one, and no more bytes than the transport and the guest take.
fn check(message: &[u8], query: &Query, how: Transport, out: &[u8]) {
    let word = |at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
    assert!(out.len() <= how.limit(query), "{} bytes of {}", out.len(), how.limit(query));
    assert_eq!(word(0), query.id);
    assert_eq!(word(2) & (flag::QR | flag::OPCODE | flag::RA), flag::QR | flag::RA);
    assert_eq!(word(2) & 0x40, 0, "a reserved bit");
    assert_eq!(word(2) & flag::RD, query.flags & flag::RD);
    assert_eq!(word(4), 1);
    let mut at = HEADER + query.question_len();
    assert_eq!(out[HEADER..at], message[HEADER..at], "the question");
    let mut opts = 0;
    for section in 0..3 {
        for _ in 0..word(6 + 2 * section) {
            let record = records::read(out, at).unwrap();
            if record.rtype == qtype::OPT {
                assert_eq!((section, record.end), (2, out.len()), "OPT is last");
                opts += 1;
            }
            at = record.end;
        }
    }
    assert_eq!(at, out.len(), "bytes behind the records");
    assert_eq!(opts, u16::from(query.edns.is_some()));
    if word(2) & flag::TC != 0 {
        assert_eq!((word(6), word(8)), (0, 0), "half an answer");
    }
}

/// What hickory reads in the upstream's message, it reads in ours.
fn same_records(upstream: &[u8], out: &[u8]) {
    let Ok(theirs) = Message::from_vec(upstream) else { return };
    let ours = Message::from_vec(out).unwrap();
    if ours.metadata.truncation {
        return;
    }
    for (theirs, ours) in [
        (&theirs.answers, &ours.answers),
        (&theirs.authorities, &ours.authorities),
        (&theirs.additionals, &ours.additionals),
    ] {
        assert_eq!(theirs.len(), ours.len());
        for (theirs, ours) in theirs.iter().zip(ours) {
            assert_eq!((&theirs.name, &theirs.data), (&ours.name, &ours.data));
        }
    }
}

/// An upstream's message for `question`: `rcode`, and the two records given as data.
fn message(question: &Question, rcode: u8, records: &[&[u8]], section: usize) -> Vec<u8> {
    let mut message = vec![0, 7, 0x81, 0x80 | rcode, 0, 1, 0, 0, 0, 0, 0, 0];
    message[5 + 2 * section] = records.len() as u8;
    message.extend(question.name.as_wire());
    message.extend(question.qtype.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    for record in records {
        message.extend_from_slice(record);
    }
    message
}

fn read(question: &Question, message: &[u8]) -> Outcome {
    match answer::read(message, 7, question) {
        Verdict::Answer(answer) => {
            let resolver = &fixture().1;
            Ok(resolver.keep(&resolver.setup.load_full(), question, &Key::of(question), answer))
        }
        other => panic!("{other:?}"),
    }
}

fn some_answer(question: &Question) -> Outcome {
    let a = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc6\x33\x64\x0a";
    read(question, &message(question, 0, &[a, a], 1))
}

fn no_such_name(question: &Question) -> Outcome {
    let soa = b"\0\0\x06\0\x01\0\0\x01\x2c\0\x16\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x3c";
    read(question, &message(question, 3, &[soa], 2))
}

fn failed(_: &Question) -> Outcome {
    Err(Ede::NoReachableAuthority)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn asked(name: &str, qtype: u16) -> Question {
        let name = Name::from_text(name).unwrap();
        Question { name, qtype, dnssec_ok: false, checking_disabled: false }
    }

    /// A query of every kind.
    fn queries() -> Vec<Vec<u8>> {
        let names = [
            "www.example.com",
            "a.b.c.d.example",
            "gateway.vm.internal",
            "db.vm.internal",
            "x.apps.vm.internal",
            "out.vm.internal",
            "nobody.vm.internal",
            "vm.internal",
            "7.0.100.10.in-addr.arpa",
            "100.10.in-addr.arpa",
            "localhost",
            "printer.local",
            "x.ads.example",
            "n.corp",
            "h.lab.example",
            "",
        ];
        let types = [1, 28, 12, 5, 6, 16, 65, 255, 252, 41, 128];
        let mut queries: Vec<Vec<u8>> = names
            .iter()
            .zip(types.iter().cycle())
            .map(|(name, rtype)| ask(&asked(name, *rtype), None))
            .collect();
        let plain = ask(&asked("www.example.com", 1), Some(1232));
        let edns = plain.len() - 11;
        // Version 1, DO, a payload of 0, a cookie, an option that is cut short.
        let with = |at: usize, byte: u8| {
            let mut query = plain.clone();
            query[at] = byte;
            query
        };
        queries.extend([
            with(edns + 6, 1),
            with(edns + 7, 0x80),
            with(edns + 3, 0),
            with(2, 0x21),
            with(2, 0x81),
        ]);
        let options: [&[u8]; 3] =
            [&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8], &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2], &[0, 3, 0, 9]];
        for option in options {
            let mut query = plain.clone();
            query[edns + 10] = option.len() as u8;
            query.extend_from_slice(option);
            queries.push(query);
        }
        queries.extend([with(5, 0), with(5, 2), with(12, 0xc0), plain[..edns + 5].to_vec(), vec![0; 11]]);
        // No question, but a cookie.
        let mut cookie = plain[..HEADER].to_vec();
        (cookie[5], cookie[11]) = (0, 1);
        cookie.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        queries.push(cookie);
        queries
    }

    /// An upstream's answer of every kind, with how it was asked.
    fn answers() -> Vec<Vec<u8>> {
        let question = asked("www.example.com", 1);
        let a = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc6\x33\x64\x0a".as_slice();
        let private = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\xa8\x01\x01".as_slice();
        let alias = b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x07\x04real\xc0\x10".as_slice();
        let mail = b"\xc0\x0c\0\x0f\0\x01\x80\0\0\0\0\x04\0\x0a\xc0\x0c".as_slice();
        let soa =
            b"\xc0\x10\0\x06\0\x01\0\0\x01\x2c\0\x18\xc0\x10\xc0\x10\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x3c"
                .as_slice();
        let opt = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0".as_slice();
        let mut answers = vec![
            message(&question, 0, &[a, a], 1),
            message(&question, 0, &[private], 1),
            message(&question, 0, &[alias, a, mail], 1),
            message(&question, 0, &[soa], 2),
            message(&question, 3, &[soa], 2),
            message(&question, 0, &[opt], 3),
            message(&question, 0, &[opt, a], 3),
            message(&question, 2, &[], 1),
            message(&question, 0, &[a; 80], 1),
            message(&question, 0, &[&a[..9]], 1),
        ];
        let mut cut = message(&question, 0, &[], 1);
        cut[2] |= 2;
        answers.push(cut);
        // To a name of which a rule speaks.
        let denied = b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x0f\x01x\x03ads\x07example\0".as_slice();
        let address = b"\xc0\x2d\0\x01\0\x01\0\0\x01\x2c\0\x04\xc6\x33\x64\x0a".as_slice();
        answers.push(message(&question, 0, &[denied, address], 1));
        let hows = [0, 4, 9, 0x0c, 0x13];
        answers
            .iter()
            .zip(hows.iter().cycle())
            .map(|(message, how)| [&[*how], &message[..]].concat())
            .collect()
    }

    fn corpus(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// What fuzzing found, and one of every kind. GUESTNET_SEED_CORPUS=1 writes those anew.
    fn replay(target: &str, seeds: &[Vec<u8>], exercise: fn(&[u8])) {
        if std::env::var_os("GUESTNET_SEED_CORPUS").is_some() {
            std::fs::create_dir_all(corpus(target)).unwrap();
            for (n, seed) in seeds.iter().enumerate() {
                std::fs::write(corpus(target).join(format!("seed-{n:02}")), seed).unwrap();
            }
        }
        let files: Vec<_> = std::fs::read_dir(corpus(target)).unwrap().flatten().collect();
        assert!(files.len() >= seeds.len(), "{} files", files.len());
        for file in files {
            exercise(&std::fs::read(file.path()).unwrap());
        }
    }

    #[test]
    fn queries_of_the_corpus_get_whole_answers_or_none() {
        replay("dns_query", &queries(), exercise_query);
    }

    #[test]
    fn answers_of_the_corpus_are_given_whole_or_not_at_all() {
        replay("dns_answer", &answers(), exercise_answer);
    }
}

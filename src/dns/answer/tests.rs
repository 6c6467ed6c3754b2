use hickory_proto::op::{Edns as ProtoEdns, MessageType, OpCode, Query as ProtoQuery, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{self, RData, Record};
use proptest::prelude::*;

use super::*;

fn question() -> Question {
    let name = Name::from_text("www.example.com").unwrap();
    Question { name, qtype: 1, dnssec_ok: false, checking_disabled: false }
}

fn name(text: &str) -> rr::Name {
    rr::Name::from_ascii(text).unwrap()
}

fn a(ttl: u32) -> Record {
    Record::from_rdata(name("www.example.com."), ttl, RData::A(A::new(198, 51, 100, 10)))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.example.com."), name("root.example.com."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example.com."), ttl, RData::SOA(soa))
}

fn message(change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(ProtoQuery::query(name("www.example.com."), rr::RecordType::A));
    change(&mut message);
    message.to_vec().unwrap()
}

fn answer(bytes: &[u8]) -> Answer {
    match read(bytes, 7, &question()) {
        Verdict::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn lifetime(change: impl FnOnce(&mut Message)) -> u32 {
    answer(&message(change)).lifetime()
}

const GUEST: &[u8] = b"\xab\xcd\x01\0\0\x01\0\0\0\0\0\0\x03wWw\x07example\x03com\0\0\x01\0\x01";

fn written(answer: &Answer, age: Age, limit: usize) -> Message {
    let query = Query::parse(GUEST).unwrap();
    let mut out = vec![];
    answer.write(GUEST, &query, age, limit, &mut out);
    assert_eq!(out[HEADER..GUEST.len()], GUEST[HEADER..]);
    Message::from_vec(&out).unwrap()
}

#[test]
fn an_answer_holds_as_long_as_its_shortest_record() {
    let several = |m: &mut Message| {
        m.add_answers([a(300), a(60), a(3_000_000)]);
    };
    assert_eq!(lifetime(several), 60);
    let ages =
        |age| written(&answer(&message(several)), age, 512).answers.iter().map(|r| r.ttl).collect::<Vec<_>>();
    assert_eq!(ages(Age::Seconds(59)), [241, 1, MOST - 59]);
    assert_eq!(ages(Age::Stale), [30, 30, 30]);
}

#[test]
fn ttl_0_and_negative_ttls_are_not_held() {
    let with = |ttl| {
        lifetime(|m| {
            m.add_answers([a(ttl), a(300)]);
        })
    };
    assert_eq!((with(0), with(0x8000_0001), with(u32::MAX)), (0, 0, 0));
}

#[test]
fn a_denial_holds_as_long_as_the_lesser_of_its_soas_numbers() {
    let denied = |ttl, minimum| {
        lifetime(|m| {
            m.metadata.response_code = ResponseCode::NXDomain;
            m.add_authority(soa(ttl, minimum));
        })
    };
    assert_eq!((denied(900, 60), denied(30, 60), denied(90_000, 90_000)), (60, 30, MOST_NEGATIVE));
    let nodata = lifetime(|m| {
        m.add_authority(soa(900, 60));
    });
    assert_eq!(nodata, 60);
    // Without SOA it is not held: nobody said for how long.
    assert_eq!(lifetime(|_| {}), 0);
    assert_eq!(lifetime(|m| m.metadata.response_code = ResponseCode::NXDomain), 0);
}
#[test]
fn guests_are_told_what_the_network_holds() {
    let told = |answers: &[u32], least, most| {
        let mut answer = answer(&message(|m| {
            m.add_answers(answers.iter().map(|ttl| a(*ttl)));
        }));
        answer.hold(least, most);
        let ttls = |age| written(&answer, age, 512).answers.iter().map(|r| r.ttl).collect::<Vec<_>>();
        (answer.lifetime(), ttls(Age::Seconds(0)), ttls(Age::Seconds(10)))
    };
    assert_eq!(told(&[300, 5_000], 0, 600), (300, vec![300, 600], vec![290, 590]));
    assert_eq!(told(&[5, 300], 60, 600), (60, vec![60, 300], vec![50, 290]));
    assert_eq!(told(&[0, 300], 60, 100), (0, vec![0, 100], vec![0, 90]));
    // A week, if the network says so.
    assert_eq!(told(&[u32::MAX >> 1], 0, MOST).0, 604_800);
    assert_eq!(told(&[100], 3_600, 60), (60, vec![60], vec![50]));

    let denied = |ttl, minimum, least, most| {
        let mut answer = answer(&message(|m| {
            m.metadata.response_code = ResponseCode::NXDomain;
            m.add_authority(soa(ttl, minimum));
        }));
        answer.hold(least, most);
        (answer.lifetime(), written(&answer, Age::Seconds(0), 512).authorities[0].ttl)
    };
    assert_eq!(denied(90_000, 90_000, 0, 86_400), (MOST_NEGATIVE, MOST_NEGATIVE));
    assert_eq!(denied(900, 60, 0, 30), (30, 30));
    assert_eq!(denied(900, 10, 60, 600), (60, 60));
}

#[test]
fn an_upstreams_opt_record_is_left_out_wherever_it_stands() {
    let last = message(|m| {
        m.add_answer(a(300));
        m.set_edns(ProtoEdns::new());
    });
    // An OPT record before another additional record: both counted, the second appended by hand.
    let mut inside = last.clone();
    inside.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\x01\x02\x03\x04");
    inside[11] = 2;
    let plain = written(&answer(&last), Age::Seconds(0), 512);
    assert!(plain.edns.is_none() && plain.additionals.is_empty());
    let rewritten = written(&answer(&inside), Age::Seconds(0), 512);
    assert!(rewritten.edns.is_none());
    assert_eq!((rewritten.answers.len(), rewritten.additionals.len()), (1, 1));
}

#[test]
fn an_opt_record_among_the_answers_is_no_answer() {
    let whole = message(|m| {
        m.add_answer(a(300));
        m.set_edns(ProtoEdns::new());
    });
    for section in [7, 9] {
        let mut moved = whole.clone();
        moved[11] = 0;
        moved[section] += 1;
        assert!(matches!(read(&moved, 7, &question()), Verdict::Unable(_)), "{section}");
    }
}

#[test]
fn what_does_not_fit_is_only_a_question_with_tc() {
    let many = answer(&message(|m| {
        m.add_answers((0..40).map(|_| a(300)));
    }));
    let cut = written(&many, Age::Seconds(0), 512);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert!(!written(&many, Age::Seconds(0), 1232).metadata.truncation);
}

#[test]
fn broken_records_are_no_answer() {
    let whole = message(|m| {
        m.add_answers([a(300), a(300)]);
    });
    for cut in GUEST.len()..whole.len() {
        assert!(matches!(read(&whole[..cut], 7, &question()), Verdict::Unable(_)), "{cut}");
    }
    for cut in 0..GUEST.len() {
        assert!(matches!(read(&whole[..cut], 7, &question()), Verdict::Foreign), "{cut}");
    }
}

proptest! {
    #[test]
    fn whatever_an_upstream_sends_is_read_and_written_without_panic(
        tail in prop::collection::vec(any::<u8>(), 0..300),
        counts in prop::array::uniform3(0_u8..4),
        changes in prop::collection::vec((0_usize..200, any::<u8>()), 0..4),
    ) {
        let mut bytes = message(|m| {
            m.add_answers([a(300), a(60)]);
            m.set_edns(ProtoEdns::new());
        });
        bytes.extend_from_slice(&tail);
        for (field, count) in counts.into_iter().enumerate() {
            bytes[7 + 2 * field] = bytes[7 + 2 * field].wrapping_add(count);
        }
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Verdict::Answer(answer) = read(&bytes, 7, &question()) {
            let query = Query::parse(GUEST).unwrap();
            let mut out = vec![];
            for limit in [512, 65_535] {
                answer.write(GUEST, &query, Age::Seconds(1), limit, &mut out);
                prop_assert!(out.len() <= limit);
            }
        }
    }
}

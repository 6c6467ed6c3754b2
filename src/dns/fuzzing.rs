//! What the fuzz targets call: the pure parts that hostile bytes reach first. Panics where a promise is broken.

use hickory_proto::op::Message;

use super::answer::{self, Age, Question, Verdict};
use super::name::Name;
use super::query::Query;
use super::reply::Transport;

/// A guest's bytes: if they are a query, what is read of it stands in them.
pub fn query(message: &[u8]) {
    let Ok(query) = Query::parse(message) else { return };
    assert!(query.question_len() + 12 <= message.len());
    assert!(query.name.labels().all(|label| (1..=63).contains(&label.len())));
    assert!(Transport::Udp.limit(&query) <= 1232 && Transport::Udp.limit(&query) >= 512);
    let question = Question::of(&query);
    assert!(question.name.is_in(&Name::root()));
}

/// An upstream's bytes, after a question and an id that fit them as far as they can: an answer can be written for who asked,
/// is no longer than it may be, and without it a stub would still see that it is cut.
pub fn answer(message: &[u8]) {
    let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return };
    let Some(name) = message.get(12..).and_then(Name::read) else { return };
    let Some(qtype) = message.get(12 + name.as_wire().len()..).and_then(<[u8]>::first_chunk) else { return };
    let question =
        Question { name, qtype: u16::from_be_bytes(*qtype), dnssec_ok: false, checking_disabled: false };
    let Verdict::Answer(answer) = answer::read(message, id, &question) else { return };
    let _ = answer.addresses();
    let mut asked = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    asked.extend_from_slice(question.name.as_wire());
    asked.extend_from_slice(&question.qtype.to_be_bytes());
    asked.extend_from_slice(&[0, 1]);
    let Ok(query) = Query::parse(&asked) else { return };
    let mut out = Vec::new();
    for limit in [512, 1_232, 65_535] {
        for age in [Age::Seconds(0), Age::Seconds(3_600), Age::Stale] {
            answer.write(&asked, &query, age, limit, &mut out);
            assert!(out.len() <= limit && out[..2] == [0, 7] && out[2] & 0x80 != 0);
            // A cut answer is a whole message.
            assert!(out[2] & 2 == 0 || Message::from_vec(&out).is_ok());
        }
    }
}

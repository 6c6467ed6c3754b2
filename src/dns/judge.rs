//! PURE: what a message is worth that hickory has looked through record by record. In: the message, each record with its proof, what
//! hickory says of its denial, and the question. Out: what of it belongs to the question, and whether that is proven; or that its
//! alias' target is to be asked for; or nothing, if it is bogus. hickory lets pass a message whose authority records are all of zones that are not signed, whichever
//! zones these are, and says of an alias nothing about its target: here they have to be about the name that was asked for.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;

use hickory_proto::dnssec::Proof;
use hickory_proto::dnssec::rdata::{DNSSECRData, RRSIG};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::unsigned::{is_opt_out, lacks_beside_dname, nothing_closer, prove_aliases};
use super::validate::ALIASES;

/// RRsets, and signatures, of a message that is looked through at all: the root's delegation of a top level, with 13 servers and
/// two addresses of each, has 27. Each costs a walk to the root or an operation with a key (CVE-2023-50387).
const MOST: usize = 32;

/// A message of worth.
#[derive(Debug)]
pub(super) enum Judged {
    /// What was asked for, or that it is not there; and whether all of it is proven.
    Whole(Box<Message>, bool),
    /// An alias, and of what it leads to nothing that counts.
    Alias,
}

/// Leaves out what nobody has to look through; whether the rest is little enough.
pub(super) fn bound(message: &mut Message) -> bool {
    if !is_bounded(message) {
        // Additional records are there for convenience.
        message.additionals.clear();
    }
    is_bounded(message)
}

fn is_bounded(message: &Message) -> bool {
    let all = || message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    let sets: HashSet<_> = all().map(|record| (&record.name, record.record_type())).collect();
    sets.len() <= MOST && all().filter(|record| record.record_type() == RecordType::RRSIG).count() <= MOST
}

/// `None` if it is bogus. `denial` is about what is not there only.
pub(super) fn judge(mut message: Message, name: &Name, asked: RecordType, denial: Proof) -> Option<Judged> {
    prove_aliases(&mut message.answers);
    let chain = Chain::of(&message.answers, name, asked);
    message.answers.retain(|record| chain.has(record));
    // hickory has them in no order; stubs read them in that of the chain.
    message.answers.sort_by_key(|record| chain.names.iter().position(|name| *name == record.name));
    let soa = message
        .authorities
        .iter()
        .find(|record| record.record_type() == RecordType::SOA && record.name.zone_of(chain.end(name)));
    let soa = soa.map(|soa| (soa.name.clone(), soa.proof));
    if let Some((zone, _)) = &soa {
        message.authorities.retain(|record| zone.zone_of(&record.name));
    }
    let judged = message.answers.iter().chain(&message.authorities);
    let mut proofs =
        judged.filter(|record| record.record_type() != RecordType::RRSIG).map(|record| record.proof);
    if proofs.clone().any(|proof| proof == Proof::Bogus) {
        return None;
    }
    let secure = proofs.all(|proof| proof == Proof::Secure);
    let denies = |record: &Record| {
        matches!(record.record_type(), RecordType::NSEC | RecordType::NSEC3) && record.proof == Proof::Secure
    };
    let denied = message.authorities.iter().any(denies);
    if chain.whole {
        let closest = nothing_closer(&message);
        if closest == Proof::Bogus {
            return None;
        }
        // Whatever the code says, which nobody signed: it is there.
        message.metadata.response_code = ResponseCode::NoError;
        return Some(Judged::Whole(message.into(), secure && closest == Proof::Secure));
    }
    if chain.names.len() > 1 {
        // The link and the target are judged each by itself.
        return Some(Judged::Alias);
    }
    let lacks = |zone: &Name| lacks_beside_dname(&message.authorities, name, asked, zone);
    let denial = match &soa {
        Some((zone, Proof::Secure))
            if denial == Proof::Bogus
                && message.metadata.response_code == ResponseCode::NoError
                && message.answers.is_empty()
                && lacks(zone) =>
        {
            Proof::Secure
        }
        _ => denial,
    };
    if !matches!(denial, Proof::Secure | Proof::Insecure) {
        return None;
    }
    let denied = denied && denial == Proof::Secure && !is_opt_out(&message.authorities);
    match soa {
        // Signed, with its proof; or of a name that hickory has found to be in no signed zone.
        Some((_, Proof::Secure)) => Some(Judged::Whole(message.into(), secure && denied)),
        Some((_, Proof::Insecure)) => Some(Judged::Whole(message.into(), false)),
        Some(_) => None,
        // With nothing to go by hickory has looked at the name itself.
        None if message.answers.is_empty() && message.authorities.is_empty() => {
            Some(Judged::Whole(message.into(), false))
        }
        None => None,
    }
}

/// The names that the answers lead through, from the one that was asked for.
struct Chain {
    names: Vec<Name>,
    /// Ends with what was asked for.
    whole: bool,
}

impl Chain {
    fn of(answers: &[Record], name: &Name, asked: RecordType) -> Self {
        let mut names = vec![name.clone()];
        while let Some(end) = names.last() {
            let at_end = || answers.iter().filter(|record| record.name == *end);
            if at_end().any(|record| record.record_type() == asked) {
                return Self { names, whole: true };
            }
            let Some(target) = at_end().find_map(target) else { break };
            // Somebody may have made it go on and on, or around.
            if names.len() == ALIASES || names.contains(target) {
                break;
            }
            names.push(target.clone());
        }
        Self { names, whole: false }
    }

    fn end<'a>(&'a self, name: &'a Name) -> &'a Name {
        self.names.last().unwrap_or(name)
    }

    /// A name of it, or one whose whole tree is an alias' (DNAME, RFC 6672).
    fn has(&self, record: &Record) -> bool {
        let is_dname = record.record_type() == RecordType::DNAME
            || signature(record).is_some_and(|sig| sig.input().type_covered == RecordType::DNAME);
        self.names.iter().any(|name| *name == record.name || (is_dname && record.name.zone_of(name)))
    }
}

pub(super) fn target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::CNAME(target) => Some(&target.0),
        _ => None,
    }
}

pub(super) fn signature(record: &Record) -> Option<&RRSIG> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => Some(signature),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::dnssec::Nsec3HashAlgorithm;
    use hickory_proto::dnssec::rdata::NSEC3;
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA, TXT};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(owner: &str, proof: Proof, data: RData) -> Record {
        let mut record = Record::from_rdata(name(owner), 300, data);
        record.proof = proof;
        record
    }

    fn a(owner: &str, proof: Proof) -> Record {
        record(owner, proof, RData::A(A(Ipv4Addr::new(6, 6, 6, 6))))
    }

    fn alias(owner: &str, target: &str, proof: Proof) -> Record {
        record(owner, proof, RData::CNAME(CNAME(name(target))))
    }

    fn soa(owner: &str, proof: Proof) -> Record {
        record(owner, proof, RData::SOA(SOA::new(name(owner), name(owner), 1, 2, 3, 4, 5)))
    }

    fn message(rcode: ResponseCode, answers: &[Record], authorities: &[Record]) -> Message {
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = rcode;
        message.answers.extend_from_slice(answers);
        message.authorities.extend_from_slice(authorities);
        message
    }

    fn judged(rcode: ResponseCode, answers: &[Record], authorities: &[Record]) -> Option<Judged> {
        judge(message(rcode, answers, authorities), &name("signed.example."), RecordType::A, Proof::Secure)
    }

    #[test]
    fn a_denial_by_a_zone_that_has_nothing_to_do_with_the_name_is_bogus() {
        for rcode in [ResponseCode::NXDomain, ResponseCode::NoError] {
            for authority in [
                soa("evil.com.", Proof::Insecure),
                soa("sub.signed.example.", Proof::Insecure),
                record("evil.com.", Proof::Insecure, RData::NS(NS(name("evil.com.")))),
                soa("signed.example.", Proof::Indeterminate),
            ] {
                assert!(judged(rcode, &[], &[authority]).is_none());
            }
            let below = judged(rcode, &[], &[soa("example.", Proof::Insecure)]);
            assert!(matches!(below, Some(Judged::Whole(_, false))));
        }
    }

    #[test]
    fn an_answer_to_another_question_is_left_out_and_denies_nothing() {
        let (evil, foreign) = (a("evil.com.", Proof::Insecure), soa("evil.com.", Proof::Insecure));
        assert!(judged(ResponseCode::NXDomain, std::slice::from_ref(&evil), &[foreign]).is_none());
        let answers = [evil, a("signed.example.", Proof::Secure)];
        let Some(Judged::Whole(message, true)) = judged(ResponseCode::NXDomain, &answers, &[]) else {
            panic!("it is there");
        };
        assert_eq!((message.answers.len(), &message.answers[0].name), (1, &name("signed.example.")));
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    }

    #[test]
    fn an_alias_alone_is_no_proof_that_its_target_has_nothing() {
        let link = alias("signed.example.", "target.example.", Proof::Secure);
        let beside = a("other.example.", Proof::Insecure);
        for authorities in
            [vec![], vec![soa("example.", Proof::Insecure)], vec![soa("example.", Proof::Secure)]]
        {
            let answers = [link.clone(), beside.clone()];
            assert!(matches!(judged(ResponseCode::NoError, &answers, &authorities), Some(Judged::Alias)));
        }
        // In the order of the chain, whatever order they came in.
        let answers = [a("target.example.", Proof::Secure), link];
        let Some(Judged::Whole(message, true)) = judged(ResponseCode::NoError, &answers, &[]) else {
            panic!("it is there");
        };
        assert_eq!(message.answers[0].record_type(), RecordType::CNAME);
        let loops = [
            alias("signed.example.", "b.example.", Proof::Secure),
            alias("b.example.", "signed.example.", Proof::Secure),
        ];
        assert!(matches!(judged(ResponseCode::NoError, &loops, &[]), Some(Judged::Alias)));
        assert_eq!(Chain::of(&loops, &name("signed.example."), RecordType::A).names.len(), 2);
    }

    #[test]
    fn a_chain_has_so_many_names_at_most() {
        let link =
            |n: usize| alias(&format!("n{n}.example."), &format!("n{}.example.", n + 1), Proof::Secure);
        let links: Vec<_> = (0..100).map(link).collect();
        let chain = Chain::of(&links, &name("n0.example."), RecordType::A);
        assert_eq!((chain.names.len(), chain.whole), (ALIASES, false));
    }

    #[test]
    fn a_name_that_opt_out_denies_is_not_called_authentic() {
        let denied = |opt_out| {
            let nsec3 =
                NSEC3::new(Nsec3HashAlgorithm::SHA1, opt_out, 0, vec![], vec![1; 20], [RecordType::A]);
            let nsec3 = RData::DNSSEC(DNSSECRData::NSEC3(nsec3));
            let authorities = [
                soa("example.", Proof::Secure),
                record("q04jkcevqvmu85r014c7dkba38o0ji5r.example.", Proof::Secure, nsec3),
            ];
            judged(ResponseCode::NXDomain, &[], &authorities)
        };
        assert!(matches!(denied(false), Some(Judged::Whole(_, true))));
        assert!(matches!(denied(true), Some(Judged::Whole(_, false))));
    }

    #[test]
    fn a_signed_soa_alone_makes_no_denial_authentic() {
        let soa = soa("example.", Proof::Secure);
        let soas = std::slice::from_ref(&soa);
        assert!(matches!(judged(ResponseCode::NXDomain, &[], soas), Some(Judged::Whole(_, false))));
        assert!(matches!(judged(ResponseCode::NoError, &[], &[]), Some(Judged::Whole(_, false))));
        let name = name("signed.example.");
        let denied = |denial| judge(message(ResponseCode::NXDomain, &[], soas), &name, RecordType::A, denial);
        assert!(denied(Proof::Bogus).is_none());
        assert!(denied(Proof::Indeterminate).is_none());
        assert!(matches!(denied(Proof::Insecure), Some(Judged::Whole(_, false))));
        let bogus = [a("signed.example.", Proof::Bogus)];
        assert!(judged(ResponseCode::NoError, &bogus, &[]).is_none());
    }

    #[test]
    fn a_message_of_very_many_sets_is_not_looked_through() {
        let text = |n: usize| {
            record(&format!("n{n}.example."), Proof::Indeterminate, RData::TXT(TXT::new(vec!["x".into()])))
        };
        let many: Vec<_> = (0..=MOST).map(text).collect();
        assert!(!bound(&mut message(ResponseCode::NoError, &many, &[])));
        assert!(bound(&mut message(ResponseCode::NoError, &many[1..], &[])));
        // Many records of one name and type are one set.
        let one_set: Vec<_> = (0..200).map(|_| text(1)).collect();
        assert!(bound(&mut message(ResponseCode::NoError, &one_set, &[])));
        let mut beside = message(ResponseCode::NoError, &many[..1], &[]);
        beside.additionals = many;
        assert!(bound(&mut beside) && beside.additionals.is_empty());
    }
}

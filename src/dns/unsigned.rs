//! PURE: what has no signature of its own in an answer, and is proven by others: that a wildcard was the closest there is to a name
//! (RFC 4035 section 5.3.4, RFC 5155 section 8.8), and aliases that were made from a DNAME (RFC 6672 section 5.3.1). In: a message each of
//! whose records hickory has judged by its signature. Out: what they prove together. hickory looks for proofs of the name that was asked
//! for only, and not for these at all where a wildcard's own NSEC covers it; and takes what is said of a DNAME's own name for nothing.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;

use hickory_proto::dnssec::Proof;
use hickory_proto::dnssec::rdata::{DNSSECRData, NSEC, NSEC3, RRSIG};
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, Record, RecordType, RecordTypeSet};

use super::judge::signature;
use super::name;

/// Rounds of hashing that are worth a proof; with more it is none, and what it should prove not authentic (RFC 9276 section 3.2; hickory's
/// own limit for denials).
const ITERATIONS: u16 = 100;
/// Bytes of a hash: SHA-1 is the only one there is (RFC 5155 section 11).
const HASH: usize = 20;
/// Names of a message that are hashed at most: a chain has few wildcards in it (CVE-2023-50868).
const HASHES: usize = 8;

/// Marks aliases as what the DNAME is that they were made from. Nothing else of them counts.
pub(super) fn prove_aliases(answers: &mut [Record]) {
    let trees: Vec<_> = answers.iter().filter_map(Tree::of).collect();
    for record in answers {
        let RData::CNAME(target) = &record.data else { continue };
        let tree = trees.iter().find(|tree| tree.leads(&record.name).is_some_and(|to| to == target.0));
        if let Some(tree) = tree {
            record.proof = Proof::Secure;
            // Nobody signed it.
            record.ttl = record.ttl.min(tree.ttl);
        }
    }
}

/// A proven DNAME.
struct Tree {
    from: Name,
    to: Name,
    ttl: u32,
}

impl Tree {
    fn of(record: &Record) -> Option<Self> {
        let RData::Unknown { code: RecordType::DNAME, rdata } = &record.data else { return None };
        let to = name::Name::read(&rdata.anything)?;
        let to = Name::from_labels(to.labels()).ok()?;
        let is_proven = record.proof == Proof::Secure;
        is_proven.then(|| Self { from: record.name.clone(), to, ttl: record.ttl })
    }

    /// Where a name below it leads (RFC 6672 section 2.2); the DNAME's own name leads nowhere.
    fn leads(&self, name: &Name) -> Option<Name> {
        let above = name.iter().len().checked_sub(self.from.iter().len()).filter(|above| *above > 0)?;
        if !self.from.zone_of(name) {
            return None;
        }
        Name::from_labels(name.iter().take(above).chain(self.to.iter())).ok()
    }
}

/// What is proven of the answers that were made from wildcards: that there is nothing closer to their names. `Secure` where there are none.
pub(super) fn nothing_closer(message: &Message) -> Proof {
    let expanded = message.answers.iter().filter(|record| is_expanded(record));
    let closers: HashSet<_> = expanded
        .filter_map(|record| {
            let input = signature(record)?.input();
            // What would be there if anything closer were: the name with one label more than the wildcard has, its star aside.
            Some((record.name.trim_to(usize::from(input.num_labels) + 1), &input.signer_name))
        })
        .collect();
    let mut hashes = 0;
    let proofs = closers.iter().map(|(closer, zone)| absent(&message.authorities, closer, zone, &mut hashes));
    proofs.min().unwrap_or(Proof::Secure)
}

/// Whether it proves a record that was made from a wildcard.
pub(super) fn is_expanded(record: &Record) -> bool {
    let labels = signature(record).map(|signature| signature.input().num_labels);
    record.proof == Proof::Secure && labels.is_some_and(|labels| labels < record.name.num_labels())
}

/// Whether the proofs of a denial leave it open that there is a delegation which nobody signed (RFC 5155 section 9.2).
pub(super) fn is_opt_out(proofs: &[Record]) -> bool {
    proofs.iter().filter_map(secure_nsec3).any(|(_, nsec3)| nsec3.opt_out())
}

fn secure_nsec3(record: &Record) -> Option<(&Name, &NSEC3)> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::NSEC3(nsec3)) if record.proof == Proof::Secure => {
            Some((&record.name, nsec3))
        }
        _ => None,
    }
}

/// Whether all hash alike, as those of one zone's answer do (RFC 5155 section 8.2).
fn is_one_hash<'a>(mut nsec3s: impl Iterator<Item = &'a NSEC3>) -> bool {
    let Some(first) = nsec3s.next() else { return true };
    nsec3s.all(|other| other.salt() == first.salt() && other.iterations() == first.iterations())
}

/// The name's hash as that proof has it, or what the proof is worth without.
fn hash(nsec3: &NSEC3, name: &Name) -> Result<Vec<u8>, Proof> {
    if nsec3.iterations() > ITERATIONS {
        return Err(Proof::Insecure);
    }
    let hash = nsec3.hash_algorithm().hash(nsec3.salt(), name, nsec3.iterations());
    hash.map(|hash| hash.as_ref().to_vec()).map_err(|_| Proof::Bogus)
}

/// Whether the zone says of `name`, where a DNAME is, that it has nothing of the type `asked`. RFC 6840 section 4.1 forbids to take that
/// for what is below, not for the name itself.
pub(super) fn lacks_beside_dname(proofs: &[Record], name: &Name, asked: RecordType, zone: &Name) -> bool {
    let says = |types: &RecordTypeSet| {
        let is_there = types.contains(asked) || types.contains(RecordType::CNAME);
        let is_delegated = types.contains(RecordType::NS) && !types.contains(RecordType::SOA);
        types.contains(RecordType::DNAME) && !is_there && !is_delegated
    };
    // What a zone says of its own top is not about the delegation that leads there (RFC 4035 section 5.2).
    if asked == RecordType::DS || !zone.zone_of(name) {
        return false;
    }
    let own: Vec<_> = of_zone(proofs, zone).collect();
    let is_named = own.iter().any(|record| {
        matches!(&record.data, RData::DNSSEC(DNSSECRData::NSEC(nsec)) if record.name == *name && says(nsec.type_set()))
    });
    let hashed: Vec<_> = own.into_iter().filter_map(secure_nsec3).collect();
    let Some((_, first)) = hashed.first() else { return is_named };
    let Ok(hash) = hash(first, name) else { return false };
    let is_its =
        |owner: &Name| owner.base_name() == *zone && owner_hash(owner).is_some_and(|own| own[..] == hash);
    is_one_hash(hashed.iter().map(|(_, nsec3)| *nsec3))
        && hashed.iter().any(|(owner, nsec3)| is_its(owner) && says(nsec3.type_set()))
}

/// Those that the zone has signed itself.
fn of_zone<'a>(proofs: &'a [Record], zone: &Name) -> impl Iterator<Item = &'a Record> {
    proofs.iter().filter(move |record| {
        let own = |other: &Record| {
            signature(other).is_some_and(|signature| {
                other.name == record.name && is_of(signature, record, zone) && other.proof == Proof::Secure
            })
        };
        record.proof == Proof::Secure && proofs.iter().any(own)
    })
}

/// What the zone's proofs say of there being nothing at or below `name`; counts what is hashed of the message.
fn absent(proofs: &[Record], name: &Name, zone: &Name, hashes: &mut usize) -> Proof {
    let own: Vec<_> = of_zone(proofs, zone).collect();
    let is_named = own.iter().any(|record| {
        matches!(&record.data, RData::DNSSEC(DNSSECRData::NSEC(nsec)) if covers(&record.name, nsec, name, zone))
    });
    if is_named {
        return Proof::Secure;
    }
    let hashed: Vec<_> = own.into_iter().filter_map(secure_nsec3).collect();
    let Some((_, first)) = hashed.first() else { return Proof::Bogus };
    *hashes += 1;
    if *hashes > HASHES || !zone.zone_of(name) || !is_one_hash(hashed.iter().map(|(_, nsec3)| *nsec3)) {
        return Proof::Bogus;
    }
    match hash(first, name) {
        Ok(hash) => {
            let said = hashed.iter().map(|(owner, nsec3)| covers_hash(owner, nsec3, &hash, zone));
            said.max().unwrap_or(Proof::Bogus)
        }
        Err(worth) => worth,
    }
}

/// Whether it is the zone's own signature of the proof; one of a wildcard proves no other name's.
fn is_of(signature: &RRSIG, proof: &Record, zone: &Name) -> bool {
    let input = signature.input();
    input.type_covered == proof.record_type()
        && input.signer_name == *zone
        && input.num_labels == proof.name.num_labels()
}

/// RFC 4034 section 6.1, RFC 4035 section 5.4.
fn covers(owner: &Name, nsec: &NSEC, name: &Name, zone: &Name) -> bool {
    let next = nsec.next_domain_name();
    // RFC 6840 section 4.1: of what is delegated, or another tree's, it says nothing.
    if owner.zone_of(name) && nsec.is_ancestor_delegation() {
        return false;
    }
    // The last one's next is the zone itself. A next name below this one has it there too, with nothing at it.
    zone.zone_of(name) && owner < name && (name < next || next == zone) && !name.zone_of(next)
}

/// RFC 5155 sections 1.3 and 8.8.
fn covers_hash(owner: &Name, nsec3: &NSEC3, hash: &[u8], zone: &Name) -> Proof {
    let Some(owner_hash) = owner_hash(owner).filter(|_| owner.base_name() == *zone) else {
        return Proof::Bogus;
    };
    let (owner, next) = (&owner_hash[..], nsec3.next_hashed_owner_name());
    let is_covered = if owner < next { owner < hash && hash < next } else { owner < hash || hash < next };
    match (is_covered, nsec3.opt_out()) {
        (true, false) => Proof::Secure,
        // RFC 5155 section 9.2: there may be a delegation that nobody signed.
        (true, true) => Proof::Insecure,
        (false, _) => Proof::Bogus,
    }
}

fn owner_hash(owner: &Name) -> Option<[u8; HASH]> {
    owner.iter().next().and_then(base32hex)
}

/// The hash that an NSEC3's first label is (RFC 4648 section 7, without padding).
fn base32hex(label: &[u8]) -> Option<[u8; HASH]> {
    let mut hash = [0; HASH];
    if label.len() * 5 != HASH * 8 {
        return None;
    }
    for (five, to) in label.chunks_exact(8).zip(hash.chunks_exact_mut(5)) {
        let bits = five.iter().try_fold(0_u64, |bits, letter| {
            let value = match letter.to_ascii_lowercase() {
                digit @ b'0'..=b'9' => digit - b'0',
                letter @ b'a'..=b'v' => letter - b'a' + 10,
                _ => return None,
            };
            Some(bits << 5 | u64::from(value))
        })?;
        to.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use hickory_proto::dnssec::rdata::sig::SigInput;
    use hickory_proto::dnssec::{Algorithm, Nsec3HashAlgorithm};
    use hickory_proto::rr::rdata::{CNAME, NULL};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn a_name_between_two_is_not_there_unless_something_is_below_it() {
        let zone = name("example.");
        let says = |owner: &str, next: &str, types: &[RecordType], closer: &str| {
            let nsec = NSEC::new(name(next), types.iter().copied());
            covers(&name(owner), &nsec, &name(closer), &zone)
        };
        let a = [RecordType::A];
        assert!(says("*.w.example.", "z.w.example.", &a, "a.w.example."));
        assert!(says("y.example.", "example.", &a, "z.example."));
        for (owner, next, types, closer) in [
            // It is the next one, has one below it, or is not between them.
            ("*.w.example.", "a.w.example.", &a[..], "a.w.example."),
            ("*.w.example.", "x.a.w.example.", &a, "a.w.example."),
            ("b.w.example.", "z.w.example.", &a, "a.w.example."),
            ("y.example.", "example.", &a, "z.other."),
            // It is another zone's, or in another tree.
            ("w.example.", "x.example.", &[RecordType::NS], "a.w.example."),
            ("w.example.", "x.example.", &[RecordType::DNAME], "a.w.example."),
        ] {
            assert!(!says(owner, next, types, closer), "{owner} {next} {closer}");
        }
    }

    const SALT: [u8; 4] = [0xaa, 0xbb, 0xcc, 0xdd];

    fn nsec3(next: &str, opt_out: bool, rounds: u16, salt: &[u8], types: &[RecordType]) -> NSEC3 {
        let next = base32hex(next.as_bytes()).unwrap().to_vec();
        NSEC3::new(Nsec3HashAlgorithm::SHA1, opt_out, rounds, salt.to_vec(), next, types.iter().copied())
    }

    fn secure(owner: &str, nsec3: NSEC3) -> Record {
        let mut record = Record::from_rdata(name(owner), 300, RData::DNSSEC(DNSSECRData::NSEC3(nsec3)));
        record.proof = Proof::Secure;
        record
    }

    /// A signature of example.'s.
    fn signed(owner: &Name, rtype: RecordType, labels: u8) -> Record {
        let at = hickory_proto::rr::SerialNumber::new(0);
        let input = SigInput {
            type_covered: rtype,
            algorithm: Algorithm::ECDSAP256SHA256,
            num_labels: labels,
            original_ttl: 300,
            sig_expiration: at,
            sig_inception: at,
            key_tag: 1,
            signer_name: name("example."),
        };
        let signature = RRSIG::from_sig(input, vec![]);
        let mut record = Record::from_rdata(owner.clone(), 300, RData::DNSSEC(DNSSECRData::RRSIG(signature)));
        record.proof = Proof::Secure;
        record
    }

    #[test]
    fn a_dnames_own_name_lacks_what_its_zone_says_and_nobody_else() {
        use RecordType::{A, AAAA, CNAME, DNAME, DS, NS, SOA};
        let (owner, zone) = (name("old.example."), name("example."));
        // By name and by hash, signed with so many labels.
        let proofs = |types: &[RecordType], labels: u8| {
            let nsec = RData::DNSSEC(DNSSECRData::NSEC(NSEC::new(name("z.example."), types.iter().copied())));
            let mut named = Record::from_rdata(owner.clone(), 300, nsec);
            named.proof = Proof::Secure;
            let q04 = "q04jkcevqvmu85r014c7dkba38o0ji5r";
            let hashed = |rounds| {
                let nsec3 = nsec3(q04, false, rounds, &SALT, types);
                let hash = Nsec3HashAlgorithm::SHA1.hash(&SALT, &owner, rounds).unwrap();
                let letters = hash.as_ref().chunks(5).flat_map(|five| {
                    let bits = five.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
                    (0..8).rev().map(move |nth| bits >> (nth * 5) & 31)
                });
                let letter = |bits| char::from(b"0123456789abcdefghijklmnopqrstuv"[bits as usize]);
                let owner = format!("{}.example.", letters.map(letter).collect::<String>());
                [secure(&owner, nsec3), signed(&name(&owner), RecordType::NSEC3, labels)]
            };
            let named = [named, signed(&owner, RecordType::NSEC, labels)];
            (named, hashed(1), hashed(ITERATIONS + 1))
        };
        let lacks = |proofs: &[Record], asked| lacks_beside_dname(proofs, &owner, asked, &zone);
        let (by_name, by_hash, by_many_rounds) = proofs(&[DNAME, A], 2);
        assert!(lacks(&by_name, AAAA) && lacks(&by_hash, AAAA));
        assert!(!lacks(&by_many_rounds, AAAA));
        for (types, labels, asked) in [
            (&[DNAME, A][..], 2, A),
            (&[DNAME, A], 2, DS),
            (&[DNAME, CNAME], 2, AAAA),
            // Another zone's, one that hickory has not refused, and one that was made from a wildcard.
            (&[DNAME, NS], 2, AAAA),
            (&[A], 2, AAAA),
            (&[DNAME], 1, AAAA),
        ] {
            let (by_name, by_hash, _) = proofs(types, labels);
            assert!(!lacks(&by_name, asked) && !lacks(&by_hash, asked), "{types:?} {labels} {asked}");
        }
        let (at_top, by_hash, _) = proofs(&[DNAME, NS, SOA], 2);
        assert!(lacks(&at_top, AAAA) && lacks(&by_hash, AAAA));
        let other = name("x.old.example.");
        for proofs in [&at_top, &by_hash] {
            assert!(!lacks_beside_dname(proofs, &other, AAAA, &zone));
            assert!(!lacks_beside_dname(proofs, &owner, AAAA, &name("other.")));
            assert!(!lacks(&proofs[..1], AAAA));
        }
    }

    #[test]
    fn proofs_hash_in_one_way_and_so_many_names_at_most() {
        let q04 = "q04jkcevqvmu85r014c7dkba38o0ji5r";
        let owner = format!("{q04}.example.");
        let judged = |closers: usize, times: usize, salts: &[&[u8]]| {
            let mut message = Message::response(7, hickory_proto::op::OpCode::Query);
            for closer in 0..closers {
                let owner = name(&format!("n{closer}.example."));
                message.answers.extend((0..times).map(|_| signed(&owner, RecordType::A, 1)));
            }
            // The only one of its zone: everything is between it and itself.
            let proofs = salts.iter().map(|salt| secure(&owner, nsec3(q04, false, 1, salt, &[])));
            message.authorities = proofs.chain([signed(&name(&owner), RecordType::NSEC3, 2)]).collect();
            nothing_closer(&message)
        };
        assert_eq!(judged(HASHES, 1, &[&SALT]), Proof::Secure);
        assert_eq!(judged(HASHES + 1, 1, &[&SALT]), Proof::Bogus);
        // One name's signatures are one name's.
        assert_eq!(judged(HASHES, 4, &[&SALT, &SALT]), Proof::Secure);
        assert_eq!(judged(1, 1, &[&SALT, &[1]]), Proof::Bogus);
    }

    /// The zone and the hashes of RFC 5155, appendices A and B.4.
    #[test]
    fn a_hash_between_two_is_not_there() {
        let zone = name("example.");
        let says = |owner: &str, next: &str, opt_out: bool, rounds: u16, closer: &str| {
            let nsec3 = nsec3(next, opt_out, rounds, &SALT, &[RecordType::A]);
            hash(&nsec3, &name(closer))
                .map_or_else(|worth| worth, |hash| covers_hash(&name(owner), &nsec3, &hash, &zone))
        };
        let (q04, r53) = ("q04jkcevqvmu85r014c7dkba38o0ji5r", "r53bq7cc2uvmubfu5ocmm6pers9tk9en");
        let owner = format!("{q04}.example.");
        assert_eq!(says(&owner, r53, false, 12, "z.w.example."), Proof::Secure);
        assert_eq!(says(&owner, r53, true, 12, "z.w.example."), Proof::Insecure);
        assert_eq!(says(&owner, r53, false, ITERATIONS + 1, "z.w.example."), Proof::Insecure);
        for closer in ["a.example.", "ns2.example.", "*.w.example."] {
            assert_eq!(says(&owner, r53, false, 12, closer), Proof::Bogus, "{closer}");
        }
        // The last one goes around.
        let (t64, zero) = ("t644ebqk9bibcna874givr6joj62mlhv", "0p9mhaveqvm6t7vbl5lop2u3t2rp3tom");
        let covered = |owner: &str, next: &str, hash: &[u8]| {
            covers_hash(&name(&format!("{owner}.example.")), &nsec3(next, false, 12, &SALT, &[]), hash, &zone)
        };
        assert_eq!(says(&format!("{t64}.example."), zero, false, 12, "a.example."), Proof::Bogus);
        for hash in [[0; HASH], [0xff; HASH]] {
            assert_eq!(covered(t64, zero, &hash), Proof::Secure);
        }
        for hash in [t64, zero, q04].map(|text| base32hex(text.as_bytes()).unwrap()) {
            assert_eq!(covered(t64, zero, &hash), Proof::Bogus);
        }
        // The only one has all but its own.
        assert_eq!(covered(q04, q04, &[0; HASH]), Proof::Secure);
        assert_eq!(covered(q04, q04, &[0xff; HASH]), Proof::Secure);
        assert_eq!(covered(q04, q04, &base32hex(q04.as_bytes()).unwrap()), Proof::Bogus);
        for odd in
            ["short.example.", "w04jkcevqvmu85r014c7dkba38o0ji5r.example.", &format!("{q04}.sub.example.")]
        {
            assert_eq!(says(odd, r53, false, 12, "z.w.example."), Proof::Bogus, "{odd}");
        }
    }

    #[test]
    fn an_alias_is_what_its_dname_says_or_nothing() {
        let dname = |proof| {
            let rdata = NULL::with(b"\x03new\x07example\0".to_vec());
            let mut record = Record::from_rdata(
                name("old.example."),
                60,
                RData::Unknown { code: RecordType::DNAME, rdata },
            );
            record.proof = proof;
            record
        };
        let alias = |owner: &str, target: &str| {
            let mut record = Record::from_rdata(name(owner), 300, RData::CNAME(CNAME(name(target))));
            record.proof = Proof::Bogus;
            record
        };
        let judged = |dname: Record, alias: Record| {
            let mut answers = [alias, dname];
            prove_aliases(&mut answers);
            (answers[0].proof, answers[0].ttl)
        };
        let (right, wrong) = ((Proof::Secure, 60), (Proof::Bogus, 300));
        assert_eq!(judged(dname(Proof::Secure), alias("a.b.old.example.", "a.b.NEW.example.")), right);
        for (owner, target) in [
            ("a.old.example.", "a.evil.example."),
            ("a.old.example.", "b.new.example."),
            ("old.example.", "new.example."),
            ("a.other.example.", "a.new.example."),
        ] {
            assert_eq!(judged(dname(Proof::Secure), alias(owner, target)), wrong, "{owner}");
        }
        for proof in [Proof::Insecure, Proof::Bogus, Proof::Indeterminate] {
            assert_eq!(judged(dname(proof), alias("a.old.example.", "a.new.example.")), wrong);
        }
        // Longer than a name may be.
        let long = format!("{}old.example.", "a.".repeat(120));
        assert_eq!(judged(dname(Proof::Secure), alias(&long, "new.example.")), wrong);
    }
}

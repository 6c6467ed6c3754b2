//! A network that has us validate, with upstreams that have nothing signed; signed zones are in `tests/it/dns/dnssec.rs`.

use super::*;
use crate::model::ForwardZone;

fn validating() -> ResolverSettings {
    ResolverSettings { dnssec: true, ..Default::default() }
}

/// All at once, and what is needed for a chain of trust only.
#[tokio::test]
async fn silence_ends_a_validated_question_too_before_a_stub_gives_up() {
    let silent = Upstream::silent().await;
    let keeps_keys = Upstream::that(|asked| {
        let asks_for_a = asked.message.queries[0].query_type() == RecordType::A;
        if asks_for_a { now(asked.a(300)) } else { vec![] }
    })
    .await;
    let slow = Upstream::that(|asked| vec![(Duration::from_millis(900), asked.a(300))]).await;
    for upstream in [&silent, &keeps_keys, &slow] {
        let server = resolver(validating(), &[upstream]);
        let since = Instant::now();
        let answer = ask(&server, with_edns(question("www.example.com.", RecordType::A), 1232, false)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(extended_error(&answer).is_some(), "{answer}");
        assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
        // Not signed and not proven to be: never an answer, now or from what is held.
        assert!(lookup(&server, "www.example.com.").await.answers.is_empty());
    }
}

#[tokio::test]
async fn a_private_suffix_is_answered_without_being_validated_or_called_authentic() {
    let (internet, corp) = (
        Upstream::prompt().await,
        Upstream::that(|asked| {
            let mut reply = asked.reply();
            reply.metadata.authentic_data = true;
            let address = RData::A(A(Ipv4Addr::new(10, 1, 2, 3)));
            reply.add_answer(Record::from_rdata(name(&asked.name()), 60, address));
            now(reply.to_vec().unwrap())
        })
        .await,
    );
    let forward = vec![ForwardZone {
        domain: "corp.example".parse().unwrap(),
        servers: vec![super::server(corp.address)],
    }];
    let server = resolver(ResolverSettings { forward, ..validating() }, &[&internet]);
    for _ in 0..2 {
        let mut query = question("db.corp.example.", RecordType::A);
        query.metadata.authentic_data = true;
        let answer = ask(&server, query).await;
        assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 1, 2, 3)]);
        assert!(!answer.metadata.authentic_data);
    }
    assert_eq!((internet.seen(), corp.seen()), (0, 1));
    // Of the internet the same would be bogus.
    let bogus = ask(&server, question("www.example.com.", RecordType::A)).await;
    assert_eq!(bogus.metadata.response_code, ResponseCode::ServFail);
}

/// What a zone's delegation says of it is on the side of the zone above (RFC 4035 section 3.1.4.1).
#[tokio::test]
async fn a_zones_delegation_is_asked_for_where_the_zone_above_it_is() {
    let (internet, corp) = (Upstream::prompt().await, Upstream::prompt().await);
    let forward = vec![ForwardZone {
        domain: "corp.example".parse().unwrap(),
        servers: vec![super::server(corp.address)],
    }];
    let server = resolver(ResolverSettings { forward, ..Default::default() }, &[&internet]);
    for (name, rtype, seen) in [
        ("corp.example.", RecordType::DS, (1, 0)),
        ("sub.corp.example.", RecordType::DS, (1, 1)),
        ("corp.example.", RecordType::DNSKEY, (1, 2)),
    ] {
        ask(&server, question(name, rtype)).await;
        assert_eq!((internet.seen(), corp.seen()), seen, "{name} {rtype}");
    }
}

/// A key for one zone of many behind a suffix's servers.
#[tokio::test]
async fn a_key_below_a_private_suffix_is_for_what_is_below_the_key() {
    let (internet, corp) = (Upstream::prompt().await, Upstream::prompt().await);
    let directory = tempfile::tempdir().unwrap();
    let anchor = directory.path().join("anchor");
    let key = format!("{}==", "A".repeat(86));
    std::fs::write(&anchor, format!("signed.corp.example. IN DNSKEY 257 3 13 {key}\n")).unwrap();
    let forward = vec![ForwardZone {
        domain: "corp.example".parse().unwrap(),
        servers: vec![super::server(corp.address)],
    }];
    let server =
        resolver(ResolverSettings { forward, trust_anchor: Some(anchor), ..validating() }, &[&internet]);
    for (name, expected) in [
        ("db.corp.example.", ResponseCode::NoError),
        ("corp.example.", ResponseCode::NoError),
        ("signed.corp.example.", ResponseCode::ServFail),
        ("www.signed.corp.example.", ResponseCode::ServFail),
    ] {
        assert_eq!(lookup(&server, name).await.metadata.response_code, expected, "{name}");
    }
}

/// What is held of a chain may be what is wrong with it: it is asked for once more, unless that has just been. So names of a broken
/// zone, however many, do not have everybody's keys asked for again and again.
#[tokio::test]
async fn what_a_bogus_answer_was_judged_by_is_asked_for_again() {
    let servers = Arc::new(AtomicUsize::new(0));
    let counted = servers.clone();
    let upstream = Upstream::that(move |asked| {
        if asked.message.queries[0].query_type() != RecordType::NS || asked.name() != "com." {
            return now(asked.a(300));
        }
        counted.fetch_add(1, Ordering::SeqCst);
        let server = RData::NS(hickory_proto::rr::rdata::NS(name("ns.com.")));
        now(asked.with([Record::from_rdata(name("com."), 86_400, server)]))
    })
    .await;
    let server = resolver(validating(), &[&upstream]);
    let bogus = async |n: usize| {
        let query = with_edns(question(&format!("{n}.example.com."), RecordType::A), 1232, false);
        let bogus = ask(&server, query).await;
        assert_eq!(extended_error(&bogus), Some(6), "{bogus}");
    };
    for asked in 1..=3 {
        let since = Instant::now();
        for n in 1..=4 {
            bogus(10 * asked + n).await;
        }
        // A pause of the machine may be as long as what has just been asked for is held.
        assert!(servers.load(Ordering::SeqCst) == asked || since.elapsed() > Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(2_100)).await;
    }
}

/// Each of its names is below a hundred others, and none is signed.
#[tokio::test]
async fn an_answer_that_would_take_many_hundred_questions_gets_one_hundred() {
    let upstream = Upstream::that(|asked| {
        let below = "a.".repeat(100);
        let many = (0..5).map(|n| a(&format!("{below}n{n}.com."), 300));
        now(asked.with(many.chain([a(&asked.name(), 300)])))
    })
    .await;
    let server = resolver(validating(), &[&upstream]);
    let answer = lookup(&server, "www.example.com.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // But for a datagram that is sent again.
    assert!((100..200).contains(&upstream.seen()), "{}", upstream.seen());
}

/// Who wants to judge for itself has the answer as it is, and no word of the upstream's that we have not looked into.
#[tokio::test]
async fn an_upstreams_word_is_not_passed_on_to_who_judges_for_itself() {
    let upstream = Upstream::that(|asked| {
        let mut reply = asked.reply();
        reply.metadata.authentic_data = true;
        reply.add_answer(a(&asked.name(), 300));
        now(reply.to_vec().unwrap())
    })
    .await;
    let ad_of = async |server: &DnsServer| {
        let mut query = with_edns(question("www.example.com.", RecordType::A), 1232, true);
        query.metadata.checking_disabled = true;
        let answer = ask(server, query).await;
        assert_eq!(addresses(&answer), [ANSWER]);
        answer.metadata.authentic_data
    };
    let (validates, passes) = (resolver(validating(), &[&upstream]), forwarding(&[&upstream]));
    for _ in 0..2 {
        assert_eq!((ad_of(&validates).await, ad_of(&passes).await), (false, true));
    }
}

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

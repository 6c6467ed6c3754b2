//! Rules, and the names that an upstream's aliases lead to.

use std::fs;
use std::sync::atomic::AtomicBool;

use super::settings::{asked_by, read_again, record, rule, with_a_rule_for_vm_2};
use super::*;
use crate::model::{DnsAction, DnsRule};

fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 300, RData::CNAME(CNAME(name(target))))
}

/// An upstream with the aliases that the labels of a name say, one after the other: `shop-ads-cdn.example` leads to
/// `ads-cdn.example`, and that to `cdn.example`, which has an address.
async fn chains() -> Upstream {
    chains_while(|| true).await
}

async fn chains_while(answers: impl Fn() -> bool + Send + Sync + 'static) -> Upstream {
    Upstream::that(move |asked| {
        if !answers() {
            return vec![];
        }
        let (mut owner, mut records) = (asked.name(), vec![]);
        while let Some((_, target)) = owner.clone().split_once('-') {
            records.push(alias(&owner, target));
            owner = target.to_owned();
        }
        records.push(a(&owner, 300));
        // An alias that is asked for by its own type is not followed.
        if asked.message.queries[0].query_type() == RecordType::CNAME {
            records.truncate(1);
        }
        now(asked.with(records))
    })
    .await
}

fn with(rules: Vec<DnsRule>, upstream: &Upstream) -> DnsServer {
    resolver(ResolverSettings { rules, ..Default::default() }, &[upstream])
}

async fn asked(server: &DnsServer, owner: &str) -> Message {
    ask(server, with_edns(question(owner, RecordType::A), 1232, false)).await
}

/// What its answer section says, in order.
fn told(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect()
}

#[tokio::test]
async fn a_rule_answers_for_a_name_that_an_upstreams_aliases_lead_to() {
    let upstream = chains().await;
    let portal = DnsAction::Address(vec!["10.100.0.1".parse().unwrap()]);
    let rules = vec![
        rule(DnsAction::NxDomain, &["ads.example"]),
        rule(DnsAction::NoData, &["quiet.example"]),
        rule(DnsAction::Refused, &["never.example"]),
        rule(portal, &["portal.example"]),
    ];
    let server = with(rules, &upstream);
    for (target, rcode, ede) in [
        ("ads", ResponseCode::NXDomain, 15),
        ("quiet", ResponseCode::NoError, 15),
        ("never", ResponseCode::Refused, 15),
        ("portal", ResponseCode::NoError, 4),
    ] {
        // From the upstream, then from the cache.
        for _ in 0..2 {
            let answer = asked(&server, &format!("a-b-{target}.example.")).await;
            assert_eq!(
                (answer.metadata.response_code, extended_error(&answer)),
                (rcode, Some(ede)),
                "{answer}"
            );
            let mut led = vec![
                format!("a-b-{target}.example. b-{target}.example."),
                format!("b-{target}.example. {target}.example."),
            ];
            if target == "portal" {
                led.push("portal.example. 10.100.0.1".into());
            }
            assert_eq!(told(&answer), led);
            let soa = answer.authorities.first().map(|soa| (soa.name.to_string(), soa.ttl));
            let denied = matches!(target, "ads" | "quiet");
            assert_eq!(soa, denied.then(|| (format!("{target}.example."), 10)), "{answer}");
        }
    }
    let counters = server.counters();
    assert_eq!((upstream.seen(), counters.cache_hits, counters.policy), (4, 4, 8));
    assert!(server.control().rules().iter().all(|rule| rule.hits == 2));
    assert_eq!(addresses(&asked(&server, "a-b.example.").await), [ANSWER]);
    // Asked for itself, an alias is data, as a mail server's name is.
    let data = ask(&server, question("a-ads.example.", RecordType::CNAME)).await;
    assert_eq!(told(&data), ["a-ads.example. ads.example."]);
}

#[tokio::test]
async fn the_first_name_of_an_answer_that_a_rule_has_decides() {
    let upstream = chains().await;
    let rules = vec![
        rule(DnsAction::NxDomain, &["ads.example"]),
        rule(DnsAction::Allow, &["shop-cdn-ads.example", "good-ads.example"]),
        rule(DnsAction::Refused, &["cdn-ads.example"]),
    ];
    let server = with(rules, &upstream);
    // Who is allowed the name asked for, or one on the way, is allowed what that leads to.
    for allowed in ["shop-cdn-ads.example.", "x-good-ads.example."] {
        assert_eq!(addresses(&asked(&server, allowed).await), [ANSWER], "{allowed}");
        assert_eq!(addresses(&asked(&server, allowed).await), [ANSWER], "{allowed}");
    }
    for (denied, rcode) in
        [("other-cdn-ads.example.", ResponseCode::Refused), ("bad-ads.example.", ResponseCode::NXDomain)]
    {
        assert_eq!(asked(&server, denied).await.metadata.response_code, rcode, "{denied}");
    }
}

/// What one VM may not have it gets by no name, whoever asks first: the cache is shared, the rules are not.
#[tokio::test]
async fn an_answer_that_one_guests_rules_refuse_is_anothers() {
    let upstream = chains().await;
    let server = with_a_rule_for_vm_2(&upstream);
    for (owner, order) in [("a-ads.example.", [1, 2]), ("b-ads.example.", [2, 1])] {
        for last in order.into_iter().chain(order) {
            let expected = match last {
                1 => (ResponseCode::NoError, vec![ANSWER]),
                _ => (ResponseCode::NXDomain, vec![]),
            };
            assert_eq!(asked_by(&server, last, owner).await, expected, "{owner} by {last}");
        }
    }
    assert_eq!(upstream.seen(), 2);
}

#[tokio::test]
async fn other_rules_hold_at_once_for_what_is_held_and_for_what_is_on_its_way() {
    let answers = Arc::new(AtomicBool::new(true));
    let told = answers.clone();
    let upstream = chains_while(move || told.load(Ordering::SeqCst)).await;
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, "other.example\n").unwrap();
    let rules = vec![DnsRule { file: Some(list.clone()), ..rule(DnsAction::NxDomain, &[]) }];
    let server = with(rules, &upstream);
    let denied = async |owner: &str| lookup(&server, owner).await.metadata.response_code;
    assert_eq!(denied("a-ads.example.").await, ResponseCode::NoError);
    answers.store(false, Ordering::SeqCst);
    let reload = async {
        while server.counters().forwarded < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::write(&list, "ads.example\nplain.example\n").unwrap();
        read_again(&server).unwrap();
        assert_eq!(denied("a-ads.example.").await, ResponseCode::NXDomain);
        // The questions are sent again.
        answers.store(true, Ordering::SeqCst);
    };
    let (on_its_way, itself, ()) = tokio::join!(denied("b-ads.example."), denied("plain.example."), reload);
    assert_eq!((on_its_way, itself), (ResponseCode::NXDomain, ResponseCode::NXDomain));
    fs::write(&list, "other.example\n").unwrap();
    read_again(&server).unwrap();
    for owner in ["a-ads.example.", "b-ads.example.", "plain.example."] {
        assert_eq!(denied(owner).await, ResponseCode::NoError, "{owner}");
    }
    assert_eq!(server.counters().asked, 3);
}

#[tokio::test]
async fn a_rule_tried_out_counts_an_answer_that_leads_to_its_names_once() {
    let upstream = chains().await;
    let dry = DnsRule { dry_run: true, ..rule(DnsAction::NxDomain, &["ads.example", "b-ads.example"]) };
    let server = with(vec![dry], &upstream);
    for asks in 1..=2 {
        assert_eq!(addresses(&asked(&server, "a-b-ads.example.").await), [ANSWER]);
        assert_eq!((server.control().rules()[0].hits, server.counters().policy_dry), (asks, asks));
    }
    assert_eq!(addresses(&asked(&server, "b-ads.example.").await), [ANSWER]);
    assert_eq!(server.control().rules()[0].hits, 3);
    assert_eq!(server.counters().policy, 0);
}

#[tokio::test]
async fn an_alias_of_ours_leads_no_further_than_the_rules_let_it() {
    let upstream = chains().await;
    let records = vec![record("www", "CNAME", "a-ads.example"), record("ok", "CNAME", "a-b.example")];
    let rules = vec![rule(DnsAction::NxDomain, &["ads.example"])];
    let server = resolver(ResolverSettings { records, rules, ..Default::default() }, &[&upstream]);
    for _ in 0..2 {
        let answer = asked(&server, "www.vm.internal.").await;
        assert_eq!(
            (answer.metadata.response_code, extended_error(&answer)),
            (ResponseCode::NXDomain, Some(15))
        );
        assert_eq!(told(&answer), ["www.vm.internal. a-ads.example.", "a-ads.example. ads.example."]);
        assert_eq!(addresses(&asked(&server, "ok.vm.internal.").await), [ANSWER]);
    }
    assert_eq!(upstream.seen(), 2);
    let (control, owner) = (server.control(), "www.vm.internal".parse().unwrap());
    let explained = control.explain(Ipv4Addr::LOCALHOST.into(), &owner, RecordType::A).await.unwrap();
    let way = explained.way;
    assert_eq!(way.last().unwrap(), "rule test about ads.example.: NxDomain", "{way:?}");
}

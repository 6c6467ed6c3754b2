//! `dns query --as`: a question whose way is shown.

use super::*;
use crate::dns::Explained;
use crate::model::DnsAction;

async fn explain(server: &DnsServer, name: &str) -> Explained {
    let guest = Ipv4Addr::new(10, 100, 0, 7).into();
    server.control().explain(guest, &name.parse().unwrap(), RecordType::A).await.unwrap()
}

#[tokio::test]
async fn a_guest_that_asks_more_than_it_may_is_shown_so() {
    let upstream = Upstream::prompt().await;
    let settings = ResolverSettings { queries_per_second: 1, ..Default::default() };
    let server = resolver(settings, &[&upstream]);
    let mut explained = explain(&server, "www.example.com").await;
    for _ in 0..50 {
        explained = explain(&server, "www.example.com").await;
    }
    assert_eq!((explained.rcode.as_str(), explained.answers.len()), ("no answer", 0));
    let last = explained.way.last().unwrap();
    assert!(last.contains("more than it may"), "{:?}", explained.way);
}

/// One question counts as one.
#[tokio::test]
async fn what_is_shown_is_not_disturbed() {
    let upstream = Upstream::prompt().await;
    let rule = vec![settings::rule(DnsAction::NxDomain, &["ads.example"])];
    let server = resolver(ResolverSettings { rules: rule, ..Default::default() }, &[&upstream]);
    let explained = explain(&server, "www.ads.example").await;
    assert_eq!(explained.rcode, "NXDOMAIN");
    assert!(explained.way.iter().any(|station| station.starts_with("rule test")), "{:?}", explained.way);
    assert_eq!(server.control().rules()[0].hits, 1);

    lookup(&server, "www.example.com.").await;
    let explained = explain(&server, "www.example.com").await;
    assert!(explained.way.iter().any(|station| station.starts_with("cache: fresh")), "{:?}", explained.way);
    assert_eq!(server.control().top(1)[0].hits, 1);
}

//! Names of VMs and of the host.

use super::*;
use crate::model::DnsRecord;

#[tokio::test]
async fn a_vm_has_a_name_from_bind_to_unbind_and_nobody_upstream_hears_of_it() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    let server = start(registry.clone(), &[&upstream]);
    let missing = lookup(&server, "web.vm.internal.").await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);

    bind(&registry, &network, "i-1", "web", 7);
    let found = lookup(&server, "WEB.vm.internal.").await;
    assert_eq!(addresses(&found), [Ipv4Addr::new(10, 100, 0, 7)]);
    assert!(found.metadata.authoritative && found.answers[0].ttl == 5);
    assert_eq!(addresses(&lookup(&server, "i-1.vm.internal.").await), [Ipv4Addr::new(10, 100, 0, 7)]);
    let reverse = ask(&server, question("7.0.100.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reverse.answers[0].data.to_string(), "web.vm.internal.");

    registry.unbind(&"i-1".parse().unwrap());
    for gone in ["web.vm.internal.", "i-1.vm.internal.", "7.0.100.10.in-addr.arpa."] {
        let answer = ask(&server, question(gone, RecordType::PTR)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{gone}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{gone}");
    }
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn a_name_without_the_type_asked_for_is_nodata_with_soa() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    bind(&registry, &network, "i-1", "web", 7);
    let server = start(registry, &[&upstream]);
    for (owner, rtype) in [
        ("web.vm.internal.", RecordType::AAAA),
        ("web.vm.internal.", RecordType::HTTPS),
        ("vm.internal.", RecordType::A),
        ("7.0.100.10.in-addr.arpa.", RecordType::A),
        ("0.100.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let answer = ask(&server, question(owner, rtype)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{owner}");
        assert!(answer.answers.is_empty(), "{owner}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{owner}");
    }
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn the_gateway_has_a_name_both_ways() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    assert_eq!(addresses(&lookup(&server, "gateway.vm.internal.").await), [Ipv4Addr::new(10, 100, 0, 1)]);
    let reverse = ask(&server, question("1.0.100.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reverse.answers[0].data.to_string(), "gateway.vm.internal.");
}

#[tokio::test]
async fn a_guest_sees_no_names_of_another_network() {
    let upstream = Upstream::prompt().await;
    let registry = Registry::default();
    bind(&registry, &network("other"), "i-1", "web", 7);
    let server = start(registry, &[&upstream]);
    for hidden in ["web.vm.internal.", "i-1.vm.internal.", "7.0.100.10.in-addr.arpa."] {
        let answer = ask(&server, question(hidden, RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{hidden}");
    }
}

#[tokio::test]
async fn vms_of_one_name_are_all_told() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    bind(&registry, &network, "a_1", "web", 7);
    bind(&registry, &network, "a_2", "web", 8);
    let server = start(registry, &[&upstream]);
    assert_eq!(addresses(&lookup(&server, "web.vm.internal.").await).len(), 2);
    assert_eq!(addresses(&lookup(&server, "a_2.vm.internal.").await), [Ipv4Addr::new(10, 100, 0, 8)]);
}

#[tokio::test]
async fn special_names_are_answered_here() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    assert_eq!(addresses(&lookup(&server, "localhost.").await), [Ipv4Addr::LOCALHOST]);
    for owner in ["printer.local.", "x.onion.", "a.invalid.", "b.test.", "home.arpa.x.alt."] {
        let answer = lookup(&server, owner).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{owner}");
    }
    assert_eq!(upstream.seen(), 0);
}

/// Neither hides the other: a VM made under a name that the operator has records for, and a record for a VM's address.
#[tokio::test]
async fn what_the_operator_added_for_a_vms_name_or_address_stands_beside_the_vms_own() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    bind(&registry, &network, "i-1", "web", 7);
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "10.100.0.9 printer\n10.100.0.7 www.corp\n").unwrap();
    let settings = ResolverSettings {
        hosts_file: Some(hosts),
        records: vec![
            settings::record("web", "A", "10.9.0.1"),
            settings::record("web", "A", "10.100.0.7"),
            settings::record("web", "MX", "10 mail.example"),
            settings::record("*", "TXT", "wild"),
            settings::record("i-1", "CNAME", "elsewhere.example"),
        ],
        ..Default::default()
    };
    let with_settings = Arc::new(Network { resolver: settings, ..Network::clone(&network) });
    let server = start_with(with_settings, registry.clone(), &endpoints(&[upstream.address]));
    let (vm, operator) = (Ipv4Addr::new(10, 100, 0, 7), Ipv4Addr::new(10, 9, 0, 1));
    assert_eq!(addresses(&lookup(&server, "web.vm.internal.").await), [vm, operator]);
    let mail = ask(&server, question("web.vm.internal.", RecordType::MX)).await;
    assert_eq!(mail.answers[0].data.to_string(), "10 mail.example.");
    // An alias stands beside nothing, and a wildcard is for names that are not there.
    assert_eq!(addresses(&lookup(&server, "i-1.vm.internal.").await), [vm]);
    assert!(ask(&server, question("web.vm.internal.", RecordType::TXT)).await.answers.is_empty());
    let reverse = async |last: u8| {
        let answer = ask(&server, question(&format!("{last}.0.100.10.in-addr.arpa."), RecordType::PTR)).await;
        answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(reverse(9).await, ["printer."]);
    assert_eq!(reverse(7).await, ["web.vm.internal.", "www.corp."]);
    assert!(reverse(8).await.is_empty());
    registry.unbind(&"i-1".parse().unwrap());
    assert_eq!(addresses(&lookup(&server, "web.vm.internal.").await), [operator, vm]);
    assert_eq!(reverse(7).await, ["www.corp."]);
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn records_of_one_name_and_type_hold_equally_long_and_no_wildcard_is_below_a_vm() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    bind(&registry, &network, "i-1", "db", 7);
    let record = |name: &str, value: &str, ttl| DnsRecord {
        name: DnsRecord::owner(name, "vm.internal").unwrap(),
        rtype: "A".into(),
        value: value.into(),
        ttl,
    };
    let records = vec![
        record("db", "10.9.0.1", 600),
        record("two", "10.9.0.2", 600),
        record("two", "10.9.0.3", 60),
        record("*", "10.9.0.9", 600),
    ];
    let settings = ResolverSettings { records, ..Default::default() };
    let network = Network { resolver: settings, ..Network::clone(&network) };
    let server = start_with(Arc::new(network), registry.clone(), &endpoints(&[upstream.address]));
    // RFC 2181 section 5.2: the least of them.
    for (name, ttl) in [("db.vm.internal.", 5), ("two.vm.internal.", 60)] {
        let ttls: Vec<_> = lookup(&server, name).await.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(ttls, [ttl, ttl], "{name}");
    }
    // RFC 4592 section 3.3.1: the closest encloser is the VM's name, which has no wildcard.
    for below in ["x.db.vm.internal.", "x.y.db.vm.internal.", "x.i-1.vm.internal.", "x.gateway.vm.internal."]
    {
        let denied = lookup(&server, below).await;
        assert_eq!(denied.metadata.response_code, ResponseCode::NXDomain, "{below}");
    }
    let by_wildcard = async || addresses(&lookup(&server, "x.other.vm.internal.").await);
    assert_eq!(by_wildcard().await, [Ipv4Addr::new(10, 9, 0, 9)]);
    // With the VM goes the name.
    registry.unbind(&"i-1".parse().unwrap());
    assert_eq!(addresses(&lookup(&server, "x.i-1.vm.internal.").await), [Ipv4Addr::new(10, 9, 0, 9)]);
}

#[tokio::test]
async fn an_alias_to_a_name_above_a_record_of_ours_leads_to_what_others_have_there() {
    let upstream = Upstream::prompt().await;
    let settings = ResolverSettings {
        records: vec![
            settings::record("db.corp.example.", "A", "10.9.0.1"),
            settings::record("out", "CNAME", "corp.example"),
        ],
        ..Default::default()
    };
    let server = resolver(settings, &[&upstream]);
    for owner in ["corp.example.", "out.vm.internal."] {
        assert_eq!(addresses(&lookup(&server, owner).await), [ANSWER], "{owner}");
    }
}

/// Whole as a record, and too short for an address: a stub may make something of it, we cannot put it behind our alias.
#[tokio::test]
async fn an_answer_that_cannot_stand_behind_an_alias_of_ours_is_a_failure_and_not_silence() {
    let upstream = Upstream::that(|asked| {
        let mut reply = asked.reply();
        reply.edns = None;
        reply.add_answer(a(&asked.name(), 300));
        let mut bytes = reply.to_vec().unwrap();
        let at = bytes.len() - 6;
        bytes[at + 1] = 3;
        bytes.pop();
        now(bytes)
    })
    .await;
    let records = vec![settings::record("out", "CNAME", "www.example.com")];
    let server = resolver(ResolverSettings { records, ..Default::default() }, &[&upstream]);
    // From the upstream, then from what is held.
    for _ in 0..2 {
        let query = with_edns(question("out.vm.internal.", RecordType::A), 1232, false);
        let answer = ask(&server, query).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(extended_error(&answer), Some(0));
    }
    assert_eq!((upstream.seen(), server.counters().dropped), (1, 0));
}

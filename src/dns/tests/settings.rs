//! What an operator sets: records, hosts, zones, rules, suffixes with upstreams of their own, rebinding protection.

use std::fs;

use super::*;
use crate::model::{DnsAction, DnsRecord, DnsRule, ForwardZone};

pub(super) fn record(name: &str, rtype: &str, value: &str) -> DnsRecord {
    let name = DnsRecord::owner(name, "vm.internal").unwrap();
    DnsRecord { name, rtype: rtype.into(), value: value.into(), ttl: 60 }
}

pub(super) fn rule(action: DnsAction, names: &[&str]) -> DnsRule {
    DnsRule {
        name: "test".into(),
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
        file: None,
        action,
        vms: vec![],
        workspaces: vec![],
        dry_run: false,
    }
}

#[tokio::test]
async fn records_and_aliases_of_the_operator_are_answered() {
    let upstream = Upstream::prompt().await;
    let settings = ResolverSettings {
        records: vec![
            record("db", "A", "10.9.0.1"),
            record("*.apps", "A", "10.9.0.2"),
            record("www", "CNAME", "db.vm.internal"),
            record("outside", "CNAME", "www.example.com"),
            record("loop", "CNAME", "loop.vm.internal"),
            record("mail.corp.", "MX", "10 mx.corp"),
            record("db.example.net.", "A", "10.9.0.3"),
        ],
        zones: vec!["corp".parse().unwrap()],
        ..Default::default()
    };
    let server = resolver(settings, &[&upstream]);
    assert_eq!(addresses(&lookup(&server, "db.vm.internal.").await), [Ipv4Addr::new(10, 9, 0, 1)]);
    assert_eq!(addresses(&lookup(&server, "any.apps.vm.internal.").await), [Ipv4Addr::new(10, 9, 0, 2)]);
    let alias = lookup(&server, "www.vm.internal.").await;
    assert_eq!((alias.answers.len(), addresses(&alias)), (2, vec![Ipv4Addr::new(10, 9, 0, 1)]));
    let mail = ask(&server, question("mail.corp.", RecordType::MX)).await;
    assert_eq!(mail.answers[0].data.to_string(), "10 mx.corp.");
    assert_eq!(lookup(&server, "other.corp.").await.metadata.response_code, ResponseCode::NXDomain);
    // Nine times itself: eight aliases are followed.
    let looped = lookup(&server, "loop.vm.internal.").await;
    assert!(!looped.answers.is_empty() && looped.answers.len() < 16, "{looped}");
    assert!(looped.answers.iter().all(|record| record.data.to_string() == "loop.vm.internal."), "{looped}");
    assert_eq!(upstream.seen(), 0);

    let outside = lookup(&server, "outside.vm.internal.").await;
    assert_eq!((outside.answers.len(), addresses(&outside)), (2, vec![ANSWER]));
    assert_eq!(upstream.seen(), 1);

    // Of a name in somebody else's zone, what is above it stays theirs.
    assert_eq!(addresses(&lookup(&server, "db.example.net.").await), [Ipv4Addr::new(10, 9, 0, 3)]);
    assert_eq!(addresses(&lookup(&server, "example.net.").await), [ANSWER]);
    assert_eq!(upstream.seen(), 2);
}

#[tokio::test]
async fn an_alias_to_an_outside_name_goes_the_way_of_that_name() {
    let upstream = Upstream::that(|asked| match asked.name().split('.').next().unwrap() {
        "missing" => now(asked.denied(60)),
        "private" => {
            let address = RData::A(A(Ipv4Addr::new(192, 168, 1, 1)));
            now(asked.with([Record::from_rdata(name(&asked.name()), 60, address)]))
        }
        "failing" => now(asked.code(ResponseCode::ServFail)),
        _ => vec![(Duration::from_millis(100), asked.a(300))],
    })
    .await;
    let alias = |to: &str| record(to, "CNAME", &format!("{to}.example"));
    let mut records: Vec<_> =
        ["www", "missing", "private", "failing", "ads"].into_iter().map(alias).collect();
    records.push(record("special", "CNAME", "printer.local"));
    let rules = vec![rule(DnsAction::NxDomain, &["ads.example"])];
    let server = resolver(ResolverSettings { records, rules, ..Default::default() }, &[&upstream]);
    let asked = async |label: &str| {
        let owner = format!("{label}.vm.internal.");
        let answer = ask(&server, with_edns(question(&owner, RecordType::A), 1232, false)).await;
        let soa = answer.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
        (answer.metadata.response_code, answer.answers.len(), soa, extended_error(&answer))
    };
    // Who asks at once is asked for once, by the alias or by the name; then it is held for both.
    let (by_alias, by_name) = tokio::join!(
        join_all((0..8).map(|_| lookup(&server, "www.vm.internal."))),
        join_all((0..8).map(|_| lookup(&server, "www.example."))),
    );
    assert!(by_alias.iter().all(|answer| answer.answers.len() == 2 && addresses(answer) == [ANSWER]));
    assert!(by_name.iter().all(|answer| addresses(answer) == [ANSWER]));
    assert_eq!(asked("www").await, (ResponseCode::NoError, 2, false, None));
    assert_eq!(upstream.seen(), 1);
    // The target's denial with its SOA, and why something is withheld, each from the upstream and from the cache.
    for _ in 0..2 {
        assert_eq!(asked("missing").await, (ResponseCode::NXDomain, 1, true, None));
        assert_eq!(asked("private").await, (ResponseCode::NoError, 1, false, Some(17)));
    }
    assert_eq!(upstream.seen(), 3);
    assert_eq!(asked("failing").await, (ResponseCode::ServFail, 0, false, Some(23)));
    assert_eq!(asked("failing").await, (ResponseCode::ServFail, 0, false, Some(13)));
    // A rule and the special names hold for a target too, and nobody upstream hears of it.
    let seen = upstream.seen();
    assert_eq!(asked("ads").await, (ResponseCode::NXDomain, 1, true, Some(15)));
    assert_eq!(asked("special").await, (ResponseCode::NXDomain, 1, true, None));
    assert_eq!(upstream.seen(), seen);
    // The TTL of what is held goes down behind an alias as well.
    let before = lookup(&server, "www.vm.internal.").await.answers[1].ttl;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(lookup(&server, "www.vm.internal.").await.answers[1].ttl < before);
}

#[tokio::test]
async fn records_come_and_go_while_it_runs() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let control = server.control();
    assert_eq!(lookup(&server, "db.vm.internal.").await.metadata.response_code, ResponseCode::NXDomain);
    control.set_records(&[record("db", "A", "10.9.0.1")]);
    assert_eq!(addresses(&lookup(&server, "db.vm.internal.").await), [Ipv4Addr::new(10, 9, 0, 1)]);
    control.set_records(&[]);
    assert_eq!(lookup(&server, "db.vm.internal.").await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_hosts_file_is_answered_both_ways_and_read_again() {
    let upstream = Upstream::prompt().await;
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "10.9.0.7 build.corp\n").unwrap();
    let settings = ResolverSettings { hosts_file: Some(hosts.clone()), ..Default::default() };
    let server = resolver(settings, &[&upstream]);
    assert_eq!(addresses(&lookup(&server, "build.corp.").await), [Ipv4Addr::new(10, 9, 0, 7)]);
    let reverse = ask(&server, question("7.0.9.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reverse.answers[0].data.to_string(), "build.corp.");
    fs::write(&hosts, "10.9.0.8 build.corp\n").unwrap();
    read_again(&server).unwrap();
    assert_eq!(addresses(&lookup(&server, "build.corp.").await), [Ipv4Addr::new(10, 9, 0, 8)]);

    // One that is gone keeps nobody from changing records, and its names stay until it can be read again.
    fs::remove_file(&hosts).unwrap();
    server.control().set_records(&[record("db", "A", "10.9.0.1")]);
    assert_eq!(addresses(&lookup(&server, "db.vm.internal.").await), [Ipv4Addr::new(10, 9, 0, 1)]);
    let error = read_again(&server).unwrap_err();
    assert_eq!(error.key().unwrap(), "resolver.hosts_file");
    assert!(error.to_string().contains(hosts.to_str().unwrap()), "{error}");
    for (owner, last) in [("build.corp.", 8), ("db.vm.internal.", 1)] {
        assert_eq!(addresses(&lookup(&server, owner).await), [Ipv4Addr::new(10, 9, 0, last)]);
    }
}

#[tokio::test]
async fn a_suffix_goes_to_its_own_upstreams_and_may_have_private_addresses() {
    let (internet, corp) = (
        Upstream::prompt().await,
        Upstream::that(|asked| {
            let private = RData::A(A(Ipv4Addr::new(10, 1, 2, 3)));
            now(asked.with([Record::from_rdata(name(&asked.name()), 60, private)]))
        })
        .await,
    );
    let forward = ["corp.example", "168.192.in-addr.arpa"].map(|domain| ForwardZone {
        domain: domain.parse().unwrap(),
        servers: vec![super::server(corp.address)],
    });
    let server = resolver(ResolverSettings { forward: forward.into(), ..Default::default() }, &[&internet]);
    assert_eq!(addresses(&lookup(&server, "db.corp.example.").await), [Ipv4Addr::new(10, 1, 2, 3)]);
    assert_eq!(addresses(&lookup(&server, "xcorp.example.").await), [ANSWER]);
    lookup(&server, "1.1.168.192.in-addr.arpa.").await;
    assert_eq!((internet.seen(), corp.seen()), (1, 2));
}

#[tokio::test]
async fn a_name_of_the_internet_does_not_lead_into_private_networks() {
    let upstream = Upstream::that(|asked| {
        let label = asked.name().split('.').next().unwrap().replace('-', ".");
        let address = RData::A(A(label.parse().unwrap()));
        now(asked.with([Record::from_rdata(name(&asked.name()), 60, address)]))
    })
    .await;
    let server = forwarding(&[&upstream]);
    for private in ["192-168-1-1", "127-0-0-1", "169-254-169-254", "10-0-0-1", "100-64-0-1", "0-0-0-0"] {
        let query = with_edns(question(&format!("{private}.evil.example."), RecordType::A), 1232, false);
        let answer = ask(&server, query).await;
        assert!(answer.answers.is_empty(), "{private}");
        assert_eq!(extended_error(&answer), Some(17), "{private}");
    }
    for fine in ["10-100-0-7", "198-51-100-10", "100-128-0-1"] {
        assert_eq!(lookup(&server, &format!("{fine}.example.")).await.answers.len(), 1, "{fine}");
    }
    assert_eq!(server.counters().rebind, 6);
    let off = resolver(ResolverSettings { rebind_protection: false, ..Default::default() }, &[&upstream]);
    assert_eq!(lookup(&off, "192-168-1-1.example.").await.answers.len(), 1);
    let exempt = vec!["plex.example".parse().unwrap()];
    let some = resolver(ResolverSettings { rebind_exempt: exempt, ..Default::default() }, &[&upstream]);
    assert_eq!(lookup(&some, "192-168-1-1.plex.example.").await.answers.len(), 1);
}

#[tokio::test]
async fn nor_by_ipv6_or_by_the_hints_of_a_service_binding() {
    let upstream = Upstream::that(|asked| {
        let rtype = asked.message.queries[0].query_type();
        // Behind an `x`, as no label begins with a hyphen.
        let label = asked.name()[1..].split(".evil").next().unwrap().to_owned();
        let data = if rtype == RecordType::AAAA {
            label.replace('-', ":")
        } else {
            // `4-10-0-0-1` is an IPv4 hint, `6-fd00--1` one of IPv6.
            let (kind, hint) = label.split_once('-').unwrap();
            let hint = hint.replace('-', if kind == "4" { "." } else { ":" }).replace('_', ",");
            format!("1 . alpn=\"h2\" ipv{kind}hint=\"{hint}\"")
        };
        let data = RData::try_from_str(rtype, &data).unwrap();
        now(asked.with([Record::from_rdata(name(&asked.name()), 60, data)]))
    })
    .await;
    let server = forwarding(&[&upstream]);
    let withheld = async |label: &str, rtype| {
        let query = with_edns(question(&format!("x{label}.evil.example."), rtype), 1232, false);
        let answer = ask(&server, query).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{label}: {answer}");
        assert_eq!(answer.answers.is_empty(), extended_error(&answer) == Some(17), "{label}: {answer}");
        answer.answers.is_empty()
    };
    // Unique local, link-local, loopback, mapped, and for NAT64.
    for private in ["fd00--1", "fc00-1--2", "fe80--1", "--1", "--", "--ffff-c0a8-101", "64-ff9b--a00-1"] {
        assert!(withheld(private, RecordType::AAAA).await, "{private}");
    }
    for fine in ["2001-db8--1", "--ffff-c633-640a", "64-ff9b--c633-640a"] {
        assert!(!withheld(fine, RecordType::AAAA).await, "{fine}");
    }
    for private in ["4-10-0-0-1", "4-198-51-100-10_192-168-0-1", "6-fd00--1", "6-2001-db8--1_fe80--1"] {
        assert!(withheld(private, RecordType::HTTPS).await, "{private}");
        assert!(withheld(private, RecordType::SVCB).await, "{private}");
    }
    for fine in ["4-198-51-100-10", "6-2001-db8--1", "4-10-100-0-7"] {
        assert!(!withheld(fine, RecordType::HTTPS).await, "{fine}");
    }
}

#[tokio::test]
async fn a_rule_answers_in_its_way_and_says_so() {
    let upstream = Upstream::prompt().await;
    let settings = ResolverSettings {
        rules: vec![
            rule(DnsAction::Allow, &["good.ads.example"]),
            rule(DnsAction::NxDomain, &["ads.example"]),
            rule(DnsAction::NoData, &["quiet.example"]),
            rule(DnsAction::Refused, &["never.example"]),
            rule(DnsAction::Address(vec!["10.100.0.1".parse().unwrap()]), &["portal.example"]),
        ],
        ..Default::default()
    };
    let server = resolver(settings, &[&upstream]);
    let asked = async |owner: &str| {
        let answer = ask(&server, with_edns(question(owner, RecordType::A), 1232, false)).await;
        (answer.metadata.response_code, answer.answers.len(), extended_error(&answer))
    };
    assert_eq!(asked("x.ads.example.").await, (ResponseCode::NXDomain, 0, Some(15)));
    assert_eq!(asked("quiet.example.").await, (ResponseCode::NoError, 0, Some(15)));
    assert_eq!(asked("never.example.").await, (ResponseCode::Refused, 0, Some(15)));
    assert_eq!(asked("portal.example.").await, (ResponseCode::NoError, 1, Some(4)));
    assert_eq!(upstream.seen(), 0);
    assert_eq!(asked("good.ads.example.").await, (ResponseCode::NoError, 1, None));
    assert_eq!(server.counters().policy, 4);
    assert_eq!(server.control().rules()[1].hits, 1);
}

/// What one VM may not have is not had through another that may: the cache is shared, the rules are not.
#[tokio::test]
async fn a_rule_for_one_vm_holds_beside_a_cache_that_all_share() {
    let upstream = Upstream::prompt().await;
    let server = with_a_rule_for_vm_2(&upstream);
    let asked_by = |last| asked_by(&server, last, "x.ads.example.");
    for _ in 0..2 {
        assert_eq!(asked_by(2).await, (ResponseCode::NXDomain, vec![]));
        assert_eq!(asked_by(1).await, (ResponseCode::NoError, vec![ANSWER]));
    }
    let counters = server.counters();
    assert_eq!((upstream.seen(), counters.cache_hits, counters.policy), (1, 1, 2));
}

/// For two VMs, of which the second may not have what is in `ads.example`.
pub(super) fn with_a_rule_for_vm_2(upstream: &Upstream) -> DnsServer {
    let (registry, network) = (Registry::default(), network("default"));
    for last in [1, 2] {
        let vm_id = format!("vm-{last}");
        let vm = Vm { address: Ipv4Addr::new(127, 0, 0, last), ..vm(&network, &vm_id, &vm_id, last) };
        registry.bind(Arc::new(Binding::new(vm, network.clone())));
    }
    let denied =
        DnsRule { vms: vec!["vm-2".parse().unwrap()], ..rule(DnsAction::NxDomain, &["ads.example"]) };
    let settings = ResolverSettings { rules: vec![denied], ..Default::default() };
    let network = Arc::new(Network { resolver: settings, ..Network::clone(&network) });
    start_with(network, registry, &endpoints(&[upstream.address]))
}

/// What the VM of that number is told of a name.
pub(super) async fn asked_by(server: &DnsServer, last: u8, owner: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).await.unwrap();
    let query = question(owner, RecordType::A).to_vec().unwrap();
    socket.send_to(&query, server.local_addr()).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    (answer.metadata.response_code, addresses(&answer))
}

/// Reads all files of a resolver's settings anew. Its upstreams stand in no settings here.
pub(super) fn read_again(server: &DnsServer) -> Result<(), crate::dns::DnsError> {
    let control = server.control();
    let upstreams = control.upstreams().iter().map(|upstream| upstream.server.parse().unwrap()).collect();
    let network = Network { upstreams, ..Network::clone(&control.settings()) };
    control.prepare(Arc::new(network), &[]).map(crate::dns::Prepared::put_in_force)
}

#[tokio::test]
async fn a_list_is_reloaded_without_a_gap_and_one_that_is_gone_changes_nothing() {
    let upstream = Upstream::prompt().await;
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, "one.example\n").unwrap();
    let rules = vec![DnsRule { file: Some(list.clone()), ..rule(DnsAction::NxDomain, &[]) }];
    let server = resolver(ResolverSettings { rules, ..Default::default() }, &[&upstream]);
    let denied =
        async |owner: &str| lookup(&server, owner).await.metadata.response_code == ResponseCode::NXDomain;
    assert!(denied("one.example.").await && !denied("two.example.").await);
    fs::write(&list, "one.example\nthree.example\n").unwrap();
    read_again(&server).unwrap();
    assert!(denied("one.example.").await && denied("three.example.").await);
    assert_eq!(server.control().rules()[0].hits, 3, "counted on");
    fs::remove_file(&list).unwrap();
    let error = read_again(&server).unwrap_err().to_string();
    assert!(error.contains(list.to_str().unwrap()), "{error}");
    assert!(denied("one.example.").await);
}

#[tokio::test]
async fn a_guest_sees_the_names_of_its_workspace_only() {
    let upstream = Upstream::prompt().await;
    let (registry, network) = (Registry::default(), network("default"));
    // The tests ask from 127.0.0.1, so that is where the guest has to be.
    for (vm_id, workspace, address) in [
        ("asker", Some("acme"), Ipv4Addr::LOCALHOST),
        ("friend", Some("acme"), Ipv4Addr::new(10, 100, 0, 7)),
        ("foe", Some("other"), Ipv4Addr::new(10, 100, 0, 8)),
        ("loner", None, Ipv4Addr::new(10, 100, 0, 9)),
    ] {
        let vm = Vm {
            workspace: workspace.map(|workspace| workspace.parse().unwrap()),
            address,
            ..vm(&network, vm_id, vm_id, address.octets()[3])
        };
        registry.bind(Arc::new(Binding::new(vm, network.clone())));
    }
    let server = start(registry, &[&upstream]);
    assert_eq!(addresses(&lookup(&server, "friend.vm.internal.").await).len(), 1);
    for hidden in ["foe.vm.internal.", "loner.vm.internal.", "8.0.100.10.in-addr.arpa."] {
        let answer = lookup(&server, hidden).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{hidden}");
    }
}

#[tokio::test]
async fn a_guest_over_its_rate_waits_and_others_do_not() {
    let upstream = Upstream::prompt().await;
    let settings = ResolverSettings { queries_per_second: 20, ..Default::default() };
    let server = resolver(settings, &[&upstream]);
    let flood = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    flood.connect(server.local_addr()).await.unwrap();
    for _ in 0..200 {
        flood.send(&question("gateway.vm.internal.", RecordType::A).to_vec().unwrap()).await.unwrap();
    }
    assert_eq!(addresses(&lookup(&server, "gateway.vm.internal.").await).len(), 1);
    let limited = server.counters().limited;
    assert!((100..200).contains(&limited), "{limited}");
}

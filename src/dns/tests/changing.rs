//! Other settings while it runs.

use super::*;
use crate::dns::{DnsError, Prepared};
use crate::model::ForwardZone;

/// Answers with an address that ends so.
async fn answering(last: u8) -> Upstream {
    Upstream::that(move |asked| {
        let address = RData::A(A(Ipv4Addr::new(198, 51, 100, last)));
        now(asked.with([Record::from_rdata(name(&asked.name()), 300, address)]))
    })
    .await
}

/// Puts these settings in force.
fn change(
    server: &DnsServer,
    upstreams: &[&Upstream],
    settings: impl FnOnce(&mut ResolverSettings),
) -> Result<(), DnsError> {
    let control = server.control();
    let mut network = Network::clone(&control.settings());
    network.upstreams = upstreams.iter().map(|upstream| super::server(upstream.address)).collect();
    settings(&mut network.resolver);
    control.prepare(Arc::new(network), &[]).map(Prepared::put_in_force)
}

async fn last_octet(server: &DnsServer, owner: &str) -> u8 {
    let answer = lookup(server, owner).await;
    addresses(&answer)[0].octets()[3]
}

fn corp(upstream: &Upstream) -> Vec<ForwardZone> {
    vec![ForwardZone {
        domain: "corp.example".parse().unwrap(),
        servers: vec![super::server(upstream.address)],
    }]
}

#[tokio::test]
async fn with_other_upstreams_their_answers_are_given_at_once_and_the_rest_of_the_cache_stays() {
    let (one, two, inner, other) =
        (answering(1).await, answering(2).await, answering(3).await, answering(4).await);
    let server = resolver(ResolverSettings { forward: corp(&inner), ..Default::default() }, &[&one]);
    let names = ["www.example.com.", "db.corp.example."];
    assert_eq!([last_octet(&server, names[0]).await, last_octet(&server, names[1]).await], [1, 3]);
    // The order and what stays the same change nothing.
    change(&server, &[&one], |_| ()).unwrap();
    assert_eq!(last_octet(&server, names[0]).await, 1);
    assert_eq!((one.seen(), inner.seen()), (1, 1));

    change(&server, &[&two], |_| ()).unwrap();
    assert_eq!([last_octet(&server, names[0]).await, last_octet(&server, names[1]).await], [2, 3]);
    assert_eq!((one.seen(), two.seen(), inner.seen()), (1, 1, 1));

    change(&server, &[&two], |settings| settings.forward = corp(&other)).unwrap();
    assert_eq!([last_octet(&server, names[0]).await, last_octet(&server, names[1]).await], [2, 4]);
    change(&server, &[&two], |settings| settings.forward.clear()).unwrap();
    assert_eq!([last_octet(&server, names[0]).await, last_octet(&server, names[1]).await], [2, 2]);
    assert_eq!((two.seen(), other.seen()), (2, 1));
    let upstreams = server.control().upstreams();
    assert_eq!(upstreams.iter().map(|upstream| upstream.answers).collect::<Vec<_>>(), [2]);
}

/// A zone's delegation is not its own servers' to tell, so it stays and goes with those of the zone above.
#[tokio::test]
async fn what_is_held_of_a_delegation_goes_with_the_upstreams_of_the_zone_above() {
    let denying = async || Upstream::that(|asked| now(asked.denied(60))).await;
    let (one, two, inner, other) = (denying().await, denying().await, denying().await, denying().await);
    let server = resolver(ResolverSettings { forward: corp(&inner), ..Default::default() }, &[&one]);
    let delegations = async || {
        for owner in ["corp.example.", "sub.corp.example."] {
            ask(&server, question(owner, RecordType::DS)).await;
        }
        [&one, &two, &inner, &other].map(Upstream::seen)
    };
    for _ in 0..2 {
        assert_eq!(delegations().await, [1, 0, 1, 0]);
    }
    change(&server, &[&one], |settings| settings.forward = corp(&other)).unwrap();
    assert_eq!(delegations().await, [1, 0, 1, 1]);
    change(&server, &[&two], |_| ()).unwrap();
    assert_eq!(delegations().await, [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_question_under_way_is_answered_by_the_old_upstream_and_the_next_is_not() {
    let slow = Upstream::that(|asked| vec![(Duration::from_millis(600), asked.a(300))]).await;
    let new = answering(77).await;
    let server = forwarding(&[&slow]);
    let under_way = async {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let query = question("www.example.com.", RecordType::A).to_vec().unwrap();
        socket.send_to(&query, server.local_addr()).await.unwrap();
        let mut buffer = [0; 512];
        let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        addresses(&Message::from_vec(&buffer[..length]).unwrap())
    };
    let changed = async {
        while slow.seen() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        change(&server, &[&new], |_| ()).unwrap();
        // Who asks now does not wait for what the old one says.
        last_octet(&server, "www.example.com.").await
    };
    let (old, now) = tokio::join!(under_way, changed);
    assert_eq!((old, now), (vec![ANSWER], 77));
    // Nor did the late answer get into the cache.
    assert_eq!(last_octet(&server, "www.example.com.").await, 77);
    assert_eq!(new.seen(), 1);
}

#[tokio::test]
async fn settings_that_cannot_be_leave_the_old_ones_and_name_their_key() {
    let (one, two) = (answering(1).await, answering(2).await);
    let server = forwarding(&[&one]);
    assert_eq!(last_octet(&server, "www.example.com.").await, 1);
    let missing = |settings: &mut ResolverSettings| settings.hosts_file = Some("/nowhere/hosts".into());
    let error = change(&server, &[&two], missing).unwrap_err();
    assert_eq!(error.key().unwrap(), "resolver.hosts_file");
    assert!(error.to_string().contains("/nowhere/hosts"), "{error}");
    // A pipe that nobody writes to would keep the reload, and the start, for ever.
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("hosts");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [pipe.as_path(), folder.path()] {
        let named = |settings: &mut ResolverSettings| settings.hosts_file = Some(path.to_owned());
        let error = change(&server, &[&two], named).unwrap_err();
        assert_eq!(error.key().unwrap(), "resolver.hosts_file");
        let why = format!("cannot read hosts_file {}: it is no regular file", path.display());
        assert!(error.to_string().contains(&why), "{error}");
    }
    let error = change(&server, &[], |_| ()).unwrap_err();
    assert_eq!(error.key().unwrap(), "dns_servers");
    assert_eq!(last_octet(&server, "other.example.com.").await, 1);
    assert_eq!(two.seen(), 0);
}

#[tokio::test]
async fn what_guests_are_held_to_changes_and_held_answers_that_no_longer_fit_go() {
    let upstream = Upstream::that(|asked| {
        let private = asked.name().starts_with("private");
        let address = if private { Ipv4Addr::new(192, 168, 1, 1) } else { ANSWER };
        let ttl = if asked.name().starts_with("short") { 5 } else { 300 };
        now(asked.with([Record::from_rdata(name(&asked.name()), ttl, RData::A(A(address)))]))
    })
    .await;
    let server = resolver(ResolverSettings { rebind_protection: false, ..Default::default() }, &[&upstream]);
    let names = ["private.example.", "short.example.", "long.example."];
    let answers = async || {
        let mut answers = vec![];
        for owner in names {
            answers.push(lookup(&server, owner).await.answers.len());
        }
        (answers, upstream.seen())
    };
    assert_eq!(answers().await, (vec![1, 1, 1], 3));
    change(&server, &[&upstream], |settings| settings.rebind_protection = true).unwrap();
    assert_eq!(answers().await, (vec![0, 1, 1], 4));
    // What is held for longer than it may be now goes.
    change(&server, &[&upstream], |settings| settings.max_ttl = 60).unwrap();
    assert_eq!(answers().await.0, [0, 1, 1]);
    // With what was withheld, which may be otherwise now.
    assert_eq!(upstream.seen(), 6);
    change(&server, &[&upstream], |settings| settings.cache_bytes = 1 << 20).unwrap();
    assert_eq!(server.control().cache().capacity, 1 << 20);
    assert_eq!(answers().await, (vec![0, 1, 1], 6));

    change(&server, &[&upstream], |settings| settings.queries_per_second = 20).unwrap();
    for _ in 0..200 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let query = question(names[2], RecordType::A).to_vec().unwrap();
        socket.send_to(&query, server.local_addr()).await.unwrap();
    }
    let limited = async {
        while server.counters().limited == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, limited).await.expect("a query beyond the rate");
}

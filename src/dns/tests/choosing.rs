//! Which upstream is asked, when an answer is asked for anew, and what upstreams are told.

use super::*;

/// Answers after so many milliseconds.
async fn after(milliseconds: u64) -> Upstream {
    Upstream::that(move |asked| vec![(Duration::from_millis(milliseconds), asked.a(300))]).await
}

#[tokio::test]
async fn two_upstreams_are_asked_at_once_when_cold_and_then_the_faster_one() {
    let (slow, fast) = (after(60).await, after(0).await);
    let server = forwarding(&[&slow, &fast]);
    assert_eq!(addresses(&lookup(&server, "first.example.com.").await), [ANSWER]);
    // By now it may be asked still.
    while slow.seen() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((slow.seen(), fast.seen()), (1, 1));
    for n in 0..20 {
        assert_eq!(addresses(&lookup(&server, &format!("n{n}.example.com.")).await), [ANSWER]);
    }
    // In the configured order both would have been asked each time. Pauses of the machine make the fast one late at times.
    assert!(fast.seen() >= 21 && slow.seen() <= 15, "{} fast, {} slow", fast.seen(), slow.seen());
}

#[tokio::test]
async fn a_name_whose_own_servers_are_dead_does_not_condemn_the_upstream() {
    let upstream =
        Upstream::that(|asked| if asked.name().starts_with("dead") { vec![] } else { now(asked.a(300)) })
            .await;
    let server = forwarding(&[&upstream]);
    let dead: Vec<String> = (0..8).map(|n| format!("dead{n}.example.com.")).collect();
    let alive = async {
        for n in 0..40 {
            assert_eq!(addresses(&lookup(&server, &format!("n{n}.example.com.")).await), [ANSWER]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (failed, ()) = tokio::join!(join_all(dead.iter().map(|owner| lookup(&server, owner))), alive);
    assert!(failed.iter().all(|answer| answer.metadata.response_code == ResponseCode::ServFail));
    assert_eq!(addresses(&lookup(&server, "after.example.com.").await), [ANSWER]);
    let report = &server.control().upstreams()[0];
    assert!(report.up && report.failures >= 8, "{report:?}");
}

#[tokio::test]
async fn what_a_guest_adds_to_its_query_stays_between_it_and_us() {
    let options = Arc::new(Mutex::new(Vec::new()));
    let upstream = Upstream::that({
        let options = options.clone();
        move |asked| {
            let edns = asked.message.edns.as_ref().unwrap();
            if !Asked::is_check(&asked.message) {
                options.lock().unwrap().push(edns.options().as_ref().len());
            }
            now(asked.a(300))
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    let mut query = with_edns(question("www.example.com.", RecordType::A), 4096, false);
    let told = query.edns.as_mut().unwrap().options_mut();
    // Client subnet (RFC 7871), NSID (RFC 5001), a cookie (RFC 7873), and one that nobody knows.
    for (code, data) in [(8, &[0, 1, 24, 0, 192, 0, 2][..]), (3, &[]), (10, &[7; 8]), (65_001, &[1, 2, 3])] {
        told.insert(EdnsOption::Unknown(code, data.to_vec()));
    }
    let answer = ask(&server, query).await;
    assert_eq!(addresses(&answer), [ANSWER]);
    assert_eq!(*options.lock().unwrap(), [0]);
    // Nor does it get them back, but for its cookie with our part.
    let edns = answer.edns.unwrap();
    let back: Vec<u16> = edns.options().as_ref().iter().map(|(code, _)| u16::from(*code)).collect();
    assert_eq!(back, [10]);
}

#[tokio::test]
async fn a_hot_name_is_asked_for_again_before_it_ends() {
    let upstream = Upstream::that(|asked| now(asked.a(4))).await;
    let server = forwarding(&[&upstream]);
    let since = Instant::now();
    while server.counters().prefetched == 0 {
        assert_eq!(addresses(&lookup(&server, "hot.example.com.").await), [ANSWER]);
        assert!(since.elapsed() < Duration::from_secs(60), "{:?}", server.counters());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It was asked for, and no guest waited for that.
    let seen = async {
        while upstream.seen() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, seen).await.expect("the second question");
    assert!(server.counters().forwarded < server.counters().asked, "{:?}", server.counters());
}

#[tokio::test]
async fn an_answer_is_held_no_shorter_and_no_longer_than_the_network_says() {
    let seconds =
        Upstream::that(|asked| now(asked.a(if asked.name().starts_with("short") { 1 } else { 300 }))).await;
    let least = resolver(ResolverSettings { min_ttl: 60, ..Default::default() }, &[&seconds]);
    let most = resolver(ResolverSettings { max_ttl: 1, ..Default::default() }, &[&seconds]);
    lookup(&least, "short.example.com.").await;
    lookup(&most, "long.example.com.").await;
    assert_eq!(seconds.seen(), 2);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    lookup(&least, "short.example.com.").await;
    assert_eq!(seconds.seen(), 2);
    lookup(&most, "long.example.com.").await;
    assert_eq!(seconds.seen(), 3);
}

/// Of many questions to silent upstreams no more goes out than the guest's share, however many upstreams there are, and a
/// neighbour with a share of its own has its answer meanwhile.
#[tokio::test]
async fn a_guests_share_is_of_exchanges_and_not_of_questions() {
    use crate::dns::exchanges::{Exchanges, GUEST_PART, Payers, Share};
    use crate::dns::forward::{Forwarder, Paid, Trust};
    use crate::dns::{answer, name};

    const SHARE: usize = 5;
    let behaves = |asked: &Asked| if asked.name().starts_with("slow") { vec![] } else { now(asked.a(300)) };
    let (one, two) = (Upstream::that(behaves).await, Upstream::that(behaves).await);
    let servers = [&one, &two].map(|upstream| super::server(upstream.address));
    let trust = Trust::new(&[], None).unwrap();
    let forwarder = Arc::new(Forwarder::new(&network("default"), &servers, trust, Events::default()));
    let exchanges = Arc::new(Exchanges::new(SHARE * GUEST_PART));
    let share = exchanges.share();
    let asked = async |question: &answer::Question, share: Arc<Share>| {
        let payers = Payers::new(&exchanges, &share);
        let first = payers.permit().await;
        forwarder.ask(question, Some(Paid { payers: &payers, first })).await
    };
    let question = |owner: &str| answer::Question {
        name: name::Name::from_text(owner).unwrap(),
        qtype: 1,
        dnssec_ok: false,
        checking_disabled: false,
    };
    let slow: Vec<_> = (0..20).map(|n| question(&format!("slow{n}.example"))).collect();
    let flood = join_all(slow.iter().map(|question| asked(question, share.clone())));
    let neighbour = async {
        let out = || {
            let seen = [&one, &two].map(|upstream| upstream.from.lock().unwrap().clone());
            seen.concat().into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        while out() < SHARE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Long enough for each to be late, and the other upstream's turn.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(out(), SHARE);
        asked(&question("fast.example"), exchanges.share()).await.unwrap().lifetime()
    };
    let (failed, lifetime) = tokio::join!(flood, neighbour);
    assert!(failed.iter().all(Result::is_err));
    assert_eq!(lifetime, 300);
}

/// Its refusals come sooner than any answer; that makes it no better.
#[tokio::test]
async fn an_upstream_that_only_refuses_is_asked_after_one_that_answers() {
    let refuses = Upstream::that(|asked| now(asked.code(ResponseCode::Refused))).await;
    let answers = after(20).await;
    let server = forwarding(&[&refuses, &answers]);
    for n in 0..30 {
        assert_eq!(addresses(&lookup(&server, &format!("n{n}.example.com.")).await), [ANSWER]);
    }
    // The first few, and where the other was late for once.
    assert!(refuses.seen() < 15 && answers.seen() >= 30, "{} {}", refuses.seen(), answers.seen());
    let report = &server.control().upstreams()[0];
    assert!(report.up && report.answers == 0 && report.last_error.contains("rcode 5"), "{report:?}");
}

/// It is there, as its checks say, and says nothing of what guests ask.
#[tokio::test]
async fn an_upstream_that_refuses_guests_is_no_better_for_answering_a_check() {
    let checks = Arc::new(AtomicUsize::new(0));
    let counted = checks.clone();
    let refuses = Upstream::that(move |asked| {
        if !Asked::is_check(&asked.message) {
            return now(asked.code(ResponseCode::Refused));
        }
        counted.fetch_add(1, Ordering::SeqCst);
        now(asked.with([]))
    })
    .await;
    let answers = after(20).await;
    let server = forwarding(&[&refuses, &answers]);
    let ask = async |prefix: &str| {
        for n in 0..20 {
            assert_eq!(addresses(&lookup(&server, &format!("{prefix}{n}.example.com.")).await), [ANSWER]);
        }
    };
    ask("before").await;
    let (seen, checked) = (refuses.seen(), checks.load(Ordering::SeqCst));
    while checks.load(Ordering::SeqCst) == checked {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its answer is on its way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    ask("after").await;
    // But for where the other was late for once.
    assert!(refuses.seen() < seen + 3, "{} {seen}", refuses.seen());
}

/// As a validating upstream does beside one that does not, for a zone with wrong signatures.
#[tokio::test]
async fn a_name_that_an_upstream_cannot_say_does_not_put_it_behind_others() {
    let strict = Upstream::that(|asked| {
        let broken = asked.name().starts_with("broken");
        now(if broken { asked.code(ResponseCode::ServFail) } else { asked.a(300) })
    })
    .await;
    let other = Upstream::that(|asked| vec![(Duration::from_millis(60), asked.a(0))]).await;
    let server = forwarding(&[&strict, &other]);
    lookup(&server, "first.example.com.").await;
    for _ in 0..10 {
        assert_eq!(addresses(&lookup(&server, "broken.example.com.").await), [ANSWER]);
    }
    let (strict_before, other_before) = (strict.seen(), other.seen());
    for n in 0..20 {
        assert_eq!(addresses(&lookup(&server, &format!("n{n}.example.com.")).await), [ANSWER]);
    }
    assert!(strict.seen() >= strict_before + 20);
    assert!(other.seen() < other_before + 15, "{} {other_before}", other.seen());
}

/// What a guest has under way is its own matter: who asks the same as it has its answer from its own share.
#[tokio::test]
async fn who_joins_a_question_does_not_wait_for_what_its_first_asker_has_under_way() {
    let behaves = |asked: &Asked| if asked.name().starts_with("slow") { vec![] } else { now(asked.a(300)) };
    let (one, two) = (Upstream::that(behaves).await, Upstream::that(behaves).await);
    let server = forwarding(&[&one, &two]);
    let greedy = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    greedy.connect(server.local_addr()).await.unwrap();
    for n in 0..500 {
        let query = question(&format!("slow{n}.example.com."), RecordType::A);
        greedy.send(&query.to_vec().unwrap()).await.unwrap();
    }
    let shared = question("shared.example.com.", RecordType::A);
    greedy.send(&shared.to_vec().unwrap()).await.unwrap();
    while server.counters().forwarded < 501 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It waits behind the slow ones, which take all that one guest may have under way, until one of them is given up.
    let mut buffer = [0; 512];
    assert!(greedy.try_recv(&mut buffer).is_err());
    assert_eq!(addresses(&lookup(&server, "shared.example.com.").await), [ANSWER]);
    let length = timeout(PATIENCE, greedy.recv(&mut buffer)).await.expect("its answer too").unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((first.metadata.id, addresses(&first)), (shared.metadata.id, vec![ANSWER]));
    assert_eq!(server.counters().servfail, 0);
}

#[tokio::test]
async fn an_upstream_that_cannot_say_is_taken_at_its_word_where_the_other_is_dead() {
    let unable = Upstream::that(|asked| now(asked.code(ResponseCode::ServFail))).await;
    let silent = Upstream::silent().await;
    for upstreams in [[&unable, &silent], [&silent, &unable]] {
        let server = forwarding(&upstreams);
        // That it is silent is found out by the first.
        lookup(&server, "first.example.com.").await;
        for n in 0..3 {
            let since = Instant::now();
            let query = with_edns(question(&format!("n{n}.example.com."), RecordType::A), 1232, false);
            let answer = ask(&server, query).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            assert_eq!(extended_error(&answer), Some(23));
            // Some 150 ms; the budget is 3.5 s.
            assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        }
    }
}

/// One that lives and takes its time: it may be able to say.
#[tokio::test]
async fn an_upstream_that_is_slow_is_waited_for_where_the_other_cannot_say() {
    let unable = Upstream::that(|asked| now(asked.code(ResponseCode::ServFail))).await;
    let slow = Upstream::that(|asked| {
        let wait = if asked.nth == usize::MAX { 0 } else { 2_000 };
        vec![(Duration::from_millis(wait), asked.a(300))]
    })
    .await;
    let server = forwarding(&[&unable, &slow]);
    assert_eq!(addresses(&lookup(&server, "www.example.com.").await), [ANSWER]);
}

/// Its port is closed for a moment, as when it is started anew.
#[tokio::test]
async fn a_lone_upstream_that_is_back_in_a_moment_answers_what_was_asked_meanwhile() {
    // Nobody else's: not an address that other tests use, and below the ports that the kernel gives away.
    let address: SocketAddr = "127.0.4.9:5399".parse().unwrap();
    let server = start_with(network("default"), Registry::default(), &endpoints(&[address]));
    let back = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let udp = UdpSocket::bind(address).await.unwrap();
        let mut buffer = [0; 512];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            let asked = Asked { nth: 0, message, from, tcp: false };
            udp.send_to(&asked.a(300), from).await.unwrap();
        }
    };
    tokio::select! {
        answer = lookup(&server, "www.example.com.") => assert_eq!(addresses(&answer), [ANSWER]),
        () = back => {}
    }
}

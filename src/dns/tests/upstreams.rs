//! Upstreams that are odd, slow, broken or forged.

use super::*;

use std::sync::atomic::AtomicBool;

/// The names as an upstream saw them.
type Seen = Arc<Mutex<Vec<String>>>;

fn noting(seen: &Seen, asked: &Asked) {
    if !Asked::is_check(&asked.message) {
        seen.lock().unwrap().push(asked.message.queries[0].name().to_string());
    }
}

/// Looks up so many names, each once: `nN.example.com.`
async fn look_up(server: &DnsServer, numbers: std::ops::Range<usize>) {
    for n in numbers {
        assert_eq!(addresses(&lookup(server, &format!("n{n}.example.com.")).await), [ANSWER], "n{n}");
    }
}

/// Looks up further names until one goes out in mixed case that was not tried out before.
async fn until_mixed(server: &DnsServer, seen: &Seen) {
    let mixed = async {
        for n in 1_000.. {
            look_up(server, n..n + 1).await;
            let tried = seen
                .lock()
                .unwrap()
                .iter()
                .any(|name| is_mixed(name) && name.starts_with(['n', 'N']) && name.len() > 17);
            if tried {
                return;
            }
        }
    };
    timeout(Duration::from_secs(30), mixed).await.expect("a name in mixed case");
}

fn is_mixed(name: &str) -> bool {
    name.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[tokio::test]
async fn names_go_out_in_mixed_case_to_an_upstream_that_keeps_it() {
    let seen = Seen::default();
    let upstream = Upstream::that({
        let seen = seen.clone();
        move |asked| {
            noting(&seen, asked);
            now(asked.a(300))
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    // It is tried out on a name that it has just answered, and no guest waits for that.
    look_up(&server, 0..16).await;
    assert!(!seen.lock().unwrap()[..16].iter().any(|name| is_mixed(name)));
    until_mixed(&server, &seen).await;
    seen.lock().unwrap().clear();
    look_up(&server, 20..60).await;
    let names: Vec<String> = seen.lock().unwrap().drain(..).collect();
    assert_eq!(names.len(), 40);
    // Of eleven letters each: that a few come out in lower case by chance is no matter.
    assert!(names.iter().filter(|name| is_mixed(name)).count() > 35, "{names:?}");
    let cases: std::collections::BTreeSet<_> = names.iter().map(|name| &name[name.len() - 12..]).collect();
    assert!(cases.len() > 35, "{cases:?}");
    // The guest has its own back, from the upstream and from the cache.
    for _ in 0..2 {
        let answer = lookup(&server, "Own.eXample.com.").await;
        assert!(answer.queries[0].name().eq_case(&name("Own.eXample.com.")));
        assert_eq!(addresses(&answer), [ANSWER]);
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_keep_the_case_is_not_asked_in_mixed_case() {
    let seen = Seen::default();
    let upstream = Upstream::that({
        let seen = seen.clone();
        move |asked| {
            noting(&seen, asked);
            let mut reply = asked.reply();
            reply.queries = vec![Query::query(name(&asked.name()), RecordType::A)];
            reply.add_answer(a(&asked.name(), 300));
            now(reply.to_vec().unwrap())
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    look_up(&server, 0..40).await;
    let mixed = || seen.lock().unwrap().iter().filter(|name| is_mixed(name)).count();
    // Twice by UDP and once by TCP, which only the upstream itself can answer.
    let tried = async {
        while mixed() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, tried).await.expect("a trial");
    look_up(&server, 40..80).await;
    assert_eq!(mixed(), 3, "{seen:?}");
}

/// Somebody who sees nothing but guesses id, port and name at every try: of the case only the upstream knows.
#[tokio::test]
async fn an_answer_in_a_guessed_case_is_not_believed_and_does_not_end_the_mixed_case() {
    let (forged, seen) = (Arc::new(AtomicBool::new(false)), Seen::default());
    let upstream = Upstream::that({
        let (forged, seen) = (forged.clone(), seen.clone());
        move |asked| {
            noting(&seen, asked);
            let honest = (Duration::from_millis(20), asked.a(300));
            // Once in two thousand times the guess, which is the case a guest writes, would be right.
            let right = !is_mixed(&asked.message.queries[0].name().to_string());
            if asked.tcp || right || !forged.load(Ordering::SeqCst) {
                return vec![honest];
            }
            let mut lie = asked.reply();
            lie.queries = vec![Query::query(name(&asked.name()), RecordType::A)];
            let address = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
            lie.add_answer(Record::from_rdata(name(&asked.name()), 300, address));
            vec![(Duration::ZERO, lie.to_vec().unwrap()), honest]
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    look_up(&server, 0..16).await;
    until_mixed(&server, &seen).await;
    forged.store(true, Ordering::SeqCst);
    look_up(&server, 20..40).await;
    forged.store(false, Ordering::SeqCst);
    seen.lock().unwrap().clear();
    look_up(&server, 40..60).await;
    let mixed = seen.lock().unwrap().iter().filter(|name| is_mixed(name)).count();
    assert!(mixed > 17, "{seen:?}");
}

/// Datagrams that answer nothing: they cost a detour by TCP, not the mixed case.
#[tokio::test]
async fn a_flood_of_guesses_does_not_end_the_mixed_case() {
    let (flooded, seen) = (Arc::new(AtomicBool::new(false)), Seen::default());
    let upstream = Upstream::that({
        let (flooded, seen) = (flooded.clone(), seen.clone());
        move |asked| {
            noting(&seen, asked);
            let guess = |n: u8| (Duration::ZERO, vec![n; 20]);
            let guesses = if asked.tcp || !flooded.load(Ordering::SeqCst) { 0 } else { 40 };
            (0..guesses).map(guess).chain([(Duration::from_millis(20), asked.a(300))]).collect()
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    look_up(&server, 0..16).await;
    until_mixed(&server, &seen).await;
    flooded.store(true, Ordering::SeqCst);
    look_up(&server, 20..30).await;
    flooded.store(false, Ordering::SeqCst);
    seen.lock().unwrap().clear();
    look_up(&server, 40..60).await;
    let mixed = seen.lock().unwrap().iter().filter(|name| is_mixed(name)).count();
    assert!(mixed > 17, "{seen:?}");
}

/// An upstream that loses the trial's questions, each of which takes a second until it is given up: no guest's answer waits.
#[tokio::test]
async fn no_answer_waits_for_a_trial() {
    let upstream = async || {
        let tried = Arc::new(AtomicUsize::new(0));
        let counted = tried.clone();
        let upstream = Upstream::that(move |asked| {
            if !is_mixed(&asked.message.queries[0].name().to_string()) {
                return now(asked.a(300));
            }
            counted.fetch_add(1, Ordering::SeqCst);
            vec![]
        })
        .await;
        (upstream, tried)
    };
    // One of some: a pause of the machine may be as long as a trial.
    let mut before_its_end = 0;
    for _ in 0..4 {
        let (upstream, tried) = upstream().await;
        let server = forwarding(&[&upstream]);
        look_up(&server, 0..15).await;
        let since = Instant::now();
        look_up(&server, 15..64).await;
        before_its_end += usize::from(since.elapsed() < Duration::from_secs(1));
        let tried = async {
            while tried.load(Ordering::SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, tried).await.expect("a trial");
    }
    assert!(before_its_end > 0);
}

#[tokio::test]
async fn an_answer_from_another_port_is_not_believed() {
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream::that(move |asked| {
        let mut lie = asked.reply();
        let address = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
        lie.add_answer(Record::from_rdata(name(&asked.name()), 300, address));
        other.send_to(&lie.to_vec().unwrap(), asked.from).unwrap();
        vec![(Duration::from_millis(50), asked.a(300))]
    })
    .await;
    let server = forwarding(&[&upstream]);
    look_up(&server, 0..4).await;
}

#[tokio::test]
async fn a_loop_of_aliases_is_an_answer_that_ends() {
    let upstream = Upstream::that(|asked| {
        let alias = |owner: &str, target: &str| {
            Record::from_rdata(name(owner), 300, RData::CNAME(CNAME(name(target))))
        };
        now(asked
            .with([alias("a.example.com.", "b.example.com."), alias("b.example.com.", "a.example.com.")]))
    })
    .await;
    let settings = ResolverSettings {
        records: vec![settings::record("ours", "CNAME", "a.example.com")],
        ..Default::default()
    };
    let server = resolver(settings, &[&upstream]);
    let answer = lookup(&server, "a.example.com.").await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 2));
    // Begun by an alias of ours, and passed on as it is, once: the stub ends it.
    let answer = lookup(&server, "ours.vm.internal.").await;
    let owners: Vec<String> = answer.answers.iter().map(|record| record.name.to_string()).collect();
    assert_eq!(owners, ["ours.vm.internal.", "a.example.com.", "b.example.com."]);
    // Once for each look-up: a loop says nothing that could be held.
    assert_eq!((answer.metadata.response_code, upstream.seen()), (ResponseCode::NoError, 2));
}

#[tokio::test]
async fn an_upstream_that_closes_tcp_hands_on_and_alone_it_is_a_failure_that_says_so() {
    // Too long for a datagram; by TCP nothing comes but the end of the connection.
    let closing = Upstream::that(|asked| {
        let mut reply = asked.reply();
        reply.metadata.truncation = true;
        if asked.tcp { vec![] } else { now(reply.to_vec().unwrap()) }
    })
    .await;
    let prompt = Upstream::prompt().await;
    let server = forwarding(&[&closing, &prompt]);
    assert_eq!(addresses(&lookup(&server, "www.example.com.").await), [ANSWER]);

    let alone = forwarding(&[&closing]);
    let since = Instant::now();
    let answer = ask(&alone, with_edns(question("www.example.com.", RecordType::A), 1232, false)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&answer), Some(22));
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    let last = alone.control().upstreams()[0].last_error.clone();
    assert!(last.contains("end of file"), "{last}");
}

#[tokio::test]
async fn an_answer_of_64_kib_reaches_a_guest_whole_by_tcp() {
    let upstream = with_the_longest_answer().await;
    let server = forwarding(&[&upstream]);
    for _ in 0..2 {
        let whole = ask_tcp(&server, question("big.example.com.", RecordType::TXT)).await;
        assert!(whole.answers.len() > 230 && !whole.metadata.truncation, "{}", whole.answers.len());
    }
    assert!(ask(&server, question("big.example.com.", RecordType::TXT)).await.metadata.truncation);
    assert_eq!(upstream.seen(), 2);
}

#[tokio::test]
async fn below_a_name_that_does_not_exist_no_upstream_is_asked() {
    let upstream = Upstream::that(|asked| now(asked.denied(60))).await;
    let server = forwarding(&[&upstream]);
    lookup(&server, "missing.example.").await;
    assert_eq!(upstream.seen(), 1);
    for (owner, rtype) in [
        ("a.missing.example.", RecordType::A),
        ("a.b.missing.example.", RecordType::A),
        ("missing.example.", RecordType::TXT),
        ("MISSING.example.", RecordType::AAAA),
    ] {
        let answer = ask(&server, question(owner, rtype)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{owner}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{owner}");
        assert_eq!(answer.queries[0].name().to_string().to_lowercase(), owner.to_lowercase());
    }
    assert_eq!(upstream.seen(), 1);
    // Beside it is not below it; and who validates is given its own proof.
    lookup(&server, "xmissing.example.").await;
    lookup(&server, "example.").await;
    ask(&server, with_edns(question("a.missing.example.", RecordType::A), 1232, true)).await;
    assert_eq!(upstream.seen(), 4);
}

/// An upstream whose zones are not of one mind, or a name that has just been made.
#[tokio::test]
async fn what_is_there_ends_what_was_held_of_its_absence() {
    let upstream = Upstream::that(|asked| match asked.message.queries[0].query_type() {
        RecordType::A => now(asked.denied(60)),
        _ => now(asked.with([Record::from_rdata(
            name(&asked.name()),
            300,
            RData::TXT(TXT::new(vec!["x".into()])),
        )])),
    })
    .await;
    let server = forwarding(&[&upstream]);
    for (denied, there) in [("name.example.", "name.example."), ("up.example.", "below.up.example.")] {
        let gone = lookup(&server, denied).await;
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
        let text = question(there, RecordType::TXT);
        assert_eq!(ask(&server, text.clone()).await.metadata.response_code, ResponseCode::NXDomain);
        // Who validates is given its own answer, which says otherwise.
        assert_eq!(ask(&server, with_edns(text.clone(), 1232, true)).await.answers.len(), 1, "{there}");
        assert_eq!(ask(&server, text).await.answers.len(), 1, "{there}");
    }
}

#[tokio::test]
async fn an_upstream_of_another_edns_version_is_asked_without() {
    let upstream = Upstream::that(|asked| {
        if asked.message.edns.is_none() {
            return now(asked.a(300));
        }
        // BADVERS: nothing in the header, one in the OPT record (RFC 6891 section 6.1.3).
        let mut reply = asked.reply();
        reply.metadata.response_code = ResponseCode::BADVERS;
        now(reply.to_vec().unwrap())
    })
    .await;
    let server = forwarding(&[&upstream]);
    assert_eq!(addresses(&lookup(&server, "www.example.com.").await), [ANSWER]);
    assert_eq!(upstream.seen(), 2);
}

#[tokio::test]
async fn an_upstream_that_refers_to_others_is_no_answer() {
    let refers = |recursive: bool| {
        Upstream::that(move |asked| {
            let mut reply = asked.reply();
            reply.metadata.recursion_available = recursive;
            let servers = RData::NS(hickory_proto::rr::rdata::NS(name("ns.example.")));
            reply.add_authority(Record::from_rdata(name("example."), 900, servers));
            now(reply.to_vec().unwrap())
        })
    };
    let (lame, prompt) = (refers(false).await, Upstream::prompt().await);
    let server = forwarding(&[&lame, &prompt]);
    assert_eq!(addresses(&lookup(&server, "www.example.com.").await), [ANSWER]);
    let alone = forwarding(&[&lame]);
    assert_eq!(lookup(&alone, "www.example.com.").await.metadata.response_code, ResponseCode::ServFail);
    let last = alone.control().upstreams()[0].last_error.clone();
    assert!(last.contains("refers to other servers"), "{last}");
    // Of a server that does resolve it is NODATA with its name servers (RFC 2308 section 2.2).
    let resolver = refers(true).await;
    let answer = lookup(&forwarding(&[&resolver]), "www.example.com.").await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
}

#[tokio::test]
async fn an_answer_with_a_loop_of_pointers_is_not_passed_on() {
    let upstream = Upstream::that(|asked| {
        let mut looped = asked.with([Record::from_rdata(
            name(&asked.name()),
            300,
            RData::CNAME(CNAME(name("target.example.net."))),
        )]);
        let opt = if asked.message.edns.is_some() { 11 } else { 0 };
        let end = looped.len() - opt;
        let target = b"\x06target\x07example\x03net\0";
        let at = end - target.len();
        assert_eq!(looped[at..end], target[..]);
        // The target's last label points to itself.
        looped[end - 5..end - 3].copy_from_slice(&(0xc000 | (end - 5) as u16).to_be_bytes());
        now(looped)
    })
    .await;
    let prompt = Upstream::prompt().await;
    let server = forwarding(&[&upstream, &prompt]);
    assert_eq!(addresses(&lookup(&server, "www.example.com.").await), [ANSWER]);
}

/// Before anybody has mixed the case, the one it comes back in says nothing.
#[tokio::test]
async fn an_upstream_that_answers_in_a_case_of_its_own_is_asked_once() {
    let seen = Seen::default();
    let upstream = Upstream::that({
        let seen = seen.clone();
        move |asked| {
            noting(&seen, asked);
            let mut reply = asked.reply();
            let own = asked.message.queries[0].name().to_string().to_ascii_uppercase();
            reply.queries = vec![Query::query(name(&own), RecordType::A)];
            reply.add_answer(a(&own, 300));
            now(reply.to_vec().unwrap())
        }
    })
    .await;
    let server = forwarding(&[&upstream]);
    look_up(&server, 0..60).await;
    // Where it was tried out, twice by UDP and once by TCP.
    let asked = seen.lock().unwrap().iter().filter(|name| !is_mixed(name)).count();
    assert_eq!(asked, 60, "{seen:?}");
}

//! No query is lost, or answered wrongly, while VMs, records, lists and the configuration change.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::lab::WEB;
use crate::lab::daemon::{Paths, config};

/// Two upstreams, and the address that each answers every name below `fresh.example` with.
const UPSTREAMS: [(&str, Ipv4Addr); 2] =
    [(SERVER, Ipv4Addr::new(198, 51, 100, 81)), ("198.51.100.54", Ipv4Addr::new(198, 51, 100, 82))];
/// Queries under way at one time: as many as a busy machine's buffers hold with ease.
const WINDOW: usize = 48;
/// A query without an answer for so long is lost. A resolver that has none says so within 4 s.
const LOST: Duration = Duration::from_secs(30);

/// An upstream that knows every name.
fn upstream(lab: &Lab, (address, fresh): (&str, Ipv4Addr)) {
    lab.in_inet("ip", &["addr", "add", &format!("{address}/24"), "dev", "i0"]);
    let socket = lab.inet.run(|| UdpSocket::bind((address, 53)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
            let question = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            let is_fresh = question.name().to_ascii().to_lowercase().ends_with("fresh.example.");
            let address = if is_fresh { fresh } else { WEB.parse().unwrap() };
            if question.query_type() == RecordType::A {
                answer.add_answer(Record::from_rdata(question.name().clone(), 300, RData::A(address.into())));
            }
            answer.add_query(question);
            let _ = socket.send_to(&answer.to_vec().unwrap(), from);
        }
    });
}

/// What is asked in turn, and what has to come of it.
struct Asked {
    name: String,
    rcode: ResponseCode,
    /// Any one of these; none: no answer.
    addresses: Vec<Ipv4Addr>,
}

/// Which upstreams are in force: even, the one; odd, a change is under way.
struct InForce(AtomicUsize);

impl InForce {
    fn at(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// The addresses that may come between two moments.
    fn fresh(from: usize, to: usize) -> Vec<Ipv4Addr> {
        (from / 2..=to.div_ceil(2)).map(|n| UPSTREAMS[n % 2].1).collect()
    }
}

fn question(n: usize, guest: &PortGuest) -> Asked {
    let fixed = |name: &str, address: &str| Asked {
        name: name.into(),
        rcode: ResponseCode::NoError,
        addresses: vec![address.parse().unwrap()],
    };
    match n % 6 {
        0 => fixed("www.cached.example", WEB),
        1 => fixed("gateway.vm.internal", &guest.gateway),
        2 => fixed("web-1.vm.internal", &guest.address),
        3 => Asked { name: "n7.bad.example".into(), rcode: ResponseCode::NXDomain, addresses: vec![] },
        // One that was never asked for, and one that all ask for again and again.
        4 => Asked { addresses: vec![], ..fixed(&format!("n{n}.fresh.example"), WEB) },
        _ => Asked { addresses: vec![], ..fixed(&format!("hot{}.fresh.example", n % 30), WEB) },
    }
}

fn query(asked: &Asked, id: u16) -> Vec<u8> {
    let mut query = Message::query();
    query.metadata.id = id;
    query.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("{}.", asked.name)).unwrap();
    query.add_query(Query::query(name, RecordType::A));
    query.to_vec().unwrap()
}

/// The same by TCP until told to stop, one question after the other, all on one connection; how many answers came.
fn ask_by_tcp(guest: &PortGuest, in_force: &InForce, done: &AtomicBool) -> usize {
    let mut stream = guest.inside.run(|| TcpStream::connect((guest.gateway.as_str(), 53)).unwrap());
    stream.set_read_timeout(Some(LOST)).unwrap();
    let mut answered = 0;
    while !done.load(Ordering::Relaxed) {
        let (asked, id, from) = (question(answered, guest), answered as u16, in_force.at());
        let query = query(&asked, id);
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.id, id);
        check(&asked, &answer, from, in_force.at());
        answered += 1;
    }
    answered
}

/// Asks until told to stop, `WINDOW` questions at a time; how many answers came. Each is looked at.
fn ask(guest: &PortGuest, in_force: &InForce, done: &AtomicBool, answered: &AtomicUsize) {
    let socket = guest.inside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect((guest.gateway.as_str(), 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut waiting: HashMap<u16, (Asked, usize, Instant)> = HashMap::new();
    let mut buffer = [0; 1_500];
    for n in 0.. {
        if done.load(Ordering::Relaxed) && waiting.is_empty() {
            return;
        }
        if !done.load(Ordering::Relaxed) {
            // Ids come round after 65,536 questions, long after their answers.
            let (asked, id) = (question(n, guest), n as u16);
            let query = query(&asked, id);
            assert!(waiting.insert(id, (asked, in_force.at(), Instant::now())).is_none());
            socket.send(&query).unwrap();
        }
        while waiting.len() >= WINDOW || (done.load(Ordering::Relaxed) && !waiting.is_empty()) {
            if let Some((asked, _, _)) = waiting.values().find(|(_, _, since)| since.elapsed() > LOST) {
                panic!("no answer for {} in {LOST:?}", asked.name);
            }
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            let (asked, from, _) = waiting.remove(&answer.metadata.id).expect("one answer for a question");
            check(&asked, &answer, from, in_force.at());
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn check(asked: &Asked, answer: &Message, from: usize, to: usize) {
    let name = &asked.name;
    assert_eq!(answer.queries[0].name().to_ascii(), format!("{name}."));
    assert_eq!(answer.metadata.response_code, asked.rcode, "{name}: {answer}");
    let address = |record: &Record| match &record.data {
        RData::A(address) => address.0,
        other => panic!("{name}: {other}"),
    };
    let addresses: Vec<_> = answer.answers.iter().map(address).collect();
    if name.ends_with("fresh.example") {
        let expected = InForce::fresh(from, to);
        assert!(
            addresses.len() == 1 && expected.contains(&addresses[0]),
            "{name}: {addresses:?} of {expected:?}"
        );
    } else {
        assert_eq!(addresses, asked.addresses, "{name}");
    }
}

#[test]
fn no_query_is_lost_or_answered_wrongly_under_load_during_over_a_hundred_updates() {
    let lab = Lab::new();
    UPSTREAMS.iter().for_each(|server| upstream(&lab, *server));
    let (list, hosts) = (lab.directory().join("list"), lab.directory().join("hosts"));
    fs::write(&list, (0..1_000).map(|n| format!("n{n}.bad.example\n")).collect::<String>()).unwrap();
    fs::write(&hosts, "10.9.0.7 build.corp\n").unwrap();
    let settings = |upstream: usize, n: usize| {
        format!(
            "[[network]]\npool_size = 8\ndns_servers = [\"{}\"]\ndns_per_second = 1000000\n\
             new_connections_per_second = 1000000\n[network.resolver]\nhosts_file = {hosts:?}\ncache_mib = {}\n\
             max_ttl = {}\n[[network.resolver.rule]]\nname = \"bad\"\nfile = {list:?}\n\
             [[network.resolver.record]]\nname = \"r{n}\"\nvalue = \"10.9.1.{n}\"\n",
            UPSTREAMS[upstream].0,
            8 + n % 3,
            80_000 + n
        )
    };
    let daemon = Daemon::start_with(&lab, &settings(0, 0));
    let guest = guest(&lab, &daemon);
    let sockets = || {
        let listed = lab.on_host("ss", &["-Hnltue", "sport = :53"]);
        let inode =
            |line: &str| line.split_whitespace().find(|word| word.starts_with("ino:")).map(str::to_owned);
        listed.lines().filter_map(inode).collect::<std::collections::BTreeSet<_>>()
    };
    let before = sockets();
    assert_eq!(before.len(), 2, "UDP and TCP");
    let (in_force, done, answered) =
        (InForce(AtomicUsize::new(0)), AtomicBool::new(false), AtomicUsize::new(0));
    let path = Paths::of(&lab).config;
    let mut updates = 0;
    std::thread::scope(|scope| {
        // However the updates end, the questions end too.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let asking = scope.spawn(|| ask(&guest, &in_force, &done, &answered));
        let by_tcp = scope.spawn(|| ask_by_tcp(&guest, &in_force, &done));
        let stop = Stop(&done);
        let mut update = |arguments: &[&str]| {
            assert!(!asking.is_finished() && !by_tcp.is_finished(), "they have ended during {arguments:?}");
            updates += 1;
            daemon.guestnet(arguments)
        };
        for n in 1..=20 {
            update(&["vm", "create", &format!("vm{n}")]);
            update(&["dns", "record", "add", "db", "A", &format!("10.9.0.{n}")]);
            // The first half of a change: the other upstream may be asked from here on.
            fs::write(&path, config(&lab, &settings(n % 2, n))).unwrap();
            in_force.0.fetch_add(1, Ordering::SeqCst);
            let reloaded = update(&["reload"]);
            in_force.0.fetch_add(1, Ordering::SeqCst);
            assert!(reloaded.contains("network[0].dns_servers"), "{reloaded}");
            assert!(!reloaded.contains("restart"), "{reloaded}");
            update(&["vm", "update", &format!("vm{n}"), "--hostname", &format!("other{n}")]);
            if n % 4 == 0 {
                update(&["dns", "cache", "flush", "all"]);
                update(&["dns", "reload"]);
            }
            update(&["vm", "delete", &format!("vm{n}")]);
        }
        // On a slow machine the updates may be slower than the questions, on a fast one the other way round.
        until("ten thousand answers", || match answered.load(Ordering::Relaxed) {
            10_000.. => Ok(()),
            some if asking.is_finished() => panic!("the questions have ended after {some}"),
            some => Err(format!("{some} answers")),
        });
        drop(stop);
        asking.join().unwrap();
        assert!(by_tcp.join().unwrap() > 100);
    });
    assert!(updates > 100, "{updates}");
    assert_eq!(sockets(), before, "the same sockets as at the start");
    // What the last update said is so; and of the first nothing is left.
    assert!(guest.dig(&["r20.vm.internal"]).contains("10.9.1.20"));
    assert!(guest.dig(&["r19.vm.internal"]).contains("NXDOMAIN"));
}

#[test]
fn a_reload_changes_the_resolver_says_what_needs_a_restart_and_names_the_line_that_does_not_fit() {
    let lab = Lab::new();
    UPSTREAMS.iter().for_each(|server| upstream(&lab, *server));
    let settings = |more: &str| {
        config(&lab, &format!("[[network]]\npool_size = 8\ndns_servers = [\"{SERVER}\"]\n{more}"))
    };
    let daemon =
        Daemon::start_with(&lab, &format!("[[network]]\npool_size = 8\ndns_servers = [\"{SERVER}\"]\n"));
    let guest = guest(&lab, &daemon);
    let path = Paths::of(&lab).config;
    let answers = |name: &str| guest.dig(&[name, "+short"]).trim().to_owned();
    assert_eq!(answers("a.fresh.example"), "198.51.100.81");
    assert_eq!(answers("a.corp.fresh.example"), "198.51.100.81");
    let hits = || daemon.json(&["dns", "stats"])[0]["counters"]["cache_hits"].as_u64().unwrap();

    let forward = format!(
        "[[network.resolver.forward]]\ndomain = \"corp.fresh.example\"\nservers = [\"{}\"]\n",
        UPSTREAMS[1].0
    );
    let rule = "[[network.resolver.rule]]\nname = \"bad\"\nnames = [\"bad.example\"]\n";
    fs::write(&path, settings(&format!("mtu = 1400\ndomain = \"other.internal\"\n{forward}{rule}"))).unwrap();
    let reloaded = daemon.json(&["reload"]);
    let applied = ["forward[0].domain", "forward[0].servers", "rule[0].name", "rule[0].names"];
    assert_eq!(
        reloaded["applied"],
        serde_json::json!(applied.map(|key| format!("network[0].resolver.{key}")))
    );
    assert_eq!(reloaded["needs_restart"], serde_json::json!(["network[0].domain", "network[0].mtu"]));
    let before = hits();
    assert_eq!(answers("a.fresh.example"), "198.51.100.81");
    assert_eq!(hits(), before + 1, "what is asked for as before is still held");
    assert_eq!(answers("a.corp.fresh.example"), "198.51.100.82");
    assert!(guest.dig(&["x.bad.example"]).contains("EDE: 15"));
    // The domain is not another one by halves.
    assert_eq!(answers("gateway.vm.internal"), guest.gateway);

    for (more, says) in [
        ("[network.resolver]\nmin_ttl = -1\n", "network[0].resolver.min_ttl: -1 is not"),
        ("[network.resolver]\nhosts_file = \"/nowhere/hosts\"\n", "network[0].resolver.hosts_file: "),
        ("[[network.resolver.rule]]\nfile = \"/nowhere/list\"\n", "network[0].resolver.rule[0].file: "),
        ("[network.resolver]\ndnssec = true\ntrust_anchor = \"/nowhere/key\"\n", "resolver.trust_anchor: "),
        ("[network.resolver]\nmin_ttl =\n", "line "),
    ] {
        let text = settings(more);
        fs::write(&path, &text).unwrap();
        let refused = daemon.client(&["reload"]);
        let printed = crate::lab::text(&refused);
        // The line of the last key, but for the syntax error, which has its own place in the message.
        let key = more.lines().rev().find(|line| !line.starts_with('[')).unwrap();
        let line = 1 + text.lines().position(|line| line == key).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{printed}");
        assert!(
            printed.contains(says) && printed.contains(&format!("line {line}")),
            "line {line}: {printed}"
        );
        assert!(guest.dig(&["x.bad.example"]).contains("EDE: 15"), "the old rules hold");
    }
    fs::write(&path, settings("")).unwrap();
    daemon.guestnet(&["reload"]);
    assert!(!guest.dig(&["x.bad.example"]).contains("EDE: 15"));
    assert_eq!(answers("a.corp.fresh.example"), "198.51.100.81");
}

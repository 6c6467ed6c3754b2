//! What an operator does with the resolver while guests ask it.

use std::io::BufRead;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::lab::{WEB, WEB_NAME};

#[test]
fn records_are_answered_at_once_and_outlive_a_restart() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = guest(&lab, &daemon);
    assert!(guest.dig(&["db.vm.internal"]).contains("NXDOMAIN"));
    let record = daemon.json(&["dns", "record", "add", "db", "A", "10.9.0.1", "--ttl", "7"]);
    assert_eq!(record[0]["name"], "db.vm.internal");
    daemon.guestnet(&["dns", "record", "add", "*.apps", "CNAME", "db.vm.internal"]);
    let answer = guest.dig(&["x.apps.vm.internal"]);
    assert!(answer.contains("10.9.0.1") && answer.contains("CNAME"), "{answer}");
    let refused = daemon.client(&["dns", "record", "add", "db", "A", "10.9.0"]);
    assert_eq!(refused.status.code(), Some(2));

    daemon.stop();
    let daemon = Daemon::start(&lab);
    assert!(guest.dig(&["db.vm.internal"]).contains("10.9.0.1"));
    assert_eq!(daemon.json(&["dns", "record", "list"]).as_array().unwrap().len(), 2);
    assert_eq!(daemon.json(&["dns", "record", "delete", "db"])["deleted"], 1);
    assert!(guest.dig(&["db.vm.internal"]).contains("NXDOMAIN"));
}

/// Each is its own matter: a file that is gone keeps nobody from changing records, and loses no name that it had.
#[test]
fn a_hosts_file_that_is_gone_is_named_at_a_reload_and_keeps_no_record_from_being_changed() {
    let lab = Lab::new();
    let hosts = lab.directory().join("hosts");
    fs::write(&hosts, "10.9.0.7 build.corp\n").unwrap();
    let config = format!("[[network]]\n[network.resolver]\nhosts_file = {hosts:?}\n");
    let daemon = Daemon::start_with(&lab, &config);
    let guest = guest(&lab, &daemon);
    fs::remove_file(&hosts).unwrap();
    daemon.guestnet(&["dns", "record", "add", "db", "A", "10.9.0.1"]);
    let refused = daemon.client(&["dns", "reload"]);
    assert!(!refused.status.success());
    assert!(crate::lab::text(&refused).contains(hosts.to_str().unwrap()), "{}", crate::lab::text(&refused));
    for (name, address) in [("db.vm.internal", "10.9.0.1"), ("build.corp", "10.9.0.7")] {
        assert!(guest.dig(&[name]).contains(address), "{name}");
    }
    assert_eq!(daemon.json(&["dns", "record", "delete", "db"])["deleted"], 1);
    assert!(guest.dig(&["build.corp"]).contains("10.9.0.7"));
}

#[test]
fn the_cache_is_looked_at_and_flushed_and_an_answers_way_is_told() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = guest(&lab, &daemon);
    for _ in 0..3 {
        assert!(guest.dig(&[WEB_NAME]).contains(WEB));
    }
    let cache = daemon.json(&["dns", "cache", "stats"]);
    assert_eq!((&cache[0]["entries"], &cache[0]["cache_hits"]), (&1.into(), &2.into()));
    let top = daemon.json(&["dns", "top"]);
    assert_eq!(top[0]["names"][0]["name"], "web.example.com.");
    assert_eq!(top[0]["guests"][0]["vm_id"], "web-1");
    let explained = daemon.json(&["dns", "query", "--as", "web-1", WEB_NAME]);
    assert_eq!(explained["rcode"], "NOERROR");
    assert!(explained["way"].to_string().contains("cache: fresh"), "{explained}");
    assert_eq!(daemon.json(&["dns", "cache", "flush", "example.com"])["flushed"], 1);
    let explained = daemon.json(&["dns", "query", "--as", "web-1", WEB_NAME]);
    assert!(explained["way"].to_string().contains("answered by upstream 8.8."), "{explained}");
    assert!(daemon.json(&["dns", "cache", "flush", "all"])["flushed"].as_u64().unwrap() > 0);
    assert_eq!(daemon.client(&["dns", "query", "--as", "nobody", WEB_NAME]).status.code(), Some(1));
}

#[test]
fn a_million_names_are_denied_without_a_gap_while_the_list_is_read_again() {
    let lab = Lab::new();
    let list = lab.directory().join("list");
    let names: String = (0..1_000_000).map(|n| format!("n{n}.bad.example\n")).collect();
    fs::write(&list, &names).unwrap();
    let config = format!("[[network]]\n[[network.resolver.rule]]\nname = \"bad\"\nfile = {list:?}\n");
    let daemon = Daemon::start_with(&lab, &config);
    let guest = guest(&lab, &daemon);
    assert_eq!(daemon.json(&["dns", "stats"])[0]["rules"][0]["names"], 1_000_000);
    let denied = guest.dig(&["www.n999999.bad.example"]);
    assert!(denied.contains("NXDOMAIN") && denied.contains("EDE: 15"), "{denied}");

    let (done, asked, wrong) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    // Between two answers, from before the list is read to when it is.
    let longest = Mutex::new(Duration::ZERO);
    let (first, begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = Instant::now();
            while !done.load(Ordering::Relaxed) {
                // Some 300 queries a second: the walls let a guest have 1,000.
                std::thread::sleep(Duration::from_millis(10));
                for (name, rcode) in [(WEB_NAME, 0), ("gateway.vm.internal", 0), ("n7.bad.example", 3)] {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let answer = guest.look_up(name).map(|(_, rcode)| rcode);
                    if answer != Some(rcode) {
                        wrong.lock().unwrap().push(format!("{name}: {answer:?}"));
                    }
                    let mut longest = longest.lock().unwrap();
                    *longest = last.elapsed().max(*longest);
                    last = Instant::now();
                    let _ = first.send(());
                }
            }
        });
        begun.recv().unwrap();
        fs::write(&list, names + "more.example\n").unwrap();
        for reload in [&["dns", "reload"][..], &["reload"]] {
            daemon.guestnet(reload);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(guest.dig(&["more.example"]).contains("NXDOMAIN"));
    assert_eq!(daemon.json(&["dns", "stats"])[0]["rules"][0]["names"], 1_000_001);
    let (asked, wrong) = (asked.into_inner(), wrong.into_inner().unwrap());
    assert!(asked > 10 && wrong.is_empty(), "of {asked} answers these were wrong: {wrong:#?}");
    let longest = longest.into_inner().unwrap();
    assert!(longest < Duration::from_secs(1), "{longest:?} without an answer");
}

/// What the query log has said so far.
fn query_log(daemon: &Daemon<'_>) -> Vec<Value> {
    let lines = daemon.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "guestnet::dns::query").map(|line| line["fields"].clone()).collect()
}

#[test]
fn no_name_that_a_guest_asks_is_logged_unless_the_query_log_is_on_and_then_one_of_so_many() {
    let lab = Lab::new();
    let rule = "[[network.resolver.rule]]\nname = \"ads\"\nnames = [\"ads.example\"]\n";
    let daemon = Daemon::start_with(&lab, &format!("[[network]]\n{rule}"));
    let guest = guest(&lab, &daemon);
    // From an upstream, from the cache, by a rule, of our own zone.
    let names = [WEB_NAME, WEB_NAME, "www.ads.example", "gateway.vm.internal", "nobody.vm.internal"];
    let ask_all = |guest: &PortGuest| {
        for name in names {
            assert!(guest.look_up(name).is_some(), "{name}");
        }
    };
    ask_all(&guest);
    assert!(query_log(&daemon).is_empty());
    daemon.stop();

    let with_log = |every: u32| format!("[[network]]\n[network.resolver]\nquery_log = {every}\n{rule}");
    let daemon = Daemon::start_with(&lab, &with_log(1));
    ask_all(&guest);
    let log = query_log(&daemon);
    assert_eq!(log.len(), names.len(), "{log:#?}");
    let sources = ["upstream", "cache", "rule", "local", "local"];
    for (line, (name, source)) in log.iter().zip(names.iter().zip(sources)) {
        assert_eq!(line["name"], format!("{name}."), "{log:#?}");
        assert_eq!((&line["vm"], &line["source"]), (&"web-1".into(), &source.into()), "{log:#?}");
    }
    daemon.stop();

    let daemon = Daemon::start_with(&lab, &with_log(10));
    let before = query_log(&daemon).len();
    for _ in 0..8 {
        ask_all(&guest);
    }
    assert_eq!(query_log(&daemon).len() - before, 4);
}

#[test]
fn dns_top_shows_live_who_asks_how_much() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = guest(&lab, &daemon);
    let mut command = daemon.client_command(&["dns", "top", "--watch", "--interval", "200", "--json"]);
    let mut top = Server(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut looks = std::io::BufReader::new(top.0.stdout.take().unwrap()).lines();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                guest.look_up(WEB_NAME);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let seen = until("a look with a rate", || {
            let look: Value = serde_json::from_str(&looks.next().unwrap().unwrap()).unwrap();
            let asks = |of: &Value| of["queries_per_second"].as_f64().unwrap_or_default() > 0.0;
            let busy = asks(&look[0]) && asks(&look[0]["guests"][0]);
            if busy { Ok(look) } else { Err(look.to_string()) }
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(seen[0]["guests"][0]["vm_id"], "web-1");
        assert_eq!(seen[0]["names"][0]["name"], "web.example.com.");
    });
    // A list for people has the same.
    let printed = daemon.guestnet(&["dns", "top"]);
    assert!(printed.contains("web-1") && printed.contains("web.example.com."), "{printed}");
}

#[test]
fn with_dns_only_resolver_no_other_server_is_reached() {
    let lab = Lab::new();
    let rule = "[[network.resolver.rule]]\nname = \"ads\"\nnames = [\"ads.example\"]\n";
    let config = format!("[[network]]\ndns_only_resolver = true\n{rule}");
    let daemon = Daemon::start_with(&lab, &config);
    let guest = guest(&lab, &daemon);
    let elsewhere = |name: &str, options: &[&str]| {
        let arguments = [&["@8.8.8.8", "+tries=1", "+time=8", name], options].concat();
        crate::lab::text(&guest.run("dig", &arguments))
    };
    for options in [&[][..], &["+tcp"]] {
        let denied = elsewhere("www.ads.example", options);
        assert!(denied.contains("NXDOMAIN") && denied.contains("EDE: 15"), "{denied}");
        assert!(elsewhere(WEB_NAME, options).contains(WEB));
    }
    // DNS over TLS, on a port that is open: refused at once.
    let _listener = lab.inet.run(|| std::net::TcpListener::bind((WEB, 853)).unwrap());
    let connect = || {
        guest.inside.run(|| {
            let address = format!("{WEB}:853").parse().unwrap();
            std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop)
        })
    };
    assert_eq!(connect().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // DNS over QUIC (RFC 9250), and over DTLS: nothing arrives.
    let quic = lab.inet.run(|| std::net::UdpSocket::bind((WEB, 853)).unwrap());
    quic.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let arrives = || {
        let socket = guest.inside.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        for _ in 0..3 {
            // It may be told at once that the port is not to be had.
            let _ = socket.send_to(b"hello", (WEB, 853));
        }
        quic.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(!arrives());

    daemon.stop();
    let _daemon = Daemon::start_with(&lab, &format!("[[network]]\n{rule}"));
    assert!(!elsewhere("www.ads.example", &[]).contains("EDE: 15"));
    assert!(connect().is_ok() && arrives());
}

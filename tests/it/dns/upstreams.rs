//! Real servers as upstreams: by TLS and HTTPS, with certificates that fit and that do not; upstreams that come and go.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

use super::*;

const NAME: &str = "dns.lab.example";

/// A certificate authority of this test, and unbound with a certificate of it that ends in the year given.
fn unbound_with_certificate(lab: &Lab, ends: i32) -> Server {
    with_server_address(lab);
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    server.not_before = date_time_ymd(2020, 1, 1);
    server.not_after = date_time_ymd(ends, 1, 1);
    let server = server.signed_by(&key, &authority).unwrap();
    let at = lab.directory();
    fs::write(at.join("ca.pem"), authority.pem()).unwrap();
    fs::write(at.join("server.pem"), server.pem()).unwrap();
    fs::write(at.join("server.key"), key.serialize_pem()).unwrap();
    unbound(
        lab,
        &format!(
            "server:\n  interface: {SERVER}@853\n  interface: {SERVER}@443\n  tls-port: 853\n  https-port: 443\n  \
             tls-service-pem: \"{at}/server.pem\"\n  tls-service-key: \"{at}/server.key\"\n  \
             access-control: 0.0.0.0/0 allow\n  local-zone: \"secure.example.\" redirect\n  \
             local-data: \"secure.example. 300 IN A 198.51.100.77\"\n",
            at = at.display()
        ),
    )
}

fn network(lab: &Lab, upstream: &str) -> String {
    let authority = lab.directory().join("ca.pem");
    format!("[[network]]\ndns_servers = [\"{upstream}\"]\n[network.resolver]\nupstream_ca = {authority:?}\n")
}

#[test]
fn upstreams_are_asked_by_tls_and_https() {
    for upstream in [format!("tls://{SERVER}#{NAME}"), format!("https://{SERVER}/dns-query#{NAME}")] {
        let lab = Lab::new();
        let _unbound = unbound_with_certificate(&lab, 2090);
        let daemon = Daemon::start_with(&lab, &network(&lab, &upstream));
        let guest = guest(&lab, &daemon);
        let answer = until(&upstream, || {
            let printed = guest.dig(&["www.secure.example"]);
            if printed.contains("198.51.100.77") { Ok(printed) } else { Err(printed) }
        });
        assert!(answer.contains("NOERROR"), "{answer}");
        assert_eq!(daemon.json(&["dns", "stats"])[0]["upstreams"][0]["server"], upstream.as_str());
    }
}

/// As behind a NAT or a firewall that has forgotten it: nothing goes either way, and nobody says so.
#[test]
fn a_tls_connection_that_leads_nowhere_is_given_up_for_a_new_one() {
    let lab = Lab::new();
    let _unbound = unbound_with_certificate(&lab, 2090);
    let daemon = Daemon::start_with(&lab, &network(&lab, &format!("tls://{SERVER}#{NAME}")));
    let guest = guest(&lab, &daemon);
    let mut asked = 0;
    let mut answered = || {
        asked += 1;
        let printed = guest.dig(&[&format!("n{asked}.secure.example")]);
        if printed.contains("198.51.100.77") { Ok(()) } else { Err(printed) }
    };
    until("an answer by TLS", &mut answered);
    let established = lab.in_inet("ss", &["-Htn", "state", "established", "sport = :853"]);
    let ports: Vec<&str> =
        established.lines().filter_map(|line| line.split_whitespace().last()?.rsplit(':').next()).collect();
    let [port] = ports[..] else { panic!("one connection: {established}") };
    for (chain, side) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
        lab.in_inet("iptables", &["-I", chain, "-p", "tcp", side, port, "-j", "DROP"]);
    }
    assert!(answered().is_err());
    until("an answer on a new connection", &mut answered);
}

#[test]
fn a_certificate_that_is_over_or_of_another_name_is_no_answer_and_is_named() {
    for (ends, name, says) in [(2021, NAME, "expired"), (2090, "other.example", "name")] {
        let lab = Lab::new();
        let _unbound = unbound_with_certificate(&lab, ends);
        let upstream = format!("tls://{SERVER}#{name}");
        let daemon = Daemon::start_with(&lab, &network(&lab, &upstream));
        let guest = guest(&lab, &daemon);
        until("the reason in the statistics", || {
            let printed = guest.dig(&["www.secure.example"]);
            assert!(!printed.contains("198.51.100.77"), "{printed}");
            let last = daemon.json(&["dns", "stats"])[0]["upstreams"][0]["last_error"].to_string();
            if last.to_lowercase().contains(says) { Ok(()) } else { Err(last) }
        });
    }
}

#[test]
fn an_upstream_that_falls_silent_and_comes_back_is_told() {
    let lab = Lab::new();
    with_server_address(&lab);
    let daemon = Daemon::start_with(&lab, &format!("[[network]]\ndns_servers = [\"{SERVER}\"]\n"));
    let guest = guest(&lab, &daemon);
    let told = |kind: &str| {
        let status = daemon.json(&["status"]);
        let events = status["recent_events"].as_array().unwrap();
        events.iter().any(|event| event["kind"] == kind && event["detail"].to_string().contains(SERVER))
    };
    let mut asked = 0;
    until("upstream_down", || {
        asked += 1;
        guest.look_up(&format!("n{asked}.example.com"));
        if told("upstream_down") { Ok(()) } else { Err(daemon.guestnet(&["status"])) }
    });
    assert_eq!(daemon.json(&["dns", "stats"])[0]["upstreams"][0]["up"], false);
    let _unbound =
        unbound(&lab, &format!("server:\n  interface: {SERVER}\n  access-control: 0.0.0.0/0 allow\n"));
    until("upstream_up", || if told("upstream_up") { Ok(()) } else { Err(daemon.guestnet(&["status"])) });
}

#[test]
fn an_upstream_that_cannot_be_or_cannot_be_reached_is_named() {
    let lab = Lab::new();
    for (upstreams, named) in [("\"8.8.8\"", "8.8.8"), ("\"tls://dns.example\"", "tls://dns.example")] {
        let config = format!("[[network]]\ndns_servers = [{upstreams}]\n");
        let output = crate::lab::daemon::serve_command(&lab, &config).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let printed = crate::lab::text(&output);
        assert!(printed.contains("network[0].dns_servers") && printed.contains(named), "{printed}");
    }
    let daemon = Daemon::start_with(&lab, "[[network]]\ndns_servers = [\"198.51.100.99\"]\n");
    let guest = guest(&lab, &daemon);
    let printed = guest.dig(&["www.example.com"]);
    assert!(printed.contains("SERVFAIL") && printed.contains("EDE: 22"), "{printed}");
    let upstream = &daemon.json(&["dns", "stats"])[0]["upstreams"][0];
    assert_eq!(upstream["server"], "198.51.100.99");
    assert!(!upstream["last_error"].as_str().unwrap().is_empty());
}

/// Zones that the configuration says are ours, or somebody's of their own, forward and reverse: nobody else is asked for them.
#[test]
fn forward_and_reverse_zones_of_the_configuration_go_where_it_says() {
    let lab = Lab::new();
    with_server_address(&lab);
    let _unbound = unbound(
        &lab,
        &format!(
            "server:\n  interface: {SERVER}\n  access-control: 0.0.0.0/0 allow\n  local-zone: \"168.192.in-addr.arpa.\" static\n  \
             local-data: \"db.corp.example. 300 IN A 192.168.7.1\"\n  local-data-ptr: \"192.168.7.1 db.corp.example\"\n"
        ),
    );
    let forward = |domain: &str| {
        format!("[[network.resolver.forward]]\ndomain = \"{domain}\"\nservers = [\"{SERVER}\"]\n")
    };
    let config = format!(
        "[[network]]\n[network.resolver]\nzones = [\"lan.example\", \"9.10.in-addr.arpa\"]\n\
         [[network.resolver.record]]\nname = \"nas.lan.example.\"\ntype = \"A\"\nvalue = \"10.9.0.4\"\n\
         [[network.resolver.record]]\nname = \"4.0.9.10.in-addr.arpa.\"\ntype = \"PTR\"\nvalue = \"nas.lan.example\"\n{}{}",
        forward("corp.example"),
        forward("168.192.in-addr.arpa")
    );
    let daemon = Daemon::start_with(&lab, &config);
    let guest = guest(&lab, &daemon);
    until("an answer of the zone's own server", || {
        let printed = guest.dig(&["db.corp.example"]);
        if printed.contains("192.168.7.1") { Ok(()) } else { Err(printed) }
    });
    for (arguments, says) in [
        (&["-x", "192.168.7.1"][..], "db.corp.example."),
        (&["-x", "192.168.7.2"], "NXDOMAIN"),
        (&["nas.lan.example"], "10.9.0.4"),
        (&["other.lan.example"], "NXDOMAIN"),
        (&["-x", "10.9.0.4"], "nas.lan.example."),
        (&["-x", "10.9.0.5"], "NXDOMAIN"),
        // A private reverse zone that nobody was given stays here.
        (&["-x", "172.16.0.1"], "NXDOMAIN"),
    ] {
        let printed = guest.dig(arguments);
        assert!(printed.contains(says), "{arguments:?} says no {says}:\n{printed}");
    }
    // The zones' own server has answered guests' questions, and the internet's none: what it answers is whether it is there, which
    // is not in the times.
    let stats = daemon.json(&["dns", "stats"]);
    for upstream in stats[0]["upstreams"].as_array().unwrap() {
        let own = upstream["domain"].as_str().is_some_and(|domain| !domain.is_empty());
        assert_eq!(upstream["latency_p50_us"].as_u64().unwrap() > 0, own, "{stats}");
    }
}

/// A link that loses every third question, with one upstream and nobody else to ask.
#[test]
fn no_look_up_is_lost_with_the_questions_that_a_link_loses() {
    let lab = Lab::new();
    with_server_address(&lab);
    let _unbound = unbound(
        &lab,
        &format!(
            "server:\n  interface: {SERVER}\n  access-control: 0.0.0.0/0 allow\n  local-zone: \"secure.example.\" redirect\n  \
             local-data: \"secure.example. 300 IN A 198.51.100.77\"\n"
        ),
    );
    let daemon = Daemon::start_with(&lab, &format!("[[network]]\ndns_servers = [\"{SERVER}\"]\n"));
    let guest = guest(&lab, &daemon);
    until("an answer", || {
        guest.look_up("first.secure.example").filter(|(_, rcode)| *rcode == 0).ok_or_else(String::new)
    });
    let every_third = ["-m", "statistic", "--mode", "nth", "--every", "3", "--packet", "0", "-j", "DROP"];
    lab.in_inet("iptables", &[&["-I", "INPUT", "-p", "udp", "--dport", "53"], &every_third[..]].concat());
    for n in 0..30 {
        let name = format!("n{n}.secure.example");
        assert_eq!(guest.look_up(&name).map(|(_, rcode)| rcode), Some(0), "{name}");
    }
    let dropped = lab.in_inet("iptables", &["-nvxL", "INPUT"]);
    let lost = dropped
        .lines()
        .filter(|line| line.contains("DROP"))
        .filter_map(|line| line.split_whitespace().next());
    let lost: u64 = lost.map(|packets| packets.parse::<u64>().unwrap()).sum();
    assert!(lost >= 10, "{dropped}");
}

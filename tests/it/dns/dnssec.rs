//! Signed zones: guests that validate behind us, and a network that has us validate.

use std::cell::RefCell;
use std::net::UdpSocket;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::signed::{nsd, signed, signed_with, unsigned};
use super::*;

/// nsd on the lab's internet with signed.example, signed with a key made here, and broken.example, where a record was
/// changed after signing. Their keys, as trust anchors.
fn signed_zones(lab: &Lab) -> (Server, String) {
    let records = "www IN A 198.51.100.10\nalias IN CNAME www\n";
    let ok = signed(lab, "signed.example", records);
    let bad = signed(lab, "broken.example", records).broken("198.51.100.10", "198.51.100.66");
    (nsd(lab, &[&ok, &bad]), ok.dnskey + &bad.dnskey)
}

fn forwarding(settings: &str) -> String {
    let zone =
        |zone: &str| format!("[[network.resolver.forward]]\ndomain = \"{zone}\"\nservers = [\"{SERVER}\"]\n");
    format!(
        "[[network]]\n[network.resolver]\n{settings}\n{}{}",
        zone("signed.example"),
        zone("broken.example")
    )
}

/// A service whose network validates by that key of parent.example, whose names it asks `server` for.
fn validating<'lab>(lab: &'lab Lab, dnskey: &str, server: impl std::fmt::Display) -> Daemon<'lab> {
    let anchor = lab.directory().join("anchor");
    fs::write(&anchor, dnskey).unwrap();
    Daemon::start_with(
        lab,
        &format!(
            "[[network]]\n[network.resolver]\ndnssec = true\ntrust_anchor = {anchor:?}\n\
             [[network.resolver.forward]]\ndomain = \"parent.example\"\nservers = [\"{server}\"]\n"
        ),
    )
}

#[test]
fn unbound_in_a_guest_validates_what_it_gets_from_us() {
    let lab = Lab::new();
    let (_nsd, anchors) = signed_zones(&lab);
    let daemon = Daemon::start_with(&lab, &forwarding(""));
    let guest = guest(&lab, &daemon);
    let anchor = lab.directory().join("anchors");
    fs::write(&anchor, anchors).unwrap();
    let path = lab.directory().join("validator.conf");
    let text = format!(
        "server:\n  username: \"\"\n  chroot: \"\"\n  directory: \"/tmp\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         interface: 127.0.0.1\n  do-not-query-localhost: no\n  num-threads: 1\n  trust-anchor-file: \"{}\"\n\
         remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: {}\n",
        anchor.display(),
        guest.gateway
    );
    fs::write(&path, text).unwrap();
    let mut command = guest.command("unbound");
    command.args(["-d", "-c"]).arg(path);
    let _validator = Server::start(command);
    let ask = |name: &str| {
        let output = guest.run("dig", &["@127.0.0.1", "+tries=1", "+time=8", "+dnssec", name]);
        crate::lab::text(&output)
    };
    let secure = until("a validated answer", || {
        let printed = ask("alias.signed.example");
        if printed.contains("flags: qr rd ra ad;") { Ok(printed) } else { Err(printed) }
    });
    assert!(secure.contains("198.51.100.10") && secure.contains("RRSIG"), "{secure}");
    let denied = ask("nothing.signed.example");
    assert!(denied.contains("NXDOMAIN") && denied.contains("flags: qr rd ra ad;"), "{denied}");
    assert!(ask("www.broken.example").contains("SERVFAIL"));
}

#[test]
fn a_network_that_asks_for_it_gets_validated_answers_only() {
    let lab = Lab::new();
    let (_nsd, anchors) = signed_zones(&lab);
    let anchor = lab.directory().join("anchors");
    fs::write(&anchor, anchors).unwrap();
    let settings = format!("dnssec = true\ntrust_anchor = {anchor:?}");
    let daemon = Daemon::start_with(&lab, &forwarding(&settings));
    let guest = guest(&lab, &daemon);
    let secure = until("a validated answer", || {
        let printed = guest.dig(&["www.signed.example", "+adflag"]);
        if printed.contains("NOERROR") { Ok(printed) } else { Err(printed) }
    });
    assert!(secure.contains("flags: qr rd ra ad;") && !secure.contains("RRSIG"), "{secure}");
    assert!(guest.dig(&["www.signed.example", "+dnssec"]).contains("RRSIG"));
    let bogus = guest.dig(&["www.broken.example"]);
    assert!(bogus.contains("SERVFAIL") && bogus.contains("EDE: 6"), "{bogus}");
    // Who wants to judge for itself gets the answer as it is.
    assert!(guest.dig(&["www.broken.example", "+cdflag"]).contains("198.51.100.66"));
}

/// A parent that is signed, with a child that is too, one whose data was changed, and one that is not signed, which the parent
/// says (RFC 4035 section 5.2).
#[test]
fn what_is_not_there_and_what_is_not_signed_is_proven_too() {
    let lab = Lab::new();
    let secure = signed(&lab, "secure.parent.example", "www IN A 198.51.100.11\n");
    let bad = signed(&lab, "bad.parent.example", "www IN A 198.51.100.12\n")
        .broken("198.51.100.12", "198.51.100.66");
    let open = unsigned(&lab, "open.parent.example", "www IN A 198.51.100.13\n");
    let delegation =
        |child: &str| format!("{child} IN NS ns.{child}.parent.example.\nns.{child} IN A {SERVER}\n");
    let children = ["secure", "bad", "open"].map(delegation).concat();
    let records = format!("{children}{}{}host IN A 198.51.100.10\n", secure.ds, bad.ds);
    let parent = signed(&lab, "parent.example", &records);
    let _nsd = nsd(&lab, &[&parent, &secure, &bad, &open]);
    let daemon = validating(&lab, &parent.dnskey, SERVER);
    let guest = guest(&lab, &daemon);
    let ask = |arguments: &[&str]| guest.dig(&[&["+adflag"], arguments].concat());
    let found = until("a validated answer", || {
        let printed = ask(&["www.secure.parent.example"]);
        if printed.contains("NOERROR") { Ok(printed) } else { Err(printed) }
    });
    assert!(is_secure(&found) && found.contains("198.51.100.11"), "{found}");

    // No such name, and no such type: each proven, with the SOA and, for who wants them, the proofs.
    let absent = ask(&["nothing.secure.parent.example"]);
    assert!(absent.contains("NXDOMAIN") && is_secure(&absent) && absent.contains("SOA"), "{absent}");
    assert!(!absent.contains("NSEC"), "{absent}");
    let proven = ask(&["nothing.secure.parent.example", "+dnssec"]);
    assert!(proven.contains("NXDOMAIN") && proven.contains("NSEC") && proven.contains("RRSIG"), "{proven}");
    let nodata = ask(&["www.secure.parent.example", "AAAA"]);
    assert!(nodata.contains("NOERROR") && is_secure(&nodata) && nodata.contains("ANSWER: 0"), "{nodata}");
    // From the cache the same.
    let again = ask(&["nothing.secure.parent.example"]);
    assert!(again.contains("NXDOMAIN") && is_secure(&again), "{again}");

    // Not signed, and the parent says so: answered, and not called authentic.
    for (name, says) in
        [("www.open.parent.example", "198.51.100.13"), ("nothing.open.parent.example", "NXDOMAIN")]
    {
        let insecure = ask(&[name]);
        assert!(insecure.contains(says) && !is_secure(&insecure), "{insecure}");
    }
    // What should be signed and is not right is refused, with the reason.
    let bogus = ask(&["www.bad.parent.example"]);
    assert!(bogus.contains("SERVFAIL") && bogus.contains("EDE: 6"), "{bogus}");
}

/// The world's signatures end at the root here, which knows of no `corp.example`: what its own servers say of it is answered, and
/// not called authentic.
#[test]
fn a_private_zone_with_servers_of_its_own_is_answered_under_a_signed_root() {
    let lab = Lab::new();
    let root = signed(&lab, ".", "www.example IN A 198.51.100.10\n");
    let corp = unsigned(&lab, "corp.example", "db IN A 192.168.7.1\n");
    let _nsd = nsd(&lab, &[&root, &corp]);
    let anchor = lab.directory().join("anchor");
    fs::write(&anchor, &root.dnskey).unwrap();
    let config = |forward: &str| {
        format!(
            "[[network]]\ndns_servers = [\"{SERVER}\"]\n[network.resolver]\ndnssec = true\ntrust_anchor = {anchor:?}\n\
             rebind_protection = false\n{forward}"
        )
    };
    let forward =
        format!("[[network.resolver.forward]]\ndomain = \"corp.example\"\nservers = [\"{SERVER}\"]\n");
    let daemon = Daemon::start_with(&lab, &config(&forward));
    let guest = guest(&lab, &daemon);
    let secure = until("a validated answer", || {
        let printed = guest.dig(&["www.example", "+adflag"]);
        if printed.contains("NOERROR") { Ok(printed) } else { Err(printed) }
    });
    assert!(secure.contains("flags: qr rd ra ad;") && secure.contains("198.51.100.10"), "{secure}");
    let private = guest.dig(&["db.corp.example", "+adflag"]);
    assert!(private.contains("192.168.7.1") && !private.contains("ra ad;"), "{private}");
    daemon.stop();
    // As a zone of the internet it is none that the root knows of.
    let _daemon = Daemon::start_with(&lab, &config(""));
    let bogus = guest.dig(&["db.corp.example"]);
    assert!(bogus.contains("SERVFAIL") && !bogus.contains("192.168.7.1"), "{bogus}");
}

/// Somebody between us and the zones' servers.
const BETWEEN: &str = "198.51.100.54";

/// Passes questions on to the zones' servers, and what `change` makes of their answers back.
fn between(lab: &Lab, change: impl Fn(&str, &mut Message) + Send + 'static) {
    lab.in_inet("ip", &["addr", "add", &format!("{BETWEEN}/24"), "dev", "i0"]);
    let (front, back) = lab.inet.run(|| {
        let back = UdpSocket::bind((BETWEEN, 0)).unwrap();
        back.connect((SERVER, 53)).unwrap();
        back.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        (UdpSocket::bind((BETWEEN, 53)).unwrap(), back)
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Ok((length, from)) = front.recv_from(&mut buffer) {
            let id = buffer[..2].to_vec();
            if back.send(&buffer[..length]).is_err() {
                continue;
            }
            // An answer to a question before may come late.
            while let Ok(length) = back.recv(&mut buffer) {
                if buffer[..2] == id {
                    let mut message = Message::from_vec(&buffer[..length]).unwrap();
                    let question = message.queries[0].clone();
                    if question.query_type() == RecordType::A {
                        change(&question.name().to_ascii().to_lowercase(), &mut message);
                    }
                    let _ = front.send_to(&message.to_vec().unwrap(), from);
                    break;
                }
            }
        }
    });
}

/// Waits until `host`, which is signed, is answered; no answer comes that is not validated.
fn until_validated(ask: impl Fn(&str) -> String) {
    let found = until("a validated answer", || {
        let printed = ask("host");
        if printed.contains("198.51.100.10") { Ok(printed) } else { Err(printed) }
    });
    assert!(is_secure(&found), "{found}");
}

fn is_secure(printed: &str) -> bool {
    printed.contains("flags: qr rd ra ad;")
}

/// The zone that is not signed is one that anybody may have, and so are its records.
#[test]
fn nothing_about_another_name_makes_a_signed_name_go_away() {
    let lab = Lab::new();
    let open = unsigned(&lab, "open.parent.example", "www IN A 198.51.100.66\n");
    let records = format!(
        "open IN NS ns.open.parent.example.\nns.open IN A {SERVER}\nhost IN A 198.51.100.10\nhost1 IN A 198.51.100.10\n\
         host2 IN A 198.51.100.10\nalias IN CNAME host\n\
         far IN CNAME www.open\ngone IN CNAME nothing\n"
    );
    let parent = signed(&lab, "parent.example", &records);
    let _nsd = nsd(&lab, &[&parent, &open]);
    between(&lab, |name, message| {
        let foreign = Name::from_ascii("open.parent.example.").unwrap();
        let mailbox = foreign.clone();
        let soa = hickory_proto::rr::rdata::SOA::new(foreign.clone(), mailbox, 1, 2, 3, 4, 60);
        let denial = Record::from_rdata(foreign.clone(), 300, RData::SOA(soa));
        match name.split('.').next().unwrap() {
            label @ ("host1" | "host2") => {
                message.metadata.response_code = ResponseCode::NXDomain;
                (message.answers, message.authorities) = (vec![], vec![denial]);
                if label == "host2" {
                    let address = RData::A(std::net::Ipv4Addr::new(6, 6, 6, 6).into());
                    message.answers.push(Record::from_rdata(foreign, 300, address));
                }
            }
            "alias" => {
                message.answers.retain(|record| record.name.to_ascii().starts_with("alias"));
                message.authorities.clear();
            }
            _ => {}
        }
    });
    let daemon = validating(&lab, &parent.dnskey, BETWEEN);
    let guest = guest(&lab, &daemon);
    let ask = |name: &str| guest.dig(&["+adflag", &format!("{name}.parent.example")]);
    until_validated(ask);
    for name in ["host1", "host2"] {
        let forged = ask(name);
        assert!(forged.contains("SERVFAIL") && forged.contains("EDE: 6"), "{forged}");
        assert!(!forged.contains("6.6.6.6"), "{forged}");
    }
    // What was taken out of the answer is asked for by itself.
    let alias = ask("alias");
    assert!(alias.contains("198.51.100.10") && is_secure(&alias), "{alias}");
    let far = ask("far");
    assert!(far.contains("198.51.100.66") && !is_secure(&far), "{far}");
    let absent = ask("gone");
    assert!(absent.contains("NXDOMAIN") && absent.contains("CNAME") && is_secure(&absent), "{absent}");
}

/// Wildcards, aliases to and from them, and whole trees that are elsewhere.
const MADE_FROM_OTHERS: &str = "host IN A 198.51.100.10\n*.w IN A 198.51.100.20\nreal.w IN A 198.51.100.22\nlink IN CNAME a.w\n\
     *.c IN CNAME host\nold IN DNAME new\nwww.new IN A 198.51.100.21\n";

fn a_network_that_proves_what_was_made(signing: &[&str]) {
    let lab = Lab::new();
    let parent = signed_with(&lab, "parent.example", MADE_FROM_OTHERS, signing);
    let _nsd = nsd(&lab, &[&parent]);
    // What says what a wildcard is not for, and an answer of one, to be given for other names.
    let of_wildcard: RefCell<Option<Message>> = RefCell::default();
    // All that the zone denies with, as far as it was asked for.
    let denials: RefCell<Vec<Record>> = RefCell::default();
    between(&lab, move |name, message| match name.split('.').next().unwrap() {
        "old" | "gather1" | "gather2" | "gather3" | "gather4" | "gather5" | "gather6" => {
            let mut denials = denials.borrow_mut();
            for record in &message.authorities {
                if !denials.contains(record) {
                    denials.push(record.clone());
                }
            }
        }
        // RFC 6840 section 4.1: the zone that has a DNAME says nothing of what is below it.
        "denied" => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.answers.clear();
            message.authorities = denials.borrow().clone();
        }
        "kept" => drop(of_wildcard.replace(Some(message.clone()))),
        "bare" => message.authorities.clear(),
        // There is a closer name, and the zone would have said so.
        "real" => {
            let kept = of_wildcard.borrow().clone().unwrap();
            let owner = message.queries[0].name().clone();
            message.answers = kept.answers;
            message.answers.iter_mut().for_each(|record| record.name = owner.clone());
            message.authorities = kept.authorities;
        }
        // Names are signed in small letters, and sent as they like.
        "www" => {
            for record in &mut message.answers {
                if let RData::Unknown { code: RecordType::DNAME, rdata } = &mut record.data {
                    rdata.anything.make_ascii_uppercase();
                }
            }
        }
        "turned" => {
            let target = Name::from_ascii("host.parent.example.").unwrap();
            for record in &mut message.answers {
                if record.record_type() == RecordType::CNAME {
                    record.data = RData::CNAME(hickory_proto::rr::rdata::CNAME(target.clone()));
                }
            }
        }
        _ => {}
    });
    let daemon = validating(&lab, &parent.dnskey, BETWEEN);
    let guest = guest(&lab, &daemon);
    let ask = |name: &str| guest.dig(&["+adflag", &format!("{name}.parent.example")]);
    until_validated(ask);
    for (name, address) in [
        ("kept.w", "198.51.100.20"),
        ("b.a.w", "198.51.100.20"),
        ("link", "198.51.100.20"),
        ("x.c", "198.51.100.10"),
        ("www.old", "198.51.100.21"),
    ] {
        let proven = ask(name);
        assert!(is_secure(&proven) && proven.contains(address), "{name}: {proven}");
    }
    let absent = ask("nothing.old");
    assert!(is_secure(&absent) && absent.contains("NXDOMAIN") && absent.contains("DNAME"), "{absent}");
    let nodata = guest.dig(&["+adflag", "x.w.parent.example", "TXT"]);
    assert!(is_secure(&nodata) && nodata.contains("NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    // Who validates behind us has what it needs.
    let whole = guest.dig(&["+dnssec", "z.w.parent.example"]);
    assert!(whole.contains("NSEC") && whole.contains("RRSIG"), "{whole}");
    // RFC 6840 section 4.1: of its own name it does.
    let lacks = guest.dig(&["+adflag", "old.parent.example"]);
    assert!(is_secure(&lacks) && lacks.contains("NOERROR") && lacks.contains("ANSWER: 0"), "{lacks}");
    for name in ["old", "gather1", "gather2", "gather3", "gather4", "gather5", "gather6"] {
        ask(name);
    }
    for name in ["bare.w", "real.w", "turned.old", "denied.old"] {
        let forged = ask(name);
        assert!(forged.contains("SERVFAIL") && forged.contains("EDE: 6"), "{name}: {forged}");
    }
}

#[test]
fn what_was_made_from_a_wildcard_or_a_dname_is_proven_by_others() {
    a_network_that_proves_what_was_made(&[]);
}

#[test]
fn and_by_hashed_names() {
    a_network_that_proves_what_was_made(&["-n"]);
}

/// RFC 5155 section 9.2.
#[test]
fn a_denial_by_opt_out_is_answered_and_not_called_authentic() {
    let lab = Lab::new();
    let parent = signed_with(&lab, "parent.example", "host IN A 198.51.100.10\n", &["-n", "-p"]);
    let _nsd = nsd(&lab, &[&parent]);
    let daemon = validating(&lab, &parent.dnskey, SERVER);
    let guest = guest(&lab, &daemon);
    let ask = |name: &str| guest.dig(&["+adflag", &format!("{name}.parent.example")]);
    until_validated(ask);
    let absent = ask("nothing");
    assert!(absent.contains("NXDOMAIN") && !absent.contains("ra ad;"), "{absent}");
}

/// RFC 9276 section 3.2: hashes that take too long prove nothing; what takes very long is refused.
#[test]
fn a_denial_by_too_many_rounds_of_hashing_is_answered_and_not_called_authentic() {
    for (rounds, says) in [("150", "NXDOMAIN"), ("600", "SERVFAIL")] {
        let lab = Lab::new();
        let parent = signed_with(&lab, "parent.example", MADE_FROM_OTHERS, &["-n", "-t", rounds]);
        let _nsd = nsd(&lab, &[&parent]);
        let daemon = validating(&lab, &parent.dnskey, SERVER);
        let guest = guest(&lab, &daemon);
        let ask = |name: &str| guest.dig(&["+adflag", &format!("{name}.parent.example")]);
        until_validated(ask);
        let absent = ask("nothing");
        assert!(absent.contains(says) && !is_secure(&absent), "{absent}");
        let made = ask("a.w");
        assert!(made.contains("198.51.100.20") && !is_secure(&made), "{made}");
    }
}

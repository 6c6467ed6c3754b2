//! Firewalls beside guestnet's that cut guests off: each really does, doctor names the chain, and what it says to do mends it.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::lab::attacker::Attacker;
use crate::lab::frames::Frame;
use crate::lab::{Daemon, Lab, WEB, text};

use super::{examine, findings, mend, of_the_lab};

const FIREWALLD: &str = include_str!("firewalld-public.nft");
const FIREWALLD_MENDED: &str = include_str!("firewalld-trusted.nft");

fn load(lab: &Lab, rules: &str) {
    let file = lab.directory().join("rules.nft");
    // nft(8) of Debian 12 wants a line's end between two braces.
    std::fs::write(&file, rules.replace("} }", "}\n}")).unwrap();
    lab.on_host("nft", &["-f", file.to_str().unwrap()]);
}

/// Whether a guest can open a connection to the internet, and gets an answer of the gateway's resolver.
fn assert_reaches(guest: &Attacker, expected: (bool, bool), why: &str) {
    // Each a connection of its own: what is established goes on by most rules.
    static PORT: AtomicU16 = AtomicU16::new(4_000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let patience = |expected| Duration::from_secs(if expected { 20 } else { 1 });
    guest.send(&guest.tcp(WEB.parse().unwrap(), (port, 80), b""));
    let is_taken = |frame: &Frame| {
        // A SYN, ACK of TCP in IPv4 without options.
        frame.0.len() > 47
            && frame.0[23] == 6
            && frame.0[36..38] == port.to_be_bytes()
            && frame.0[47] & 0x3f == 0x12
    };
    let world = guest.wait(patience(expected.0), is_taken).is_some();
    let query = b"\x67\x6e\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    guest.send(&guest.udp(guest.gateway, (port, 53), query));
    let is_answer = |frame: &Frame| {
        // UDP in IPv4 without options; RFC 1035 section 4.1.1: its id, and that it is an answer.
        frame.0.len() > 44 && frame.0[23] == 17 && frame.0[42..44] == query[..2] && frame.0[44] & 0x80 != 0
    };
    let answered = guest.wait(patience(expected.1), is_answer).is_some();
    assert_eq!((world, answered), expected, "{why}");
}

#[test]
fn firewalld_cuts_guests_off_and_doctor_says_by_which_rule_and_how_to_let_them_by() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    assert_reaches(&guest, (true, true), "nobody is in the way");
    load(&lab, FIREWALLD);
    assert_reaches(&guest, (false, false), "firewalld");
    let wrong = findings(&daemon);
    for (check, what) in [
        (
            "forward",
            "of chain inet firewalld filter_FWD_public, which filter_FORWARD leads to, drops guests' connections to the world",
        ),
        ("input", "drops guests' DNS questions"),
    ] {
        let found = wrong.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check}: {wrong:#?}"));
        assert_eq!(found["verdict"], "problem", "{found}");
        assert!(found["seen"].as_str().unwrap().contains(what), "{found}");
        let mend = "firewall-cmd --permanent --zone=trusted --change-interface=br-vms; firewall-cmd --reload";
        assert_eq!(found["mend"], mend, "{found}");
    }
    assert_eq!(wrong.len(), 2, "{wrong:#?}");
    // What firewalld makes of that command.
    lab.on_host("nft", &["delete", "table", "inet", "firewalld"]);
    load(&lab, FIREWALLD_MENDED);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
    assert_reaches(&guest, (true, true), "br-vms is trusted");
}

#[test]
fn a_policy_or_a_rule_of_anybody_that_drops_guests_packets_is_named_and_mended() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\nbridge_name = \"br-lab\"\npool_size = 4\n");
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let cases: [(&str, &str, &str, (bool, bool)); 6] = [
        (
            "chain input { type filter hook input priority 0; policy drop; ct state established accept; iifname \"lo\" accept; }",
            "input",
            "the policy of chain inet strict input drops guests' DNS questions",
            (true, false),
        ),
        (
            "chain output { type filter hook output priority 0; oifname \"br-lab\" udp sport 53 drop; }",
            "input",
            "of chain inet strict output drops answers to guests' DNS questions",
            (true, false),
        ),
        (
            "chain way { type filter hook forward priority 0; policy drop; ip saddr 192.0.2.0/24 accept; }",
            "forward",
            "the policy of chain inet strict way drops guests' connections to the world",
            (false, true),
        ),
        (
            "set out { type ifname; elements = { \"br-lab\", \"eth9\" }; }
             chain no { reject; }
             chain way { type filter hook forward priority 0; ct state new iifname @out goto no; }",
            "forward",
            "of chain inet strict no, which way leads to, drops guests' connections to the world",
            (false, true),
        ),
        (
            "chain way { type filter hook forward priority 0; oifname vmap { \"br-lab\" : drop, \"eth9\" : accept }; }",
            "forward",
            "of chain inet strict way drops the world's answers to guests",
            (false, true),
        ),
        (
            "chain pre { type filter hook prerouting priority -300; iifname \"br-*\" ip saddr 10.0.0.0/8 udp dport { 53, 853 } drop; }",
            "input",
            "of chain inet strict pre drops guests' DNS questions",
            (true, false),
        ),
    ];
    for (chains, check, seen, still) in cases {
        load(&lab, &format!("table inet strict {{ {chains} }}"));
        assert_reaches(&guest, still, chains);
        // A chain that drops both ways is mended a way at a time.
        for round in 0.. {
            let wrong = findings(&daemon);
            let Some(first) = wrong.first() else { break };
            assert!(round < 2, "{wrong:#?}");
            if round == 0 {
                assert_eq!(
                    (&first["check"], &first["verdict"]),
                    (&check.into(), &"problem".into()),
                    "{wrong:#?}"
                );
                assert!(first["seen"].as_str().unwrap().contains(seen), "{first}");
            }
            mend(&lab, first);
        }
        assert_reaches(&guest, (true, true), chains);
        lab.on_host("nft", &["delete", "table", "inet", "strict"]);
    }

    // Its packet socket hears requests before INPUT, and behind what is dropped on the bridge: that alone costs leases.
    load(&lab, "table inet strict { chain input { type filter hook input priority 0; udp dport 67 drop; } }");
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
    load(
        &lab,
        "table bridge strict { chain pre { type filter hook prerouting priority 0; udp dport 67 drop; } }",
    );
    let wrong = findings(&daemon);
    let [found] = wrong.as_slice() else { panic!("{wrong:#?}") };
    assert_eq!((&found["check"], &found["verdict"]), (&"input".into(), &"problem".into()), "{found}");
    assert!(found["seen"].as_str().unwrap().contains("guests' DHCP requests"), "{found}");
    mend(&lab, found);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
}

/// Limits on rates, lists of others' addresses, marks: which packets they drop is not known, and no guess is told as a fact.
#[test]
fn rules_that_drop_some_packets_only_are_not_told_as_walls() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    load(
        &lab,
        "table inet strict {
            set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 203.0.113.7 }; }
            chain way {
                type filter hook forward priority 0; policy accept;
                ct state invalid drop
                ip saddr @blocked drop
                meta mark 0x7 drop
                limit rate over 1000/second drop
                fib saddr oif missing drop
                iifname \"eth9\" drop
            }
            chain input { type filter hook input priority 0; policy drop; iifname != \"eth9\" accept; }
        }",
    );
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
    // What may have been let by is a warning.
    load(
        &lab,
        "table inet strict { chain late { type filter hook forward priority 1; limit rate 1/minute accept; drop; } }",
    );
    let wrong = findings(&daemon);
    assert!(wrong.iter().all(|finding| finding["verdict"] == "warning"), "{wrong:#?}");
    assert!(wrong[0]["seen"].as_str().unwrap().contains("unless an earlier rule"), "{wrong:#?}");
}

/// As Docker has it with iptables-nft: a policy of DROP and chains of its own, which stand behind guestnet's.
#[test]
fn rules_of_iptables_behind_guestnets_do_no_harm_and_before_them_are_named() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    // The host's own questions are to be answered all the same.
    lab.on_host("iptables", &["-A", "INPUT", "-i", "lo", "-j", "ACCEPT"]);
    lab.on_host("iptables", &["-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"]);
    lab.on_host("iptables", &["-P", "INPUT", "DROP"]);
    lab.on_host("iptables", &["-A", "FORWARD", "-i", "br-vms", "-j", "DROP"]);
    let (output, wrong) = examine(&daemon, &[]);
    assert_eq!(of_the_lab(wrong), Vec::<serde_json::Value>::new(), "{}", text(&output));
    assert!(daemon.stop().success());
    for (table, rule, check) in [
        ("INPUT", ["-I", "INPUT", "1", "-i", "br-vms", "-p", "udp", "-j", "DROP"], "input"),
        ("FORWARD", ["-I", "FORWARD", "1", "-i", "br-vms", "-p", "udp", "-j", "DROP"], "forward"),
    ] {
        lab.on_host("iptables", &rule);
        let found = super::of_a_dead_service(&lab, check);
        assert!(
            found["seen"].as_str().unwrap().contains("before guestnet's rules stands"),
            "{table}: {found}"
        );
        // The rule may be what keeps somebody else out: it stays, behind ours.
        mend(&lab, &found);
        assert_eq!(super::of_a_dead_service(&lab, check)["verdict"], "ok");
        let mended = lab.on_host("iptables", &["-S", table]);
        assert!(mended.contains("-p udp -j DROP"));
        // Repeated it does nothing.
        let command = found["mend"].as_str().unwrap();
        let again = lab.host_command("sh").args(["-c", command]).output().unwrap();
        assert!(!again.status.success(), "{}", text(&again));
        assert_eq!(lab.on_host("iptables", &["-S", table]), mended);
    }
}

/// iptables-nft keeps its chains as tables of nf_tables: what one of them drops is one finding, and what is beside it another.
#[test]
fn what_a_chain_of_iptables_drops_is_told_once_and_what_a_table_beside_it_drops_is_told_too() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    assert!(daemon.stop().success());
    let of_the_way = || -> Vec<String> {
        let found = super::all_of_a_dead_service(&lab).into_iter();
        let found = found.filter(|finding| finding["check"] == "forward" && finding["verdict"] == "problem");
        found.map(|finding| finding["seen"].as_str().unwrap().to_owned()).collect()
    };
    let reaches = |world, why| assert_reaches(&guest, (world, false), why);
    reaches(true, "nobody is in the way");
    assert_eq!(of_the_way(), Vec::<String>::new());
    // What only may drop stands first, and hides nothing of what surely does behind it.
    for rule in ["-i br-vms -j DROP", "-i br-vms -m limit --limit 1/hour --limit-burst 1 -j DROP"] {
        lab.on_host("sh", &["-c", &format!("iptables -I FORWARD 1 {rule}")]);
    }
    reaches(false, "a rule of iptables");
    let [told] = &of_the_way()[..] else { panic!("{:?}", of_the_way()) };
    assert!(told.contains("-A FORWARD -i br-vms -j DROP"), "{told}");
    load(
        &lab,
        "table inet strict { chain way { type filter hook forward priority 10; iifname \"br-vms\" drop; } }",
    );
    let [of_iptables, beside] = &of_the_way()[..] else { panic!("{:?}", of_the_way()) };
    assert!(of_iptables == told && beside.contains("chain inet strict way"), "{of_iptables} {beside}");
    // The one gone, the other is what is left, and really is in the way.
    lab.on_host("iptables", &["-D", "FORWARD", "1"]);
    lab.on_host("iptables", &["-D", "FORWARD", "1"]);
    reaches(false, "a table beside it");
    let [left] = &of_the_way()[..] else { panic!("{:?}", of_the_way()) };
    assert_eq!(left, beside);
    lab.on_host("nft", &["delete", "table", "inet", "strict"]);
    reaches(true, "all is gone");
    assert_eq!(of_the_way(), Vec::<String>::new());
    // Without ours a policy cuts guests off; that of the same chain in nf_tables is the same finding.
    lab.on_host("iptables", &["-F", "FORWARD"]);
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    reaches(false, "a policy");
    let [told] = &of_the_way()[..] else { panic!("{:?}", of_the_way()) };
    assert!(told.contains("no rule of guestnet and drops by policy"), "{told}");
}

/// What others keep off their own devices is no matter of guests.
#[test]
fn rules_before_guestnets_that_cannot_hit_guests_are_no_problem() {
    let lab = Lab::new();
    assert!(Daemon::start(&lab).stop().success());
    for (chain, rule) in [
        ("FORWARD", "-i eth9 -o eth8 -j DROP"),
        ("FORWARD", "-m conntrack --ctstate INVALID -j DROP"),
        ("INPUT", "-p tcp --dport 22 -j DROP"),
        ("INPUT", "-s 192.168.7.0/24 -j REJECT"),
    ] {
        lab.on_host("sh", &["-c", &format!("iptables -I {chain} 1 {rule}")]);
        let found = super::of_a_dead_service(&lab, &chain.to_lowercase());
        assert_eq!(found["verdict"], "ok", "{rule}: {found}");
    }
    lab.on_host("sh", &["-c", "iptables -I FORWARD 1 -i br-vms -m limit --limit 1/sec -j DROP"]);
    let found = super::of_a_dead_service(&lab, "forward");
    assert_eq!(found["verdict"], "warning", "{found}");
    assert!(found["seen"].as_str().unwrap().contains("--limit 1/sec"), "{found}");
}

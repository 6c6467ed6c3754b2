//! Policies as an operator sets them and a guest meets them.

use super::scene::{Scene, TEXT, Wall, ports_seen, until, web};
use crate::lab::Lab;
use crate::lab::attacker::Attacker;
use crate::lab::frames;

pub(super) const POLICY: &str = r#"
vm_id = "victim"
default_ingress = "deny"
[[rules]]
name = "not-7003"
direction = "ingress"
protocol = "udp"
port = 7003
action = "deny"
priority = 1
[[rules]]
name = "some-udp"
direction = "ingress"
protocol = "udp"
port_range = "7001-7004"
source = "10.100.0.0/16"
action = "allow"
priority = 2
"#;

#[test]
fn the_kernel_decides_what_policy_test_says() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let same: serde_json::Value = toml::from_str(POLICY).unwrap();
    for (name, text) in [("policy.toml", POLICY.to_owned()), ("policy.json", same.to_string())] {
        let file = lab.directory().join(name);
        std::fs::write(&file, text).unwrap();
        let dry = scene.json(&["policy", "apply", "-f", file.to_str().unwrap(), "--dry-run"]);
        assert_eq!(dry["changes"].as_array().unwrap().len(), 3, "{name}: {dry}");
    }
    assert_eq!(scene.json(&["policy", "list"]), serde_json::json!([]), "a dry run changes nothing");
    scene.apply(POLICY);
    let sends = |scene: &Scene<'_>, from: u16| {
        let (a, v) = (&scene.attacker, &scene.victim);
        for port in 7000..7006 {
            a.send(&a.udp(v.ip, (from, port), TEXT));
        }
        a.settle();
        ports_seen(&v.settle(), 17)
    };
    let seen = sends(&scene, 4000);
    let said = |port: u16| scene.said("attacker", "victim", "udp", Some(port));
    let allowed: Vec<u16> = (7000..7006).filter(|port| said(*port) == "allow").collect();
    assert_eq!((seen.as_slice(), allowed.as_slice()), (&[7001, 7002, 7004][..], &[7001, 7002, 7004][..]));
    let by =
        ["policy", "test", "--from", "attacker", "--to", "victim", "--protocol", "udp", "--port", "7003"];
    assert_eq!(scene.json(&by)["rule"], "not-7003");
    assert_eq!((scene.rule_counts(&["victim"]), scene.counted("inet", "policy")), (vec![1, 3], 3));
    // Stored: the next start has it before its API answers.
    scene.restart("");
    assert_eq!(sends(&scene, 4100), [7001, 7002, 7004]);
    scene.guestnet(&["policy", "delete", "victim"]);
    assert_eq!(sends(&scene, 4200), [0; 0]);
    scene.apply(POLICY);
    scene.take_down(&[Wall::Chain("inet", "denied_by_policy"), Wall::Rule("inet", "inbound", "closed")]);
    assert_eq!(sends(&scene, 4300), [7000, 7001, 7002, 7003, 7004, 7005]);
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_nothing_changes() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    let before = scene.json(&["policy", "show", "victim"]);
    let file = lab.directory().join("bad");
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output =
            scene.daemon.as_ref().unwrap().client(&["policy", "apply", "-f", file.to_str().unwrap()]);
        (output.status.code(), crate::lab::text(&output))
    };
    let many = "[[rules]]\nname = \"r\"\ndirection = \"ingress\"\naction = \"allow\"\n".repeat(10_000);
    for (text, expected) in [
        (POLICY.replace("port = 7003", "port = 0"), "rules[0] \"not-7003\": port 0"),
        (POLICY.replace("7001-7004", "7004-7001"), "rules[1] \"some-udp\": port_range 7004-7001 is reversed"),
        (
            POLICY.replace("10.100.0.0/16", "fd00::/8"),
            "rules[1] \"some-udp\": source fd00::/8 is an IPv6 prefix, and guests have IPv4 only",
        ),
        (
            POLICY.replacen("\"udp\"", "\"icmp\"", 1),
            "rules[0] \"not-7003\": protocol icmp has no ports: set protocol to tcp or udp, or no port",
        ),
        (
            POLICY.replacen("protocol = \"udp\"", "", 1),
            "rules[0] \"not-7003\": protocol any has no ports: set protocol to tcp or udp, or no port",
        ),
        (
            format!("vm_id = \"victim\"\n{many}"),
            "rules[1000] \"r\": a policy has at most 1000 rules, this one 10000",
        ),
        ("vm_id = \"victim\"\nrule = 1\n".into(), "unknown field"),
    ] {
        let (code, said) = refused(&text);
        assert!(code == Some(2) && said.contains(expected), "{code:?} {said}");
    }
    let (code, said) = refused(&POLICY.replace("\"victim\"", "\"nobody\""));
    assert!(code == Some(1) && said.contains("VM nobody"), "{said}");
    assert_eq!(scene.json(&["policy", "show", "victim"]), before);
}

#[test]
fn of_rules_that_overlap_or_contradict_each_other_the_answer_says_which_decides_and_it_does() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let sends = |from: u16| {
        let (a, v) = (&scene.attacker, &scene.victim);
        for port in 7000..7006 {
            a.send(&a.udp(v.ip, (from, port), TEXT));
        }
        a.settle();
        ports_seen(&v.settle(), 17)
    };
    // The exception comes last: it never decides.
    let found = |policy: &str| scene.apply(policy)["findings"].to_string().replace("\\\"", "'");
    let said = found(&POLICY.replace("priority = 1", "priority = 9"));
    let expected = "'some-udp' and rules[0] 'not-7003' contradict each other where they overlap: \
                    rules[1] 'some-udp' decides (allow), as it has the lower priority number";
    assert!(said.contains(expected), "{said}");
    assert_eq!(sends(4000), [7001, 7002, 7003, 7004]);
    // Of the same priority the one that is written first decides.
    let said = found(&POLICY.replace("priority = 1", "priority = 2"));
    assert!(said.contains("rules[0] 'not-7003' decides (deny), as it is written first"), "{said}");
    assert_eq!(sends(4100), [7001, 7002, 7004]);
    // The same twice, once to allow and once to deny.
    let rule = |action| {
        format!(
            "[[rules]]\nname = \"{action}\"\ndirection = \"ingress\"\nprotocol = \"udp\"\nport = 7000\naction = \"{action}\"\n"
        )
    };
    let said = found(&format!("vm_id = \"victim\"\n{}{}", rule("allow"), rule("deny")));
    assert!(said.contains("rules[1] 'deny' never decides: rules[0] 'allow' comes first"), "{said}");
    assert_eq!(sends(4200), [7000]);
    assert_eq!(scene.rule_counts(&["victim"]), [1, 0]);
}

#[test]
fn the_most_rules_that_a_policy_may_have_are_handled() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let rules: String = (0..1000)
        .map(|n| {
            let port = 10_000 + n;
            format!(
                "[[rules]]\nname = \"r{n}\"\ndirection = \"ingress\"\nprotocol = \"udp\"\nport = {port}\naction = \"allow\"\n"
            )
        })
        .collect();
    let answer = scene.apply(&format!("vm_id = \"victim\"\n{rules}"));
    assert_eq!(answer["findings"].to_string(), "[]", "{answer}");
    let (a, v) = (&scene.attacker, &scene.victim);
    for port in [9_999, 10_000, 10_999, 11_000] {
        a.send(&a.udp(v.ip, (4000, port), TEXT));
    }
    a.settle();
    assert_eq!(ports_seen(&v.settle(), 17), [10_000, 10_999]);
    let counts = scene.rule_counts(&["victim"]);
    assert_eq!((counts.len(), counts[0], counts[999], counts.iter().sum::<u64>()), (1000, 1, 1, 2));
}

#[test]
fn policies_with_equal_rules_share_their_chains() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let chains = || {
        let listed = lab.on_host("nft", &["list", "table", "inet", "guestnet"]);
        listed.lines().filter(|line| line.contains("chain policy_")).count()
    };
    // One for each direction.
    scene.apply(POLICY);
    assert_eq!(chains(), 2);
    scene.apply(&POLICY.replace("\"victim\"", "\"attacker\""));
    assert_eq!(chains(), 2, "the same rules of another VM");
    scene.apply(&POLICY.replace("\"victim\"", "\"attacker\"").replace("7003", "7001"));
    assert_eq!(chains(), 4);
    scene.guestnet(&["policy", "delete", "victim"]);
    assert_eq!(chains(), 2);
    scene.guestnet(&["policy", "delete", "attacker"]);
    assert_eq!(chains(), 0);
}

#[test]
fn a_vm_takes_its_policy_and_its_forwards_with_it() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8085"]);
    let Scene { daemon, victim, attacker, .. } = scene;
    let daemon = daemon.unwrap();
    let address = victim.ip.to_string();
    drop(victim);
    daemon.guestnet(&["vm", "delete", "victim"]);
    assert_eq!(daemon.json(&["policy", "list"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["forward", "list"]), serde_json::json!([]));
    // Another of its name and address is as closed as any.
    let again = Attacker::new(&lab, &daemon.json(&["vm", "create", "victim", "--ip", &address]));
    assert_eq!(daemon.client(&["policy", "show", "victim"]).status.code(), Some(1));
    attacker.send(&attacker.udp(again.ip, (4000, 7001), TEXT));
    attacker.settle();
    assert!(again.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(super::scene::counted(&lab, "inet", "closed"), 1);
}

#[test]
fn spoofing_is_told_to_whoever_watches_once_and_with_a_count() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    let frame = frames::udp(a.mac, a.gateway_mac, scene.victim.ip, web(), (1, 1), TEXT);
    for _ in 0..1000 {
        a.send(&frame);
    }
    let mut events = String::new();
    until("not all of it is told", || {
        events = scene.guestnet(&["events", "--kind", "spoof_denied", "--no-follow"]);
        let told = |line: &str| line.split(" frames dropped").next()?.rsplit(' ').next()?.parse::<u64>().ok();
        events.lines().filter_map(told).sum::<u64>() >= 1000
    });
    assert!(events.lines().count() <= 3 && events.contains("attacker"), "{events}");
    let drops = scene.json(&["policy", "drops"]);
    assert!(drops["reasons"].to_string().contains("spoofed_address"), "{drops}");
}

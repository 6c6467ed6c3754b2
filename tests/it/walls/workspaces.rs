//! Guests of one tenant and of others: policies of a workspace, rules about a peer's workspace, `intra_workspace`.

use super::scene::{Scene, TEXT, Wall, ports_seen};
use crate::lab::Lab;
use crate::lab::attacker::Attacker;

const DATABASE: &str = r#"
workspace_id = "data"
[[rules]]
name = "app"
direction = "ingress"
protocol = "tcp"
port = 5432
peer_workspace = "acme"
action = "allow"
"#;

/// What `to` sees of TCP to its ports 5432 and 5433.
fn seen(from: &Attacker, to: &Attacker, source_port: u16) -> Vec<u16> {
    for port in [5432, 5433] {
        from.send(&from.tcp(to.ip, (source_port, port), TEXT));
    }
    from.settle();
    ports_seen(&to.settle(), 6)
}

#[test]
fn a_workspaces_policy_decides_for_all_its_guests_and_lets_a_peer_workspace_in() {
    let lab = Lab::new();
    let mut scene = Scene::of(&lab, "", [&["--workspace", "acme"], &["--workspace", "data"]]);
    let stranger = scene.guest("stranger", &[]);
    let other = scene.guest("other", &["--workspace", "else"]);
    scene.apply(DATABASE);
    let late = scene.guest("late", &["--workspace", "data"]);
    let (a, v) = (&scene.attacker, &scene.victim);
    assert_eq!(seen(a, v, 4000), [5432]);
    assert_eq!(seen(a, &late, 4000), [5432], "one that came after the policy");
    for (from, to) in [(&stranger, v), (&other, v), (v, &late), (v, a)] {
        assert_eq!(seen(from, to, 4000), [0; 0], "{} to {}", from.vm_id, to.vm_id);
    }
    assert_eq!(scene.rule_counts(&["--workspace", "data"]), [2]);
    assert_eq!(scene.counted("inet", "closed"), 10);
    let said = |from: &str, to: &str| scene.said(from, to, "tcp", Some(5432));
    assert_eq!(
        [said("attacker", "victim"), said("other", "victim"), said("late", "victim")],
        ["allow", "deny", "deny"]
    );

    // A policy of its own goes before its workspace's, as long as there is one.
    scene.apply("vm_id = \"victim\"\ndefault_ingress = \"deny\"\n");
    let (a, v) = (&scene.attacker, &scene.victim);
    assert_eq!((seen(a, v, 4001), seen(a, &late, 4001)), (vec![], vec![5432]));
    assert_eq!(scene.counted("inet", "policy"), 2);
    scene.guestnet(&["policy", "delete", "victim"]);
    assert_eq!(seen(a, v, 4002), [5432]);

    // A peer's workspace in an egress rule: where this one gets to.
    scene.apply(
        "workspace_id = \"acme\"\n[[rules]]\nname = \"not-data\"\ndirection = \"egress\"\npeer_workspace = \"data\"\n\
         action = \"deny\"\n",
    );
    let (a, v) = (&scene.attacker, &scene.victim);
    assert_eq!(seen(a, v, 4003), [0; 0]);
    assert_eq!(scene.counted("inet", "policy"), 4);
    assert!(a.ping(super::scene::web(), super::scene::PATIENCE).is_some(), "the world has no workspace");

    scene.take_down(&[Wall::Chain("inet", "denied_by_policy"), Wall::Rule("inet", "inbound", "closed")]);
    assert_eq!(seen(&scene.attacker, &scene.victim, 4004), [5432, 5433]);
    assert_eq!(seen(&stranger, &scene.victim, 4004), [5432, 5433]);
}

#[test]
fn guests_of_one_workspace_reach_each_other_where_the_network_says_so() {
    let lab = Lab::new();
    let two = "intra_workspace = \"allow\"\n[[network]]\nname = \"two\"\nbridge_name = \"br-two\"\n\
               bridge_ip = \"10.101.0.1/16\"\nvm_subnet = \"10.101.0.0/16\"\nintra_workspace = \"allow\"\n\
               enable_rate_limit = false\npool_size = 4\n";
    let mut scene = Scene::of(&lab, two, [&["--workspace", "acme"], &["--workspace", "acme"]]);
    let stranger = scene.guest("stranger", &["--workspace", "else"]);
    let elsewhere = scene.guest("elsewhere", &["--workspace", "acme", "--network", "two"]);
    let (a, v) = (&scene.attacker, &scene.victim);
    assert_eq!(seen(a, v, 4000), [5432, 5433]);
    assert_eq!(seen(a, &stranger, 4000), [0; 0]);
    assert_eq!(seen(a, &elsewhere, 4000), [0; 0], "the same workspace on another network");
    assert_eq!(scene.counted("inet", "closed"), 4);
    let said = |to: &str| scene.said("attacker", to, "tcp", Some(5432));
    assert_eq!([said("victim"), said("stranger"), said("elsewhere")], ["allow", "deny", "deny"]);
    // What a policy says goes before.
    scene.apply("vm_id = \"victim\"\ndefault_ingress = \"deny\"\n");
    assert_eq!(seen(&scene.attacker, &scene.victim, 4001), [0; 0]);
    assert_eq!(scene.counted("inet", "policy"), 2);
    scene.take_down(&[Wall::Chain("inet", "denied_by_policy"), Wall::Rule("inet", "inbound", "closed")]);
    for to in [&scene.victim, &stranger, &elsewhere] {
        assert_eq!(seen(&scene.attacker, to, 4002), [5432, 5433], "{}", to.vm_id);
    }
}

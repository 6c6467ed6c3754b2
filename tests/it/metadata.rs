//! The metadata service through a guest's eyes.

use std::fs;
use std::time::{Duration, Instant};

use crate::lab::guest::Boot;
use crate::lab::{Daemon, Guest, Lab, Machine};

const ON: &str = "[[network]]\nmetadata = true\n";
const URL: &str = "http://169.254.169.254";

fn boot(lab: &Lab, daemon: &Daemon<'_>, vm_id: &str) -> Guest {
    let vm = daemon.json(&["vm", "show", vm_id]);
    Guest::boot(
        lab,
        &Boot { machine: Machine::default(), network: &vm, kernel_arguments: "guestnet.net=dhcp" },
    )
}

/// A token of `PUT /latest/api/token`; busybox's wget has no PUT.
fn token(guest: &mut Guest) -> String {
    let request = "PUT /latest/api/token HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n\
                   X-aws-ec2-metadata-token-ttl-seconds: 300\\r\\n\\r\\n";
    let answer = guest.succeed(&format!("(printf '{request}'; sleep 2) | timeout 20 nc 169.254.169.254 80"));
    let (head, body) = answer
        .split_once("\n\n")
        .or_else(|| answer.split_once("\r\n\r\n"))
        .unwrap_or_else(|| panic!("{answer:?}"));
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("x-aws-ec2-metadata-token-ttl-seconds: 300"),
        "{head}"
    );
    body.trim().to_owned()
}

fn get(guest: &mut Guest, path: &str, token: Option<&str>) -> (bool, String) {
    let header =
        token.map(|token| format!("--header 'X-aws-ec2-metadata-token: {token}' ")).unwrap_or_default();
    let (done, text) = guest.run(&format!("timeout 20 wget -q -O - {header}{URL}{path}"));
    (done, text.trim().to_owned())
}

#[test]
fn a_guest_is_told_of_itself_and_of_nobody_else() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, ON);
    for vm in ["web", "db"] {
        daemon.guestnet(&["vm", "create", vm]);
    }
    let script = lab.directory().join("user-data");
    fs::write(&script, "#!/bin/sh\necho for web alone\n").unwrap();
    daemon.guestnet(&["user-data", "set", "web", script.to_str().unwrap()]);
    // Only what carries data: a handshake has the host's own hop limit.
    lab.on_host("nft", &["add table inet hops"]);
    lab.on_host("nft", &["add chain inet hops out { type filter hook postrouting priority 300; }"]);
    let answers = "add rule inet hops out oifname br-vms tcp sport { 80, 8775 } tcp flags & psh == psh";
    lab.on_host("nft", &[&format!("{answers} ip ttl 1 counter comment near")]);
    lab.on_host("nft", &[&format!("{answers} ip ttl > 1 counter comment far")]);

    let (mut web, mut db) = (boot(&lab, &daemon, "web"), boot(&lab, &daemon, "db"));
    web.event("ready");
    db.event("ready");
    assert!(!get(&mut web, "/latest/meta-data/local-hostname", None).0, "no token, no answer");
    let (of_web, of_db) = (token(&mut web), token(&mut db));
    let told = get(&mut web, "/latest/meta-data/local-hostname", Some(&of_web));
    assert_eq!(told, (true, "web".into()));
    assert_eq!(get(&mut db, "/latest/meta-data/local-hostname", Some(&of_db)), (true, "db".into()));
    assert!(get(&mut web, "/latest/user-data", Some(&of_web)).1.contains("for web alone"));
    assert!(!get(&mut db, "/latest/user-data", Some(&of_db)).0, "it has none");
    assert!(!get(&mut db, "/latest/user-data", Some(&of_web)).0, "another guest's token opens nothing");
    assert!(get(&mut web, "/nocloud/user-data", None).1.contains("for web alone"));
    assert!(get(&mut db, "/nocloud/meta-data", None).1.contains("local-hostname: \"db\""));

    let counted = lab.on_host("nft", &["list", "chain", "inet", "hops", "out"]);
    let packets = |comment: &str| {
        let line = counted.lines().find(|line| line.contains(comment)).unwrap();
        line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(packets("near") > 0 && packets("far") == 0, "answers go one hop: {counted}");

    // The port itself is closed: only what was sent to the service's address is let in.
    assert!(!web.run("timeout 3 nc 10.100.0.1 8775 </dev/null").0);
    daemon.stop();
    let daemon = Daemon::start(&lab);
    assert!(!web.run(&format!("timeout 3 wget -q -O - {URL}/nocloud/meta-data")).0, "off is off");
    assert!(!lab.on_host("iptables", &["-t", "nat", "-S"]).contains("169.254.169.254"));
    drop(daemon);
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left_behind() {
    let lab = Lab::new();
    let before = lab.host_state();
    let mut web_server = lab.host_command("busybox").args(["httpd", "-f", "-p", "8775"]).spawn().unwrap();
    let listening = || lab.on_host("ss", &["-ltnH", "sport", "=", ":8775"]).contains("8775");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !listening() {
        assert!(Instant::now() < deadline, "busybox httpd does not listen on 8775");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = crate::lab::daemon::serve_command(&lab, ON).output().unwrap();
    web_server.kill().unwrap();
    web_server.wait().unwrap();
    let said = crate::lab::text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("10.100.0.1:8775") && said.contains("ss -ltnp"), "{said}");
    crate::lab::assert_same(&before, &lab.host_state());
}

//! The tables in the kernel, put in place and changed the way the service does.

use std::sync::Arc;

use guestnet::config::Config;
use guestnet::kernel::nft::{Nft, Ownership};
use guestnet::model::Network;
use guestnet::walls::book::Book;

use super::scene::{TEXT, counted, web};
use crate::crash::Faults;
use crate::lab::attacker::Attacker;
use crate::lab::{Lab, Namespace, frames};

fn networks(text: &str) -> Vec<Arc<Network>> {
    Config::from_parts(Some(text), |_| None).unwrap().networks
}

#[test]
fn the_tables_are_put_in_place_whole_and_again() {
    let namespace = Namespace::new();
    let book = Book::new(&networks(
        "[[network]]\nblocked_egress = [\"169.254.0.0/16\", \"192.168.0.0/16\", \"192.168.7.0/24\"]\n",
    ));
    let nft = namespace.run(|| Nft::open().unwrap());
    for _ in 0..2 {
        assert_eq!(nft.replace(&book.empty_tables()).unwrap(), Ownership::Persistent);
    }
    let listed = crate::lab::succeed(namespace.command("nft").args(["list", "ruleset"]));
    // Nobody else takes them away, while the service runs.
    crate::lab::succeed(namespace.command("nft").args(["flush", "ruleset"]));
    assert_eq!(crate::lab::succeed(namespace.command("nft").args(["list", "ruleset"])), listed);
    drop(nft);
    let nft = namespace.run(|| Nft::open().unwrap());
    assert_eq!(nft.replace(&book.empty_tables()).unwrap(), Ownership::Persistent);
}

#[test]
fn on_a_kernel_that_knows_no_owners_of_tables_the_walls_stand_and_a_warning_says_what_they_lack() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\nenable_rate_limit = false\npool_size = 2\n");
    // Answers as Linux before 6.9 does.
    faults.inject("before", "owned-tables", "fail");
    let daemon = faults.start();
    assert!(faults.happened());
    assert!(
        daemon.log().contains("this kernel (before Linux 6.9) cannot keep others from"),
        "{}",
        daemon.log()
    );
    let listed =
        || lab.on_host("nft", &["-t", "list", "tables"]) + &lab.on_host("nft", &["-t", "list", "ruleset"]);
    assert!(listed().contains("table bridge guestnet") && !listed().contains("flags owner"));
    let [a, v] = ["a", "v"].map(|name| Attacker::new(&lab, &daemon.json(&["vm", "create", name])));
    a.send(&a.udp(v.ip, (4000, 7000), TEXT));
    a.send(&frames::udp(a.mac, a.gateway_mac, v.ip, web(), (4000, 7000), TEXT));
    a.settle();
    assert!(v.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!((counted(&lab, "inet", "closed"), counted(&lab, "bridge", "spoofed_address")), (1, 1));
    // What the warning says, and what an owner keeps off.
    let theirs = ["add", "counter", "inet", "guestnet", "theirs"];
    lab.on_host("nft", &theirs);
    // A kernel that knows owners, at the next start.
    assert!(daemon.stop().success());
    let daemon = faults.start();
    assert!(listed().contains("flags owner"));
    assert!(!lab.host_command("nft").args(theirs).output().unwrap().status.success());
    drop(daemon);
}

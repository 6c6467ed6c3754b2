//! The tables in the kernel, put in place and changed the way the service does.

use std::sync::Arc;

use guestnet::config::Config;
use guestnet::kernel::nft::{Nft, Ownership};
use guestnet::model::Network;
use guestnet::walls::book::Book;

use crate::lab::Namespace;

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

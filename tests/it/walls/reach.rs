//! What a guest reaches: of the host, of other guests, of the operator's network.

use std::net::Ipv4Addr;

use super::scene::{Scene, TEXT, Wall, Watcher};
use crate::lab::Lab;

#[test]
fn the_metadata_address_and_the_operators_lan_stay_out_of_reach() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "blocked_egress = [\"169.254.0.0/16\", \"192.168.0.0/16\"]");
    let a = &scene.attacker;
    let to =
        [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(169, 254, 0, 1), Ipv4Addr::new(192, 168, 7, 1)];
    let frames = to.map(|to| a.udp(to, (4000, 80), TEXT));
    let wall = Wall::Rule("inet", "from_guest", "where no guest gets to");
    let is_it = |frame: &crate::lab::frames::Frame| {
        frame.has(TEXT)
            && frame.ipv4().is_some_and(|(_, source, ..)| source == Ipv4Addr::new(198, 51, 100, 1))
    };
    scene.stopped(&frames, is_it, ("inet", "blocked_egress"), &[wall], Watcher::Inet);
}

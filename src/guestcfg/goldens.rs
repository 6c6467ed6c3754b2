//! Golden files: what each target says of each network of a table, to be read by people in snapshots/.

use super::fixtures::{demanding_guest, guest, guest_with_options, host_side};
use super::round_trip::all_targets;
use super::*;
use crate::model::GuestNet;

/// One network a row, each with what makes it one of its own.
fn networks() -> [(&'static str, GuestNet); 7] {
    let dns = |servers: &[&str]| servers.iter().map(|server| server.parse().unwrap()).collect();
    [
        ("a /16", guest()),
        (
            "a /20",
            GuestNet {
                address: "10.20.47.254".parse().unwrap(),
                subnet: "10.20.32.0/20".parse().unwrap(),
                gateway: "10.20.32.1".parse().unwrap(),
                mac: "06:00:0a:14:2f:fe".parse().unwrap(),
                ..guest()
            },
        ),
        ("a /30, an IPv6 server, a MAC of digits", demanding_guest()),
        ("jumbo frames", GuestNet { mtu: 9000, ..guest() }),
        (
            "three DNS servers",
            GuestNet { dns_servers: dns(&["10.100.0.1", "8.8.8.8", "8.8.4.4"]), ..guest() },
        ),
        ("time servers, routes, more search domains", guest_with_options()),
        ("a search domain of three labels", GuestNet { domain: "a.b-c.example".parse().unwrap(), ..guest() }),
    ]
}

fn shown(target: Target, name: &str, guest: &GuestNet) -> String {
    let made = generate(target, guest, &Options { host: Some(host_side()), ..Options::default() }).unwrap();
    let mut text = format!("##### {name}\n");
    for GuestFile { path, mode, bytes } in &made.files {
        let content = match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.to_owned(),
            _ => format!("{} bytes, FNV-1a {:016x}\n", bytes.len(), cloud_init::fnv1a(bytes)),
        };
        text += &format!("==> {path} {mode:04o} <==\n{content}");
    }
    for warning in &made.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

#[test]
fn each_target_says_of_each_network_what_its_golden_file_says() {
    for target in all_targets() {
        let text: String = networks().iter().map(|(name, guest)| shown(target, name, guest)).collect();
        let name = target.to_string().replace(" --form ", "-").replace(" --dialect ", "-");
        insta::assert_snapshot!(name.replace(" --network-config ", "-"), text);
    }
}

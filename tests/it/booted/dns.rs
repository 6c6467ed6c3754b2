//! Names in a booted guest: glibc's resolver behind systemd-resolved, as Debian has it, and with DNSSEC switched on.

use super::*;
use crate::dns::SERVER;
use crate::dns::signed::{nsd, signed, unsigned};
use crate::lab::WEB;

/// A root that is signed, with a zone that is, one whose data was changed after signing, and one that is not signed at all.
#[test]
fn debian_13_resolves_names_and_with_dnssec_on_believes_what_is_signed_only() {
    let lab = Lab::new();
    let ok = signed(&lab, "signed.example", "www IN A 198.51.100.11\n");
    let bad =
        signed(&lab, "broken.example", "www IN A 198.51.100.12\n").broken("198.51.100.12", "198.51.100.66");
    let com = unsigned(&lab, "example.com", &format!("web IN A {WEB}\n"));
    let delegation = |name: &str| format!("{name}. IN NS ns.{name}.\nns.{name}. IN A {SERVER}\n");
    let names = ["signed.example", "broken.example", "example.com"].map(delegation).concat();
    let root = signed(&lab, ".", &format!("{names}{}{}", ok.ds, bad.ds));
    let _nsd = nsd(&lab, &[&root, &ok, &bad, &com]);
    let daemon = Daemon::start_with(&lab, &format!("[[network]]\ndns_servers = [\"{SERVER}\"]\n"));
    let vm = daemon.json(&["vm", "create", "web-1"]);
    daemon.guestnet(&["vm", "create", "db-1", "--ip", "10.100.0.9"]);
    let mut guest = ready(debian::boot(&lab, &vm, "13", "", None));

    let mut getent = |name: &str| guest.succeed(&format!("getent ahostsv4 {name}"));
    assert!(getent(WEB_NAME).starts_with(WEB));
    // By the search list that DHCP gave, and by the whole name.
    assert!(getent("db-1").starts_with("10.100.0.9"));
    assert!(getent("db-1.vm.internal").starts_with("10.100.0.9"));
    assert!(getent("gateway.vm.internal").starts_with("10.100.0.1"));
    assert!(guest.succeed("getent hosts 10.100.0.9").contains("db-1.vm.internal"));
    // 2: no such name (getent(1)).
    assert_eq!(guest.run("getent hosts nobody.vm.internal; echo status=$?").1.trim(), "status=2");

    let anchor = root.ds.split_whitespace().collect::<Vec<_>>().join(" ");
    guest.succeed(&format!(
        "mkdir -p /etc/dnssec-trust-anchors.d /etc/systemd/resolved.conf.d && \
         echo '{anchor}' >/etc/dnssec-trust-anchors.d/root.positive && \
         printf '[Resolve]\\nDNSSEC=yes\\n' >/etc/systemd/resolved.conf.d/dnssec.conf && \
         systemctl restart systemd-resolved"
    ));
    let secure = guest.succeed("resolvectl query www.signed.example");
    assert!(secure.contains("198.51.100.11") && secure.contains("authenticated: yes"), "{secure}");
    let (_, denied) = guest.run("resolvectl query nothing.signed.example");
    assert!(denied.contains("not found"), "{denied}");
    // What was changed is refused, and only because it is looked at.
    let (found, bogus) = guest.run("resolvectl query -4 www.broken.example");
    assert!(!found && !bogus.contains("198.51.100.66"), "{bogus}");
    let unlooked = guest.succeed("resolvectl query -4 --validate=no www.broken.example");
    assert!(unlooked.contains("198.51.100.66"), "{unlooked}");
    // Not signed, which the root says; and ours, which no root knows.
    let insecure = guest.succeed(&format!("resolvectl query {WEB_NAME}"));
    assert!(insecure.contains(WEB) && insecure.contains("authenticated: no"), "{insecure}");
    for name in ["db-1", "db-1.vm.internal"] {
        assert!(guest.succeed(&format!("getent ahostsv4 {name}")).starts_with("10.100.0.9"), "{name}");
    }
    assert!(guest.succeed("getent hosts 10.100.0.9").contains("db-1.vm.internal"));
}

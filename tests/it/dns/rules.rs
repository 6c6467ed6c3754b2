//! Rules for what guests look up, with a real server whose aliases lead around them.

use super::signed::{nsd, signed};
use super::*;

const RECORDS: &str = "www IN CNAME metrics\nmetrics IN CNAME x.tracker\nx.tracker IN A 198.51.100.10\n\
                       old IN DNAME tracker\nhost IN A 198.51.100.11\n";

/// Whoever owns a name can give it an alias to one that a rule denies: that is denied by this name, too, to those for whom the rule
/// is, and from the moment that it is.
#[test]
fn a_name_that_is_denied_is_not_had_by_an_alias_of_somebodys() {
    for validated in [false, true] {
        let lab = Lab::new();
        let zone = signed(&lab, "shop.example", RECORDS);
        let _nsd = nsd(&lab, &[&zone]);
        let (anchor, list) = (lab.directory().join("anchor"), lab.directory().join("trackers"));
        fs::write(&anchor, &zone.dnskey).unwrap();
        fs::write(&list, "nobody.example\n").unwrap();
        let config = format!(
            "[[network]]\n[network.resolver]\ndnssec = {validated}\ntrust_anchor = {anchor:?}\n\
             [[network.resolver.forward]]\ndomain = \"shop.example\"\nservers = [\"{SERVER}\"]\n\
             [[network.resolver.rule]]\nname = \"trackers\"\nfile = {list:?}\nvms = [\"web-1\"]\n"
        );
        let daemon = Daemon::start_with(&lab, &config);
        let denied = guest(&lab, &daemon);
        let free = PortGuest::of(&lab, &daemon.json(&["vm", "create", "web-2"]));
        until("nsd", || {
            let printed = free.dig(&["host.shop.example"]);
            if printed.contains("198.51.100.11") { Ok(()) } else { Err(printed) }
        });
        let names = ["www.shop.example", "x.old.shop.example"];
        let gets = |guest: &PortGuest, name: &str, rcode: &str, address: bool| {
            let printed = guest.dig(&[name]);
            assert!(printed.contains(&format!("status: {rcode}")), "{printed}");
            assert_eq!(printed.contains("198.51.100.10"), address, "{printed}");
            assert_eq!(printed.contains("EDE: 15"), !address, "{printed}");
            // The aliases up to the name that the rule has.
            assert!(printed.contains("x.tracker.shop.example."), "{printed}");
        };
        // The first is held before there is a rule about it, the second asked for under it.
        gets(&denied, names[0], "NOERROR", true);
        fs::write(&list, "tracker.shop.example\n").unwrap();
        daemon.guestnet(&["dns", "reload"]);
        for _ in 0..2 {
            for name in names {
                gets(&denied, name, "NXDOMAIN", false);
                gets(&free, name, "NOERROR", true);
            }
        }
        let hosts = |name| crate::lab::text(&denied.with_resolv_conf(&lab, "getent", &["ahostsv4", name]));
        assert!(hosts("host.shop.example").contains("198.51.100.11"));
        assert_eq!(hosts("www.shop.example"), "");
        assert!(denied.dig(&["+tcp", names[0]]).contains("NXDOMAIN"));

        let hits =
            |daemon: &Daemon<'_>| daemon.json(&["dns", "stats"])[0]["rules"][0]["hits"].as_u64().unwrap();
        let before = hits(&daemon);
        let explained = daemon.json(&["dns", "query", "--as", "web-1", names[0]]);
        assert_eq!(explained["rcode"], "NXDOMAIN", "{explained}");
        let says = "rule trackers about x.tracker.shop.example.: NxDomain";
        assert!(explained["way"].to_string().contains(says), "{explained}");
        assert_eq!(hits(&daemon), before + 1);

        fs::write(&list, "nobody.example\n").unwrap();
        daemon.guestnet(&["dns", "reload"]);
        for name in names {
            gets(&denied, name, "NOERROR", true);
        }
    }
}

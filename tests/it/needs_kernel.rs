//! Guests on the small kernel that is built from source: it reads `ip=` itself, before there is any userland.

use std::time::{Duration, Instant};

use crate::lab::guest::Boot;
use crate::lab::{Accelerator, Daemon, Guest, Lab, Machine, UPLINK};

fn boot(lab: &Lab, daemon: &Daemon<'_>, arguments: impl FnOnce() -> String) {
    let vm = daemon.json(&["vm", "create", "vm1", "--ip", "10.100.3.4"]);
    let arguments = arguments();
    let machine = Machine::Microvm(Accelerator::best());
    let kernel_arguments = format!("{arguments} guestnet.net=ip");
    let mut guest = Guest::boot(lab, &Boot { machine, network: &vm, kernel_arguments: &kernel_arguments });
    let address = guest.event("address");
    guest.event("ready");
    let has = ["ip", "prefix", "router", "dns"].map(|key| address.get(key));
    assert_eq!(has, ["10.100.3.4", "16", "10.100.0.1", "10.100.0.1"], "{arguments}");
    let page = guest.succeed("timeout 20 wget -q -O - http://web.example.com/");
    assert!(page.contains(UPLINK), "{page}");
}

#[test]
fn a_guest_configured_by_gen_cmdline_is_online() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    boot(&lab, &daemon, || daemon.guestnet(&["gen", "cmdline", "vm1"]).trim().to_owned());
}

#[test]
fn a_guest_whose_kernel_asks_by_dhcp_is_online() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    boot(&lab, &daemon, || "ip=dhcp".into());
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "bound");
}

/// The kernel's own client takes a lease and forgets it: it renews nothing, and asks from the beginning at each boot.
#[test]
fn a_kernel_that_never_renews_keeps_its_address_and_boots_to_a_moved_one() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 2\nlease_seconds = 10\n");
    let mac = "52:54:00:00:00:04";
    let create = |ip: &str| daemon.json(&["vm", "create", "vm1", "--mac", mac, "--ip", ip]);
    let boot = |vm: &serde_json::Value| {
        let machine = Machine::Microvm(Accelerator::best());
        let kernel_arguments = "ip=dhcp guestnet.net=ip";
        let mut guest = Guest::boot(&lab, &Boot { machine, network: vm, kernel_arguments });
        let address = guest.event("address");
        guest.event("ready");
        assert_eq!(address.get("ip"), vm["ip_address"]);
        guest
    };
    let mut guest = boot(&create("10.100.3.4"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while daemon.json(&["lease", "show", "vm1"])["state"] != "expired" {
        assert!(Instant::now() < deadline, "{}", daemon.json(&["lease", "show", "vm1"]));
        std::thread::sleep(Duration::from_millis(100));
    }
    let page = guest.succeed("timeout 20 wget -q -O - http://web.example.com/");
    assert!(page.contains(UPLINK), "{page}");
    drop(guest);

    daemon.guestnet(&["vm", "delete", "vm1"]);
    let moved = create("10.100.3.5");
    boot(&moved);
    let lease = daemon.json(&["lease", "show", "vm1"]);
    assert_eq!(
        (&lease["ip_address"], &lease["last_exchange"]),
        (&"10.100.3.5".into(), &"request: ack".into())
    );
}

//! Guests on the small kernel that is built from source: it reads `ip=` itself, before there is any userland.

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

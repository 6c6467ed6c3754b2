//! The three ways for a guest to configure itself, each on a booted guest: A by DHCP, B by its kernel command line, C by
//! cloud-init. One VM is told the same by all of them, and is online.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::lab::guest::Boot;
use crate::lab::{Accelerator, Daemon, Guest, Lab, Machine, UPLINK, WEB_NAME, debian};

/// Nothing of it is a default: what a guest is not told it cannot have.
const NETWORK: &str = "[[network]]\nbridge_ip = \"10.77.0.1/20\"\nvm_subnet = \"10.77.0.0/20\"\nmtu = 1400\n\
                       domain = \"guests.example\"\n";
const ADDRESS: &str = "10.77.3.4";

fn create(daemon: &Daemon<'_>) -> Value {
    daemon.json(&["vm", "create", "web_1", "--ip", ADDRESS])
}

/// What the guest itself says of its network, however it came to it.
fn view(guest: &mut Guest) -> BTreeMap<String, String> {
    let said = guest.succeed(
        "for f in /etc/guestnet/console /usr/lib/guestnet/console; do [ ! -e $f ] || . $f; done; find_nic && address",
    );
    let fields = said.split_whitespace().filter_map(|word| word.split_once('='));
    fields.filter(|(name, _)| *name != "uptime").map(|(name, value)| (name.into(), value.into())).collect()
}

/// The VM's facts, from what `vm create` answered; the domain where the way can tell it.
fn told(vm: &Value, domain: bool) -> BTreeMap<String, String> {
    let text = |name: &str| match &vm[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let facts = [
        ("ip", text("ip_address")),
        ("prefix", text("prefix_len")),
        ("router", text("gateway")),
        ("dns", vm["dns_servers"][0].as_str().unwrap().to_owned()),
        ("domain", if domain { text("domain") } else { String::new() }),
        ("hostname", text("hostname")),
        ("mtu", text("mtu")),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Gateway, DNS, NAT.
fn assert_online(guest: &mut Guest) {
    guest.succeed("busybox ping -c 1 -W 20 10.77.0.1");
    let page = guest.succeed(&format!("timeout 60 busybox wget -q -O - http://{WEB_NAME}/"));
    assert!(page.contains(UPLINK), "{page}");
}

/// Compares: the domain is left out of the comparison where the way has no place for it.
fn assert_told_and_online(mut guest: Guest, vm: &Value, way: &str, domain: bool) {
    let mut view = view(&mut guest);
    if !domain {
        view.insert("domain".into(), String::new());
    }
    assert_eq!(view, told(vm, domain), "{way}");
    assert_online(&mut guest);
}

fn ready(mut guest: Guest) -> Guest {
    guest.event("ready");
    guest
}

fn generate(lab: &Lab, daemon: &Daemon<'_>, arguments: &[&str], file: &str) -> PathBuf {
    let out = lab.directory().join(format!("{}-{file}", arguments.join("-").replace([' ', '/'], "_")));
    daemon.guestnet(&[&["gen"], arguments, &["--out", out.to_str().unwrap()]].concat());
    out.join(file)
}

#[test]
fn a_busybox_guest_is_told_the_same_by_dhcp_by_its_kernel_and_by_klibc() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let machine = Machine::Microvm(Accelerator::best());
    let guest = Guest::boot(&lab, &Boot { machine, network: &vm, kernel_arguments: "guestnet.net=dhcp" });
    assert_told_and_online(ready(guest), &vm, "udhcpc", true);

    let before = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 guestnet.net=ip";
    let arguments = generate(&lab, &daemon, &["qemu-microvm", "web_1", "--merge", before], "qemu-args");
    assert_told_and_online(
        ready(debian::boot_microvm_by(&lab, &vm, &arguments)),
        &vm,
        "ip= read by the kernel",
        false,
    );

    // A kernel without CONFIG_IP_PNP, which passes the argument by: only klibc reads it.
    let before = "console=ttyS0 quiet loglevel=3 panic=-1 guestnet.net=klibc";
    let arguments = generate(&lab, &daemon, &["qemu", "web_1", "--merge", before], "qemu-args");
    let line = daemon.guestnet(&["gen", "cmdline", "web_1", "--dialect", "klibc", "--merge", before]);
    assert!(fs::read_to_string(&arguments).unwrap().ends_with(&format!("-append '{}'\n", line.trim())));
    assert_told_and_online(
        ready(debian::boot_cloud_by(&lab, &vm, &arguments)),
        &vm,
        "ip= read by klibc",
        false,
    );
}

/// A: Debian's networkd, by DHCP.
fn debian_by_dhcp(release: &str, systemd: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let mut guest = debian::boot(&lab, &vm, release, "", None);
    guest.event("ready");
    assert!(guest.succeed("systemctl --version").starts_with(&format!("systemd {systemd} ")));
    assert_told_and_online(guest, &vm, "networkd's DHCP", true);
}

/// B: systemd-network-generator.
fn debian_by_its_command_line(release: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let line = daemon.guestnet(&["gen", "cmdline", "web_1", "--dialect", "systemd"]);
    let guest = ready(debian::boot(&lab, &vm, release, line.trim(), None));
    assert_told_and_online(guest, &vm, "systemd-network-generator", false);
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

/// What cloud-init leaves behind when it has run it.
const USER_DATA: &str = "#cloud-config\nbootcmd: [[touch, /run/user-data-was-read]]\n";

/// C: cloud-init, by a seed drive.
fn debian_by_a_seed(release: &str, form: &str, file: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let user_data = lab.directory().join("user-data");
    fs::write(&user_data, USER_DATA).unwrap();
    let seed = ["cloud-init", "web_1", "--form", form, "--user-data", user_data.to_str().unwrap()];
    let seed = generate(&lab, &daemon, &seed, file);
    let mut guest = debian::boot(&lab, &vm, release, "", Some(&seed));
    guest.event("ready");
    guest.succeed("test -e /run/user-data-was-read");
    assert_told_and_online(guest, &vm, "a seed", true);
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

/// C: cloud-init, by the kernel command line.
fn debian_by_boot_args(release: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let line = daemon.guestnet(&["gen", "cloud-init", "web_1", "--form", "boot-args"]);
    let guest = ready(debian::boot(&lab, &vm, release, line.trim(), None));
    assert_told_and_online(guest, &vm, "cloud-init's boot arguments", true);
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

#[test]
fn debian_12_is_told_all_by_dhcp() {
    debian_by_dhcp("12", "252");
}

#[test]
fn debian_12_is_told_all_by_its_command_line() {
    debian_by_its_command_line("12");
}

#[test]
fn debian_12_is_told_all_by_a_seed_on_a_fat_drive() {
    debian_by_a_seed("12", "seed-image", "seed.img");
}

#[test]
fn debian_12_is_told_all_by_cloud_inits_boot_arguments() {
    debian_by_boot_args("12");
}

#[test]
fn debian_13_is_told_all_by_dhcp() {
    debian_by_dhcp("13", "257");
}

#[test]
fn debian_13_is_told_all_by_its_command_line() {
    debian_by_its_command_line("13");
}

#[test]
fn debian_13_is_told_all_by_a_seed_on_a_cd() {
    debian_by_a_seed("13", "iso", "seed.iso");
}

#[test]
fn debian_13_is_told_all_by_cloud_inits_boot_arguments() {
    debian_by_boot_args("13");
}

/// C without a drive and without a line of base64: the network by DHCP, the rest from the metadata service.
#[test]
fn debian_13_is_told_its_name_and_user_data_by_the_metadata_service() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &format!("{NETWORK}metadata = true\n"));
    let vm = create(&daemon);
    let user_data = lab.directory().join("user-data");
    fs::write(&user_data, USER_DATA).unwrap();
    daemon.guestnet(&["user-data", "set", "web_1", user_data.to_str().unwrap()]);
    let mut guest =
        ready(debian::boot(&lab, &vm, "13", "ds=nocloud;s=http://169.254.169.254/nocloud/", None));
    guest.succeed("test -e /run/user-data-was-read");
    assert_told_and_online(guest, &vm, "NoCloud over HTTP", true);
}

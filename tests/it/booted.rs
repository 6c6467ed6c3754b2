//! The three ways for a guest to configure itself, each on a booted guest: A by DHCP, B by its kernel command line, C by
//! cloud-init. One VM is told the same by all of them, and is online.

mod dns;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::guest_config::run_the_readme;
use crate::lab::guest::Boot;
use crate::lab::{Accelerator, Daemon, Guest, Lab, Machine, UPLINK, WEB_NAME, debian};

/// Nothing of it is a default: what a guest is not told it cannot have.
const NETWORK: &str = "[[network]]\nbridge_ip = \"10.77.0.1/20\"\nvm_subnet = \"10.77.0.0/20\"\nmtu = 1400\n\
                       domain = \"guests.example\"\n\
                       dhcp_options = { domain_search = [\"corp.example\"], \
                       static_routes = [\"203.0.113.0/24 via 10.77.0.1\"] }\n";
const ADDRESS: &str = "10.77.3.4";

fn create(daemon: &Daemon<'_>) -> Value {
    daemon.json(&["vm", "create", "web_1", "--ip", ADDRESS])
}

/// What the guest itself says of its network, however it came to it.
fn view(guest: &mut Guest) -> BTreeMap<String, String> {
    // systemd-resolved writes its file after the card is up: at most half a minute.
    let said = guest.succeed(
        "for f in /etc/guestnet/console /usr/lib/guestnet/console; do [ ! -e $f ] || . $f; done; find_nic && { \
         i=0; while [ $i -lt 30 ] && address | grep -q ' dns= '; do i=$((i+1)); sleep 1; done; address; }",
    );
    let fields = said.split_whitespace().filter_map(|word| word.split_once('='));
    let fields =
        fields.filter(|(name, _)| *name != "uptime").map(|(name, value)| (name.into(), value.into()));
    let route = guest.succeed("ip route show 203.0.113.0/24");
    let route: Vec<&str> = route.split_whitespace().take(3).collect();
    fields.chain([("route".to_owned(), route.join(" "))]).collect()
}

/// The VM's facts, from what `vm create` answered; search list and routes where the way can tell them.
fn told(vm: &Value, way: &Way) -> BTreeMap<String, String> {
    let text = |name: &str| match &vm[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let option = |name: &str| vm["dhcp_options"][name][0].as_str().unwrap_or_default().to_owned();
    let search = [text("domain"), option("domain_search")];
    let search = search.iter().filter(|domain| !domain.is_empty()).cloned().collect::<Vec<_>>().join(",");
    let facts = [
        ("ip", text("ip_address")),
        ("prefix", text("prefix_len")),
        ("router", text("gateway")),
        ("dns", vm["dns_servers"][0].as_str().unwrap().to_owned()),
        ("domain", if way.search { search } else { String::new() }),
        ("route", if way.routes { option("static_routes") } else { String::new() }),
        ("hostname", text("hostname")),
        ("mtu", text("mtu")),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into()
}

/// How a guest is told, and what of it the way has a place for; address, mask, route, DNS, MTU and host name every way has.
struct Way {
    name: &'static str,
    search: bool,
    routes: bool,
}

const fn all(name: &'static str) -> Way {
    Way { name, search: true, routes: true }
}

const SYSTEMD: Way = Way { name: "systemd-network-generator", search: false, routes: false };

/// Gateway, DNS, NAT.
fn assert_online(guest: &mut Guest, vm: &Value) {
    guest.succeed(&format!("busybox ping -c 1 -W 20 {}", vm["gateway"].as_str().unwrap()));
    let page = guest.succeed(&format!("timeout 60 busybox wget -q -O - http://{WEB_NAME}/"));
    assert!(page.contains(UPLINK), "{page}");
}

/// What the guest has is what it was to be told, and it is online. What every way tells, to compare ways.
fn assert_told_and_online(mut guest: Guest, vm: &Value, way: Way) -> BTreeMap<String, String> {
    let mut view = view(&mut guest);
    // A way without a search list may leave what it found in the image.
    if !way.search {
        view.insert("domain".into(), String::new());
    }
    assert_eq!(view, told(vm, &way), "{}", way.name);
    assert_online(&mut guest, vm);
    view.retain(|fact, _| !["domain", "route"].contains(&fact.as_str()));
    view
}

fn ready(mut guest: Guest) -> Guest {
    guest.event("ready");
    guest
}

fn generate(lab: &Lab, daemon: &Daemon<'_>, arguments: &[&str], file: &str) -> PathBuf {
    let out = lab.directory().join(format!("{}-{file}", arguments.join("-")).replace([' ', '/'], "_"));
    daemon.guestnet(&[&["gen"], arguments, &["--out", out.to_str().unwrap()]].concat());
    out.join(file)
}

#[test]
fn a_busybox_guest_is_told_the_same_by_dhcp_by_its_kernel_and_by_klibc() {
    let lab = Lab::new();
    let with_time = NETWORK.replace("dhcp_options = {", "dhcp_options = { ntp_servers = [\"10.77.0.1\"],");
    let daemon = Daemon::start_with(&lab, &with_time);
    let vm = create(&daemon);
    let machine = Machine::Microvm(Accelerator::best());
    let guest = Guest::boot(&lab, &Boot { machine, network: &vm, kernel_arguments: "guestnet.net=dhcp" });
    let by_dhcp = assert_told_and_online(ready(guest), &vm, all("udhcpc"));

    let by_ip = |name| Way { name, search: false, routes: false };
    let before = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 guestnet.net=ip";
    let arguments = generate(&lab, &daemon, &["qemu-microvm", "web_1", "--merge", before], "qemu-args");
    let mut guest = ready(debian::boot_microvm_by(&lab, &vm, &arguments));
    assert_eq!(guest.succeed("cat /proc/net/ipconfig/ntp_servers").trim(), "10.77.0.1");
    let by_kernel = assert_told_and_online(guest, &vm, by_ip("ip= read by the kernel"));

    // A kernel without CONFIG_IP_PNP, which passes the argument by: only klibc reads it.
    let before = "console=ttyS0 quiet loglevel=3 panic=-1 guestnet.net=klibc";
    let arguments = generate(&lab, &daemon, &["qemu", "web_1", "--merge", before], "qemu-args");
    let guest = ready(debian::boot_cloud_by(&lab, &vm, &arguments));
    assert_told_and_online(guest, &vm, by_ip("ip= read by klibc, as the kernel reads it"));
    let line = daemon.guestnet(&["gen", "cmdline", "web_1", "--dialect", "klibc", "--merge", before]);
    let arguments = generate(&lab, &daemon, &["qemu", "web_1"], "qemu-args");
    let card = fs::read_to_string(&arguments).unwrap();
    let card = &card[..card.find("-append").unwrap()];
    fs::write(&arguments, format!("{card}-append '{}'\n", line.trim())).unwrap();
    let guest = ready(debian::boot_cloud_by(&lab, &vm, &arguments));
    let by_klibc = assert_told_and_online(guest, &vm, by_ip("klibc's dialect"));
    assert_eq!((&by_kernel, &by_klibc), (&by_dhcp, &by_dhcp));
}

/// One VM, booted three times: A by DHCP, B by its command line, C by a seed. Nothing of it differs.
fn debian_in_all_three_ways(release: &str, systemd: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let asked = || daemon.json(&["status"])["dhcp"]["requests"].as_u64().unwrap();

    let mut guest = ready(debian::boot(&lab, &vm, release, "", None));
    assert!(guest.succeed("systemctl --version").starts_with(&format!("systemd {systemd} ")));
    // What networkd takes the lease by is what `gen dhcp` installs.
    let shipped = lab.directory().join("dhcp");
    fs::create_dir(&shipped).unwrap();
    daemon.guestnet(&["gen", "dhcp", "--client", "networkd", "--root", shipped.to_str().unwrap()]);
    for file in [
        "etc/systemd/network/95-guestnet-dhcp.network",
        "etc/systemd/system/guestnet-hostname.service",
        "etc/systemd/system/multi-user.target.d/guestnet.conf",
    ] {
        assert_eq!(guest.succeed(&format!("cat /{file}")), fs::read_to_string(shipped.join(file)).unwrap());
    }
    let status = guest.succeed("networkctl --no-pager status eth0");
    assert!(status.contains("Network File: /etc/systemd/network/95-guestnet-dhcp.network"), "{status}");
    let by_dhcp = assert_told_and_online(guest, &vm, all("networkd's DHCP"));
    let before = asked();
    assert!(before > 0);

    let line = daemon.guestnet(&["gen", "cmdline", "web_1", "--dialect", "systemd"]);
    let guest = ready(debian::boot(&lab, &vm, release, line.trim(), None));
    let by_line = assert_told_and_online(guest, &vm, SYSTEMD);

    let by_seed = debian_by_a_seed(&lab, &daemon, &vm, release, "seed-image", "seed.img");
    assert_eq!((&by_line, &by_seed), (&by_dhcp, &by_dhcp));
    assert_eq!(asked(), before, "nobody asked by DHCP again");
}

/// What cloud-init leaves behind when it has run it.
const USER_DATA: &str = "#cloud-config\nbootcmd: [[touch, /run/user-data-was-read]]\n";

/// C: cloud-init, by a seed drive.
fn debian_by_a_seed(
    lab: &Lab,
    daemon: &Daemon<'_>,
    vm: &Value,
    release: &str,
    form: &str,
    file: &str,
) -> BTreeMap<String, String> {
    let user_data = lab.directory().join("user-data");
    fs::write(&user_data, USER_DATA).unwrap();
    let arguments = ["cloud-init", "web_1", "--form", form, "--user-data", user_data.to_str().unwrap()];
    let seed = generate(lab, daemon, &arguments, file);
    let mut guest = ready(debian::boot(lab, vm, release, "", Some(&seed)));
    guest.succeed("test -e /run/user-data-was-read");
    assert_told_and_online(guest, vm, all("a seed"))
}

/// By what `guestnet gen` says of web_1 for the kernel command line.
fn debian_by_boot_args(release: &str, target: &[&str]) {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let line = daemon.guestnet(&[&["gen"], target, &["web_1"]].concat());
    let guest = ready(debian::boot(&lab, &vm, release, line.trim(), None));
    assert_told_and_online(guest, &vm, all("boot arguments"));
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

#[test]
fn debian_12_is_told_the_same_by_dhcp_by_its_command_line_and_by_a_seed() {
    debian_in_all_three_ways("12", "252");
}

#[test]
fn debian_13_is_told_the_same_by_dhcp_by_its_command_line_and_by_a_seed() {
    debian_in_all_three_ways("13", "257");
}

#[test]
fn debian_12_is_told_all_by_cloud_inits_boot_arguments() {
    debian_by_boot_args("12", &["cloud-init", "--form", "boot-args"]);
}

#[test]
fn debian_13_is_told_all_by_cloud_inits_boot_arguments() {
    debian_by_boot_args("13", &["cloud-init", "--form", "boot-args"]);
}

#[test]
fn debian_13_is_told_all_by_a_credential_of_networkd() {
    debian_by_boot_args("13", &["networkd-credential"]);
}

#[test]
fn debian_13_is_told_all_by_a_seed_on_a_cd() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    debian_by_a_seed(&lab, &daemon, &vm, "13", "iso", "seed.iso");
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

#[test]
fn debian_13_is_told_all_by_a_drop_in_of_its_image() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORK);
    let vm = create(&daemon);
    let path = "etc/cloud/cloud.cfg.d/99-guestnet.cfg";
    let drop_in = generate(&lab, &daemon, &["cloud-init", "web_1", "--form", "cloud.cfg.d"], path);
    let path = Path::new("/").join(path);
    let guest = ready(debian::boot_with_file(&lab, &vm, "13", "ds=nocloud", &drop_in, &path));
    assert_told_and_online(guest, &vm, all("a drop-in"));
    assert_eq!(daemon.json(&["lease", "list"])[0]["state"], "reserved", "nobody asked by DHCP");
}

/// What the README's commands print and write is what each guest is booted with.
#[test]
fn guests_booted_by_the_readmes_commands_are_told_all_and_are_online() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "web-1"]);
    let here = lab.directory().join("here");
    let root = here.join("rootfs");
    fs::create_dir_all(&root).unwrap();
    debian::unpack_initramfs(&root);
    let said = run_the_readme(&lab, &daemon, &here);
    let printed = |start: &str| {
        let (_, printed) = said.iter().find(|(command, _)| command.starts_with(start)).unwrap();
        printed.trim()
    };

    // A: busybox with the settings that were installed, which its own init leaves alone here.
    let mut guest = ready(debian::boot_initramfs(&lab, &vm, &root, "guestnet.net=none"));
    guest.succeed("/etc/init.d/S40guestnet start");
    assert_told_and_online(guest, &vm, Way { routes: false, ..all("A") });
    // B; the initramfs is told to leave the card to the kernel.
    let line = format!("{} guestnet.net=ip", printed("sudo guestnet gen cmdline web-1"));
    let guest = ready(debian::boot_microvm_with(&lab, &vm, &line));
    assert_told_and_online(guest, &vm, Way { name: "B", search: false, routes: false });
    // C, by a drive and by boot arguments.
    let guest = ready(debian::boot(&lab, &vm, "13", "", Some(&here.join("seed/seed.img"))));
    assert_told_and_online(guest, &vm, Way { routes: false, ..all("C: the seed") });
    let line = printed("sudo guestnet gen cloud-init web-1 --form boot-args");
    let guest = ready(debian::boot(&lab, &vm, "12", line, None));
    assert_told_and_online(guest, &vm, Way { routes: false, ..all("C: boot arguments") });
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
    assert_told_and_online(guest, &vm, all("NoCloud over HTTP"));
}

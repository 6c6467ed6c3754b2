//! Every target read by its own program: what the program understood is what the guest was to be told. `static` facts of two
//! guests are compared in the program's own words; what configures a card does so, on a VM's TAP, and the guest is online.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::lab::frames::{Arp, Frame};
use crate::lab::sniffer::Sniffer;
use crate::lab::tap_guest::TapGuest;
use crate::lab::validators::ask;
use crate::lab::{Daemon, Lab, UPLINK, WEB_NAME, guestnet_binary, text};

/// A /30 with jumbo frames, four DNS servers of both families and a MAC of digits: what is hard to say.
const GUEST: &str = "--offline --ip 192.0.2.6 --prefix 192.0.2.4/30 --gateway 192.0.2.5 --dns 192.0.2.5 \
                     --dns 198.51.100.1 --dns 2001:db8::53 --dns 198.51.100.2 --hostname db-7 --domain 7.example --mtu 9000 \
                     --mac 02:00:10:20:30:40 --search corp.example --ntp 192.0.2.5";
/// Two words of one flag, so it is not in `GUEST`.
const ROUTE: [&str; 2] = ["--route", "203.0.113.0/24 via 192.0.2.5"];
const SERVERS: [&str; 4] = ["192.0.2.5", "198.51.100.1", "2001:db8::53", "198.51.100.2"];

/// The output of `guestnet gen TARGET` for `GUEST`, in a folder of its own.
fn generated(lab: &Lab, target: &str) -> PathBuf {
    let out = lab.directory().join(target.replace(' ', ""));
    let mut command = Command::new(guestnet_binary());
    let output = command
        .arg("gen")
        .args(target.split(' '))
        .args(GUEST.split_whitespace())
        .args(ROUTE)
        .arg("--out")
        .arg(&out)
        .output();
    let output = output.expect("running guestnet");
    assert!(output.status.success(), "{target}: {}", text(&output));
    out
}

fn assert_says(said: &str, facts: &[&str], by: &str) {
    for fact in facts {
        assert!(said.contains(fact), "{by} says nothing of {fact}:\n{said}");
    }
}

#[test]
fn cloud_init_reads_both_versions_of_network_config() {
    let lab = Lab::new();
    for version in ["v1", "v2"] {
        let seed = generated(&lab, &format!("cloud-init --network-config {version}"));
        ask(
            &lab,
            &lab.inet,
            &seed,
            "cloud-init schema --schema-type network-config -c network-config
             cloud-init schema -t cloud-config -c vendor-data
             cloud-init schema -t cloud-config -c user-data
             grep -q 'ntp:' vendor-data",
        );
        for (renderer, distro) in [
            ("networkd", "debian"),
            ("netplan", "debian"),
            ("eni", "debian"),
            ("sysconfig", "rhel"),
            ("network-manager", "fedora"),
        ] {
            let rendered = ask(
                &lab,
                &lab.inet,
                &seed,
                &format!(
                    "mkdir /out; cloud-init devel net-convert -p network-config -k yaml -d /out -D {distro} -O {renderer} \
                     -m eth0,02:00:10:20:30:40 >/dev/null; find /out /etc/netplan -type f | xargs cat"
                ),
            );
            let by = format!("{renderer} from {version}");
            let facts = [
                "192.0.2.6",
                "192.0.2.5",
                "9000",
                "7.example",
                "corp.example",
                "198.51.100.1",
                "203.0.113.0",
            ];
            assert_says(&rendered, &facts, &by);
        }
    }
}

#[test]
fn cloud_init_takes_a_mime_archive_apart() {
    let lab = Lab::new();
    let archive = generated(&lab, "cloud-init --form mime");
    let parts = ask(
        &lab,
        &lab.inet,
        &archive,
        r#"python3 -c '
from cloudinit.user_data import UserDataProcessor
from cloudinit.helpers import Paths
archive = UserDataProcessor(Paths({})).process(open("user-data", "rb").read())
for part in archive.walk():
    print(part.get_content_type())
    if not part.is_multipart():
        print(part.get_payload(decode=True).decode())
'"#,
    );
    let facts = ["text/cloud-config", "fqdn: \"db-7.7.example\"", "text/cloud-boothook", "192.0.2.6/30"];
    assert_says(&parts, &facts, "cloud-init");
}

#[test]
fn netplan_makes_a_unit_with_every_fact() {
    let lab = Lab::new();
    let plan = generated(&lab, "cloud-init --form netplan");
    let script = "cp -a etc/netplan /etc/; netplan generate 2>&1; cat /run/systemd/network/*";
    let unit = ask(&lab, &lab.inet, &plan, script);
    let facts = [
        "PermanentMACAddress=02:00:10:20:30:40",
        "Name=eth0",
        "Address=192.0.2.6/30",
        "Gateway=192.0.2.5",
        "MTUBytes=9000",
        "Domains=7.example corp.example",
        "Destination=203.0.113.0/24",
    ];
    assert_says(&unit, &facts, "netplan");
    assert_says(
        &unit,
        &SERVERS.map(|server| format!("DNS={server}")).each_ref().map(String::as_str),
        "netplan",
    );
    assert!(!unit.contains("WARNING"), "{unit}");
}

#[test]
fn systemd_network_generator_reads_both_dialects_and_the_credential() {
    let lab = Lab::new();
    for dialect in ["systemd", "dracut"] {
        let line = generated(&lab, &format!("cmdline --dialect {dialect}"));
        // What begins with rd. is read in an initramfs only.
        let script = "export SYSTEMD_IN_INITRD=1 SYSTEMD_PROC_CMDLINE=\"$(cat cmdline)\"
                      /usr/lib/systemd/systemd-network-generator
                      cat /run/systemd/network/*";
        let unit = ask(&lab, &lab.inet, &line, script);
        assert_eq!(unit.contains("Destination=203.0.113.0/24"), dialect == "dracut", "{unit}");
        let facts = ["Name=eth0", "Address=192.0.2.6/30", "Gateway=192.0.2.5", "MTUBytes=9000", "DHCP=no"];
        assert_says(&unit, &facts, dialect);
        assert_says(
            &unit,
            &SERVERS.map(|server| format!("DNS={server}")).each_ref().map(String::as_str),
            dialect,
        );
    }
    // The kernel's own dialect has a tenth position, which systemd 257 reads as well.
    let line = generated(&lab, "cmdline");
    let script = "export SYSTEMD_PROC_CMDLINE=\"$(cat cmdline)\"
                  /usr/lib/systemd/systemd-network-generator
                  cat /run/systemd/network/*";
    assert_says(&ask(&lab, &lab.inet, &line, script), &["NTP=192.0.2.5", "DNS=198.51.100.1"], "systemd 257");
    let line = generated(&lab, "networkd-credential");
    let script = "mkdir /run/credentials
                  sed -n 's/.*network.network.10-guestnet:\\([^ ]*\\).*/\\1/p' boot-args | base64 -d \
                    >/run/credentials/network.network.10-guestnet
                  CREDENTIALS_DIRECTORY=/run/credentials SYSTEMD_PROC_CMDLINE= /usr/lib/systemd/systemd-network-generator
                  cat /run/systemd/network/10-guestnet.network";
    let unit = ask(&lab, &lab.inet, &line, script);
    assert_says(
        &unit,
        &["MACAddress=02:00:10:20:30:40", "Address=192.0.2.6/30", "MTUBytes=9000"],
        "the credential",
    );
}

#[test]
fn network_manager_and_ignition_read_the_keyfile() {
    let lab = Lab::new();
    let profile = generated(&lab, "network-manager");
    let read = ask(
        &lab,
        &lab.inet,
        &profile,
        "nmcli --offline connection modify connection.id read <etc/NetworkManager/system-connections/guestnet.nmconnection",
    );
    let facts = [
        "mac-address=02:00:10:20:30:40",
        "mtu=9000",
        "address1=192.0.2.6/30",
        "192.0.2.5",
        "dns=192.0.2.5;198.51.100.1;198.51.100.2;",
        "dns-search=7.example;corp.example;",
        "route1=203.0.113.0/24,192.0.2.5",
        "method=manual",
    ];
    assert_says(&read, &facts, "NetworkManager");
    ask(&lab, &lab.inet, &generated(&lab, "ignition"), "ignition-validate guestnet.ign");
}

#[test]
fn nix_evaluates_the_module() {
    let lab = Lab::new();
    let module = generated(&lab, "nixos");
    let read = ask(&lab, &lab.inet, &module, "nix-instantiate --eval --strict --json guestnet.nix");
    let networking = serde_json::from_str::<Value>(&read).unwrap()["networking"].take();
    assert_eq!(networking["hostName"], "db-7");
    assert_eq!(networking["defaultGateway"]["address"], "192.0.2.5");
    let card = &networking["interfaces"]["eth0"];
    assert_eq!(
        (&card["mtu"], &card["ipv4"]["addresses"][0]["prefixLength"]),
        (&Value::from(9000), &Value::from(30))
    );
    assert_eq!(networking["nameservers"], Value::from(SERVERS.to_vec()));
    assert_eq!(networking["search"], Value::from(vec!["7.example", "corp.example"]));
    assert_eq!(networking["timeServers"], Value::from(vec!["192.0.2.5"]));
    let route = &card["ipv4"]["routes"][0];
    assert_eq!((&route["address"], &route["via"]), (&Value::from("203.0.113.0"), &Value::from("192.0.2.5")));
}

#[test]
fn nix_reads_names_that_are_words_of_its_language_as_names() {
    let lab = Lab::new();
    let names = ["null", "true", "rec", "let", "in", "1e5", "0x1f", "1-2-3", "a--b", &"x".repeat(63)];
    let modules = lab.directory().join("modules");
    fs::create_dir(&modules).unwrap();
    for (number, name) in names.iter().enumerate() {
        let mut command = Command::new(guestnet_binary());
        let guest = ["--offline", "--ip", "10.0.0.2", "--prefix", "24", "--gateway", "10.0.0.1"];
        let output = command.args(["gen", "nixos"]).args(guest).args(["--hostname", name, "--domain", name]);
        let output = output.output().expect("running guestnet");
        assert!(output.status.success(), "{name}: {}", text(&output));
        fs::write(modules.join(format!("{number}.nix")), output.stdout).unwrap();
    }
    let paths: String = (0..names.len()).map(|number| format!("./{number}.nix ")).collect();
    let expression = format!("map (path: with (import path).networking; [ hostName search ]) [ {paths}]");
    let script = format!("nix-instantiate --eval --strict --json --expr '{expression}'");
    let read: Value = serde_json::from_str(&ask(&lab, &lab.inet, &modules, &script)).unwrap();
    let expected: Vec<Value> = names.iter().map(|name| serde_json::json!([name, [name]])).collect();
    assert_eq!(read, Value::from(expected));
}

#[test]
fn the_seed_images_are_clean_file_systems_labelled_cidata() {
    let lab = Lab::new();
    let seed = generated(&lab, "cloud-init --form nocloud-dir");
    for (form, script) in [
        (
            "seed-image",
            "fsck.fat -n seed.img >&2; blkid -p seed.img; mtype -i seed.img ::meta-data; mtype -i seed.img ::network-config",
        ),
        ("iso", "blkid -p seed.iso; bsdtar -xOf seed.iso meta-data; bsdtar -xOf seed.iso network-config"),
    ] {
        let read = ask(&lab, &lab.inet, &generated(&lab, &format!("cloud-init --form {form}")), script);
        let content = |name: &str| fs::read_to_string(seed.join(name)).unwrap();
        assert_says(&read, &["LABEL=\"CIDATA\"", &content("meta-data"), &content("network-config")], form);
    }
}

#[test]
fn a_shell_reads_the_environment_file() {
    let lab = Lab::new();
    let file = generated(&lab, "env");
    let read = ask(&lab, &lab.inet, &file, "set -a; . ./guestnet.env; env | grep GUESTNET_");
    let mut lines: Vec<&str> = read.lines().collect();
    lines.sort_unstable();
    let file = fs::read_to_string(file.join("guestnet.env")).unwrap();
    let mut expected: Vec<&str> = file.lines().collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

/// A VM whose card the programs of the root configure, and what it is to be told.
struct OnTap<'lab> {
    lab: &'lab Lab,
    daemon: Daemon<'lab>,
    vm: Value,
}

/// What the card has in the end; dhcpcd puts the MTU on its routes.
const SHOW: &str = "ip -4 -o addr show dev eth0 | sed -n 's/.* inet \\([^ ]*\\).*/address \\1/p'
                    ip route show default | sed -n 's/.* via \\([^ ]*\\).*/router \\1/p'
                    ip route get 198.51.100.10 | grep -o 'mtu [0-9]*' || echo mtu $(cat /sys/class/net/eth0/mtu)
                    echo route $(ip route show 203.0.113.0/24)
                    echo name $(hostname)";

const EXPECTED: [&str; 5] = [
    "route 203.0.113.0/24 via 10.77.0.1 ",
    "address 10.77.3.4/20\n",
    "router 10.77.0.1\n",
    "mtu 1400\n",
    "name web-1\n",
];

impl<'lab> OnTap<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let network = "[[network]]\nbridge_ip = \"10.77.0.1/20\"\nvm_subnet = \"10.77.0.0/20\"\nmtu = 1400\n\
                       domain = \"guests.example\"\n\
                       dhcp_options = { static_routes = [\"203.0.113.0/24 via 10.77.0.1\"], ntp_servers = [\"10.77.0.1\"] }\n";
        let daemon = Daemon::start_with(lab, network);
        let vm = daemon.json(&["vm", "create", "web-1", "--ip", "10.77.3.4"]);
        Self { lab, daemon, vm }
    }

    fn generated(&self, target: &str) -> PathBuf {
        let out = self.lab.directory().join(target.replace(' ', ""));
        let words: Vec<&str> = target.split(' ').collect();
        self.daemon.guestnet(&[&["gen"], &words[..], &["web-1", "--out", out.to_str().unwrap()]].concat());
        out
    }

    /// Runs `script` on a card that has nothing but its MAC, as the host sees it, then a page by name through NAT.
    fn configured_by(&self, given: &Path, script: &str) {
        let guest = TapGuest::attach(self.lab, &self.vm);
        guest.run("ip", &["addr", "flush", "dev", "eth0"]);
        guest.run("ip", &["link", "set", "eth0", "down", "mtu", "1500"]);
        let page = format!("busybox wget -q -T 20 -O - http://{WEB_NAME}/");
        let said = ask(
            self.lab,
            &guest.namespace,
            given,
            &format!("rm -f /etc/resolv.conf; {script}\n{}\n{page}", shown_when_it_is_all()),
        );
        assert_says(&said, &EXPECTED, script);
        assert_says(&said, &[UPLINK], script);
    }
}

/// `SHOW` as soon as it says all of it: a client may go into the background before its lease is on the card. After 30 s what there is.
fn shown_when_it_is_all() -> String {
    let all: String =
        EXPECTED.iter().map(|line| format!(" && grep -q '{}' /shown", line.trim_end())).collect();
    format!(
        "for i in $(seq 150); do ( {SHOW} ) >/shown; if true{all}; then break; fi; sleep 0.2; done; cat /shown"
    )
}

#[test]
fn ifupdown_networkd_and_the_script_put_a_guest_online() {
    let lab = Lab::new();
    let tap = OnTap::new(&lab);
    let install = "cp -r etc /; hostname -F /etc/hostname;";
    tap.configured_by(&tap.generated("ifupdown"), &format!("{install} ifup -a >&2"));
    tap.configured_by(
        &tap.generated("ifupdown-alpine"),
        &format!("{install} mkdir -p /var/run; busybox ifup -a >&2"),
    );
    let script = tap.generated("shell");
    tap.configured_by(&script, "./guestnet.sh");
    let by_busybox = "busybox --install -s /usr/local/bin; PATH=/usr/local/bin:$PATH; ip 2>&1 | grep -q BusyBox; ./guestnet.sh";
    tap.configured_by(&script, by_busybox);
    // Without its manager networkd tells no resolver: the file of that target does.
    fs::copy(tap.generated("resolv-conf").join("etc/resolv.conf"), lab.directory().join("resolv.conf"))
        .unwrap();
    let unit = tap.generated("networkd");
    fs::copy(lab.directory().join("resolv.conf"), unit.join("etc/resolv.conf")).unwrap();
    let networkd = format!(
        "{install} ip link set lo up; mkdir -p /run/systemd/netif/links /run/dbus
         chown -R systemd-network /run/systemd/netif
         /usr/lib/systemd/systemd-networkd >&2 & index=$(cat /sys/class/net/eth0/ifindex)
         timeout 60 sh -c \"until grep -q ADMIN_STATE=configured /run/systemd/netif/links/$index; do sleep 0.1; done\"
         grep -q DNS=10.77.0.1 /run/systemd/netif/links/$index; grep -q DOMAINS=guests.example /run/systemd/netif/links/$index"
    );
    tap.configured_by(&unit, &networkd);
}

#[test]
fn an_initramfs_of_dracut_puts_a_guest_online() {
    let lab = Lab::new();
    let tap = OnTap::new(&lab);
    // Without systemd in it, whose generator would read the line, dracut's own scripts configure the card.
    let build = "dracut --quiet --no-kernel --no-hostonly --no-hostonly-cmdline --no-compress -o systemd \
                   -m 'base network-legacy' --kver none /image >&2
                 mkdir /image.d; cd /image.d; cpio -idm --quiet </image
                 mount -t proc proc proc; mount -t sysfs -o ro sysfs sys; mount --bind /dev dev; mount -t tmpfs run run";
    let start = "chroot . sh -c 'export hookdir=/lib/dracut/hooks NEWROOT=/sysroot; . /lib/dracut-lib.sh; . /lib/net-lib.sh
                   . $hookdir/cmdline/98-parse-ip-opts.sh; ifup eth0' >&2
                 cp etc/resolv.conf /etc/resolv.conf; cd /";
    let conf = tap.generated("dracut-conf");
    tap.configured_by(&conf, &format!("cp -r etc /; {build}\n{start}"));
    // Nothing is built in: dracut reads /etc/cmdline.d beside the kernel's own command line.
    let line = tap.generated("cmdline --dialect dracut");
    let given = "mkdir -p etc/cmdline.d; cp /given/cmdline etc/cmdline.d/guestnet.conf";
    tap.configured_by(&line, &format!("{build}\n{given}\n{start}"));
}

#[test]
fn systemd_takes_the_shipped_units_of_gen_dhcp() {
    let lab = Lab::new();
    let root = lab.directory().join("dhcp");
    fs::create_dir(&root).unwrap();
    let mut command = Command::new(guestnet_binary());
    command.args(["gen", "dhcp", "--client", "networkd", "--root"]).arg(&root);
    assert!(command.output().expect("running guestnet").status.success());
    let said = ask(
        &lab,
        &lab.inet,
        &root,
        "cp -r etc /; systemd-analyze verify /etc/systemd/system/guestnet-hostname.service 2>&1; echo verified",
    );
    assert_eq!(said, "verified\n");
}

#[test]
fn dhcp_clients_with_the_shipped_settings_put_a_guest_online_at_once() {
    let lab = Lab::new();
    let tap = OnTap::new(&lab);
    let root = lab.directory().join("dhcp");
    fs::create_dir(&root).unwrap();
    let clients = ["udhcpc", "dhclient", "dhcpcd"];
    let install = clients.iter().flat_map(|client| ["--client", client]);
    let install: Vec<&str> =
        ["gen", "dhcp", "--root", root.to_str().unwrap()].into_iter().chain(install).collect();
    tap.daemon.guestnet(&install);
    let vm = lab.host.enter(Path::new("/run/netns/vm-web-1"));
    for (client, start, ntp) in [
        (
            "udhcpc",
            "busybox --install -s /usr/local/bin; PATH=/usr/local/bin:$PATH; INTERFACE=eth0 /etc/init.d/S40guestnet start >&2",
            "",
        ),
        (
            "dhclient",
            "dhclient -1 -cf /etc/dhcp/dhclient.conf eth0 >&2",
            "grep -o 'ntp-servers 10.77.0.1' /var/lib/dhcp/dhclient.leases",
        ),
        (
            "dhcpcd",
            "dhcpcd -4 -w -f /etc/dhcpcd.conf eth0 >&2",
            "dhcpcd -4 -U eth0 | grep -o 'ntp_servers=.*10.77.0.1'",
        ),
    ] {
        let sniffer = Sniffer::new(&vm, "tap0");
        // A container's name is no host name to keep.
        tap.configured_by(&root, &format!("cp -r etc /; hostname localhost; {start}\n{ntp}"));
        let asked: Vec<Arp> = sniffer.drain().iter().filter_map(Frame::arp).collect();
        assert!(!asked.is_empty(), "{client} has found its gateway");
        // dhcpcd's own check of the address, which the host has reserved, would take five seconds.
        assert!(asked.iter().all(|arp| !arp.sender_ip.is_unspecified()), "{client} probed: {asked:?}");
    }
}

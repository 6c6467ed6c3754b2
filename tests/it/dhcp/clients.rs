//! The clients that guests have, each on a machine of its own, all with the same client identifier as cloned images have
//! it, all at once: each takes its lease, renews, rebinds, moves to another address, releases, and boots again. Once on a network that
//! somebody else made, and once behind the TAPs of VMs, with checksums left to offload as a virtio-net guest leaves them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dhcproto::v4::{MessageType, Opcode, OptionCode};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::lab::frames;
use crate::lab::lan::{self, Sniffer, State};
use crate::lab::tap_guest::{Cable, open_tap, open_tap_of};
use crate::lab::{Daemon, Lab, Namespace, text};

/// T1 is 10 seconds, T2 17.
const LEASE: &str = "lease_seconds = 20";
const LIMIT: Duration = Duration::from_secs(60);
/// What every clone sends as its identifier.
const CLONED: &str = "ff:00:00:00:01:00:01:02:03";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udhcpc,
    Dhclient,
    Dhcpcd,
    Networkd,
}

const KINDS: [Kind; 4] = [Kind::Udhcpc, Kind::Dhclient, Kind::Dhcpcd, Kind::Networkd];

/// Where the clients are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Site {
    /// Ports of a bridge that somebody else made.
    Lan,
    /// VMs of a network of guestnet's own.
    Taps,
}

impl Site {
    fn network(self, more: &str) -> String {
        match self {
            Self::Lan => lan::network(more),
            Self::Taps => format!("[[network]]\nname = \"default\"\n{more}\n"),
        }
    }

    fn bridge(self) -> &'static str {
        match self {
            Self::Lan => lan::BRIDGE,
            Self::Taps => "br-vms",
        }
    }

    fn subnet(self) -> &'static str {
        match self {
            Self::Lan => "10.9",
            Self::Taps => "10.100",
        }
    }
}

/// A client on its machine.
struct Client {
    kind: Kind,
    site: Site,
    machine: Namespace,
    /// The guest's own side of its VM's TAP.
    card: Option<File>,
    cable: Option<Cable>,
    mac: String,
    directory: PathBuf,
    child: Option<Child>,
}

impl Client {
    fn new(lab: &Lab, kind: Kind, site: Site) -> Self {
        let n = kind as usize + 1;
        let mac = format!("52:54:00:00:00:{n:02x}");
        let (machine, card) = match site {
            Site::Lan => (lan::machine(lab, &format!("p{n}"), &mac), None),
            Site::Taps => {
                let machine = Namespace::new_with_mounts();
                let card = machine.run(|| open_tap("eth0", libc::IFF_VNET_HDR).expect("a TAP"));
                run(machine.command("ip").args(["link", "set", "lo", "up"]));
                run(machine.command("ip").args(["link", "set", "eth0", "address", &mac, "up"]));
                (machine, Some(card))
            }
        };
        let directory = lab.directory().join(format!("{kind:?}"));
        fs::create_dir(&directory).unwrap();
        if kind == Kind::Dhcpcd {
            // A disk of its own: it keeps its leases in a place that cannot be chosen.
            run(machine.command("mount").args(["-t", "tmpfs", "disk", "/var/lib/dhcpcd"]));
        }
        Self { kind, site, machine, card, cable: None, mac, directory, child: None }
    }

    /// Its n-th reservation.
    fn reserved(&self, n: usize) -> String {
        format!("{}.{n}.{}", self.site.subnet(), self.kind as usize + 1)
    }

    /// Makes its n-th reservation, in the place of the one before; its VM's TAP is another one then.
    fn reserve(&mut self, lab: &Lab, daemon: &Daemon, n: usize) {
        self.cable = None;
        let (vm_id, address) = (format!("{:?}", self.kind), self.reserved(n));
        match self.site {
            Site::Lan => {
                daemon.guestnet(&["reservation", "delete", &self.mac]);
                daemon.guestnet(&["reservation", "add", &self.mac, &address]);
            }
            Site::Taps => {
                daemon.guestnet(&["vm", "delete", &vm_id]);
                let vm = daemon.json(&["vm", "create", &vm_id, "--mac", &self.mac, "--ip", &address]);
                self.cable = self.card.as_ref().map(|card| Cable::plug(&open_tap_of(lab, &vm), card));
            }
        }
    }

    fn start(&mut self) {
        let script = self.directory.join("script");
        if !script.exists() {
            fs::write(&script, SCRIPT).unwrap();
            fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut command = match self.kind {
            Kind::Udhcpc => {
                let mut command = self.machine.command("busybox");
                command.args([
                    "udhcpc",
                    "-f",
                    "-i",
                    "eth0",
                    "-T",
                    "1",
                    "-A",
                    "1",
                    "-C",
                    "-R",
                    "-s",
                    &path("script"),
                ]);
                command.arg(format!("-x0x3d:{}", CLONED.replace(':', "")));
                command
            }
            Kind::Dhclient => {
                // It waits up to three times longer after each try that is not answered, so it could sleep through the
                // three seconds from T2 to the end of its lease: tries come at most two seconds apart.
                let conf = format!(
                    "send dhcp-client-identifier {CLONED};\nretry 1;\ninitial-interval 1;\nbackoff-cutoff 2;\n"
                );
                fs::write(path("conf"), conf).unwrap();
                let mut command = self.machine.command("dhclient");
                command.args(["-4", "-d", "-cf", &path("conf"), "-lf", &path("leases"), "-pf", &path("pid")]);
                command.args(["-sf", &path("script"), "eth0"]);
                command
            }
            Kind::Dhcpcd => {
                let conf = format!(
                    "clientid {CLONED}\nnoipv6rs\nnoarp\nnoipv4ll\nipv4only\noption classless_static_routes\nrelease\n"
                );
                fs::write(path("conf"), conf).unwrap();
                let mut command = self.machine.command("dhcpcd");
                command.args(["-B", "-4", "-f", &path("conf"), "-c", "/bin/true", "eth0"]);
                command
            }
            Kind::Networkd => {
                // With a /sys that it cannot write to it waits for no udev, which knows nothing of this namespace.
                let units = std::path::Path::new("/run/systemd/network");
                let network = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[DHCPv4]\n\
                               ClientIdentifier=duid\nDUIDType=uuid\nDUIDRawData=00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f\n";
                let file = self.directory.join("eth0.network");
                fs::write(&file, network).unwrap();
                let mut command = self.machine.command("sh");
                command.arg("-c").arg(format!(
                    "mount -o remount,ro /sys && mkdir -p {0} /run/systemd/netif/leases /run/systemd/netif/links && cp {1} {0} && chown -R \
                     systemd-network: /run/systemd/netif && exec /lib/systemd/systemd-networkd",
                    units.display(),
                    file.display()
                ));
                command
            }
        };
        let log = fs::File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        // dhcpcd is several processes: they end together.
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.kind)));
    }

    /// As a power cut: nothing is said, what is on the disk stays.
    fn crash(&mut self) {
        self.end();
        run(self.machine.command("ip").args(["addr", "flush", "dev", "eth0"]));
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// Has it give its lease of `address` back. It has spoken with its gateway before, as guests have: dhcpcd takes its address away at once, and
    /// what then still waits to know the gateway's MAC is never sent.
    fn release(&mut self, address: &str) {
        let gateway = format!("{}.0.1", self.site.subnet());
        run(self.machine.command("busybox").args(["ping", "-c", "1", "-W", "20", &gateway]));
        match self.kind {
            Kind::Udhcpc => self.signal(Signal::SIGUSR2),
            Kind::Dhclient => {
                let path = |name: &str| self.directory.join(name).display().to_string();
                // It gives back the first lease of its file that is not over: the one from before it moved may be that still. The
                // new one is written down some time after the address is set.
                let of_now = format!("fixed-address {address};");
                let deadline = std::time::Instant::now() + LIMIT;
                let leases = loop {
                    let leases = fs::read_to_string(path("leases")).unwrap();
                    if leases.contains(&of_now) && leases.ends_with("}\n") {
                        break leases;
                    }
                    assert!(std::time::Instant::now() < deadline, "{of_now} is not in {leases}");
                    std::thread::sleep(Duration::from_millis(20));
                };
                let last = leases.rfind("lease {").expect("its lease");
                fs::write(path("leases"), &leases[last..]).unwrap();
                let mut release = self.machine.command("dhclient");
                release.args(["-4", "-r", "-cf", &path("conf"), "-lf", &path("leases"), "-pf", &path("pid")]);
                run(release.args(["-sf", &path("script"), "eth0"]));
            }
            // Configured to release when it is stopped; so is networkd, unless told otherwise.
            Kind::Dhcpcd | Kind::Networkd => self.signal(Signal::SIGTERM),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Waits until its interface has `address`, and no other one.
    fn has(&self, address: &str) {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let shown = text(
                &self.machine.command("ip").args(["-o", "-4", "addr", "show", "eth0"]).output().unwrap(),
            );
            if shown.lines().count() == 1 && shown.contains(&format!(" {address}/16 ")) {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{:?} has not {address} but {shown}\n{}",
                self.kind,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

/// For udhcpc, which says what in $1 and the address in $ip, and for dhclient, which says both in other words.
const SCRIPT: &str = r#"#!/bin/sh
dev=eth0
case "${reason:-$1}" in
  bound|renew|BOUND|RENEW|REBIND|REBOOT)
    ip=${new_ip_address:-$ip}
    ip -4 -o addr show dev $dev | grep -q " $ip/" || { ip addr flush dev $dev; ip addr add $ip/16 dev $dev; } ;;
  deconfig|EXPIRE|FAIL|RELEASE|STOP) ip addr flush dev $dev ;;
esac
exit 0
"#;

#[test]
fn every_client_takes_renews_rebinds_moves_and_releases() {
    let lab = Lab::new();
    lan::make(&lab);
    takes_renews_rebinds_moves_and_releases(&lab, Site::Lan);
}

#[test]
fn every_client_behind_the_tap_of_its_vm_does_so_too() {
    takes_renews_rebinds_moves_and_releases(&Lab::new(), Site::Taps);
}

fn takes_renews_rebinds_moves_and_releases(lab: &Lab, site: Site) {
    let mut clients = KINDS.map(|kind| Client::new(lab, kind, site));
    let daemon = Daemon::start_with(lab, &site.network(LEASE));
    for client in &mut clients {
        client.reserve(lab, &daemon, 1);
    }
    let mut sniffer = Sniffer::new(&lab.host, site.bridge());

    // Takes: its own address, though all have one identifier.
    clients.iter_mut().for_each(Client::start);
    for client in &clients {
        client.has(&client.reserved(1));
    }
    for lease in daemon.json(&["lease", "list"]).as_array().unwrap() {
        assert_eq!(lease["state"], "bound", "{lease}");
    }

    // Renews at T1, by unicast, and is acknowledged.
    let mut waiting: Vec<&Client> = clients.iter().collect();
    while !waiting.is_empty() {
        let macs: Vec<&str> = waiting.iter().map(|client| client.mac.as_str()).collect();
        let seen = sniffer
            .wait("a renewal", LIMIT, |seen| seen.is(State::Renewing) && macs.contains(&seen.mac.as_str()));
        waiting.retain(|client| client.mac != seen.mac);
        sniffer.wait("its ACK", LIMIT, |ack| ack.kind() == Some(MessageType::Ack) && ack.to_mac == seen.mac);
    }

    // Rebinds at T2, by broadcast, when nothing it sends to the server alone arrives.
    let cut = format!(
        "table bridge cut {{\n chain c {{\n type filter hook prerouting priority -310\n ip daddr {}.0.1 udp dport 67 drop\n }}\n}}\n",
        site.subnet()
    );
    fs::write(lab.directory().join("cut"), cut).unwrap();
    lab.on_host("nft", &["-f", &lab.directory().join("cut").display().to_string()]);
    sniffer.all();
    let mut waiting: Vec<&Client> = clients.iter().collect();
    while !waiting.is_empty() {
        let macs: Vec<&str> = waiting.iter().map(|client| client.mac.as_str()).collect();
        let seen = sniffer.wait("a rebinding", LIMIT, |seen| {
            seen.is(State::Rebinding) && macs.contains(&seen.mac.as_str())
        });
        waiting.retain(|client| client.mac != seen.mac);
        sniffer.wait("its ACK", LIMIT, |ack| ack.kind() == Some(MessageType::Ack) && ack.to_mac == seen.mac);
    }
    lab.on_host("nft", &["delete", "table", "bridge", "cut"]);

    // Its reservation moves: the old address is refused by broadcast, the new one is taken.
    sniffer.all();
    for client in &mut clients {
        client.reserve(lab, &daemon, 2);
    }
    let mut waiting: Vec<&Client> = clients.iter().collect();
    while !waiting.is_empty() {
        let nak = sniffer.wait("a NAK", LIMIT, |seen| seen.kind() == Some(MessageType::Nak));
        assert_eq!((nak.to_mac.as_str(), nak.to), ("ff:ff:ff:ff:ff:ff", Ipv4Addr::BROADCAST));
        waiting.retain(|client| frames::mac(&client.mac) != nak.message.chaddr());
    }
    for client in &clients {
        client.has(&client.reserved(2));
    }

    // Releases, and the reservation stands.
    for client in &mut clients {
        client.release(&client.reserved(2));
    }
    let cables = clients.iter().filter_map(|client| client.cable.as_ref().map(Cable::unsummed));
    let unsummed = cables.reduce(|all, of| [all[0] + of[0], all[1] + of[1]]);
    if site == Site::Taps {
        let [by_guests, by_the_server] = unsummed.unwrap();
        assert!(by_guests > 0, "no client left a checksum to its card");
        assert_eq!(by_the_server, 0, "a TAP has no card that sums");
    }
    for client in &clients {
        let deadline = std::time::Instant::now() + LIMIT;
        while daemon.json(&["lease", "show", &client.mac])["state"] != "released" {
            assert!(
                std::time::Instant::now() < deadline,
                "{:?} did not release\n{} {}",
                client.kind,
                client.log(),
                daemon.json(&["lease", "show", &client.mac])
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(daemon.json(&["lease", "list"]).as_array().unwrap().len(), KINDS.len());
}

#[test]
fn a_lease_is_remembered_over_a_power_cut_and_refused_when_the_guest_has_moved_meanwhile() {
    let lab = Lab::new();
    // Long enough for none to be over when its client starts again.
    let daemon = Daemon::start_with(&lab, &Site::Taps.network("lease_seconds = 3600"));
    let mut clients = KINDS.map(|kind| Client::new(&lab, kind, Site::Taps));
    for client in &mut clients {
        client.reserve(&lab, &daemon, 1);
        client.start();
    }
    let mut sniffer = Sniffer::new(&lab.host, Site::Taps.bridge());
    for (before, now) in [(1, 1), (1, 2)] {
        for client in &mut clients {
            client.has(&client.reserved(before));
            client.crash();
            if now != before {
                client.reserve(&lab, &daemon, now);
            }
        }
        sniffer.all();
        clients.iter_mut().for_each(Client::start);
        // udhcpc and networkd keep nothing on a disk; the others ask for their address by name.
        let mut waiting: Vec<&Client> =
            [Kind::Dhclient, Kind::Dhcpcd].map(|kind| &clients[kind as usize]).into();
        while !waiting.is_empty() {
            let seen = sniffer.wait("an INIT-REBOOT", LIMIT, |seen| seen.is(State::InitReboot));
            let Some(at) = waiting.iter().position(|client| client.mac == seen.mac) else { continue };
            let client = waiting.swap_remove(at);
            let asked = seen.requested().map(|address| address.to_string());
            assert_eq!(asked, Some(client.reserved(before)), "{:?}", client.kind);
            let answer = sniffer.wait("its answer", LIMIT, |answer| {
                answer.message.opcode() == Opcode::BootReply
                    && answer.message.chaddr() == frames::mac(&client.mac)
            });
            let wanted = if now == before { MessageType::Ack } else { MessageType::Nak };
            assert_eq!(answer.kind(), Some(wanted), "{:?}", client.kind);
        }
        for client in &clients {
            client.has(&client.reserved(now));
        }
    }
}

#[test]
fn klibcs_ipconfig_boots_by_dhcp_and_by_bootp() {
    let lab = Lab::new();
    lan::make(&lab);
    let mac = "52:54:00:00:00:07";
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    daemon.guestnet(&["reservation", "add", mac, "10.9.0.7", "--hostname", "tiny"]);
    for (n, how) in ["dhcp", "bootp"].into_iter().enumerate() {
        let machine = lan::machine(&lab, &format!("p{n}"), mac);
        let output = machine
            .command("/usr/lib/klibc/bin/ipconfig")
            .args(["-t", "20", "-c", how, "-d", "eth0"])
            .output()
            .expect("klibc's ipconfig");
        let said = text(&output);
        assert!(output.status.success() && said.contains("10.9.0.7"), "{how}: {said}");
        assert!(said.contains("10.9.0.1") && said.contains("tiny"), "{how}: {said}");
        lab.on_host("ip", &["link", "del", &format!("p{n}")]);
    }
    assert_eq!(daemon.json(&["lease", "show", mac])["state"], "bound");
}

#[test]
fn nmap_sees_a_dhcp_server_with_everything_a_guest_needs() {
    let lab = Lab::new();
    lan::make(&lab);
    // The MAC that nmap's script asks with.
    let mac = "de:ad:c0:de:ca:fe";
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    daemon.guestnet(&["reservation", "add", mac, "10.9.0.9"]);
    let machine = lan::machine(&lab, "p1", mac);
    run(machine.command("ip").args(["addr", "add", "10.9.0.99/16", "dev", "eth0"]));
    let output = machine
        .command("nmap")
        .args([
            "--script",
            "broadcast-dhcp-discover",
            "--script-args",
            "broadcast-dhcp-discover.timeout=5",
            "-e",
            "eth0",
        ])
        .output()
        .expect("nmap");
    let said = text(&output);
    for line in [
        "IP Offered: 10.9.0.9",
        "Server Identifier: 10.9.0.1",
        "Subnet Mask: 255.255.0.0",
        "Router: 10.9.0.1",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
}

#[test]
fn a_declined_address_stays_reserved_and_whoever_answers_for_it_is_named() {
    let lab = Lab::new();
    lan::make(&lab);
    let mut client = Client::new(&lab, Kind::Dhclient, Site::Lan);
    let squatter = lan::machine(&lab, "p9", "52:54:00:00:00:99");
    let daemon = Daemon::start_with(&lab, &lan::network(LEASE));
    daemon.guestnet(&["reservation", "add", &client.mac, &client.reserved(1)]);
    run(squatter.command("ip").args(["addr", "add", &format!("{}/16", client.reserved(1)), "dev", "eth0"]));
    let mut sniffer = Sniffer::new(&lab.host, lan::BRIDGE);
    // dhclient leaves the check to its script: exit status 1 declines.
    fs::write(client.directory.join("script"), "#!/bin/sh\n[ \"$reason\" = BOUND ] && exit 1\nexit 0\n")
        .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(client.directory.join("script"), mode).unwrap();
    client.start();
    sniffer.wait("a DECLINE", LIMIT, |seen| seen.kind() == Some(MessageType::Decline));
    let deadline = std::time::Instant::now() + LIMIT;
    let events = loop {
        let events = daemon.json(&["status"])["recent_events"].to_string();
        if events.contains("address_declined") {
            break events;
        }
        assert!(std::time::Instant::now() < deadline, "no event: {events}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(events.contains("52:54:00:00:00:99"), "{events}");
    // It is offered the same again.
    let offer = sniffer.wait("another OFFER", LIMIT, |seen| seen.kind() == Some(MessageType::Offer));
    assert_eq!(offer.message.yiaddr().to_string(), client.reserved(1));
    assert!(!offer.has(OptionCode::RapidCommit));
}

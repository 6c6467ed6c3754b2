//! The servers under load, each on a link of its own with the same reservations, held to the first core.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::generator::{address, mac};
use crate::lab::{Daemon, Lab, Namespace};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The servers' interface, and the clients' at the other end.
pub const LAN: &str = "lan0";
pub const CLIENTS: &str = "c0";

/// The servers' core and the load's.
pub const SERVER_CORE: usize = 0;
pub const LOAD_CORE: usize = 1;

/// How long a server may take to read its reservations.
const START: Duration = Duration::from_secs(20);

/// A host with an interface that somebody else made, and a namespace full of clients behind it.
pub struct Link {
    pub lab: Lab,
    pub clients: Namespace,
}

impl Link {
    pub fn new() -> Self {
        let (lab, clients) = (Lab::new(), Namespace::new_with_mounts());
        let far = format!("/proc/{}/fd/{}", std::process::id(), clients.net_fd());
        lab.on_host("ip", &["link", "add", LAN, "type", "veth", "peer", "name", CLIENTS, "netns", &far]);
        lab.on_host("ip", &["addr", "add", "10.9.0.1/16", "dev", LAN]);
        lab.on_host("ip", &["link", "set", LAN, "up"]);
        crate::lab::succeed(clients.command("ip").args(["link", "set", CLIENTS, "up"]));
        Self { lab, clients }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.directory().join(name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Guestnet,
    Dnsmasq,
    Kea,
    Isc,
    Networkd,
}

impl Kind {
    pub const PEERS: [Self; 3] = [Self::Dnsmasq, Self::Kea, Self::Isc];
    /// networkd has no reservations by the thousand: it is asked how it behaves, not how fast it is.
    pub const ALL_PEERS: [Self; 4] = [Self::Dnsmasq, Self::Kea, Self::Isc, Self::Networkd];

    pub fn name(self) -> &'static str {
        match self {
            Self::Guestnet => "guestnet",
            Self::Dnsmasq => "dnsmasq",
            Self::Kea => "kea",
            Self::Isc => "isc",
            Self::Networkd => "networkd",
        }
    }
}

/// A running server.
pub enum Server<'a> {
    Guestnet(Daemon<'a>),
    Peer(Child),
}

impl Server<'_> {
    pub fn pid(&self) -> u32 {
        match self {
            Server::Guestnet(daemon) => daemon.pid(),
            Server::Peer(child) => child.id(),
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Server::Peer(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn quiet() -> [(&'static str, &'static OsStr); 1] {
    [("GUESTNET_LOG", "guestnet=warn".as_ref())]
}

/// Starts a server with `count` reservations on `link`, and waits until it listens; why it does not, of a peer.
pub fn start(kind: Kind, link: &Link, count: usize) -> Result<Server<'_>, String> {
    let server = match kind {
        Kind::Guestnet => Server::Guestnet(Daemon::start_with_env(&link.lab, &guestnet(count), &quiet())),
        Kind::Dnsmasq => Server::Peer(spawn(link, dnsmasq(link, count))),
        Kind::Kea => Server::Peer(spawn(link, kea(link, count))),
        Kind::Isc => Server::Peer(spawn(link, isc(link, count))),
        Kind::Networkd => Server::Peer(spawn(link, networkd(link, count))),
    };
    if let Server::Peer(_) = server {
        wait_for_port_67(&link.lab, server.pid())?;
    }
    pin(server.pid(), SERVER_CORE);
    Ok(server)
}

/// guestnet without any reservation.
pub fn empty(link: &Link) -> Daemon<'_> {
    Daemon::start_with_env(&link.lab, &guestnet(0), &quiet())
}

pub fn reservations(count: usize) -> impl Iterator<Item = (String, Ipv4Addr)> {
    (0..count).map(|n| {
        let octets: Vec<String> = mac(address(n)).iter().map(|octet| format!("{octet:02x}")).collect();
        (octets.join(":"), address(n))
    })
}

fn guestnet(count: usize) -> String {
    let mut config = format!(
        "[[network]]\nplumbing = \"external\"\nbridge_name = \"{LAN}\"\nbridge_ip = \"10.9.0.1/16\"\nvm_subnet = \
         \"10.9.0.0/16\"\n"
    );
    for (mac, address) in reservations(count) {
        let _ = write!(config, "[[network.reservation]]\nmac = \"{mac}\"\nip_address = \"{address}\"\n");
    }
    config
}

fn dnsmasq(link: &Link, count: usize) -> Command {
    let hosts: String = reservations(count).map(|(mac, address)| format!("{mac},{address}\n")).collect();
    fs::write(link.path("hosts"), hosts).expect("dnsmasq's hosts");
    let mut command = link.lab.host_command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--log-facility=/dev/null",
    ]);
    command.args(["--quiet-dhcp", "--no-ping", "--dhcp-authoritative", "--dhcp-lease-max=100000"]);
    command
        .arg(format!("--interface={LAN}"))
        .args(["--bind-interfaces", "--dhcp-range=10.9.0.2,static,255.255.0.0,12h"]);
    command.arg(format!("--dhcp-hostsfile={}", link.path("hosts").display()));
    command.arg(format!("--dhcp-leasefile={}", link.path("leases").display()));
    command.arg(format!("--pid-file={}", link.path("pid").display()));
    command
}

fn kea(link: &Link, count: usize) -> Command {
    let reservations: Vec<_> = reservations(count)
        .map(|(mac, address)| serde_json::json!({"hw-address": mac, "ip-address": address.to_string()}))
        .collect();
    let config = serde_json::json!({"Dhcp4": {
        "interfaces-config": {"interfaces": [LAN], "dhcp-socket-type": "raw"},
        "lease-database": {"type": "memfile", "persist": true, "name": link.path("leases"), "lfc-interval": 0},
        "multi-threading": {"enable-multi-threading": false},
        "host-reservation-identifiers": ["hw-address"],
        "valid-lifetime": 43200,
        "authoritative": true,
        "subnet4": [{"subnet": "10.9.0.0/16", "id": 1, "reservations": reservations,
            "option-data": [{"name": "routers", "data": "10.9.0.1"}, {"name": "domain-name-servers", "data": "10.9.0.1"}]}],
        "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}],
    }});
    fs::write(link.path("kea.json"), config.to_string()).expect("Kea's configuration");
    let mut command = link.lab.host_command("kea-dhcp4");
    command.arg("-c").arg(link.path("kea.json"));
    command.env("KEA_PIDFILE_DIR", link.lab.directory()).env("KEA_LOCKFILE_DIR", link.lab.directory());
    command
}

fn isc(link: &Link, count: usize) -> Command {
    let mut config = String::from(
        "authoritative;\ndefault-lease-time 43200;\nmax-lease-time 43200;\nsubnet 10.9.0.0 netmask 255.255.0.0 {\n  option \
         routers 10.9.0.1;\n  option domain-name-servers 10.9.0.1;\n}\n",
    );
    for (n, (mac, address)) in reservations(count).enumerate() {
        let _ = writeln!(config, "host h{n} {{ hardware ethernet {mac}; fixed-address {address}; }}");
    }
    fs::write(link.path("dhcpd.conf"), config).expect("dhcpd's configuration");
    fs::write(link.path("leases"), "").expect("dhcpd's leases");
    let mut command = link.lab.host_command("dhcpd");
    command.args(["-4", "-f", "-q", "-cf"]).arg(link.path("dhcpd.conf"));
    command.arg("-lf").arg(link.path("leases")).arg("-pf").arg(link.path("pid")).arg(LAN);
    command
}

fn networkd(link: &Link, count: usize) -> Command {
    let mut config = format!(
        "[Match]\nName={LAN}\n[Network]\nAddress=10.9.0.1/16\nDHCPServer=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\
         [DHCPServer]\nPoolOffset=60000\nPoolSize=100\n"
    );
    for (mac, address) in reservations(count) {
        let _ = write!(config, "[DHCPServerStaticLease]\nMACAddress={mac}\nAddress={address}\n");
    }
    fs::write(link.path("lan.network"), config).expect("networkd's configuration");
    let mut command = link.lab.host_command("sh");
    // With a /sys that it cannot write to it waits for no udev, which knows nothing of this namespace.
    command.arg("-c").arg(format!(
        "mount -o remount,ro /sys; rm -rf /run/systemd; mkdir -p /run/systemd/network /run/systemd/netif/leases \
         /run/systemd/netif/links; cp {} /run/systemd/network; chown -R systemd-network: /run/systemd/netif; exec \
         /lib/systemd/systemd-networkd",
        link.path("lan.network").display()
    ));
    command
}

fn spawn(link: &Link, mut command: Command) -> Child {
    let log = fs::File::create(link.path("log")).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A server that reads its reservations takes a while until it has its sockets.
fn wait_for_port_67(lab: &Lab, pid: u32) -> Result<(), String> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        let sockets = lab.on_host("ss", &["-Hlnup", "sport", "=", ":67"]);
        if sockets.contains(&format!("pid={pid},")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = fs::read_to_string(lab.directory().join("log")).unwrap_or_default();
    Err(format!("did not listen within {START:?}: {log}"))
}

/// Gives an interface of this thread's namespace an address and a MAC.
pub fn give_address(interface: &str, address: &str, mac: &str) {
    for arguments in
        [&["link", "set", interface, "address", mac][..], &["addr", "add", address, "dev", interface]]
    {
        crate::lab::succeed(Command::new("ip").args(arguments));
    }
}

/// Holds every thread of a process to one core; further threads are held with it.
pub fn pin(pid: u32, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core");
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a running process").flatten() {
        let tid: i32 = task.file_name().to_string_lossy().parse().expect("a thread's id");
        // A thread may have ended meanwhile.
        let _ = sched_setaffinity(Pid::from_raw(tid), &set);
    }
}

/// Holds this thread to one core.
pub fn pin_this_thread(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a core of this machine");
}

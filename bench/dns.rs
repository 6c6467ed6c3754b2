//! `dns`: what a guest's questions cost and how long they take, with unbound, dnsmasq and hickory-dns's own server on the same
//! address, the same core and the same path: a VM's port, with dnsperf at its other end. Servers have core 0; dnsperf and the
//! upstreams have core 1.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::debian;
use crate::lab::port::PortGuest;
use crate::lab::{Daemon, Lab, WEB, lan, text};
use crate::measure::{cpu_time, milliseconds, quantile, resident_mib};
use crate::report::{Better, Figure, Report};

const GATEWAY: &str = "10.100.0.1";
const GUEST: &str = "10.100.0.2";
const GUEST_MAC: &str = "52:54:00:00:00:02";
/// Upstreams on the lab's internet, besides the two that know little.
const UPSTREAMS: [&str; 2] = ["198.51.100.53", "198.51.100.54"];
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
/// Each rate is the middle one of so many measurements, of so many seconds each.
const ROUNDS: usize = 3;
const SECONDS: u64 = 2;
/// Seconds that a stub waits for an answer: a look-up without one counts as that.
const STUB: Duration = Duration::from_secs(5);
/// A server that has not answered by then does not.
const READY: Duration = Duration::from_secs(20);
/// Seconds for all of the many names; at the goal's rate they take 107.
const MANY_SECONDS: u64 = 150;
/// In the place of a figure that could not be had.
const NONE: f64 = f64::NAN;
const HOT_NAMES: usize = 1_000;
/// More names than any server can look up in a round.
const COLD_NAMES: usize = 100_000;
const MANY_NAMES: usize = 1_500_000;
/// What the daemon may keep of answers; its memory is to grow by no more.
const CACHE_MIB: f64 = 32.0;
/// hickory-dns's server is not in Debian.
const HICKORY: &str = "0.26.3";

/// What one server did; `NONE` where it could not, and why.
#[derive(Debug, Clone)]
struct Run {
    cached_qps: f64,
    cached_cpu_us: f64,
    miss_qps: f64,
    tcp_qps: f64,
    failover_max_ms: f64,
    stale_max_ms: f64,
    absent: Vec<String>,
}

pub fn run() -> Report {
    debian::install(&["dnsperf", "unbound", "dnsmasq-base"]);
    let hickory = hickory();
    let lab = Lab::new();
    let upstream = FastUpstream::start(&lab);
    let guest = Guest::new(&lab);
    let names = Names::write(lab.directory());

    let (daemon, rss_before) = started(&guest);
    let pid = daemon.pid();
    let ours = measure("guestnet", &guest, pid, &names, &upstream);
    let rss = after_many_names(&guest, pid, &names);
    drop(daemon);

    let mut peers = Vec::new();
    for (name, command) in
        [("unbound", unbound(&lab)), ("dnsmasq", dnsmasq(&lab)), ("hickory", hickory_command(&lab, &hickory))]
    {
        let run = match Peer::start(&guest, command) {
            Ok(server) => measure(name, &guest, server.0.id(), &names, &upstream),
            Err(why) => Run::none(why),
        };
        peers.push((name, run));
    }
    report(ours, &peers, memory_figure(rss_before, rss))
}

/// `dns-memory`: the daemon's memory alone, from its start.
pub fn memory() -> Report {
    debian::install(&["dnsperf"]);
    let lab = Lab::new();
    let _upstream = FastUpstream::start(&lab);
    let guest = Guest::new(&lab);
    let names = Names::write(lab.directory());
    let (daemon, rss_before) = started(&guest);
    let rss = after_many_names(&guest, daemon.pid(), &names);
    Report(vec![memory_figure(rss_before, rss)])
}

/// guestnet on the servers' core, and the MiB that it has at its start.
fn started<'lab>(guest: &Guest<'lab>) -> (Daemon<'lab>, f64) {
    let daemon = guest.serve();
    pin(daemon.pid(), SERVER_CORE);
    let rss_before = resident_mib(daemon.pid());
    (daemon, rss_before)
}

impl Run {
    fn none(why: String) -> Self {
        Self {
            cached_qps: NONE,
            cached_cpu_us: NONE,
            miss_qps: NONE,
            tcp_qps: NONE,
            failover_max_ms: NONE,
            stale_max_ms: NONE,
            absent: vec![why],
        }
    }
}

/// MiB that the daemon has resident once all the names were asked for.
fn after_many_names(guest: &Guest<'_>, pid: u32, names: &Names) -> Result<f64, String> {
    let asked = guest.dnsperf(&["-d", &names.many, "-n", "1", "-q", "400"], MANY_SECONDS)?;
    if asked.completed < MANY_NAMES as f64 * 0.999 {
        return Err(format!("{} of {MANY_NAMES} names were answered in {MANY_SECONDS} s", asked.completed));
    }
    Ok(resident_mib(pid))
}

fn report(ours: Run, peers: &[(&'static str, Run)], memory: Figure) -> Report {
    let best = |value: fn(&Run) -> f64, better: fn(f64, f64) -> f64, start: f64| {
        peers.iter().map(|(_, run)| value(run)).fold(start, better)
    };
    let figure = |name: &str, unit, better, goal, value: fn(&Run) -> f64| Figure {
        name: name.into(),
        unit,
        better,
        guestnet: value(&ours),
        peers: peers.iter().map(|(name, run)| (*name, value(run))).collect(),
        absent: peers
            .iter()
            .filter(|(_, run)| value(run).is_nan())
            .map(|(name, run)| (*name, run.absent.join("; ")))
            .collect(),
        goal,
    };
    let most = |value| best(value, f64::max, 0.0);
    Report(vec![
        figure("cached_qps", "1/s", Better::Higher, most(|run| run.cached_qps), |run| run.cached_qps),
        figure(
            "cached_cpu_us",
            "us",
            Better::Lower,
            best(|run| run.cached_cpu_us, f64::min, f64::MAX),
            |run| run.cached_cpu_us,
        ),
        figure("miss_qps", "1/s", Better::Higher, most(|run| run.miss_qps).max(14_000.0), |run| run.miss_qps),
        figure("tcp_qps", "1/s", Better::Higher, 40_000.0, |run| run.tcp_qps),
        figure("failover_max_ms", "ms", Better::Lower, 300.0, |run| run.failover_max_ms),
        figure("stale_max_ms", "ms", Better::Lower, 10.0, |run| run.stale_max_ms),
        memory,
    ])
}

fn memory_figure(rss_before: f64, rss: Result<f64, String>) -> Figure {
    eprintln!("dns: guestnet: {rss_before:.0} MiB at the start, {rss:.0?} after {MANY_NAMES} names");
    Figure {
        name: format!("rss_mib_after_{MANY_NAMES}_names"),
        unit: "MiB",
        better: Better::Lower,
        guestnet: rss.as_ref().copied().unwrap_or(NONE),
        peers: vec![],
        absent: rss.err().map(|why| ("guestnet", why)).into_iter().collect(),
        goal: rss_before + CACHE_MIB,
    }
}

/// Everything of one server, each phase bounded in time: half a minute in all, a minute if it fails at most of it.
fn measure(name: &str, guest: &Guest<'_>, pid: u32, names: &Names, upstream: &FastUpstream) -> Run {
    let begun = Instant::now();
    let done = |phase: &str| eprintln!("dns: {name}: {phase}, {:.1} s", begun.elapsed().as_secs_f64());
    let mut absent = Vec::new();
    // Once through all names, so that they are held.
    let held = guest.dnsperf(&["-d", &names.hot, "-n", "1", "-q", "50"], 5);
    absent.extend(held.err());
    let mut rate = |phase: &str, arguments: &[&str], files: [&String; ROUNDS]| {
        let rounds = files.map(|file| rate_once(guest, pid, &[&["-d", file], arguments].concat()));
        done(phase);
        match rounds.into_iter().collect::<Result<Vec<(f64, f64)>, String>>() {
            Ok(rounds) => {
                let (rates, costs): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
                (quantile(&rates, 0.5), quantile(&costs, 0.5))
            }
            Err(why) => {
                absent.push(format!("{phase}: {why}"));
                (NONE, NONE)
            }
        }
    };
    let hot = [&names.hot; ROUNDS];
    let (cached_qps, cached_cpu_us) = rate("cached", &["-q", "100"], hot);
    let (tcp_qps, _) = rate("tcp", &["-q", "400", "-m", "tcp", "-c", "8"], hot);
    let (miss_qps, _) = rate("miss", &["-q", "200"], names.cold.each_ref());
    let failover_max_ms = failover(guest, upstream);
    done("failover");
    let stale_max_ms = stale(guest, upstream);
    done(&format!("stale, {stale_max_ms:.1} ms at most"));
    Run { cached_qps, cached_cpu_us, miss_qps, tcp_qps, failover_max_ms, stale_max_ms, absent }
}

/// Queries a second, and microseconds of the server's processor time for each.
fn rate_once(guest: &Guest<'_>, pid: u32, arguments: &[&str]) -> Result<(f64, f64), String> {
    let before = cpu_time(pid);
    let found = guest.dnsperf(arguments, SECONDS)?;
    Ok((found.qps, (cpu_time(pid) - before).as_secs_f64() * 1e6 / found.completed))
}

/// Milliseconds of the slowest of 160 look-ups, one after the other, while the upstream that the server prefers at that moment is
/// silent for four seconds.
fn failover(guest: &Guest<'_>, upstream: &FastUpstream) -> f64 {
    let warm = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            if guest.look_up(&format!("warm{number}.failover.example")) >= STUB {
                eprintln!("dns: a look-up without an answer while both upstreams answer");
            }
        }
    };
    warm(0..20);
    let before = upstream.asked();
    warm(20..40);
    let after = upstream.asked();
    // The one that it asks more often; one that asks both each time has none, and neither would be luck.
    let asked = [after[0] - before[0], after[1] - before[1]];
    let preferred = usize::from(asked[1] > asked[0]);
    eprintln!("dns: of 20 questions the upstreams had {asked:?}: the {}. falls silent", preferred + 1);
    upstream.silent[preferred].store(true, Relaxed);
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut number = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        slowest = slowest.max(guest.look_up(&format!("n{number}.failover.example")));
        number += 1;
        std::thread::sleep(Duration::from_millis(25));
    }
    upstream.silent[preferred].store(false, Relaxed);
    std::thread::sleep(Duration::from_secs(2));
    milliseconds(slowest)
}

/// Milliseconds of the slowest look-up of a name that is held but past its time, from when the upstreams fall silent.
fn stale(guest: &Guest<'_>, upstream: &FastUpstream) -> f64 {
    let name = |number: usize| format!("short{number}.stale.example");
    for number in 0..50 {
        guest.look_up(&name(number));
    }
    // Past their time; and nobody has found out yet that the upstreams are silent.
    std::thread::sleep(Duration::from_millis(2_500));
    for silent in &upstream.silent {
        silent.store(true, Relaxed);
    }
    let mut slowest = Duration::ZERO;
    for number in 0..50 {
        slowest = slowest.max(guest.look_up(&name(number)));
        if slowest >= STUB {
            // It cannot; the other names would take the stub's time each.
            break;
        }
    }
    for silent in &upstream.silent {
        silent.store(false, Relaxed);
    }
    std::thread::sleep(Duration::from_secs(2));
    milliseconds(slowest)
}

/// A program at the guest's end of a VM's port.
struct Guest<'lab> {
    lab: &'lab Lab,
    port: PortGuest,
}

/// What dnsperf found.
struct Found {
    qps: f64,
    completed: f64,
}

impl<'lab> Guest<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        lab.on_host("ip", &["link", "add", lan::BRIDGE, "type", "bridge", "forward_delay", "0"]);
        lab.on_host("ip", &["addr", "add", &format!("{GATEWAY}/16"), "dev", lan::BRIDGE]);
        lab.on_host("ip", &["link", "set", lan::BRIDGE, "up"]);
        let port = PortGuest::at(lan::machine(lab, "p1", GUEST_MAC), GUEST, 16, GATEWAY);
        Self { lab, port }
    }

    /// The daemon, which serves the bridge.
    fn serve(&self) -> Daemon<'lab> {
        Daemon::start_with(self.lab, &configuration())
    }

    /// What dnsperf found in so many seconds at most; or why it found nothing.
    fn dnsperf(&self, arguments: &[&str], seconds: u64) -> Result<Found, String> {
        let (limit, end) = (seconds.to_string(), (seconds + 15).to_string());
        let mut command = self.port.command("timeout");
        command.args(["-k", "1", &end, "taskset", "-c", &CLIENT_CORE.to_string(), "dnsperf", "-s", GATEWAY]);
        command.args(["-t", "5", "-l", &limit]).args(arguments);
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let printed = text(&output);
        let number = |what: &str| {
            let line = printed.lines().find_map(|line| line.trim().strip_prefix(what));
            let word = line.and_then(|line| line.split_whitespace().next());
            let number = word.and_then(|word| word.parse::<f64>().ok());
            number.ok_or_else(|| format!("dnsperf ({}) printed no {what}\n{printed}", output.status))
        };
        let found = Found { qps: number("Queries per second:")?, completed: number("Queries completed:")? };
        if found.completed > 0.0 { Ok(found) } else { Err(format!("no query was answered\n{printed}")) }
    }

    /// How long one look-up took; `STUB` if it failed.
    fn look_up(&self, name: &str) -> Duration {
        match self.port.look_up(name) {
            Some((took, 0)) => took,
            _ => STUB,
        }
    }
}

fn configuration() -> String {
    format!(
        "[[network]]\nname = \"bench\"\nplumbing = \"external\"\nbridge_name = \"{}\"\nbridge_ip = \"{GATEWAY}/16\"\n\
         vm_subnet = \"10.100.0.0/16\"\ndns_servers = {UPSTREAMS:?}\n[network.resolver]\ncache_mib = {CACHE_MIB}\n\
         [[network.reservation]]\nmac = \"{GUEST_MAC}\"\nip_address = \"{GUEST}\"\n",
        lan::BRIDGE
    )
}

/// Files of questions for dnsperf.
struct Names {
    hot: String,
    /// One for each round: a name is asked for once.
    cold: [String; ROUNDS],
    many: String,
}

impl Names {
    fn write(directory: &Path) -> Self {
        let write = |kind: &str, count: usize| {
            let path = directory.join(kind);
            let lines: String = (0..count).map(|n| format!("{kind}-{n}.bench.example A\n")).collect();
            fs::write(&path, lines).expect("a file of names");
            path.to_str().expect("a path of text").to_owned()
        };
        Self {
            hot: write("hot", HOT_NAMES),
            cold: std::array::from_fn(|round| write(&format!("cold{round}"), COLD_NAMES)),
            many: write("many", MANY_NAMES),
        }
    }
}

/// Two upstreams that answer every question at once with one address, and fall silent when told.
struct FastUpstream {
    silent: [Arc<AtomicBool>; 2],
    asked: [Arc<AtomicUsize>; 2],
}

impl FastUpstream {
    fn start(lab: &Lab) -> Self {
        let asked: [Arc<AtomicUsize>; 2] = Default::default();
        let mut counters = asked.iter();
        let silent = UPSTREAMS.map(|address| {
            lab.in_inet("ip", &["addr", "add", &format!("{address}/24"), "dev", "i0"]);
            let socket = lab.inet.run(|| UdpSocket::bind((address, 53)).expect("an upstream's socket"));
            socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer");
            let silent = Arc::new(AtomicBool::new(false));
            let (told, asked) = (silent.clone(), counters.next().cloned().unwrap_or_default());
            std::thread::spawn(move || {
                pin(0, CLIENT_CORE);
                answer_all(&socket, &told, &asked);
            });
            silent
        });
        Self { silent, asked }
    }

    /// How many questions each has had.
    fn asked(&self) -> [usize; 2] {
        [self.asked[0].load(Relaxed), self.asked[1].load(Relaxed)]
    }
}

fn answer_all(socket: &UdpSocket, silent: &AtomicBool, asked: &AtomicUsize) {
    let address: std::net::Ipv4Addr = WEB.parse().expect("an address");
    let mut message = [0; 2_048];
    while let Ok((length, from)) = socket.recv_from(&mut message) {
        asked.fetch_add(1, Relaxed);
        if silent.load(Relaxed) || length < 17 {
            continue;
        }
        // Header, question, and what follows it, which is the query's OPT record.
        let question =
            message[12..length].iter().position(|byte| *byte == 0).map_or(length, |end| 12 + end + 5);
        // In whatever case: some draw that of each letter.
        let short = message[13..].get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"short"));
        let mut answer = message[..question].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0");
        answer.extend_from_slice(&if short { 1_u16 } else { 3_600 }.to_be_bytes());
        answer.extend_from_slice(b"\0\x04");
        answer.extend_from_slice(&address.octets());
        let _ = socket.send_to(&answer, from as SocketAddr);
    }
}

/// A peer's server on the gateway address.
struct Peer(Child);

impl Peer {
    fn start(guest: &Guest<'_>, mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let peer = Self(command.spawn().map_err(|error| format!("{command:?}: {error}"))?);
        let begun = Instant::now();
        while begun.elapsed() < READY {
            if guest.look_up("ready.example") < Duration::from_secs(1) {
                return Ok(peer);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(format!("{command:?} does not answer"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_server_core(lab: &Lab) -> Command {
    let mut command = lab.host_command("taskset");
    command.args(["-c", &SERVER_CORE.to_string()]);
    command
}

fn unbound(lab: &Lab) -> Command {
    let path = lab.directory().join("unbound.conf");
    let [first, second] = UPSTREAMS;
    let text = format!(
        "server:\n  interface: {GATEWAY}\n  access-control: 10.100.0.0/16 allow\n  num-threads: 1\n  username: \"\"\n  \
         chroot: \"\"\n  directory: \"/tmp\"\n  use-syslog: no\n  pidfile: \"\"\n  module-config: \"iterator\"\n  \
         so-rcvbuf: 4m\n  outgoing-range: 4096\n  num-queries-per-thread: 2048\n  incoming-num-tcp: 64\n  \
         msg-cache-size: 16m\n  rrset-cache-size: 32m\n  serve-expired: yes\n  serve-expired-client-timeout: 300\n  \
         do-not-query-localhost: no\nremote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  \
         forward-addr: {first}\n  forward-addr: {second}\n"
    );
    fs::write(&path, text).expect("unbound's configuration");
    let mut command = on_server_core(lab);
    command.args(["unbound", "-d", "-c"]).arg(path);
    command
}

fn dnsmasq(lab: &Lab) -> Command {
    let mut command = on_server_core(lab);
    command.args([
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file",
        "--cache-size=10000",
        "--dns-forward-max=2000",
        "--use-stale-cache",
    ]);
    command.arg(format!("--listen-address={GATEWAY}"));
    command.args(UPSTREAMS.map(|upstream| format!("--server={upstream}")));
    command
}

fn hickory_command(lab: &Lab, binary: &Path) -> Command {
    let path = lab.directory().join("hickory.toml");
    let [first, second] = UPSTREAMS;
    let server = |ip: &str| {
        format!(
            "{{ ip = \"{ip}\", trust_negative_responses = true, connections = [{{ protocol = {{ type = \"udp\" }} }}] }}"
        )
    };
    let text = format!(
        "user = \"nobody\"\ngroup = \"nogroup\"\nlisten_addrs_ipv4 = [\"{GATEWAY}\"]\nlisten_port = 53\n\
         [[zones]]\nzone = \".\"\nzone_type = \"External\"\n[zones.stores]\ntype = \"forward\"\nname_servers = [{}, {}]\n[zones.stores.options]\ncache_size = 100000\n",
        server(first),
        server(second)
    );
    fs::write(&path, text).expect("hickory's configuration");
    let mut command = on_server_core(lab);
    command.arg(binary).arg("--workers=1").arg("--quiet").arg("--config").arg(path);
    command
}

/// hickory-dns's server from crates.io, built once and kept beside cargo's other caches.
fn hickory() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let root = cache.join("guestnet-bench/hickory-dns");
    let binary = root.join("bin/hickory-dns");
    if !binary.exists() {
        eprintln!("building hickory-dns {HICKORY}, once");
        let install =
            ["install", "--quiet", "--locked", "hickory-dns", "--version", HICKORY, "--features", "resolver"];
        let status = Command::new("cargo").args(install).arg("--root").arg(&root).status();
        assert!(status.expect("cargo").success(), "cargo install hickory-dns failed");
    }
    binary
}

/// Keeps a process (all its threads), or this thread with 0, on one core.
fn pin(pid: u32, core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core).expect("a core");
    if pid == 0 {
        sched_setaffinity(Pid::from_raw(0), &cores).expect("a core of this machine");
        return;
    }
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a running process").flatten() {
        let task: i32 = task.file_name().to_string_lossy().parse().expect("a thread's id");
        sched_setaffinity(Pid::from_raw(task), &cores).expect("a core of this machine");
    }
}

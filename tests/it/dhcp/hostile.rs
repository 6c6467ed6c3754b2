//! Frames that no client of good faith sends, written byte by byte, and more clients than the kernel would know by ARP.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, BROADCAST, Mac};
use crate::lab::lan::{self, Seen, Sniffer};
use crate::lab::{Daemon, Lab, succeed, text};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ME: &str = "52:54:00:00:00:01";
const LIMIT: Duration = Duration::from_secs(60);

/// A BOOTP message of `client` that says `ciaddr`, with these options and End.
fn message(client: Mac, ciaddr: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0, 0, 0, 7, 0, 0, 0, 0];
    message.extend(ciaddr.octets());
    message.extend([0; 12]);
    message.extend(client);
    message.extend([0; 202]);
    message.extend([99, 130, 83, 99]);
    message.extend(options);
    message.push(255);
    message.resize(message.len().max(300), 0);
    message
}

fn frame(client: Mac, message: &[u8]) -> Vec<u8> {
    frames::udp(client, BROADCAST, NOBODY, Ipv4Addr::BROADCAST, (68, 67), message)
}

fn request(client: Mac, address: Ipv4Addr) -> Vec<u8> {
    let options = [&[53, 1, 3, 54, 4][..], &SERVER.octets(), &[50, 4], &address.octets()].concat();
    frame(client, &message(client, NOBODY, &options))
}

/// A service on the LAN whose counters are asked for.
fn counting(lab: &Lab) -> Daemon<'_> {
    let socket = lab.directory().join("metrics.sock");
    Daemon::start_with(lab, &format!("[metrics]\nsocket = {socket:?}\n{}", lan::network("")))
}

/// How many requests came to that outcome.
fn counted(lab: &Lab, outcome: &str) -> u64 {
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--max-time", "30", "--unix-socket"]).arg(lab.directory().join("metrics.sock"));
    let page = succeed(curl.arg("http://localhost/metrics"));
    let series = format!("guestnet_dhcp_outcomes_total{{outcome=\"{outcome}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("no {series} in {page}")).parse().unwrap()
}

#[test]
fn what_finds_the_servers_queue_full_is_counted_and_the_server_goes_on() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", ME);
    let daemon = counting(&lab);
    daemon.guestnet(&["reservation", "add", ME, "10.9.1.1"]);
    let mut wire = Sniffer::new(&machine, "eth0");
    let discover = frame(frames::mac(ME), &message(frames::mac(ME), NOBODY, &[53, 1, 1]));
    let service = Pid::from_raw(daemon.pid() as i32);
    kill(service, Signal::SIGSTOP).unwrap();
    // The queue holds 32 MiB, a frame takes less than 1 KiB of it.
    for _ in 0..60_000 {
        wire.send(&discover);
    }
    kill(service, Signal::SIGCONT).unwrap();
    let deadline = Instant::now() + LIMIT;
    while counted(&lab, "queue_full") == 0 {
        assert!(Instant::now() < deadline, "nothing was lost, or it is not counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    wire.all();
    let mut later = discover;
    later[46..50].copy_from_slice(&[9; 4]);
    later[40..42].copy_from_slice(&[0; 2]); // no checksum
    wire.send(&later);
    wire.wait("an OFFER", LIMIT, |seen| {
        seen.kind() == Some(MessageType::Offer) && seen.message.xid() == 0x0909_0909
    });
}

#[test]
fn frames_that_lie_get_no_answer_and_are_counted_by_reason() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", ME);
    // Where it is on, the bridge puts fragments together before anyone sees them.
    lab.on_host("sysctl", &["-eqw", "net.bridge.bridge-nf-call-iptables=0"]);
    let daemon = counting(&lab);
    daemon.guestnet(&["reservation", "add", ME, "10.9.1.1"]);
    let counted = |outcome: &str| counted(&lab, outcome);
    let me = frames::mac(ME);
    let discover = message(me, NOBODY, &[53, 1, 1]);
    let changed = |at: usize, value: u8| {
        let mut message = discover.clone();
        message[at] = value;
        message
    };
    let with = |options: &[u8]| message(me, NOBODY, options);
    let malformed = [
        discover[..100].to_vec(),
        changed(2, 17),
        changed(2, 0),
        changed(1, 6),
        changed(236, 0),
        changed(3, 255),
        with(&[53, 1, 1, 12, 255, b'x']),
        with(&[53, 2, 1, 1]),
        with(&[53, 1, 1, 50, 3, 10, 9, 1]),
        with(&[53, 1, 1].repeat(30)),
        with(&[61; 600]),
        with(&[53, 1, 99]),
    ];
    let not_malformed = [
        ("bad_checksum", {
            let mut frame = frame(me, &discover);
            frame[40] ^= 0xff;
            frame
        }),
        ("fragment", {
            let mut frame = frame(me, &discover);
            frame[20] |= 0x20; // more fragments
            frame
        }),
        ("source_mismatch", frame([2, 0, 0, 0, 0, 9], &discover)),
        ("unknown_mac", frame([2, 0, 0, 0, 0, 9], &message([2, 0, 0, 0, 0, 9], NOBODY, &[53, 1, 1]))),
        ("server_message", frame(me, &changed(0, 2))),
        ("not_ours", {
            let options = [53, 1, 3, 54, 4, 10, 9, 0, 2, 50, 4, 10, 9, 1, 1];
            frame(me, &with(&options))
        }),
        ("foreign_address", frame(me, &message(me, [10, 9, 1, 9].into(), &[53, 1, 7]))),
        // Of a relay agent that nobody has named.
        ("relayed", frame(me, &[&changed(24, 198)[..25], &[51, 100, 9], &discover[28..]].concat())),
    ];
    let mut sniffer = Sniffer::new(&machine, "eth0");
    let expected = malformed
        .iter()
        .map(|message| ("malformed", frame(me, message)))
        .chain(not_malformed.iter().map(|(outcome, frame)| (*outcome, frame.clone())));
    for (n, (outcome, frame)) in expected.enumerate() {
        let before = counted(outcome);
        sniffer.send(&frame);
        let deadline = Instant::now() + LIMIT;
        while counted(outcome) == before {
            assert!(Instant::now() < deadline, "frame {n} is not counted as {outcome}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // The server stands, and has answered none of these: the first answer is to this one.
    for answer in ["offers", "acks", "naks", "informs", "bootp"] {
        assert_eq!(counted(answer), 0, "{answer}");
    }
    let name = [b"a\x00\n\x1b[2J\xff\"; rm".as_slice(), &[b'x'; 200]].concat();
    let wish = [&[53, 1, 1, 12, name.len() as u8][..], &name, &[60, 3, b'\n', 0x1b, b'"']].concat();
    let mut asks = with(&wish);
    asks[4..8].copy_from_slice(&[9; 4]);
    sniffer.send(&frame(me, &asks));
    let offer = sniffer.wait("an OFFER", LIMIT, |seen| seen.mac != ME && seen.mac != "02:00:00:00:00:09");
    assert_eq!((offer.kind(), offer.to_mac.as_str()), (Some(MessageType::Offer), ME));
    assert_eq!(offer.message.xid(), 0x0909_0909);
    let lease = daemon.json(&["lease", "show", ME]);
    let shown = [&lease["wished_hostname"], &lease["vendor_class"]].map(|text| text.as_str().unwrap());
    assert!(shown.iter().all(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~'))), "{shown:?}");
    assert!(text(&daemon.client(&["lease", "list"])).lines().count() == 2, "one line a lease");
}

/// Waits until `doctor VM` says that of the lease.
fn doctor_says(daemon: &Daemon<'_>, vm: &str, verdict: &str, words: &[&str]) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = daemon.client(&["doctor", vm, "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = report["findings"].as_array().unwrap().iter().find(|found| found["check"] == "lease");
        let lease = found.unwrap_or_else(|| panic!("{report}"));
        let said = format!("{} {}", lease["seen"], lease["meaning"]);
        if lease["verdict"] == verdict && words.iter().all(|words| said.contains(words)) {
            return;
        }
        assert!(Instant::now() < deadline, "{vm}: not {verdict} {words:?}: {lease}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn doctor_says_why_a_guest_has_no_lease() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let told = |verdict: &str, words: &[&str]| doctor_says(&daemon, "a", verdict, words);
    told("warning", &["never asked"]);
    // Its hardware was to make the checksum, and nobody did.
    let broken = |mut frame: Vec<u8>| {
        frame[40] ^= 1;
        frame
    };
    guest.send(&broken(frames::dhcp_discover(guest.mac, 1)));
    told("problem", &["no answer: wrong checksum", "cannot be answered: wrong checksum"]);
    guest.send(&frames::dhcp_discover(guest.mac, 2));
    told("warning", &["discover: offer"]);
    let asks = |address: Ipv4Addr| {
        let options = [&[53, 1, 3, 54, 4][..], &guest.gateway.octets(), &[50, 4], &address.octets()].concat();
        frame(guest.mac, &message(guest.mac, NOBODY, &options))
    };
    guest.send(&asks(guest.ip));
    told("ok", &["is bound", "request: ack"]);
    // It renews with another driver, and with an address that is not its own.
    guest.send(&broken(asks(guest.ip)));
    told("problem", &["is bound", "refused (wrong checksum)"]);
    guest.send(&asks(Ipv4Addr::new(10, 100, 0, 99)));
    told("problem", &["is bound", "refused (this address is not reserved for it)"]);
}

#[test]
fn doctor_says_that_the_walls_keep_a_guest_from_its_lease() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vms = daemon.json(&["vm", "create", "mac", "fast", "quiet"]);
    let [wrong, fast, quiet] = [0, 1, 2].map(|n| Attacker::new(&lab, &vms[n]));
    // The VMM's configuration has another MAC than guestnet gave.
    wrong.send(&frames::dhcp_discover([2, 0, 0, 0, 0, 9], 1));
    doctor_says(&daemon, "mac", "warning", &["never asked", "spoofed_mac 1", "another MAC than 06:00:"]);
    for n in 0..500 {
        fast.send(&frames::dhcp_discover(fast.mac, n));
    }
    doctor_says(&daemon, "fast", "warning", &["discover: offer", "dhcp_rate", "more often than any client"]);
    // Of who sends nothing that is dropped, what others do is not said.
    doctor_says(&daemon, &quiet.vm_id, "warning", &["never asked", "the guest does not ask"]);
}

#[test]
fn giving_back_a_neighbours_address_takes_nothing_and_names_who_has_it() {
    let lab = Lab::new();
    lan::make(&lab);
    let neighbour = "52:54:00:00:00:02";
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    // With its first ports the bridge takes another MAC than it had when it was first served.
    let (machine, other) = (lan::machine(&lab, "p1", ME), lan::machine(&lab, "p2", neighbour));
    daemon.guestnet(&["reservation", "add", ME, "10.9.1.1"]);
    daemon.guestnet(&["reservation", "add", neighbour, "10.9.1.2"]);
    succeed(other.command("ip").args(["addr", "add", "10.9.1.2/16", "dev", "eth0"]));
    let theirs = Ipv4Addr::new(10, 9, 1, 2);
    let mut sniffer = Sniffer::new(&other, "eth0");
    sniffer.send(&request(frames::mac(neighbour), theirs));
    sniffer.wait("the ACK", LIMIT, |seen| seen.kind() == Some(MessageType::Ack) && seen.to_mac == neighbour);

    let me = frames::mac(ME);
    let wire = Sniffer::new(&machine, "eth0");
    let release = [&[53, 1, 7, 54, 4][..], &SERVER.octets()].concat();
    wire.send(&frame(me, &message(me, theirs, &release)));
    let deadline = Instant::now() + LIMIT;
    let events = loop {
        let events = daemon.json(&["status"])["recent_events"].to_string();
        if events.contains("address_declined") {
            break events;
        }
        assert!(Instant::now() < deadline, "no event: {events}");
        std::thread::sleep(Duration::from_millis(50));
    };
    // The question who has it told nobody that the gateway is elsewhere.
    let shown = succeed(other.command("ip").args(["neigh", "show", lan::SERVER]));
    let bridge = lab.on_host("cat", &["/sys/class/net/lan0/address"]);
    assert!(shown.is_empty() || shown.contains(bridge.trim()), "{shown} but {bridge}");
    let told = format!("{ME} released an address that is not its own, 10.9.1.2: {neighbour} answers for it");
    assert!(events.contains(&told), "no {told:?} in {events}");
    let lease = daemon.json(&["lease", "show", neighbour]);
    assert_eq!((&lease["state"], &lease["ip_address"]), (&"bound".into(), &"10.9.1.2".into()));
}

#[test]
fn more_clients_than_the_kernels_arp_table_has_room_for_get_their_leases() {
    const CLIENTS: u16 = 1_500;
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", ME);
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    let client = |n: u16| -> (Mac, Ipv4Addr) {
        let [high, low] = n.to_be_bytes();
        ([2, 0, 0, 0, high, low], Ipv4Addr::new(10, 9, high + 1, low))
    };
    let shown = |mac: Mac| mac.map(|octet| format!("{octet:02x}")).join(":");
    let lines: String = (1..=CLIENTS)
        .map(client)
        .filter(|(_, address)| ![0, 255].contains(&address.octets()[3]))
        .map(|(mac, address)| format!("{} {address}\n", shown(mac)))
        .collect();
    let file = lab.directory().join("reservations");
    std::fs::write(&file, &lines).unwrap();
    daemon.guestnet(&["reservation", "import", &file.display().to_string()]);

    let mut sniffer = Sniffer::new(&machine, "eth0");
    let mut waiting: HashSet<u16> = (1..=CLIENTS).filter(|n| lines.contains(&shown(client(*n).0))).collect();
    assert!(waiting.len() > 1_400, "{} clients", waiting.len());
    let deadline = Instant::now() + 2 * LIMIT;
    while !waiting.is_empty() {
        assert!(Instant::now() < deadline, "{} clients have no lease", waiting.len());
        // As many as fit into the queues of a busy machine at once.
        let some: Vec<u16> = waiting.iter().copied().take(200).collect();
        for n in &some {
            let (mac, address) = client(*n);
            sniffer.send(&request(mac, address));
        }
        let acknowledged = |seen: &Seen| seen.kind() == Some(MessageType::Ack);
        let leased: HashSet<(String, Ipv4Addr)> = sniffer
            .all()
            .into_iter()
            .filter(acknowledged)
            .map(|ack| (ack.to_mac, ack.message.yiaddr()))
            .collect();
        waiting.retain(|n| {
            let (mac, address) = client(*n);
            !leased.contains(&(shown(mac), address))
        });
    }
    let leases = daemon.json(&["lease", "list"]);
    assert!(leases.as_array().unwrap().iter().all(|lease| lease["state"] == "bound"));
}

//! Exchanges that the clients of `clients` do not come to, byte by byte on the wire: addresses that a guest only believes in, INFORM,
//! BOOTP, rapid commit, relay agents, options that do not fit.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{MessageType, Opcode};

use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, BROADCAST, Mac};
use crate::lab::lan::{self, Seen, Sniffer};
use crate::lab::{Daemon, Lab, Namespace};
use crate::slots::Traced;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const ME: &str = "52:54:00:00:00:01";
const MINE: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const LIMIT: Duration = Duration::from_secs(60);

/// A BOOTP message (RFC 951) of a client.
#[derive(Clone, Default)]
struct Message {
    flags: u16,
    ciaddr: [u8; 4],
    giaddr: [u8; 4],
    client: Mac,
    /// None of BOOTP without DHCP.
    options: Option<Vec<u8>>,
}

impl Message {
    fn of(client: Mac, kind: MessageType, options: &[&[u8]]) -> Self {
        let options = [&[53, 1, u8::from(kind)][..], &options.concat()].concat();
        Self { client, options: Some(options), ..Self::default() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, u8::from(self.giaddr != [0; 4]), 0, 0, 0, 7, 0, 0];
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.ciaddr);
        bytes.extend([0; 8]);
        bytes.extend(self.giaddr);
        bytes.extend(self.client);
        bytes.extend([0; 202]);
        bytes.extend([99, 130, 83, 99]);
        bytes.extend(self.options.iter().flatten());
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }

    /// As who has no address yet sends it.
    fn to_all(&self) -> Vec<u8> {
        frames::udp(self.client, BROADCAST, NOBODY, Ipv4Addr::BROADCAST, (68, 67), &self.bytes())
    }
}

fn address(code: u8, address: Ipv4Addr) -> Vec<u8> {
    [&[code, 4][..], &address.octets()].concat()
}

/// A client's machine on a network that somebody else made, with these lines, and what goes by there.
struct Wire<'lab> {
    daemon: Daemon<'lab>,
    sniffer: Sniffer,
    _machine: Namespace,
}

impl<'lab> Wire<'lab> {
    fn new(lab: &'lab Lab, network: &str) -> Self {
        lan::make(lab);
        let machine = lan::machine(lab, "p1", ME);
        let daemon = Daemon::start_with(lab, &lan::network(network));
        daemon.guestnet(&["reservation", "add", ME, &MINE.to_string(), "--hostname", "front"]);
        Self { daemon, sniffer: Sniffer::new(&machine, "eth0"), _machine: machine }
    }

    /// What the server says to a frame.
    fn answer(&mut self, frame: &[u8], kind: Option<MessageType>) -> Seen {
        self.sniffer.send(frame);
        let seen = self.sniffer.wait("an answer", LIMIT, |seen| seen.message.opcode() == Opcode::BootReply);
        assert_eq!(seen.kind(), kind, "{:?}", seen.message);
        seen
    }
}

#[test]
fn a_guest_that_believes_in_another_address_is_refused_it_in_every_state() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a", "--ip", "10.100.0.7"]));
    let neighbour = Attacker::new(&lab, &daemon.json(&["vm", "create", "b", "--ip", "10.100.0.8"]));
    let is_nak =
        |frame: &frames::Frame| Seen::of(&frame.0).is_some_and(|seen| seen.kind() == Some(MessageType::Nak));
    let elsewhere = [Ipv4Addr::new(10, 100, 9, 9), neighbour.ip, Ipv4Addr::new(192, 168, 1, 2)];
    for (netfilter, former) in ["0", "1"].into_iter().flat_map(|on| elsewhere.map(|former| (on, former))) {
        let key = format!("net.bridge.bridge-nf-call-iptables={netfilter}");
        lab.on_host("sysctl", &["-eqw", &key]);
        let uses = Message { ciaddr: former.octets(), ..Message::of(guest.mac, MessageType::Request, &[]) };
        let wants = Message::of(guest.mac, MessageType::Request, &[&address(50, former)]);
        let chooses = Message::of(
            guest.mac,
            MessageType::Request,
            &[&address(50, former), &address(54, guest.gateway)],
        );
        let renews =
            frames::udp(guest.mac, guest.gateway_mac, former, guest.gateway, (68, 67), &uses.bytes());
        let rebinds = frames::udp(guest.mac, BROADCAST, former, Ipv4Addr::BROADCAST, (68, 67), &uses.bytes());
        for (state, frame) in [
            ("renewing", renews),
            ("rebinding", rebinds),
            ("INIT-REBOOT", wants.to_all()),
            ("selecting", chooses.to_all()),
        ] {
            guest.send(&frame);
            let nak = guest.expect(&format!("a NAK, {state} {former}"), is_nak);
            let nak = Seen::of(&nak.0).unwrap();
            assert_eq!((nak.to_mac.as_str(), nak.to), ("ff:ff:ff:ff:ff:ff", Ipv4Addr::BROADCAST), "{state}");
        }
        // A neighbour's connections are counted by its address: this is none of them.
        let known = lab.on_host("conntrack", &["-L", "--orig-src", &former.to_string()]);
        assert!(!known.contains("dport=67"), "{known}");
        // Nobody but the server is spoken to under it.
        for to in [neighbour.ip, Ipv4Addr::new(198, 51, 100, 1)] {
            let drops = || {
                let drops = daemon.json(&["policy", "drops"]);
                let of = drops["vms"].as_array().unwrap().iter().find(|vm| vm["vm_id"] == "a").unwrap();
                of["port_packets"].as_u64().unwrap_or_default()
            };
            let before = drops();
            guest.send(&frames::udp(guest.mac, guest.gateway_mac, former, to, (68, 67), &uses.bytes()));
            // Frames of one guest pass in their order.
            guest.send(&wants.to_all());
            guest.expect("the NAK after it", is_nak);
            assert_eq!(drops(), before + 1, "to {to} as {former}");
        }
    }
    assert_eq!(daemon.json(&["lease", "show", "b"])["state"], "reserved");
}

#[test]
fn dhcp_to_somewhere_else_leaves_the_host_under_its_address_like_all_else() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let inet = crate::lab::sniffer::Sniffer::new(&lab.inet, "i0");
    let uplink: Ipv4Addr = crate::lab::UPLINK.parse().unwrap();
    let text = b"to a server far away";
    guest.send(&frames::udp(
        guest.mac,
        guest.gateway_mac,
        guest.ip,
        crate::lab::WEB.parse().unwrap(),
        (68, 67),
        text,
    ));
    let left = inet.wait(LIMIT, |frame| frame.has(text)).expect("the datagram");
    assert_eq!(left.ipv4().unwrap().1, uplink);
}

#[test]
fn a_snapshot_that_was_never_leased_keeps_its_address_and_no_answer_waits_for_a_disk() {
    let lab = Lab::new();
    let mut wire = Wire::new(&lab, "");
    let traced = Traced::start(
        &lab,
        &wire.daemon,
        &["-e", "trace=write,writev,pwrite64,fsync,fdatasync,rename,sendmmsg"],
    );
    let me = frames::mac(ME);
    let reboots = Message::of(me, MessageType::Request, &[&address(50, MINE)]);
    let ack = wire.answer(&reboots.to_all(), Some(MessageType::Ack));
    assert_eq!(ack.message.yiaddr(), MINE);
    for _ in 0..20 {
        wire.answer(&Message::of(me, MessageType::Discover, &[]).to_all(), Some(MessageType::Offer));
        let choice = [&address(50, MINE)[..], &address(54, SERVER)];
        wire.answer(&Message::of(me, MessageType::Request, &choice).to_all(), Some(MessageType::Ack));
    }
    let calls = traced.stop();
    let thread = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let answers: Vec<String> = calls.lines().filter(|line| line.contains("sendmmsg(")).map(thread).collect();
    assert!(answers.len() >= 41, "{calls}");
    // Whoever answers does nothing but answer: leases are kept by another thread.
    let others = |line: &&str| answers.contains(&thread(line)) && !line.contains("sendmmsg");
    assert_eq!(calls.lines().filter(others).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn who_has_an_address_is_informed_without_a_lease() {
    let lab = Lab::new();
    let mut wire = Wire::new(&lab, "domain = \"guests.example\"");
    let asks = Message::of(frames::mac(ME), MessageType::Inform, &[&[55, 4, 15, 6, 51, 54]]);
    let asks = Message { ciaddr: MINE.octets(), ..asks };
    let told = wire.answer(&asks.to_all(), Some(MessageType::Ack));
    assert_eq!((told.to_mac.as_str(), told.to), (ME, MINE));
    assert_eq!(told.message.yiaddr(), NOBODY);
    assert_eq!(
        (told.data(15).as_deref(), told.data(6).as_deref()),
        (Some(&b"guests.example"[..]), Some(&[10, 9, 0, 1][..]))
    );
    for lease in [51, 58, 59] {
        assert_eq!(told.data(lease), None, "RFC 2131 section 3.4: option {lease}");
    }
    assert_eq!(wire.daemon.json(&["lease", "show", ME])["state"], "reserved");
}

#[test]
fn a_boot_loader_of_before_dhcp_and_one_in_a_hurry_are_answered_at_once() {
    let lab = Lab::new();
    let mut wire = Wire::new(&lab, "[network.dhcp_options]\nbootfile_name = \"pxelinux.0\"");
    let me = frames::mac(ME);
    // RFC 951: no option 53.
    let bootp = Message { client: me, options: Some(Vec::new()), ..Message::default() };
    let reply = wire.answer(&bootp.to_all(), None);
    assert_eq!((reply.message.yiaddr(), reply.to_mac.as_str()), (MINE, ME));
    assert_eq!(reply.message.fname().unwrap().split(|byte| *byte == 0).next().unwrap(), b"pxelinux.0");
    assert_eq!(wire.daemon.json(&["lease", "show", ME])["state"], "bound");

    // RFC 4039: option 80 in a DISCOVER.
    let hurry = Message::of(me, MessageType::Discover, &[&[80, 0]]);
    let ack = wire.answer(&hurry.to_all(), Some(MessageType::Ack));
    assert_eq!((ack.message.yiaddr(), ack.data(80)), (MINE, Some(Vec::new())));

    // Broadcast only to who says that it can take nothing else.
    for (flags, to_mac, to) in [(0, ME, MINE), (0x8000, "ff:ff:ff:ff:ff:ff", Ipv4Addr::BROADCAST)] {
        let discover = Message { flags, ..Message::of(me, MessageType::Discover, &[]) };
        let offer = wire.answer(&discover.to_all(), Some(MessageType::Offer));
        assert_eq!((offer.to_mac.as_str(), offer.to, offer.message.yiaddr()), (to_mac, to, MINE));
    }
}

#[test]
fn a_relay_agent_gets_its_clients_answers_and_its_own_option_back() {
    const AGENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 66);
    let lab = Lab::new();
    let mut wire = Wire::new(&lab, "");
    let (me, agent) = (frames::mac(ME), frames::mac("52:54:00:00:00:66"));
    let machine = lan::machine(&lab, "p2", "52:54:00:00:00:66");
    wire.sniffer = Sniffer::new(&machine, "eth0");
    let server = frames::mac(lab.on_host("cat", &["/sys/class/net/lan0/address"]).trim());
    let circuit = [82, 6, 1, 4, b'p', b'o', b'r', b't'];
    let relayed = |kind, options: &[&[u8]]| {
        let message = Message::of(me, kind, &[options, &[&circuit[..]]].concat());
        let message = Message { giaddr: AGENT.octets(), ..message };
        frames::udp(agent, server, AGENT, SERVER, (67, 67), &message.bytes())
    };
    let offer = wire.answer(&relayed(MessageType::Discover, &[]), Some(MessageType::Offer));
    assert_eq!((offer.to_mac.as_str(), offer.to), ("52:54:00:00:00:66", AGENT));
    assert_eq!((offer.message.yiaddr(), offer.message.giaddr()), (MINE, AGENT));
    assert_eq!(offer.data(82).as_deref(), Some(&circuit[2..]));
    let choice = [&address(50, MINE)[..], &address(54, SERVER)];
    let ack = wire.answer(&relayed(MessageType::Request, &choice), Some(MessageType::Ack));
    assert_eq!((ack.to, ack.data(82).as_deref()), (AGENT, Some(&circuit[2..])));
    assert_eq!(wire.daemon.json(&["lease", "show", ME])["state"], "bound");
    // Moved: the relay agent is to broadcast it.
    let elsewhere = address(50, Ipv4Addr::new(10, 9, 9, 9));
    let nak = wire.answer(&relayed(MessageType::Request, &[&elsewhere]), Some(MessageType::Nak));
    assert!(nak.to == AGENT && nak.message.flags().broadcast(), "{:?}", nak.message);
    drop(machine);
}

#[test]
fn what_does_not_fit_overflows_comes_in_pieces_or_is_left_out_whole() {
    let lab = Lab::new();
    let long = "ab".repeat(300);
    let options = format!(
        "[network.dhcp_options.raw]\n224 = \"{}\"\n225 = \"{}\"\n226 = \"{}\"\n252 = \"{long}\"",
        "aa".repeat(240),
        "bb".repeat(110),
        "cc".repeat(50)
    );
    let mut wire = Wire::new(&lab, &options);
    let me = frames::mac(ME);
    let asks = |size: u16, codes: &[u8]| {
        let [high, low] = size.to_be_bytes();
        let list = [&[55, codes.len() as u8], codes].concat();
        Message::of(me, MessageType::Discover, &[&[57, 2, high, low], &list]).to_all()
    };
    // RFC 3396: 300 bytes are 255 and 45.
    let offer = wire.answer(&asks(1_500, &[252]), Some(MessageType::Offer));
    assert_eq!(offer.data(252), Some(vec![0xab; 300]));
    let offer = wire.answer(&asks(576, &[224, 225, 226]), Some(MessageType::Offer));
    // RFC 2132 section 9.3: both fields have options.
    assert_eq!((offer.data(52), offer.data(224)), (Some(vec![3]), Some(vec![0xaa; 240])));
    assert!(offer.bytes.len() <= 548, "{}", offer.bytes.len());
    let (sname, file) = (&offer.bytes[44..108], &offer.bytes[108..236]);
    assert_eq!((&file[..2], &file[2..112]), (&[225, 110][..], &[0xbb; 110][..]));
    assert_eq!((&sname[..2], &sname[2..52]), (&[226, 50][..], &[0xcc; 50][..]));
    // It fits nowhere.
    let offer = wire.answer(&asks(576, &[252, 224, 225, 1]), Some(MessageType::Offer));
    assert_eq!((offer.data(1), offer.data(252)), (Some(vec![255, 255, 0, 0]), None));
}

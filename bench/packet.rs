//! `packet`: what a packet costs on its way from a guest to the uplink when 4,000 VMs are bound, against one; and a guest's TCP
//! throughput to the uplink, against a plain bridge and veth that filter nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use connectrpc::Protocol;
use guestnet::proto::guestnet::v1::CreateVmNetworkRequest;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use crate::lab::api::client_of;
use crate::lab::tap_guest::open_tap;
use crate::lab::{Daemon, Lab, TapGuest, WEB};
use crate::measure::quantile;
use crate::report::{Better, Figure, Report};

const NETWORK: &str = "[[network]]\nenable_rate_limit = false\n";
const GUESTS: usize = 4_000;
/// Packets of one round, and rounds: the best of them is the packet's own cost, without the neighbours' noise.
const PACKETS: usize = 50_000;
const ROUNDS: usize = 9;
/// Of one TCP transfer.
const TRANSFER: Duration = Duration::from_secs(2);
const TRANSFERS: usize = 9;

pub fn run() -> Report {
    let ratio = throughput_ratio();
    let lab = Lab::new();
    let daemon = Daemon::start_with_env(&lab, NETWORK, &[("GUESTNET_LOG", "guestnet=warn".as_ref())]);
    let vm = daemon.json(&["vm", "create", "sender"]);
    let one = packet_ns(&lab, &vm);
    fill(&daemon);
    let all = packet_ns(&lab, &vm);
    let figure = |name: &str, unit, better, guestnet, goal| Figure {
        name: name.into(),
        unit,
        better,
        guestnet,
        peers: Vec::new(),
        goal,
        absent: Vec::new(),
    };
    Report(vec![
        figure("forward_cost_ratio_4000_vs_1", "x", Better::Lower, all / one, 1.15),
        figure("forward_us_1", "us", Better::Lower, one / 1_000.0, 10.0),
        figure("forward_us_4000", "us", Better::Lower, all / 1_000.0, 10.0),
        figure("tcp_throughput_ratio", "x", Better::Higher, ratio, 0.9),
    ])
}

fn fill(daemon: &Daemon<'_>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clients: Vec<_> = (0..16).map(|_| client_of(daemon.socket(), Protocol::Connect)).collect();
        let callers = clients.iter().enumerate().map(|(caller, client)| async move {
            for number in (caller..GUESTS - 1).step_by(16) {
                let vm_id = format!("vm{number}");
                let request = CreateVmNetworkRequest { vm_id, ..Default::default() };
                client.create_vm_network(request).await.expect("a network");
            }
        });
        futures_util::future::join_all(callers).await;
    });
}

/// Processor time of one packet from the TAP to the other end of the uplink: the kernel carries it all the way in the sender's
/// own system call.
fn packet_ns(lab: &Lab, vm: &Value) -> f64 {
    let sink = lab.inet.run(|| UdpSocket::bind((WEB, 9)).expect("a sink"));
    let field = |name: &str| vm[name].as_str().expect("a field of the VM").to_owned();
    let netns = lab.host.enter(&std::path::Path::new("/run/netns").join(field("namespace")));
    let tap = netns.run(|| open_tap(&field("tap_device"), libc::IFF_VNET_HDR).expect("the VM's TAP"));
    let frame = frame(&field("mac_address"), &gateway_mac(lab), &field("ip_address"));
    let round = || {
        let mut tap = &tap;
        let begun = thread_ns();
        for _ in 0..PACKETS {
            tap.write_all(&frame).expect("a frame sent");
        }
        (thread_ns() - begun) / PACKETS as f64
    };
    // The sink answers once: the connection is a live one from then on, as most packets' is.
    (&tap).write_all(&frame).expect("a frame sent");
    sink.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
    let (_, from) = sink.recv_from(&mut [0; 256]).expect("a packet that arrives");
    sink.send_to(b"an answer", from).expect("an answer");
    let before = received(lab);
    let rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    let arrived = received(lab) - before;
    assert!(arrived >= (ROUNDS * PACKETS) as u64, "only {arrived} packets arrived");
    drop(sink);
    quantile(&rounds, 0.0)
}

/// Processor time of the calling thread so far.
fn thread_ns() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_THREAD).expect("the thread's usage");
    (used.user_time().num_microseconds() + used.system_time().num_microseconds()) as f64 * 1_000.0
}

/// Packets that have come in at the other end of the uplink.
fn received(lab: &Lab) -> u64 {
    let shown: Value =
        serde_json::from_str(&lab.in_inet("ip", &["-j", "-s", "link", "show", "i0"])).expect("JSON of ip");
    shown[0]["stats64"]["rx"]["packets"].as_u64().expect("a counter")
}

fn gateway_mac(lab: &Lab) -> String {
    let shown: Value =
        serde_json::from_str(&lab.on_host("ip", &["-j", "link", "show", "br-vms"])).expect("JSON of ip");
    shown[0]["address"].as_str().expect("a MAC").to_owned()
}

/// A virtio-net header, and a UDP packet of 100 bytes of payload from the guest to the sink, without a UDP checksum.
fn frame(from: &str, to: &str, address: &str) -> Vec<u8> {
    const PAYLOAD: usize = 100;
    let mac =
        |text: &str| text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hex")).collect::<Vec<u8>>();
    let ip = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("an address").octets();
    let length = |bytes: usize| (bytes as u16).to_be_bytes();
    let mut header =
        [&[0x45, 0], &length(28 + PAYLOAD)[..], &[0, 0, 0x40, 0, 64, 17, 0, 0], &ip(address), &ip(WEB)]
            .concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let udp =
        [&4000_u16.to_be_bytes()[..], &9_u16.to_be_bytes(), &length(8 + PAYLOAD), &[0, 0], &[0; PAYLOAD]]
            .concat();
    [&[0; 10][..], &mac(to), &mac(from), &[8, 0], &header, &udp].concat()
}

/// Ours over the plain one, in the middle of several pairs of transfers.
fn throughput_ratio() -> f64 {
    let ours = Lab::new();
    let daemon = Daemon::start_with(&ours, NETWORK);
    let guest = TapGuest::attach(&ours, &daemon.json(&["vm", "create", "vm1"]));
    let plain = Lab::new();
    let other = plain_guest(&plain);
    let ratios: Vec<f64> =
        (0..TRANSFERS).map(|_| transfer(&ours, &guest) / transfer(&plain, &other)).collect();
    quantile(&ratios, 0.5)
}

/// A guest behind a bridge in a netns, a veth and a bridge on the host; routed, not filtered, not translated.
fn plain_guest(lab: &Lab) -> TapGuest {
    let host = |words: &str| lab.on_host("ip", &words.split(' ').collect::<Vec<_>>());
    lab.on_host("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]);
    host("link add br0 type bridge");
    host("addr add 10.100.0.1/16 dev br0");
    host("link set br0 up");
    host("netns add plain");
    host("link add v0 type veth peer name v1 netns plain");
    host("link set v0 master br0 up");
    for words in [
        "link add b0 type bridge",
        "tuntap add tap0 mode tap vnet_hdr",
        "link set tap0 master b0 up",
        "link set v1 master b0 up",
        "link set b0 up",
    ] {
        host(&format!("-n plain {words}"));
    }
    lab.in_inet("ip", &["route", "add", "10.100.0.0/16", "via", crate::lab::UPLINK]);
    let vm = json!({
        "namespace": "plain", "tap_device": "tap0", "mac_address": "06:00:0a:64:00:02", "mtu": 1500,
        "ip_address": "10.100.0.2", "prefix_len": 16, "gateway": "10.100.0.1",
    });
    TapGuest::attach(lab, &vm)
}

/// Bytes per second from the guest to the internet.
fn transfer(lab: &Lab, guest: &TapGuest) -> f64 {
    let listener = lab.inet.run(|| TcpListener::bind((WEB, 0)).expect("a listener"));
    let port = listener.local_addr().expect("its address").port();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut stream = guest.namespace.run(|| TcpStream::connect((WEB, port)).expect("a connection"));
            let (begun, bytes) = (Instant::now(), vec![0; 128 << 10]);
            while begun.elapsed() < TRANSFER {
                stream.write_all(&bytes).expect("bytes sent");
            }
        });
        let (mut stream, _) = listener.accept().expect("a connection");
        let (begun, mut total, mut bytes) = (Instant::now(), 0, vec![0; 256 << 10]);
        while let received @ 1.. = stream.read(&mut bytes).expect("bytes received") {
            total += received;
        }
        let rate = total as f64 / begun.elapsed().as_secs_f64();
        sending.join().expect("the sender's end");
        rate
    })
}

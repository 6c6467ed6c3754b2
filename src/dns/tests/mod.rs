//! The resolver as a guest sees it: real sockets on loopback, upstreams that behave as told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{DnsEndpoints, DnsServer};
use crate::events::Events;
use crate::model::{DnsMode, Network, ResolverSettings, Slot, Upstream as Server, Vm, testing};
use crate::registry::{Binding, Registry};

mod changing;
mod choosing;
mod explaining;
mod forwarding;
mod hostile;
mod lifecycle;
mod queries;
mod ruling;
mod secure;
mod settings;
mod stale;
mod tcp;
mod upstreams;
mod validating;
mod zone;

const PATIENCE: Duration = Duration::from_secs(6);

fn network(name: &str) -> Arc<Network> {
    Arc::new(Network {
        name: name.parse().unwrap(),
        bridge: "br-vms".parse().unwrap(),
        subnet: "10.100.0.0/16".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 100, 0, 1),
        upstreams: vec![],
        dns: DnsMode::On,
        resolver: ResolverSettings::default(),
        domain: "vm.internal".parse().unwrap(),
        mtu: 1500,
        reserved: Vec::new(),
        rate_limit: None,
        lease_seconds: 3600,
        ..testing::network()
    })
}

fn vm(network: &Network, vm_id: &str, hostname: &str, last: u8) -> Vm {
    Vm {
        vm_id: vm_id.parse().unwrap(),
        network: network.name.clone(),
        workspace: None,
        slot: Slot(last.into()),
        mac: [6, 0, 10, 100, 0, last].try_into().unwrap(),
        address: Ipv4Addr::new(10, 100, 0, last),
        hostname: hostname.parse().unwrap(),
        rate_limit: None,
        created_at_us: 0,
        ..testing::vm(1)
    }
}

fn bind(registry: &Registry, network: &Arc<Network>, vm_id: &str, hostname: &str, last: u8) {
    registry.bind(Arc::new(Binding::new(vm(network, vm_id, hostname, last), network.clone())));
}

/// A question that reached an upstream.
struct Asked {
    /// From 0, of this upstream.
    nth: usize,
    message: Message,
    from: SocketAddr,
    tcp: bool,
}

impl Asked {
    /// Whether the resolver only wants to know if somebody is there, as it does when nothing has been heard for a second: no
    /// guest's question, and not counted as one.
    fn is_check(message: &Message) -> bool {
        message.queries[0].name().is_root()
    }

    fn name(&self) -> String {
        self.message.queries[0].name().to_lowercase().to_string()
    }

    fn reply(&self) -> Message {
        let mut reply = Message::response(self.message.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = true;
        reply.metadata.recursion_available = true;
        reply.add_query(self.message.queries[0].clone());
        reply.edns.clone_from(&self.message.edns);
        reply
    }

    fn with(&self, answers: impl IntoIterator<Item = Record>) -> Vec<u8> {
        let mut reply = self.reply();
        reply.add_answers(answers);
        reply.to_vec().unwrap()
    }

    fn a(&self, ttl: u32) -> Vec<u8> {
        self.with([a(&self.name(), ttl)])
    }

    fn code(&self, rcode: ResponseCode) -> Vec<u8> {
        let mut reply = self.reply();
        reply.metadata.response_code = rcode;
        reply.to_vec().unwrap()
    }

    fn denied(&self, soa_minimum: u32) -> Vec<u8> {
        let mut reply = self.reply();
        reply.metadata.response_code = ResponseCode::NXDomain;
        let (server, mailbox) = (name("ns.example."), name("root.example."));
        let soa = RData::SOA(SOA::new(server, mailbox, 1, 2, 3, 4, soa_minimum));
        reply.add_authority(Record::from_rdata(name("example."), 900, soa));
        reply.to_vec().unwrap()
    }
}

const ANSWER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(ANSWER)))
}

/// What an upstream sends, and when.
type Sends = Vec<(Duration, Vec<u8>)>;

fn now(bytes: Vec<u8>) -> Sends {
    vec![(Duration::ZERO, bytes)]
}

struct Upstream {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    from: Arc<Mutex<Vec<(SocketAddr, u16)>>>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    async fn that(behaves: impl Fn(&Asked) -> Sends + Send + Sync + 'static) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, Arc::new(udp));
            }
        };
        let address = udp.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let from = Arc::new(Mutex::new(vec![]));
        let behaves = Arc::new(behaves);
        let mut tasks = JoinSet::new();
        let (counted, behaviour, senders) = (seen.clone(), behaves.clone(), from.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            let mut late = JoinSet::new();
            loop {
                let (length, to) = udp.recv_from(&mut buffer).await.unwrap();
                let message = Message::from_vec(&buffer[..length]).unwrap();
                let nth = if Asked::is_check(&message) {
                    usize::MAX
                } else {
                    senders.lock().unwrap().push((to, message.metadata.id));
                    counted.fetch_add(1, Ordering::SeqCst)
                };
                let asked = Asked { nth, message, from: to, tcp: false };
                for (wait, bytes) in behaviour(&asked) {
                    let udp = udp.clone();
                    late.spawn(async move {
                        tokio::time::sleep(wait).await;
                        udp.send_to(&bytes, to).await.ok();
                    });
                }
            }
        });
        let counted = seen.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, from) = tcp.accept().await.unwrap();
                // Who has an answer from elsewhere may leave at any time.
                let Ok(length) = stream.read_u16().await else { continue };
                let mut message = vec![0; length.into()];
                if stream.read_exact(&mut message).await.is_err() {
                    continue;
                }
                let message = Message::from_vec(&message).unwrap();
                let check = Asked::is_check(&message);
                let nth = if check { usize::MAX } else { counted.fetch_add(1, Ordering::SeqCst) };
                let asked = Asked { nth, message, from, tcp: true };
                for (wait, bytes) in behaves(&asked) {
                    tokio::time::sleep(wait).await;
                    let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
                    if stream.write_all(&framed).await.is_err() {
                        break;
                    }
                }
            }
        });
        Self { address, seen, from, _tasks: tasks }
    }

    async fn silent() -> Self {
        Self::that(|_| vec![]).await
    }

    async fn prompt() -> Self {
        Self::that(|asked| now(asked.a(300))).await
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// An upstream at that address.
fn server(address: SocketAddr) -> Server {
    address.to_string().parse().unwrap()
}

fn endpoints(upstreams: &[SocketAddr]) -> DnsEndpoints {
    DnsEndpoints {
        listen: "127.0.0.1:0".parse().unwrap(),
        upstreams: upstreams.iter().copied().map(server).collect(),
        guests_only: false,
        own_subnets: vec!["10.100.0.0/16".parse().unwrap()],
        records: vec![],
        events: Events::default(),
    }
}

fn start_with(network: Arc<Network>, registry: Registry, endpoints: &DnsEndpoints) -> DnsServer {
    loop {
        // The port that is free for TCP may be another test's for UDP.
        if let Ok(server) = DnsServer::start(network.clone(), registry.clone(), endpoints.clone()) {
            return server;
        }
    }
}

fn start(registry: Registry, upstreams: &[&Upstream]) -> DnsServer {
    let upstreams: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    start_with(network("default"), registry, &endpoints(&upstreams))
}

/// A resolver of a network with these settings.
fn resolver(settings: ResolverSettings, upstreams: &[&Upstream]) -> DnsServer {
    let network = Network { resolver: settings, ..Network::clone(&network("default")) };
    let upstreams: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    start_with(Arc::new(network), Registry::default(), &endpoints(&upstreams))
}

fn forwarding(upstreams: &[&Upstream]) -> DnsServer {
    start(Registry::default(), upstreams)
}

fn question(owner: &str, rtype: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), rtype));
    message
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

async fn exchange(server: &DnsServer, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addr()).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask(server: &DnsServer, message: Message) -> Message {
    let answer = Message::from_vec(&exchange(server, &message.to_vec().unwrap()).await).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(answer.metadata.recursion_available);
    answer
}

async fn lookup(server: &DnsServer, owner: &str) -> Message {
    ask(server, question(owner, RecordType::A)).await
}

async fn ask_tcp(server: &DnsServer, message: Message) -> Message {
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    send_tcp(&mut stream, &message).await;
    receive_tcp(&mut stream).await
}

async fn send_tcp(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn receive_tcp(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("an answer in time").unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

fn extended_error(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(15, data) => Some(u16::from_be_bytes([data[0], data[1]])),
        _ => None,
    }
}

/// KiB that this process has in memory, its program aside.
pub(super) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// An upstream that has an answer of 65,535 bytes by TCP to any question.
async fn with_the_longest_answer() -> Upstream {
    Upstream::that(|asked| {
        let mut reply = asked.reply();
        reply.edns = None;
        reply.metadata.truncation = !asked.tcp;
        let mut bytes = reply.to_vec().unwrap();
        if asked.tcp {
            // By hand: the name is a pointer to the question's, then one text of 255 bytes; the last fills what is left.
            let mut count = 0_u16;
            while bytes.len() < usize::from(u16::MAX) {
                let room = usize::from(u16::MAX) - bytes.len() - 13;
                let length = if (256..300).contains(&room) { 200 } else { room.min(255) };
                bytes.extend_from_slice(b"\xc0\x0c\0\x10\0\x01\0\0\x01\x2c");
                bytes.extend_from_slice(&(length as u16 + 1).to_be_bytes());
                bytes.push(length as u8);
                bytes.resize(bytes.len() + length, b'x');
                count += 1;
            }
            assert_eq!(bytes.len(), usize::from(u16::MAX));
            bytes[6..8].copy_from_slice(&count.to_be_bytes());
        }
        now(bytes)
    })
    .await
}

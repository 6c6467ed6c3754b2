//! The sockets of a network's resolver. In: a network, the live bindings, upstreams. Out: answers on the gateway's port 53, UDP
//! and TCP, until stopped. Every task, connection and buffer is counted against a cap.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, trace};

use super::cache::Cache;
use super::counters::{Counters, DnsCounters, count};
use super::fair::Fair;
use super::forward::Forwarder;
use super::reply::Transport;
use super::resolve::{Flights, Pending, Resolver, Step};
use super::route::Places;
use crate::model::{Network, NetworkName};
use crate::registry::Registry;

/// Bytes of answers a network's guests share.
const CACHE_BYTES: usize = 32 << 20;
/// Sockets to upstreams at most, and at most this part of the descriptors the process may have.
const UPSTREAM_SOCKETS: (usize, usize) = (2_048, 4);
/// Questions a guest may have at the upstreams: this part of the sockets.
const GUEST_SHARE: usize = 8;
/// Datagrams that come in while the task is elsewhere wait in the kernel; this holds a burst of some thousand.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The longest query worth reading from a datagram: one question, an OPT record and its options.
const LONGEST_DATAGRAM: usize = 4_096;
/// Datagrams taken before other tasks get a turn.
const BURST: usize = 64;
const TCP_CONNECTIONS: usize = 512;
const TCP_CONNECTIONS_PER_GUEST: usize = 32;
/// Queries of one connection answered at a time, in whatever order they are done (RFC 7766 section 6.2.1.1).
const TCP_PIPELINE: usize = 32;
/// A connection without a whole query for so long is closed (RFC 7766 section 6.2.3), and so is one that does not take
/// its answer.
const TCP_IDLE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot answer DNS on {address} ({protocol}): {source}; {hint}")]
    Bind {
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        hint: &'static str,
        source: io::Error,
    },
    #[error("network {network} has no upstream to forward DNS to: give dns_servers at least one address")]
    NoUpstream { network: String },
    #[error(
        "network {network} cannot forward DNS to {address}, which is its own resolver: name another in dns_servers"
    )]
    UpstreamIsSelf { network: String, address: SocketAddr },
    #[error("network {network}: domain {domain} is no DNS name: give a domain of labels of at most 63 bytes")]
    Domain { network: String, domain: String },
}

impl DnsError {
    fn bind(address: SocketAddr, protocol: &'static str, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                "another DNS server has the port, on this address or on all (see `ss -lnp 'sport = :53'`): \
                 stop it, or bind it to its own addresses (dnsmasq: bind-interfaces, unbound: interface)"
            }
            io::ErrorKind::AddrNotAvailable => "no interface has the address: the bridge must be up first",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "the kernel refused",
        };
        Self::Bind { address, protocol, hint, source }
    }
}

/// A network's resolver, answering until stopped or dropped.
pub struct DnsServer {
    resolver: Arc<Resolver>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

/// A look at a resolver, which may have stopped since.
#[derive(Clone)]
pub struct DnsView(Arc<Resolver>);

impl DnsView {
    pub fn network(&self) -> &NetworkName {
        &self.0.network.name
    }

    pub fn counters(&self) -> DnsCounters {
        self.0.counters.snapshot()
    }
}

/// Where a resolver listens and whom it asks.
#[derive(Debug, Clone)]
pub struct DnsEndpoints {
    /// Port 0 takes a free one, the same for UDP and TCP.
    pub listen: SocketAddr,
    pub upstreams: Vec<SocketAddr>,
    /// Whether only addresses of the network's subnet are answered.
    pub guests_only: bool,
}

impl DnsServer {
    /// Answers the network's guests on its gateway address, which must be on an interface.
    pub async fn start(network: Arc<Network>, registry: Registry) -> Result<Self, DnsError> {
        // A wildcard socket would answer from whatever address routes back; bound to the gateway there is only one.
        let listen = SocketAddr::new(IpAddr::V4(network.gateway), 53);
        let upstreams = network.upstreams.iter().map(|&address| SocketAddr::new(address, 53)).collect();
        Self::start_at(network, registry, DnsEndpoints { listen, upstreams, guests_only: true }).await
    }

    pub async fn start_at(
        network: Arc<Network>,
        registry: Registry,
        endpoints: DnsEndpoints,
    ) -> Result<Self, DnsError> {
        if endpoints.upstreams.is_empty() {
            return Err(DnsError::NoUpstream { network: network.name.to_string() });
        }
        if endpoints.upstreams.contains(&endpoints.listen) {
            return Err(DnsError::UpstreamIsSelf {
                network: network.name.to_string(),
                address: endpoints.listen,
            });
        }
        let places = Places::of(&network).ok_or_else(|| DnsError::Domain {
            network: network.name.to_string(),
            domain: network.domain.to_string(),
        })?;
        let (tcp, udp, address) = bind(endpoints.listen).await?;
        let sockets = upstream_sockets();
        let resolver = Arc::new(Resolver {
            places,
            registry,
            guests_only: endpoints.guests_only,
            cache: Cache::new(CACHE_BYTES),
            forwarder: Forwarder::new(&endpoints.upstreams, sockets),
            fair: Fair::new(sockets / GUEST_SHARE),
            flights: Flights::default(),
            counters: Counters::default(),
            network,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(resolver.clone(), Arc::new(udp)));
        tasks.spawn(serve_tcp(resolver.clone(), tcp));
        info!(network = %resolver.network.name, "DNS answers");
        debug!(%address, upstreams = ?endpoints.upstreams, "DNS endpoints");
        Ok(Self { resolver, address, tasks })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> DnsCounters {
        self.view().counters()
    }

    /// For whoever looks at it while it answers.
    pub fn view(&self) -> DnsView {
        DnsView(self.resolver.clone())
    }

    /// Returns when the sockets are closed. Queries in flight are not answered.
    pub async fn stop(mut self) {
        self.resolver.stop();
        self.tasks.shutdown().await;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.resolver.stop();
    }
}

/// What of the process's limit of open files goes to sockets upstream. A limit of 1,024, a shell's default, makes a resolver
/// of 256; the daemon should raise it first.
fn upstream_sockets() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which writes to nothing else.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    let open_files = if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1_024 };
    (open_files / UPSTREAM_SOCKETS.1).clamp(GUEST_SHARE, UPSTREAM_SOCKETS.0)
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr), DnsError> {
    let tcp = TcpListener::bind(listen).await.map_err(|e| DnsError::bind(listen, "tcp", e))?;
    let address = tcp.local_addr().map_err(|e| DnsError::bind(listen, "tcp", e))?;
    let udp = UdpSocket::bind(address).await.map_err(|e| DnsError::bind(address, "udp", e))?;
    // As much of it as net.core.rmem_max allows; less only means that less of a burst is kept.
    if let Err(error) = socket2::SockRef::from(&udp).set_recv_buffer_size(RECEIVE_BUFFER) {
        debug!(%error, "receive buffer stays as it is");
    }
    Ok((tcp, udp, address))
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    let mut out = Vec::with_capacity(LONGEST_DATAGRAM);
    loop {
        // An error here belongs to an earlier datagram (a guest that is gone), not to the socket.
        if let Err(error) = socket.readable().await {
            debug!(%error, "UDP socket");
            sleep(Duration::from_millis(10)).await;
            continue;
        }
        for _ in 0..BURST {
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    trace!(%error, "UDP receive");
                    continue;
                }
            };
            match resolver.begin(&buffer[..length], from, Transport::Udp, &mut out) {
                Step::Silent => {}
                // A full send buffer loses the answer, as the network may; the guest asks again.
                Step::Answered => sent(socket.try_send_to(&out, from)),
                Step::Wait(pending) => {
                    let (resolver, socket) = (resolver.clone(), socket.clone());
                    waiting.spawn(answer_later(resolver, socket, pending, from));
                }
            }
        }
        while waiting.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

async fn answer_later(
    resolver: Arc<Resolver>,
    socket: Arc<UdpSocket>,
    pending: Box<Pending>,
    from: SocketAddr,
) {
    let mut out = Vec::new();
    if resolver.finish(pending, &mut out).await {
        sent(socket.send_to(&out, from).await);
    }
}

fn sent(result: io::Result<usize>) {
    if let Err(error) = result {
        trace!(%error, "UDP answer not sent");
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let guests = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: they come back as connections end.
                debug!(%error, "TCP accept");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let seat = if connections.len() < TCP_CONNECTIONS { Seat::take(&guests, from.ip()) } else { None };
        match seat {
            Some(seat) => {
                connections.spawn(serve_connection(resolver.clone(), stream, from, seat));
            }
            None => count(&resolver.counters.tcp_refused),
        }
    }
}

/// One of a guest's connections, given back when dropped.
struct Seat {
    guests: Arc<Mutex<HashMap<IpAddr, usize>>>,
    guest: IpAddr,
}

impl Seat {
    fn take(guests: &Arc<Mutex<HashMap<IpAddr, usize>>>, guest: IpAddr) -> Option<Self> {
        let mut taken = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(guest).or_insert(0);
        if *count >= TCP_CONNECTIONS_PER_GUEST {
            return None;
        }
        *count += 1;
        Some(Self { guests: guests.clone(), guest })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.guest) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.guest);
            }
        }
    }
}

async fn serve_connection(resolver: Arc<Resolver>, mut stream: TcpStream, from: SocketAddr, _seat: Seat) {
    if let Err(error) = converse(&resolver, &mut stream, from).await {
        trace!(%error, "TCP connection");
    }
}

async fn converse(resolver: &Arc<Resolver>, stream: &mut TcpStream, from: SocketAddr) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let mut out = Vec::new();
    let mut waiting = FuturesUnordered::new();
    let mut idle_at = Instant::now() + TCP_IDLE;
    let mut open = true;
    loop {
        while waiting.len() < TCP_PIPELINE {
            let Some(message) = take_message(&mut received) else { break };
            idle_at = Instant::now() + TCP_IDLE;
            match resolver.begin(&message, from, Transport::Tcp, &mut out) {
                // Over TCP nobody forges the sender: who sends no query is not worth a connection.
                Step::Silent => return Ok(()),
                Step::Answered => write(&mut writer, &out).await?,
                Step::Wait(pending) => waiting.push(async {
                    let mut out = Vec::new();
                    resolver.finish(pending, &mut out).await.then_some(out)
                }),
            }
        }
        if !open && waiting.is_empty() {
            return Ok(());
        }
        let full = waiting.len() >= TCP_PIPELINE;
        received.reserve(LONGEST_DATAGRAM);
        tokio::select! {
            Some(answer) = waiting.next() => {
                if let Some(answer) = answer {
                    write(&mut writer, &answer).await?;
                }
                idle_at = Instant::now() + TCP_IDLE;
            }
            read = timeout_at(idle_at, reader.read_buf(&mut received)), if open && !full => match read {
                Ok(Ok(0)) => open = false,
                Ok(read) => drop(read?),
                // What is being asked upstream is still answered.
                Err(_) => open = false,
            },
        }
    }
}

/// The next whole message, if all of it is there. What is left is at most one incomplete message and what one read brings.
fn take_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    let message = rest.get(..length)?.to_vec();
    received.drain(..2 + length);
    Some(message)
}

async fn write(writer: &mut (impl tokio::io::AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    timeout(TCP_IDLE, writer.write_all(&framed)).await?
}

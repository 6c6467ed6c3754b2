//! A network's resolver from start to stop. In: a network, the live bindings, upstreams. Out: answers on the gateway's port 53,
//! UDP and TCP. Three threads: one answers what is at hand by UDP, one has TCP, and one a runtime for all that waits. The sockets
//! stay open whatever changes.

use std::hash::RandomState;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit};
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use super::cache::Cache;
use super::control::DnsControl;
use super::counters::{Counters, DnsCounters};
use super::exchanges::{Exchanges, GUEST_PART};
use super::fair::Fair;
use super::flights::Flights;
use super::forward::SecureError;
use super::guests::Guests;
use super::histogram::Histogram;
use super::local::HostsError;
use super::policy::PolicyError;
use super::resolve::{Pending, Resolver};
use super::setup::{Materials, Setup};
use super::validate::AnchorError;
use super::{tcp, udp};
use crate::events::Events;
use crate::model::{DnsRecord, Network, Subnet, Upstream};
use crate::registry::Registry;

/// Exchanges with upstreams at once at most, and at most this part of the descriptors the process may have.
const EXCHANGES: (usize, usize) = (4_096, 4);
/// Between two looks at who has been quiet.
const LOOK: Duration = Duration::from_millis(500);
/// Without a query for so long, guests ask nothing, and nobody needs to know how upstreams do.
const ACTIVE: Duration = Duration::from_secs(10);
/// Datagrams that come in while the thread is elsewhere wait in the kernel; this holds a burst of some thousand.
const RECEIVE_BUFFER: usize = 4 << 20;

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
    #[error("network {network}: {source}")]
    Hosts { network: String, source: HostsError },
    #[error("network {network}: {source}")]
    Policy { network: String, source: PolicyError },
    #[error("network {network}: {source}")]
    Secure { network: String, source: SecureError },
    #[error("network {network}: {source}")]
    Anchor { network: String, source: AnchorError },
    #[error("cannot start the resolver's threads: {0}")]
    Threads(io::Error),
}

impl DnsError {
    /// The key of the network's table that it is about, if one.
    pub fn key(&self) -> Option<String> {
        Some(match self {
            Self::NoUpstream { .. } | Self::UpstreamIsSelf { .. } => "dns_servers".into(),
            Self::Domain { .. } => "domain".into(),
            Self::Hosts { .. } => "resolver.hosts_file".into(),
            Self::Policy { source, .. } => format!("resolver.rule[{}].file", source.at),
            Self::Secure { .. } => "resolver.upstream_ca".into(),
            Self::Anchor { .. } => "resolver.trust_anchor".into(),
            Self::Bind { .. } | Self::Threads(_) => return None,
        })
    }

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
    socket: Arc<UdpSocket>,
    stopping: Arc<AtomicBool>,
    /// Dropped to end the runtimes.
    stop: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Where a resolver listens, whom it asks, and what else it is given.
#[derive(Debug, Clone)]
pub struct DnsEndpoints {
    /// IPv4; port 0 takes a free one, the same for UDP and TCP.
    pub listen: SocketAddr,
    pub upstreams: Vec<Upstream>,
    /// Whether only addresses of the network's subnet are answered.
    pub guests_only: bool,
    /// The subnets of all networks: their addresses may stand in any answer.
    pub own_subnets: Vec<Subnet>,
    /// Records of the API.
    pub records: Vec<DnsRecord>,
    pub events: Events,
}

impl DnsEndpoints {
    /// The network's gateway address, for its guests.
    pub fn of(network: &Network) -> Self {
        Self {
            // A wildcard socket would answer from whatever address routes back; bound to the gateway there is only one,
            // which all shards of the bridge have.
            listen: SocketAddr::new(IpAddr::V4(network.gateway), 53),
            upstreams: network.upstreams.clone(),
            guests_only: true,
            own_subnets: vec![network.subnet],
            records: vec![],
            events: Events::default(),
        }
    }
}

impl DnsServer {
    /// Answers on `endpoints.listen`, which must be on an interface.
    pub fn start(
        network: Arc<Network>,
        registry: Registry,
        endpoints: DnsEndpoints,
    ) -> Result<Self, DnsError> {
        let resolver = Arc::new(resolver(network, registry, &endpoints)?);
        let (tcp, udp, address) = bind(endpoints.listen)?;
        let runtime =
            || runtime::Builder::new_current_thread().enable_all().build().map_err(DnsError::Threads);
        let (waits, by_tcp) = (runtime()?, runtime()?);
        resolver.flights.run_on(waits.handle().clone());
        let server = Self::run(resolver, waits, by_tcp, tcp, udp, address)?;
        info!(network = %server.resolver.setup.load().network.name, "DNS server is answering");
        Ok(server)
    }

    fn run(
        resolver: Arc<Resolver>,
        waits: Runtime,
        by_tcp: Runtime,
        tcp: TcpListener,
        udp: UdpSocket,
        address: SocketAddr,
    ) -> Result<Self, DnsError> {
        let (later, waiting) = mpsc::unbounded_channel::<Box<Pending>>();
        let (stop, mut stopped) = watch::channel(());
        let (socket, stopping) = (Arc::new(udp), Arc::new(AtomicBool::new(false)));
        let mut server = Self {
            resolver: resolver.clone(),
            address,
            socket: socket.clone(),
            stopping: stopping.clone(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        let (handle, mut also_stopped) = (waits.handle().clone(), stopped.clone());
        let (for_waiting, answers) = (resolver.clone(), socket.clone());
        let waits = move || {
            waits.block_on(async {
                tokio::spawn(look_after_upstreams(for_waiting.clone()));
                tokio::spawn(udp::finish_all(for_waiting, answers, waiting));
                // Ends with an error when the sender is dropped; the runtime's end ends every task.
                let _ = stopped.changed().await;
            });
        };
        let for_tcp = resolver.clone();
        let by_tcp = move || {
            by_tcp.block_on(async {
                // Registered with this runtime, so it has to be made here; it was bound and set up before.
                match tokio::net::TcpListener::from_std(tcp) {
                    Ok(listener) => drop(tokio::spawn(tcp::serve(for_tcp, listener, handle))),
                    Err(error) => tracing::error!(%error, "no DNS by TCP"),
                }
                let _ = also_stopped.changed().await;
            });
        };
        server.threads.push(thread("dns-tcp", by_tcp)?);
        server.threads.push(thread("dns-waits", waits)?);
        let answers = move || udp::serve(&resolver, &socket, &stopping, &later);
        server.threads.push(thread("dns-answers", answers)?);
        Ok(server)
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> DnsCounters {
        self.resolver.counters.snapshot()
    }

    /// To look at it and to change it while it runs.
    pub fn control(&self) -> DnsControl {
        DnsControl::new(self.resolver.clone())
    }

    /// Closes the sockets; questions on their way upstream end unanswered.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread that waits in recvmmsg(2); that the socket is not connected is no matter.
        if let Err(error) = socket2::SockRef::from(&*self.socket).shutdown(std::net::Shutdown::Both) {
            debug!(%error, "shutting the DNS socket down");
        }
        self.stop = None;
        for thread in self.threads.drain(..) {
            // An error means that it panicked, which has been logged.
            let _ = thread.join();
        }
    }
}

/// One whose only upstream nobody reaches.
#[cfg(test)]
pub(super) fn lonely_resolver() -> Arc<Resolver> {
    let text = "[[network]]\ndns_servers = [\"192.0.2.1\"]\n";
    let config = crate::config::Config::from_parts(Some(text), |_| None).unwrap();
    let network = config.networks[0].clone();
    let endpoints = DnsEndpoints::of(&network);
    Arc::new(resolver(network, Registry::default(), &endpoints).unwrap())
}

/// All of a resolver but its sockets and threads. It asks no upstream before its flights have a runtime.
pub(super) fn resolver(
    network: Arc<Network>,
    registry: Registry,
    endpoints: &DnsEndpoints,
) -> Result<Resolver, DnsError> {
    let exchanges = Arc::new(Exchanges::new(exchanges()));
    let own_subnets = Arc::from(&*endpoints.own_subnets);
    let materials = Materials {
        upstreams: &endpoints.upstreams,
        records: &endpoints.records,
        own_subnets: &own_subnets,
        listen: endpoints.listen,
        events: &endpoints.events,
    };
    let setup = Setup::load(network, &materials, None)?;
    Ok(Resolver {
        registry: registry.clone(),
        guests_only: endpoints.guests_only,
        listen: endpoints.listen,
        fair: Fair::new(exchanges.clone()),
        exchanges,
        events: endpoints.events.clone(),
        cache: Cache::new(setup.network.resolver.cache_bytes),
        guests: Guests::new(setup.network.name.clone(), registry),
        flights: Flights::default(),
        counters: Counters::default(),
        latency: Histogram::default(),
        cookie_secret: RandomState::new(),
        logged: AtomicU64::new(0),
        own_subnets,
        setup: ArcSwap::from_pointee(setup),
    })
}

/// While guests ask, has upstreams checked that nothing is heard of.
async fn look_after_upstreams(resolver: Arc<Resolver>) {
    let (mut seen, mut asked_at) = (0, None);
    loop {
        tokio::time::sleep(LOOK).await;
        let queries = resolver.counters.snapshot().queries;
        if queries != std::mem::replace(&mut seen, queries) {
            asked_at = Some(Instant::now());
        }
        if asked_at.is_some_and(|at| at.elapsed() < ACTIVE) {
            resolver.setup.load().forwarder.check_quiet();
        }
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DnsError> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(DnsError::Threads)
}

/// Sockets are open files, of which the process may have so many.
fn exchanges() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
    let open_files = usize::try_from(soft).unwrap_or(usize::MAX);
    (open_files / EXCHANGES.1).clamp(GUEST_PART, EXCHANGES.0)
}

fn bind(listen: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr), DnsError> {
    let tcp = TcpListener::bind(listen).map_err(|e| DnsError::bind(listen, "tcp", e))?;
    tcp.set_nonblocking(true).map_err(|e| DnsError::bind(listen, "tcp", e))?;
    let address = tcp.local_addr().map_err(|e| DnsError::bind(listen, "tcp", e))?;
    let udp = UdpSocket::bind(address).map_err(|e| DnsError::bind(address, "udp", e))?;
    // As much of it as net.core.rmem_max allows; less only means that less of a burst is kept.
    if let Err(error) = socket2::SockRef::from(&udp).set_recv_buffer_size(RECEIVE_BUFFER) {
        debug!(%error, "receive buffer stays as it is");
    }
    Ok((tcp, udp, address))
}

//! Serves the API on its socket: HTTP/1.1 and h2c, told apart by their first bytes. In: connections of anybody who may open
//! the socket. Out: answers, within the bounds below whatever a caller sends or does not send.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use connectrpc::compression::CompressionPolicy;
use connectrpc::{ConnectError, ConnectRpcService, DeadlinePolicy, ErrorCode, Limits, Router};
use connectrpc_health::StaticChecker;
use connectrpc_reflection::Reflector;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::answer::{Held, Room};
use super::caller::{Access, Gate};
use super::connections::{Connections, Place};
use super::deadline::{go_on_with, patience};
use super::errors::refusal;
use super::listener::{Arrival, Listener};
use super::rooms::Rooms;
use super::service::Service;
use super::socket::{ApiSocket, SocketFile};
use super::status::Sources;
use super::streams::Streams;
use super::tls::Tls;
use super::trace::Traced;
use crate::config::{SpiffeIds, TlsConfig};
use crate::manager::Manager;
use crate::proto::guestnet::v1::GUEST_NETWORK_SERVICE_SERVICE_NAME;

/// What the proto files say, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.fds.bin"));

/// What callers can cost at most.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Open connections; the longest idle one makes room for a further one, which waits if none is idle. One in which
    /// for `deadline` nothing of what is ready for its caller could begin to be sent is no better than idle.
    pub connections: usize,
    /// Requests being received or answered, over all connections; further ones wait, for `deadline` or their callers' own.
    pub requests: usize,
    /// The same of callers that may only read, who keep none of the others waiting.
    pub read_only_requests: usize,
    /// Of those, on one HTTP/2 connection.
    pub requests_per_connection: u32,
    /// Bytes of a request, as sent and as unpacked.
    pub request_bytes: usize,
    /// For the whole head of an HTTP/1.1 request, and for the quiet before it.
    pub head: Duration,
    /// To receive and answer a request, unless the caller's own deadline is sooner.
    pub deadline: Duration,
    /// For requests still in flight, and then for changes still under way, at a stop.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 256,
            requests: 256,
            read_only_requests: 64,
            requests_per_connection: 32,
            request_bytes: 1 << 20,
            head: Duration::from_secs(30),
            deadline: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Where callers may come from.
pub struct Entrances {
    pub socket: ApiSocket,
    /// For callers that may only read.
    pub read_only: Option<ApiSocket>,
    pub tls: Option<TlsConfig>,
}

/// The running API. Dropped without `stop` it is cut off.
pub struct ApiServer {
    service: Service,
    health: Arc<StaticChecker>,
    drain: Duration,
    stopping: watch::Sender<bool>,
    accepting: Vec<JoinHandle<JoinSet<()>>>,
    _files: Vec<SocketFile>,
}

impl ApiServer {
    /// Answers callers from here on. Needs a tokio runtime.
    pub async fn start(
        entrances: Entrances,
        manager: Manager,
        sources: Sources,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let (stopping, stop) = watch::channel(false);
        let allowed = sources.reloader.allowed();
        let service = Service::new(manager, sources);
        let (rpc, health) = rpc(service.clone(), &bounds, stop.clone())?;
        let drain = bounds.drain;
        let requests =
            Requests { full: Rooms::new(bounds.requests), read_only: Rooms::new(bounds.read_only_requests) };
        let (mut listeners, mut files) = (Vec::new(), Vec::new());
        let sockets = [(Some(entrances.socket), Access::Full), (entrances.read_only, Access::ReadOnly)];
        for (socket, access) in sockets {
            let Some(ApiSocket { listener, file }) = socket else { continue };
            listeners.push(Listener::Unix { listener: UnixListener::from_std(listener)?, access });
            files.push(file);
        }
        if let Some(config) = entrances.tls {
            listeners.extend(over_tcp(config, &allowed).await);
        }
        let accept = |listener| {
            let (rpc, requests, bounds, stop) = (rpc.clone(), requests.clone(), bounds.clone(), stop.clone());
            let connections = Connections::new(bounds.connections, bounds.deadline);
            tokio::spawn(Acceptor { rpc, connections, requests, bounds, stop }.run(listener))
        };
        let accepting = listeners.into_iter().map(accept).collect();
        Ok(Self { service, health, drain, stopping, accepting, _files: files })
    }

    /// Takes no more requests, lets those in flight finish within the bound, and removes the socket. Changes that have begun
    /// are waited for beyond their callers' connections.
    pub async fn stop(mut self) {
        self.health.shutdown();
        self.stopping.send_replace(true);
        let mut connections = Vec::new();
        for accepting in &mut self.accepting {
            connections.extend(accepting.await.ok());
        }
        let drained = async {
            for connections in &mut connections {
                while connections.join_next().await.is_some() {}
            }
        };
        if tokio::time::timeout(self.drain, drained).await.is_err() {
            let open: usize = connections.iter().map(JoinSet::len).sum();
            tracing::warn!(open, "API connections cut off at the stop");
            for connections in &mut connections {
                connections.shutdown().await;
            }
        }
        if tokio::time::timeout(self.drain, self.service.settled()).await.is_err() {
            tracing::warn!("a change was still under way at the stop");
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

/// The listener over TCP; none, with the reason said, where its certificates or its address do not fit: whoever calls over
/// the socket is not kept waiting for that.
async fn over_tcp(config: TlsConfig, allowed: &Arc<ArcSwap<SpiffeIds>>) -> Option<Listener> {
    let address = config.listen;
    let tls = match Tls::open(config) {
        Ok(tls) => Arc::new(tls),
        Err(error) => {
            tracing::error!(%error, "the API is not served over TCP");
            return None;
        }
    };
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tracing::info!(%address, "the API is served over TCP with mutual TLS");
            Some(Listener::Tcp { listener, tls, allowed: allowed.clone() })
        }
        Err(error) => {
            tracing::error!(%address, %error, "the API is not served over TCP");
            None
        }
    }
}

/// Ours, gRPC health and reflection, on one set of bounds.
fn rpc(
    service: Service,
    bounds: &Bounds,
    stop: watch::Receiver<bool>,
) -> io::Result<(ConnectRpcService, Arc<StaticChecker>)> {
    let limits = Limits::default()
        .with_max_request_body_size(bounds.request_bytes)
        .with_max_message_size(bounds.request_bytes);
    let deadline = DeadlinePolicy::new().with_default_timeout(bounds.deadline).with_max(bounds.deadline);
    let reflector = Reflector::from_descriptor_set_bytes(DESCRIPTORS).map_err(io::Error::other)?;
    let router = Router::new().add_service(Arc::new(service));
    // A service that answers serves, until it stops.
    let (router, health) = connectrpc_health::install_static(router, [GUEST_NETWORK_SERVICE_SERVICE_NAME]);
    let router = connectrpc_reflection::install(router, reflector);
    let rpc = ConnectRpcService::new(router)
        .with_limits(limits)
        .with_deadline_policy(deadline)
        .with_interceptor(Traced)
        .with_interceptor(Gate)
        .with_interceptor(Streams::new(stop))
        // On one machine copying is cheaper than packing.
        .with_compression_policy(CompressionPolicy::disabled());
    Ok((rpc, health))
}

/// For a caller whose request has found no room by its deadline.
fn no_room() -> ConnectError {
    let words = "guestnet answers as many requests as it may: there was no room for this one by its deadline, and it was not begun";
    refusal(ErrorCode::DeadlineExceeded, "NO_ROOM", words)
}

/// Room for requests, by what their callers may do.
#[derive(Clone)]
struct Requests {
    full: Rooms,
    read_only: Rooms,
}

impl Requests {
    fn of(&self, access: Access) -> &Rooms {
        if access == Access::Full { &self.full } else { &self.read_only }
    }
}

#[derive(Clone)]
struct Acceptor {
    rpc: ConnectRpcService,
    connections: Connections,
    requests: Requests,
    bounds: Bounds,
    stop: watch::Receiver<bool>,
}

impl Acceptor {
    /// Accepts until the stop; the connections then still open.
    async fn run(self, listener: Listener) -> JoinSet<()> {
        let mut open = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            while open.try_join_next().is_some() {}
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return open,
                (arrival, place) = self.next(&listener) => {
                    open.spawn(self.clone().serve(arrival, place));
                }
            }
        }
    }

    /// A place is made when somebody is there who needs it: one made ready before would cost a caller its connection for nobody.
    async fn next(&self, listener: &Listener) -> (Arrival, Place) {
        loop {
            match listener.accept().await {
                Ok(arrival) => return (arrival, self.connections.place().await),
                Err(error) => {
                    // Out of file descriptors, most likely: accept(2) would fail at once again.
                    tracing::warn!(%error, "the API could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self, arrival: Arrival, mut place: Place) {
        let Self { rpc, requests, bounds, mut stop, .. } = self;
        let met = tokio::select! {
            met = arrival.meet() => met,
            () = place.evicted() => return,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, connected) = match met {
            Ok(met) => met,
            Err(error) => return tracing::debug!(%error, "an API caller did not say who it is"),
        };
        let in_flight = place.requests();
        let waiting = requests.of(connected.caller().access).waiting();
        let mut stalled = std::pin::pin!(place.stalled(waiting));
        let rpc = TowerToHyperService::new(rpc);
        let answer = service_fn(move |mut request: hyper::Request<Incoming>| {
            let (rpc, in_flight, caller) = (rpc.clone(), in_flight(), connected.caller());
            let rooms = requests.of(caller.access).clone();
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(in_flight.reader());
            async move {
                let (begun, asked) = (Instant::now(), patience(request.headers()));
                let most = asked.map_or(bounds.deadline, |asked| asked.min(bounds.deadline));
                let Some(room) = rooms.room(most).await else {
                    let answer = no_room().into_http_response(request.headers());
                    return Ok(answer.map(|body| Held::new(body, in_flight, None)));
                };
                let waited = begun.elapsed();
                if let Some(asked) = asked.filter(|_| waited >= Duration::from_millis(1)) {
                    go_on_with(request.headers_mut(), asked.saturating_sub(waited));
                }
                let room = Room::new(room);
                request.extensions_mut().insert(room.clone());
                let answer = rpc.call(request).await;
                answer.map(|answer| answer.map(|body| Held::new(body, in_flight, Some(room))))
            }
        });

        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head).max_buf_size(64 << 10);
        http.http2().timer(TokioTimer::new()).max_concurrent_streams(bounds.requests_per_connection);
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        let mut connection = std::pin::pin!(connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                done = connection.as_mut() => {
                    if let Err(error) = done {
                        tracing::debug!(error, "an API connection ended in an error");
                    }
                    return;
                }
                () = place.evicted() => return,
                () = stalled.as_mut() => {
                    return tracing::debug!("an API caller does not read its answer: its connection is closed");
                }
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    // hyper would wait for the rest of a first request's head.
                    if !place.is_used() {
                        return;
                    }
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

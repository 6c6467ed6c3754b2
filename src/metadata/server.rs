//! The service's socket: TCP on the gateway, HTTP/1.1. Every connection, request, head and second is counted against a bound.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, info, trace};

use super::answer::{Answer, Question, answer};
use super::limits::{Limits, Place};
use super::token::Tokens;
use crate::manager::Manager;
use crate::model::{Metadata, Network};
use crate::registry::{Binding, Registry};

/// Of all guests of a network at a time.
const CONNECTIONS: usize = 512;
/// A head has to come within this, on an idle connection too.
const HEAD: Duration = Duration::from_secs(10);
/// A connection is closed after this, whatever it is at: who does not take its answer holds nothing for long.
const LIFE: Duration = Duration::from_secs(60);
/// Of a head; hyper's least.
const HEAD_BYTES: usize = 8 * 1024;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error(
        "cannot serve metadata on {address}: {source}; stop what listens there (see `ss -ltnp`), or leave metadata out of the \
         network's configuration"
    )]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the kernel gives no random numbers for the metadata service's tokens")]
    Random,
}

/// A network's metadata service, answering until stopped or dropped.
pub struct MetadataServer {
    tasks: JoinSet<()>,
}

struct Service {
    network: Arc<Network>,
    hop_limit: u8,
    registry: Registry,
    manager: Manager,
    tokens: Tokens,
    limits: Limits,
    started: Instant,
}

impl MetadataServer {
    /// Answers the guests of `network` at its gateway, which must be on an interface.
    pub async fn start(
        network: Arc<Network>,
        Metadata { hop_limit }: Metadata,
        registry: Registry,
        manager: Manager,
    ) -> Result<Self, MetadataError> {
        let address = SocketAddr::new(IpAddr::V4(network.gateway), Metadata::PORT);
        let listener =
            TcpListener::bind(address).await.map_err(|source| MetadataError::Bind { address, source })?;
        let tokens = Tokens::new().map_err(|_| MetadataError::Random)?;
        info!(network = %network.name, "metadata is served");
        let (limits, started) = (Limits::default(), Instant::now());
        let service = Service { network, hop_limit, registry, manager, tokens, limits, started };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::new(service)));
        Ok(Self { tasks })
    }

    /// Returns when the socket is closed. Requests in flight are not answered.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: they come back as connections end.
                debug!(%error, "metadata accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let IpAddr::V4(from) = from.ip() else { continue };
        // Whoever is no guest of this network is told nothing, not even that.
        if connections.len() >= CONNECTIONS || service.guest(from).is_none() {
            continue;
        }
        if let Some(place) = service.limits.connection(from, Instant::now()) {
            connections.spawn(serve(stream, from, place, service.clone()));
        }
    }
}

async fn serve(stream: TcpStream, from: Ipv4Addr, place: Place, service: Arc<Service>) {
    // An answer that is routed on, out of a container in the guest or a tunnel of it, dies on the way.
    if let Err(error) = socket2::SockRef::from(&stream).set_ttl_v4(service.hop_limit.into()) {
        debug!(%error, "no hop limit, no answer");
        return;
    }
    let place = &place;
    let service = &service;
    let respond = service_fn(|request: Request<Incoming>| async move {
        let answer = if place.request(Instant::now()) {
            service.answer(from, &request)
        } else {
            Answer::refused(StatusCode::SERVICE_UNAVAILABLE, "too many requests: slow down")
        };
        Ok::<_, Infallible>(response(answer))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    if let Ok(Err(error)) = tokio::time::timeout(LIFE, connection).await {
        trace!(%error, "metadata connection");
    }
}

impl Service {
    fn guest(&self, address: Ipv4Addr) -> Option<Arc<Binding>> {
        let vm_id = self.registry.by_address(&self.network.name, address)?.vm_id.clone()?;
        self.registry.by_vm(&vm_id)
    }

    /// The guest is looked up for every request: a VM that was deleted is answered nothing on a connection that stayed.
    fn answer(&self, from: Ipv4Addr, request: &Request<Incoming>) -> Answer {
        let Some(guest) = self.guest(from) else {
            return Answer::refused(StatusCode::NOT_FOUND, "no guest has this address");
        };
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let question = Question {
            method: request.method(),
            path: request.uri().path(),
            token: header(TOKEN),
            ttl: header(TOKEN_TTL),
            forwarded: request.headers().contains_key(FORWARDED_FOR),
        };
        let user_data = match self.manager.user_data(&guest.vm.vm_id) {
            Ok(user_data) => user_data,
            Err(error) => {
                debug!(%error, "user-data cannot be read");
                return Answer::refused(StatusCode::INTERNAL_SERVER_ERROR, "the state cannot be read");
            }
        };
        answer(&question, &guest, user_data.as_deref(), &self.tokens, self.started.elapsed().as_secs())
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Some(ttl) = answer.ttl {
        headers.insert(TOKEN_TTL, HeaderValue::from(ttl));
    }
    response
}

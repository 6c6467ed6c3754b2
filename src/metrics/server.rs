//! GET /metrics, and nothing else, for a handful of readers at a time. Whoever connects and asks for nothing makes room for others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::render::{Format, Source};
use crate::api::{ApiSocket, SocketError, SocketFile};
use crate::config::MetricsConfig;

/// Connections at a time: the oldest that has not asked for anything makes room for a further one.
const CONNECTIONS: usize = 64;
/// Pages made at a time; further readers wait.
const PAGES: usize = 8;
/// For a reader to ask and to be answered.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics: {0}")]
    Socket(#[from] SocketError),
    #[error("metrics on {address}: {source}; is the port taken? set another listen under [metrics]")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("metrics: {0}")]
    Io(#[from] io::Error),
}

/// The running server. Dropped, it stops.
#[derive(Debug)]
pub struct MetricsServer {
    _accepting: JoinSet<()>,
    _file: Option<SocketFile>,
}

impl MetricsServer {
    /// Answers from here on. Needs a tokio runtime.
    pub async fn start(config: &MetricsConfig, source: Source) -> Result<Self, MetricsError> {
        let mut accepting = JoinSet::new();
        let pages = Arc::new(Semaphore::new(PAGES));
        let mut file = None;
        if let Some(path) = &config.socket {
            // Readable for all who may enter its directory: metrics are no secret, and nothing can be changed here.
            let (listener, socket_file) = ApiSocket::bind_for_all(path)?.into_parts();
            file = Some(socket_file);
            let listener = UnixListener::from_std(listener)?;
            let (source, pages) = (source.clone(), pages.clone());
            accepting.spawn(async move {
                let mut open = Open::default();
                loop {
                    open.room().await;
                    match listener.accept().await {
                        Ok((stream, _)) => open.serve(stream, source.clone(), pages.clone()),
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        if let Some(address) = config.listen {
            let listener =
                TcpListener::bind(address).await.map_err(|source| MetricsError::Bind { address, source })?;
            accepting.spawn(async move {
                let mut open = Open::default();
                loop {
                    open.room().await;
                    match listener.accept().await {
                        Ok((stream, _)) => open.serve(stream, source.clone(), pages.clone()),
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        Ok(Self { _accepting: accepting, _file: file })
    }
}

/// Out of file descriptors, most likely: accept(2) would fail at once again.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "the metrics server could not accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The connections of one listener, the oldest first; with each whether it has asked.
#[derive(Default)]
struct Open(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Open {
    /// Waits until there is room for one more.
    async fn room(&mut self) {
        loop {
            self.0.retain(|(connection, _)| !connection.is_finished());
            if self.0.len() < CONNECTIONS {
                return;
            }
            let idle = self.0.iter().position(|(_, asked)| !asked.load(Ordering::Relaxed));
            match idle.and_then(|at| self.0.remove(at)) {
                Some((connection, _)) => connection.abort(),
                // All are being answered, which is soon over.
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn serve(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        source: Source,
        pages: Arc<Semaphore>,
    ) {
        let asked = Arc::new(AtomicBool::new(false));
        let has_asked = asked.clone();
        let connection = tokio::spawn(async move {
            let answer = service_fn(move |request| {
                has_asked.store(true, Ordering::Relaxed);
                answer(source.clone(), pages.clone(), request)
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            http.max_buf_size(16 << 10).keep_alive(false);
            let connection = http.serve_connection(TokioIo::new(stream), answer);
            match tokio::time::timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a reader of metrics went away"),
                Err(_) => tracing::debug!("a reader of metrics was too slow"),
            }
        });
        self.0.push_back((connection.abort_handle(), asked));
    }
}

async fn answer(
    source: Source,
    pages: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<String>, Infallible> {
    let plain = |status: StatusCode, body: &str| {
        let mut response = Response::new(body.to_owned());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n"));
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    let made = {
        // The semaphore is never closed.
        let _permit = pages.acquire().await;
        source.page(format).await
    };
    let Ok(page) = made else {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"));
    };
    let mut response = Response::new(page);
    let content_type = header::HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

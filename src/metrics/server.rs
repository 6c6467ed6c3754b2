//! GET /metrics, and nothing else, for a handful of readers at a time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::render::{Format, Source};
use crate::api::{ApiSocket, SocketError, SocketFile};
use crate::config::MetricsConfig;

/// Readers at a time; further ones wait.
const READERS: usize = 8;
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
        let readers = Arc::new(Semaphore::new(READERS));
        let mut file = None;
        if let Some(path) = &config.socket {
            // Readable for all who may enter its directory: metrics are no secret, and nothing can be changed here.
            let (listener, socket_file) = ApiSocket::bind_for_all(path)?.into_parts();
            file = Some(socket_file);
            let listener = UnixListener::from_std(listener)?;
            let (source, readers) = (source.clone(), readers.clone());
            accepting.spawn(async move {
                loop {
                    let permit = permit(&readers).await;
                    match listener.accept().await {
                        Ok((stream, _)) => serve(stream, source.clone(), permit),
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        if let Some(address) = config.listen {
            let listener =
                TcpListener::bind(address).await.map_err(|source| MetricsError::Bind { address, source })?;
            accepting.spawn(async move {
                loop {
                    let permit = permit(&readers).await;
                    match listener.accept().await {
                        Ok((stream, _)) => serve(stream, source.clone(), permit),
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        Ok(Self { _accepting: accepting, _file: file })
    }
}

/// None only if the semaphore were closed, which nobody does.
async fn permit(readers: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    readers.clone().acquire_owned().await.ok()
}

/// Out of file descriptors, most likely: accept(2) would fail at once again.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "the metrics server could not accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    source: Source,
    permit: Option<OwnedSemaphorePermit>,
) {
    tokio::spawn(async move {
        let _permit = permit;
        let answer = service_fn(move |request| answer(source.clone(), request));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10).keep_alive(false);
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        match tokio::time::timeout(PATIENCE, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a reader of metrics went away"),
            Err(_) => tracing::debug!("a reader of metrics was too slow"),
        }
    });
}

async fn answer(source: Source, request: Request<Incoming>) -> Result<Response<String>, Infallible> {
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
    let Ok(page) = source.page(format).await else {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"));
    };
    let mut response = Response::new(page);
    let content_type = header::HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

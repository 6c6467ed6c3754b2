//! One POST to the collector on this host, over loopback or a unix socket. In: a path and protobuf. Out: whether it was taken.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Collector;

/// For the collector to take one batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Clones share what is known of the collector.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    collector: Arc<Collector>,
    /// Whether the last batch was lost, which is said once.
    lost: Arc<AtomicBool>,
}

impl Sender {
    pub(super) fn new(collector: Collector) -> Self {
        Self { collector: Arc::new(collector), lost: Arc::default() }
    }

    /// A batch that is not taken is lost: what is kept for a collector that is gone would grow.
    pub(super) async fn send(&self, path: &'static str, body: Vec<u8>) -> Result<(), String> {
        let sent = match tokio::time::timeout(PATIENCE, self.post(path, body)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {PATIENCE:?}")),
        };
        let lost_before = self.lost.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !lost_before => {
                tracing::warn!(collector = %self.collector, %error, "the collector takes no traces and metrics: they are lost");
            }
            Ok(()) if lost_before => {
                tracing::info!(collector = %self.collector, "the collector takes traces and metrics again")
            }
            _ => {}
        }
        sent
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> io::Result<()> {
        match &*self.collector {
            Collector::Tcp(address) => {
                post(TcpStream::connect(address).await?, &address.to_string(), path, body).await
            }
            Collector::Unix(socket) => {
                post(UnixStream::connect(socket).await?, "localhost", path, body).await
            }
        }
    }
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
    body: Vec<u8>,
) -> io::Result<()> {
    let (mut caller, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(header::USER_AGENT, concat!("guestnet/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    // Nothing is read of the answer but its status: dropped, it ends the connection.
    let answer = async move { caller.send_request(request).await.map(|answer| answer.status()) };
    let (status, _) = tokio::join!(answer, connection);
    let status = status.map_err(io::Error::other)?;
    if status.is_success() { Ok(()) } else { Err(io::Error::other(format!("it answered {status}"))) }
}

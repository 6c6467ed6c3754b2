//! Questions by TLS and HTTPS, with hickory's streams over rustls. In: a question. Out: what the upstream said, on a
//! connection that stays and is made anew when it breaks. A certificate that does not fit is no answer: never plain text
//! instead.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hickory_net::DnsHandle;
use hickory_net::h2::HttpsClientStream;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tls::tls_exchange;
use hickory_net::xfer::DnsExchange;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{BUDGET, wire};
use crate::dns::answer::{self, Question, Verdict};
use crate::model::{Upstream as Server, UpstreamTransport};

/// Questions under way on one connection (hickory's own limit is 32).
const IN_FLIGHT: usize = 4_096;
/// For the TCP and TLS handshakes; what is left of a question's budget is for another upstream.
const CONNECT: Duration = Duration::from_secs(2);
/// A question without an answer for so long, and none to any other meanwhile: the connection may lead nowhere (a NAT or a
/// server that has forgotten it), which TCP itself notices after a quarter of an hour.
const DEAF: Duration = Duration::from_millis(900);
/// After a failed handshake, questions fail at once for so long.
const HOLD_OFF: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    #[error("upstream_ca {}: {detail}", path.display())]
    Authority { path: PathBuf, detail: String },
    #[error("DNS over TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Trust {
    /// None where no upstream needs it.
    config: Option<Arc<ClientConfig>>,
    /// Of authorities besides the host's own.
    extra: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// The host's authorities, and those of `extra`, read only when an upstream needs them.
    pub(in crate::dns) fn new(servers: &[&Server], extra: Option<&Path>) -> Result<Self, SecureError> {
        if servers.iter().all(|server| server.transport == UpstreamTransport::Plain) {
            return Ok(Self { config: None, extra: vec![] });
        }
        let mut added = Vec::new();
        let mut roots = rustls::RootCertStore::empty();
        // Authorities that cannot be read are left out; a certificate that needs one is not believed.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = extra {
            let refused = |detail: String| SecureError::Authority { path: path.to_owned(), detail };
            let text = crate::dns::file::read(path).map_err(|error| refused(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| refused(error.to_string()))?;
                roots.add(certificate.clone()).map_err(|error| refused(error.to_string()))?;
                added.push(certificate);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Some(Arc::new(config)), extra: added })
    }

    /// Whether the same authorities are believed.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.extra == other.extra
    }
}

/// A TLS or HTTPS upstream.
pub(super) struct Channel {
    address: SocketAddr,
    transport: UpstreamTransport,
    config: Arc<ClientConfig>,
    /// Ends the connections' tasks when it is dropped.
    provider: TokioRuntimeProvider,
    connection: Mutex<Connection>,
    /// Answers so far.
    heard: AtomicU64,
    /// The open connection is not to be used again.
    deaf: AtomicBool,
}

/// A question that waits for its answer. However it stops waiting, it tells whether the connection still gives answers.
struct Waiting<'a> {
    channel: &'a Channel,
    since: Instant,
    heard: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= DEAF && self.channel.heard.load(Relaxed) == self.heard {
            self.channel.deaf.store(true, Relaxed);
        }
    }
}

#[derive(Default)]
struct Connection {
    open: Option<DnsExchange<TokioRuntimeProvider>>,
    failed: Option<(Instant, String)>,
}

impl Channel {
    pub(super) fn new(server: &Server, trust: &Trust) -> Option<Self> {
        let config = trust.config.clone().filter(|_| server.transport != UpstreamTransport::Plain)?;
        let (address, transport) = (server.address, server.transport.clone());
        let provider = TokioRuntimeProvider::new();
        let (heard, deaf) = (AtomicU64::new(0), AtomicBool::new(false));
        Some(Self { address, transport, config, provider, connection: Mutex::default(), heard, deaf })
    }

    pub(super) async fn ask(&self, question: &Question, edns: bool) -> io::Result<Verdict> {
        // A connection that has been idle may have been closed by the other side: then once more on a new one.
        for attempt in 0..2 {
            let (exchange, fresh) = self.exchange().await?;
            let message =
                Message::from_vec(&wire::query(question, rand::random(), edns)).map_err(io::Error::other)?;
            let _waiting = Waiting { channel: self, since: Instant::now(), heard: self.heard.load(Relaxed) };
            let mut responses = exchange.send(DnsRequest::new(message, DnsRequestOptions::default()));
            let response = match responses.next().await {
                Some(Ok(response)) => {
                    self.heard.fetch_add(1, Relaxed);
                    response.into_buffer()
                }
                failed => {
                    self.connection.lock().await.open = None;
                    if fresh || attempt > 0 {
                        let why =
                            failed.and_then(Result::err).map_or_else(|| "closed".into(), |e| e.to_string());
                        return Err(io::Error::other(why));
                    }
                    continue;
                }
            };
            // Whose answer it is, the stream has made sure; the id is its own.
            let id = response.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            return Ok(answer::read(&response, id, question));
        }
        Err(io::Error::other("the connection to it was closed twice"))
    }

    /// The open connection, or a new one; and whether it is new.
    async fn exchange(&self) -> io::Result<(DnsExchange<TokioRuntimeProvider>, bool)> {
        let mut connection = self.connection.lock().await;
        if self.deaf.swap(false, Relaxed) {
            connection.open = None;
        }
        if let Some(open) = &connection.open {
            return Ok((open.clone(), false));
        }
        if let Some((at, why)) = &connection.failed
            && at.elapsed() < HOLD_OFF
        {
            return Err(io::Error::other(why.clone()));
        }
        let made = match timeout(CONNECT, self.connect()).await {
            Ok(made) => made,
            Err(_) => Err("the TLS handshake took too long".into()),
        };
        match made {
            Ok(open) => {
                connection.open = Some(open.clone());
                connection.failed = None;
                Ok((open, true))
            }
            Err(why) => {
                connection.failed = Some((Instant::now(), why.clone()));
                Err(io::Error::other(why))
            }
        }
    }

    async fn connect(&self) -> Result<DnsExchange<TokioRuntimeProvider>, String> {
        let provider = self.provider.clone();
        let made = match &self.transport {
            UpstreamTransport::Https { name, path } => {
                let builder = HttpsClientStream::builder(self.config.clone(), provider);
                builder.exchange(self.address, name.as_str().into(), path.as_str().into()).await
            }
            UpstreamTransport::Tls { name } => {
                let name = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
                let config = ClientConfig::clone(&self.config);
                tls_exchange(self.address, name, config, BUDGET, Some(IN_FLIGHT), provider).await
            }
            UpstreamTransport::Plain => return Err("it is not asked by TLS".into()),
        };
        made.map_err(|error| error.to_string())
    }
}

//! The API over TCP: mutual TLS, and a caller known by the SPIFFE id of its certificate. In: files, read again when they
//! change. Out: what a connection is accepted with. A change that does not fit leaves what was read before in force.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tracing::{info, warn};
use webpki::EndEntityCert;

use crate::config::TlsConfig;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("the certificate, its key and the clients' CA do not go together: {0}")]
    Mismatch(String),
}

/// The three files as they were last read.
pub(super) struct Tls {
    config: TlsConfig,
    read: Mutex<(Stamp, TlsAcceptor)>,
}

/// What tells a changed file: each one's time and length.
type Stamp = [Option<(SystemTime, u64)>; 3];

impl Tls {
    pub(super) fn open(config: TlsConfig) -> Result<Self, TlsError> {
        let stamp = stamp(&config);
        let acceptor = load(&config)?;
        Ok(Self { config, read: Mutex::new((stamp, acceptor)) })
    }

    /// For the next connection: of the files as they are now, or as they last fitted.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.config);
        if read.0 != now {
            read.0 = now;
            match load(&self.config) {
                Ok(acceptor) => {
                    read.1 = acceptor;
                    info!("the API's certificates have changed and are in use");
                }
                Err(error) => {
                    warn!(%error, "the API's changed certificates do not fit: the old ones stay in use")
                }
            }
        }
        read.1.clone()
    }
}

/// Who is at the other end; nobody's id for one whose certificate has none. `certificates` have been verified.
pub(super) fn spiffe_id_of(certificates: Option<&[CertificateDer<'_>]>) -> String {
    certificates.and_then(<[_]>::first).and_then(spiffe_id).unwrap_or_default()
}

/// The one URI name of a SPIFFE certificate (X509-SVID section 2).
fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_uri_names();
    let id = names.next().filter(|name| name.starts_with("spiffe://"))?.to_owned();
    names.next().is_none().then_some(id)
}

fn stamp(config: &TlsConfig) -> Stamp {
    [&config.certificate, &config.key, &config.client_ca].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn load(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(&config.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| problem(&config.key, error))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.client_ca)? {
        roots.add(certificate).map_err(|error| problem(&config.client_ca, error))?;
    }
    let mismatch = |error: &dyn std::fmt::Display| TlsError::Mismatch(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| mismatch(&error))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| mismatch(&error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| mismatch(&error))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(problem(path, "no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(problem(path, error)),
    }
}

fn problem(path: &Path, problem: impl ToString) -> TlsError {
    TlsError::File { path: path.to_owned(), problem: problem.to_string() }
}

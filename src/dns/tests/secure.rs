//! Upstreams by TLS and HTTPS that hold answers back. Real servers, with certificates that fit and that do not, are in
//! `tests/it/dns/upstreams.rs`.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;

use super::*;

const HOST: &str = "dns.lab.example";
/// More than hickory's own limit of 32 for one connection.
const AT_ONCE: usize = 100;

/// A certificate for `HOST`, and the authority's, which is to be believed.
fn certificates(protocol: Option<&[u8]>) -> (ServerConfig, String) {
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![HOST.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
    (config, authority.pem())
}

/// The answer to a question, once as many are waiting. A check is answered at once.
async fn answer_to(bytes: &[u8], all: &Barrier) -> Vec<u8> {
    let asked = Asked {
        nth: 0,
        message: Message::from_vec(bytes).unwrap(),
        from: "127.0.0.1:0".parse().unwrap(),
        tcp: true,
    };
    if !Asked::is_check(&asked.message) {
        all.wait().await;
    }
    asked.a(300)
}

/// DNS over TLS (RFC 7858): messages with their length before them, answered in any order.
async fn serve_tls(stream: tokio_rustls::server::TlsStream<TcpStream>, all: Arc<Barrier>) {
    let (mut reader, writer) = tokio::io::split(stream);
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let mut answers = JoinSet::new();
    while let Ok(length) = reader.read_u16().await {
        let mut message = vec![0; length.into()];
        reader.read_exact(&mut message).await.unwrap();
        let (writer, all) = (writer.clone(), all.clone());
        answers.spawn(async move {
            let answer = answer_to(&message, &all).await;
            let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
            writer.lock().await.write_all(&framed).await.ok();
        });
    }
}

/// DNS over HTTPS (RFC 8484) by POST.
async fn serve_https(stream: tokio_rustls::server::TlsStream<TcpStream>, all: Arc<Barrier>) {
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let all = all.clone();
        async move {
            let query = request.into_body().collect().await.unwrap().to_bytes();
            let answer = answer_to(&query, &all).await;
            let response = http::Response::builder().header("content-type", "application/dns-message");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer))).unwrap())
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(stream), service).await.ok();
}

/// The upstream's server gives no answer before so many questions wait for theirs.
#[tokio::test]
async fn far_more_questions_than_32_are_under_way_on_one_connection() {
    for (scheme, path, protocol) in [("tls", "", None), ("https", "/dns-query", Some(&b"h2"[..]))] {
        let (config, authority) = certificates(protocol);
        let (acceptor, all) = (TlsAcceptor::from(Arc::new(config)), Arc::new(Barrier::new(AT_ONCE)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("{scheme}://{}{path}#{HOST}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, all) = (acceptor.clone(), all.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    if protocol.is_some() {
                        serve_https(stream, all).await
                    } else {
                        serve_tls(stream, all).await
                    }
                });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let upstream_ca = directory.path().join("ca.pem");
        std::fs::write(&upstream_ca, authority).unwrap();
        let settings = ResolverSettings { upstream_ca: Some(upstream_ca), ..Default::default() };
        let network = Arc::new(Network { resolver: settings, ..Network::clone(&network("default")) });
        let mut endpoints = endpoints(&[]);
        endpoints.upstreams = vec![upstream.parse().unwrap()];
        let server = start_with(network, Registry::default(), &endpoints);
        let owners: Vec<_> = (0..AT_ONCE).map(|n| format!("n{n}.example.com.")).collect();
        let answers = join_all(owners.iter().map(|owner| lookup(&server, owner))).await;
        assert!(answers.iter().all(|answer| addresses(answer) == [ANSWER]), "{upstream}");
        assert_eq!(connections.load(Ordering::SeqCst), 1, "{upstream}");
    }
}

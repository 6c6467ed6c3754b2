//! Where callers come from: a unix socket, whose peers the kernel names, or TCP with mutual TLS. In: connections. Out: a
//! stream of bytes and who is at its other end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::caller::{Access, Caller, Connected, Peer};
use super::tls::{Tls, spiffe_id_of};
use crate::config::SpiffeIds;

/// For a caller to finish its part of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(super) enum Listener {
    Unix { listener: UnixListener, access: Access },
    Tcp { listener: TcpListener, tls: Arc<Tls>, allowed: Arc<ArcSwap<SpiffeIds>> },
}

/// A connection that has come, and is still a stranger over TCP.
pub(super) enum Arrival {
    Unix(UnixStream, Access),
    Tcp(TcpStream, Arc<Tls>, Arc<ArcSwap<SpiffeIds>>),
}

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Arrival> {
        match self {
            Self::Unix { listener, access } => Ok(Arrival::Unix(listener.accept().await?.0, *access)),
            Self::Tcp { listener, tls, allowed } => {
                let (stream, _) = listener.accept().await?;
                Ok(Arrival::Tcp(stream, tls.clone(), allowed.clone()))
            }
        }
    }
}

/// A caller that is silent for a minute is asked whether it is there.
fn keepalive() -> TcpKeepalive {
    let (silence, again) = (Duration::from_secs(60), Duration::from_secs(10));
    TcpKeepalive::new().with_time(silence).with_interval(again).with_retries(3)
}

impl Arrival {
    /// Finds out who it is.
    pub(super) async fn meet(self) -> io::Result<(Box<dyn Stream>, Connected)> {
        match self {
            Self::Unix(stream, access) => {
                let credentials = stream.peer_cred()?;
                let pid = credentials.pid().unwrap_or_default();
                let peer = Peer::Process { pid, uid: credentials.uid(), gid: credentials.gid() };
                Ok((Box::new(stream), Connected::Socket(Caller { peer, access })))
            }
            Self::Tcp(stream, tls, allowed) => {
                stream.set_nodelay(true)?;
                // A host that has lost its power says no goodbye.
                SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
                let stream = tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(stream)).await??;
                let id = spiffe_id_of(stream.get_ref().1.peer_certificates());
                let connected = Connected::Certified { id, allowed };
                let caller = connected.caller();
                if caller.access == Access::None {
                    tracing::warn!(caller = %caller.peer, "a caller over TCP is in no list of SPIFFE ids: refused");
                }
                Ok((Box::new(stream), connected))
            }
        }
    }
}

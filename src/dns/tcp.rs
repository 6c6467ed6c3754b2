//! Guests by TCP. In: connections. Out: answers, pipelined and in whatever order they are done (RFC 7766 section 6.2.1.1);
//! nobody's idle or slow connections keep another out. On a thread of its own: whatever comes in here, what waits for upstreams
//! goes on beside it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, trace};

use super::counters::count;
use super::reply::Transport;
use super::resolve::{Resolver, Step};

const CONNECTIONS: usize = 4_096;
/// Of one guest; when more than half of all are taken, only a few, so that many guests together cannot have them all.
const PER_GUEST: (usize, usize) = (32, 4);
/// Queries of one connection that wait for upstreams at a time; further ones are read when one is done.
const PIPELINE: usize = 32;
/// Queries of one connection that are looked at before others have their turn.
const TURN: usize = 64;
/// A connection without a whole query for so long is closed (RFC 7766 section 6.2.3), and so is one that does not take
/// its answer.
const IDLE: Duration = Duration::from_secs(10);
/// What one read takes at most.
const READ: usize = 16 << 10;
/// Bytes of answers that have not been taken yet; with more, no further query of the connection is looked at. One answer goes
/// beyond it at most.
const UNSENT: usize = 16 << 10;

/// What has to wait does so on the runtime of `waits`.
pub(super) async fn serve(resolver: Arc<Resolver>, listener: TcpListener, waits: Handle) {
    let mut connections = JoinSet::new();
    let guests = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: they come back as connections end.
                debug!(%error, "TCP accept");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let most = if connections.len() < CONNECTIONS / 2 { PER_GUEST.0 } else { PER_GUEST.1 };
        let seat = if connections.len() < CONNECTIONS { Seat::take(&guests, from.ip(), most) } else { None };
        match seat {
            Some(seat) => {
                connections.spawn(connection(resolver.clone(), waits.clone(), stream, from, seat));
            }
            None => count(&resolver.counters.tcp_refused),
        }
    }
}

/// One of a guest's connections, given back when dropped.
struct Seat {
    guests: Arc<Mutex<HashMap<IpAddr, usize>>>,
    guest: IpAddr,
}

impl Seat {
    fn take(guests: &Arc<Mutex<HashMap<IpAddr, usize>>>, guest: IpAddr, most: usize) -> Option<Self> {
        let mut taken = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(guest).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { guests: guests.clone(), guest })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.guest) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.guest);
            }
        }
    }
}

async fn connection(
    resolver: Arc<Resolver>,
    waits: Handle,
    mut stream: TcpStream,
    from: SocketAddr,
    _seat: Seat,
) {
    // Answers are written whole: waiting for more to send would only delay them.
    let spoken = stream.set_nodelay(true);
    if let Err(error) = spoken.and(converse(&resolver, &waits, &mut stream, from).await) {
        trace!(%error, "TCP connection");
    }
}

async fn converse(
    resolver: &Arc<Resolver>,
    waits: &Handle,
    stream: &mut TcpStream,
    from: SocketAddr,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let (mut out, mut outgoing) = (Vec::new(), Vec::new());
    // Dropped with the connection, and so what waits for it.
    let mut waiting = JoinSet::new();
    let mut idle_at = Instant::now() + IDLE;
    let mut open = true;
    loop {
        let (mut taken, mut looked_at) = (0, 0);
        while waiting.len() < PIPELINE && outgoing.len() < UNSENT && looked_at < TURN {
            let Some(message) = first_message(&received[taken..]) else { break };
            taken += 2 + message.len();
            looked_at += 1;
            idle_at = Instant::now() + IDLE;
            match resolver.begin(message, from, Transport::Tcp, &mut out) {
                // Over TCP nobody forges the sender: who sends no query, or more than it may, is not worth a connection. What it
                // asked before is answered.
                Step::Silent => {
                    (open, taken) = (false, received.len());
                    break;
                }
                Step::Answered => frame(&out, &mut outgoing)?,
                Step::Wait(pending) => {
                    let resolver = resolver.clone();
                    let finished = async move {
                        let mut out = Vec::new();
                        resolver.finish(pending, &mut out).await.then_some(out)
                    };
                    waiting.spawn_on(finished, waits);
                }
            }
        }
        received.drain(..taken);
        let more = outgoing.len() >= UNSENT || looked_at == TURN;
        if !outgoing.is_empty() {
            // All answers of one turn, in one write if they are short.
            timeout(IDLE, writer.write_all(&outgoing)).await??;
            outgoing.clear();
            outgoing.shrink_to(UNSENT);
        }
        if more {
            yield_now().await;
            continue;
        }
        if !open && waiting.is_empty() {
            return Ok(());
        }
        let full = waiting.len() >= PIPELINE;
        if received.is_empty() {
            received.shrink_to(READ);
        }
        received.reserve(READ);
        tokio::select! {
            Some(finished) = waiting.join_next() => {
                // An error means that it panicked, which has been logged, or that the resolver is being stopped.
                if let Ok(Some(answer)) = finished {
                    frame(&answer, &mut outgoing)?;
                }
                idle_at = Instant::now() + IDLE;
            }
            read = timeout_at(idle_at, reader.read_buf(&mut received)), if open && !full => match read {
                Ok(Ok(0)) => open = false,
                Ok(read) => drop(read?),
                // What is being asked upstream is still answered.
                Err(_) => open = false,
            },
        }
    }
}

/// The first message, if all of it is there (RFC 1035 section 4.2.2).
fn first_message(received: &[u8]) -> Option<&[u8]> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

fn frame(message: &[u8], outgoing: &mut Vec<u8>) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    outgoing.extend_from_slice(&length.to_be_bytes());
    outgoing.extend_from_slice(message);
    Ok(())
}

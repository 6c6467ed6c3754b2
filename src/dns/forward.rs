//! Asking upstreams. In: a question. Out: a checked answer, or that nobody could say, within `BUDGET`. The best upstream is
//! asked first, the next as soon as the first is late or unable; both may still answer, the first answer wins. Each question
//! goes out from a socket of its own: random id and random port (RFC 5452 section 9.2).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{Edns, Message};
use hickory_proto::op::{Query as UpstreamQuery, ResponseCode};
use hickory_proto::rr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep_until, timeout_at};
use tracing::{debug, trace};

use super::answer::{self, Answer, Question, Verdict};
use super::reply::{Ede, UDP_PAYLOAD};

/// All the time a question has. A stub gives up at 5 s (resolv.conf(5)), and should hear from us before.
pub(super) const BUDGET: Duration = Duration::from_millis(3_500);
/// When the next upstream is asked too: at a few times what this one usually takes, within these.
const LATE: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(150));
/// When a datagram is sent again on the same socket, after the one before: lost packets are made good within the budget.
const RESEND: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(700), Duration::from_millis(1_400)];
/// Upstreams asked at once for one question, so sockets per question.
const ABREAST: usize = 3;
/// Datagrams on a question's socket that are no answer to it. After so many someone is guessing: go on by TCP.
const FOREIGN: usize = 16;
/// Unanswered questions in a row, and how long nothing has come, before an upstream counts as down. Names whose own
/// servers are dead stay unanswered too, but other names of a live upstream are answered in between.
const DOWN_AFTER: (u32, Duration) = (3, Duration::from_secs(1));
/// A down upstream is given its place back after this, to see whether it answers.
const DOWN_FOR: Duration = Duration::from_secs(3);

/// Nobody could say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No upstream answered in time.
    Silence,
    /// Each upstream that answered said it could not.
    Unable,
}

impl From<Failure> for Ede {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Silence => Self::NoReachableAuthority,
            Failure::Unable => Self::NetworkError,
        }
    }
}

/// An attempt at one upstream that brought no answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("it answers with rcode {0}")]
    Unable(u16),
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Vec<Upstream>,
    /// One permit per socket to an upstream.
    sockets: Semaphore,
    epoch: Instant,
}

/// An upstream and how it has been doing. Times are microseconds since the forwarder's epoch.
#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    /// Smoothed time to answer in microseconds; 0 before the first.
    srtt: AtomicU64,
    unanswered: AtomicU32,
    answered_at: AtomicU64,
    missed_at: AtomicU64,
}

impl Upstream {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            srtt: AtomicU64::new(0),
            unanswered: AtomicU32::new(0),
            answered_at: AtomicU64::new(0),
            missed_at: AtomicU64::new(0),
        }
    }

    fn answered(&self, took: Duration, now: u64) {
        let took = micros(took).max(1);
        let srtt = match self.srtt.load(Ordering::Relaxed) {
            0 => took,
            before => (before * 7 + took) / 8, // RFC 6298 section 2.3
        };
        self.srtt.store(srtt, Ordering::Relaxed);
        self.answered_at.store(now, Ordering::Relaxed);
        if self.unanswered.swap(0, Ordering::Relaxed) >= DOWN_AFTER.0 {
            debug!(upstream = %self.address, "upstream answers again");
        }
    }

    fn missed(&self, now: u64) {
        self.missed_at.store(now, Ordering::Relaxed);
        if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 == DOWN_AFTER.0 {
            debug!(upstream = %self.address, "upstream does not answer");
        }
    }

    fn is_down(&self, now: u64) -> bool {
        let since = |at: &AtomicU64| now.saturating_sub(at.load(Ordering::Relaxed));
        self.unanswered.load(Ordering::Relaxed) >= DOWN_AFTER.0
            && since(&self.answered_at) >= micros(DOWN_AFTER.1)
            && since(&self.missed_at) < micros(DOWN_FOR)
    }

    fn late(&self) -> Duration {
        match self.srtt.load(Ordering::Relaxed) {
            0 => LATE.1,
            srtt => Duration::from_micros(srtt.saturating_mul(3)).clamp(LATE.0, LATE.1),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Forwarder {
    /// `sockets`: how many may be open at once.
    pub(super) fn new(upstreams: &[SocketAddr], sockets: usize) -> Self {
        Self {
            upstreams: upstreams.iter().copied().map(Upstream::new).collect(),
            sockets: Semaphore::new(sockets),
            epoch: Instant::now(),
        }
    }

    /// Whether no upstream has been answering lately.
    pub(super) fn all_down(&self) -> bool {
        let now = self.now();
        self.upstreams.iter().all(|upstream| upstream.is_down(now))
    }

    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let deadline = tokio::time::Instant::now() + BUDGET;
        let order = self.ranked();
        let mut waiting = order.iter().copied();
        let mut running = FuturesUnordered::new();
        let mut started: Vec<(&Upstream, Instant)> = vec![];
        let mut failure = Failure::Silence;
        loop {
            let next_at = match waiting.next() {
                Some(upstream) => {
                    started.push((upstream, Instant::now()));
                    running.push(self.attempt(upstream, question));
                    if waiting.len() > 0 {
                        deadline.min(tokio::time::Instant::now() + upstream.late())
                    } else {
                        deadline
                    }
                }
                None => deadline,
            };
            match timeout_at(next_at, running.next()).await {
                Ok(Some((upstream, Ok(answer)))) => {
                    self.settle(&started, Some(upstream));
                    return Ok(answer);
                }
                Ok(Some((upstream, Err(trouble)))) => {
                    trace!(upstream = %upstream.address, %trouble, "no answer");
                    if matches!(trouble, Trouble::Unable(_)) {
                        failure = Failure::Unable;
                        self.settle_one(&mut started, upstream, true);
                    } else {
                        self.settle_one(&mut started, upstream, false);
                    }
                }
                Ok(None) => return Err(failure),
                // Late: on to the next upstream, unless there is no more time.
                Err(_) if next_at < deadline => {}
                Err(_) => {
                    self.settle(&started, None);
                    return Err(failure);
                }
            }
        }
    }

    /// The first few by health, then by how fast they answer, then as configured. One not yet tried counts as fastest.
    fn ranked(&self) -> Vec<&Upstream> {
        let now = self.now();
        let mut order: Vec<_> = self.upstreams.iter().collect();
        order.sort_by_key(|upstream| (upstream.is_down(now), upstream.srtt.load(Ordering::Relaxed)));
        order.truncate(ABREAST);
        order
    }

    /// Notes how the upstreams did that were still being asked when the question was settled.
    fn settle(&self, started: &[(&Upstream, Instant)], winner: Option<&Upstream>) {
        let now = self.now();
        for (upstream, at) in started {
            let took = at.elapsed();
            if winner.is_some_and(|winner| std::ptr::eq(winner, *upstream)) {
                upstream.answered(took, now);
            } else if took > upstream.late() {
                upstream.missed(now);
            }
        }
    }

    fn settle_one(&self, started: &mut Vec<(&Upstream, Instant)>, upstream: &Upstream, answered: bool) {
        let Some(at) = started.iter().position(|(other, _)| std::ptr::eq(*other, upstream)) else { return };
        let (upstream, since) = started.swap_remove(at);
        if answered { upstream.answered(since.elapsed(), self.now()) } else { upstream.missed(self.now()) }
    }

    async fn attempt<'a>(
        &self,
        upstream: &'a Upstream,
        question: &Question,
    ) -> (&'a Upstream, Result<Answer, Trouble>) {
        // Never closed, so the permit comes.
        let _socket = self.sockets.acquire().await;
        (upstream, exchange(upstream.address, question).await)
    }

    fn now(&self) -> u64 {
        micros(self.epoch.elapsed())
    }
}

/// One upstream, as long as it takes: by UDP, without EDNS if it knows none, by TCP if the answer is too long.
async fn exchange(upstream: SocketAddr, question: &Question) -> Result<Answer, Trouble> {
    let mut edns = true;
    loop {
        let verdict = match by_udp(upstream, question, edns).await? {
            Verdict::Truncated | Verdict::Foreign => by_tcp(upstream, question, edns).await?,
            verdict => verdict,
        };
        match verdict {
            Verdict::Answer(answer) => return Ok(answer),
            Verdict::NoEdns if edns => edns = false,
            Verdict::NoEdns => return Err(Trouble::Unable(ResponseCode::FormErr.low().into())),
            Verdict::Unable(rcode) => return Err(Trouble::Unable(rcode)),
            Verdict::Truncated | Verdict::Foreign => {
                return Err(io::Error::other("its answer by TCP was not to the question").into());
            }
        }
    }
}

/// `Verdict::Foreign` only after more of it than chance brings.
async fn by_udp(upstream: SocketAddr, question: &Question, edns: bool) -> Result<Verdict, Trouble> {
    let any: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel picks a random free port; connected, the socket takes datagrams from the upstream only, and learns of
    // a closed port at once.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    let (id, query) = outgoing(question, edns)?;
    let mut buffer = vec![0; 4096];
    let mut foreign = 0;
    let mut resends = RESEND.into_iter();
    socket.send(&query).await?;
    let mut resend_at = resends.next().map(after);
    loop {
        let received = match resend_at {
            Some(at) => tokio::select! {
                received = socket.recv(&mut buffer) => received,
                () = sleep_until(at) => {
                    socket.send(&query).await?;
                    resend_at = resends.next().map(after);
                    continue;
                }
            },
            None => socket.recv(&mut buffer).await,
        };
        match answer::read(&buffer[..received?], id, question) {
            Verdict::Foreign if foreign < FOREIGN => foreign += 1,
            verdict => return Ok(verdict),
        }
    }
}

fn after(pause: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + pause
}

async fn by_tcp(upstream: SocketAddr, question: &Question, edns: bool) -> Result<Verdict, Trouble> {
    let mut stream = TcpStream::connect(upstream).await?;
    let (id, query) = outgoing(question, edns)?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    // One write: some servers want the length and the message in one segment (RFC 7766 section 8).
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(answer::read(&message, id, question))
}

/// The question as we ask it, under a new random id.
fn outgoing(question: &Question, edns: bool) -> io::Result<(u16, Vec<u8>)> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    // AD in a query asks for AD in the answer (RFC 6840 section 5.7); who did not want it is not told (`answer`).
    message.metadata.authentic_data = true;
    let name = rr::Name::from_labels(question.name.labels()).map_err(io::Error::other)?;
    message.add_query(UpstreamQuery::query(name, question.qtype.into()));
    if edns {
        // Ours, none of the guest's options: ECS, cookies and the rest are between us and the upstream.
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(edns);
    }
    Ok((message.metadata.id, message.to_vec().map_err(io::Error::other)?))
}

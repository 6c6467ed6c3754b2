//! Questions by UDP. In: a question. Out: what the upstream said, from one of many sockets, each on a random port and in use
//! for a short while only: id, port and the name's case are to be guessed by who wants to forge (RFC 5452 section 9.2), and a
//! question does not pay for a socket of its own.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::{PROBE, tcp, wire};
use crate::dns::answer::{self, Question, Verdict};
use crate::dns::query::HEADER;

/// When a datagram is sent again on the same socket, after the one before: lost packets are made good within the budget. With
/// three of ten lost, a lone upstream is missed by one question in 1,400.
pub(super) const RESEND: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(700),
    Duration::from_millis(900),
];
/// Sockets of an upstream that take new questions.
const SOCKETS: usize = 64;
/// A socket takes so many questions, for so long; then another port has its place.
const USES: u32 = 64;
const AGE: Duration = Duration::from_secs(10);
/// Datagrams on a socket that are no answer to any question. After so many someone is guessing: go on by TCP.
const FOREIGN: usize = 16;
/// Positive answers before an upstream is tried with mixed case, on a name it has just answered; and before one that did not
/// keep it is tried again.
const CASE_TRIAL: u32 = 16;
const CASE_RETRIAL: u32 = 4_096;
/// Longer datagrams than we say we take are cut, and then no answer.
const LONGEST: usize = 4_096;

/// Whether an upstream gives a name back in the case it was asked in.
mod case {
    pub(super) const UNKNOWN: u8 = 0;
    pub(super) const KEPT: u8 = 1;
    pub(super) const LOST: u8 = 2;
}

pub(super) struct Pool {
    upstream: SocketAddr,
    sockets: Mutex<Vec<Arc<Socket>>>,
    case: AtomicU8,
    /// Positive answers since it was last tried with mixed case.
    positive: AtomicU32,
}

/// What came under the right id, from the right port, to the right question; `Foreign` when somebody seems to be guessing.
struct Told {
    verdict: Verdict,
    /// Whether the name is in the case that it was sent in.
    as_sent: bool,
}

struct Socket {
    udp: UdpSocket,
    born: Instant,
    uses: AtomicU32,
    questions: Mutex<Questions>,
    /// Somebody stopped waiting: the reader may be done.
    left: Notify,
    retired: AtomicBool,
}

/// The questions of a socket by id.
#[derive(Default)]
struct Questions {
    waiting: HashMap<u16, Waiting>,
    /// Answered, or given up on: what comes for them now is late or double, not forged.
    settled: HashSet<u16>,
}

/// Who waits for an answer.
struct Waiting {
    question: Question,
    /// The name as it was sent.
    name: Box<[u8]>,
    tell: oneshot::Sender<io::Result<Told>>,
}

impl Pool {
    pub(super) fn new(upstream: SocketAddr) -> Self {
        let (case, positive) = (AtomicU8::new(case::UNKNOWN), AtomicU32::new(0));
        Self { upstream, sockets: Mutex::default(), case, positive }
    }

    /// `Verdict::Foreign` when somebody seems to be guessing at answers.
    pub(super) async fn ask(self: &Arc<Self>, question: &Question, edns: bool) -> io::Result<Verdict> {
        let mixed = self.case.load(Relaxed) == case::KEPT;
        let told = self.exchange(question, edns, mixed).await?;
        // Where the case was not mixed, nobody had to guess it: in which it comes back says nothing.
        if told.as_sent || !mixed {
            self.count(question, edns, &told.verdict);
            return Ok(told.verdict);
        }
        // Somebody has guessed all but the case; once more, they have to guess another id, port and case.
        let again = self.exchange(question, edns, true).await?;
        if again.as_sent {
            return Ok(again.verdict);
        }
        // Or the upstream does not keep the case any more. By TCP nobody can say so but itself.
        if let Ok((verdict, kept)) = Box::pin(tcp::ask_mixed(self.upstream, question, edns)).await {
            self.learn(kept);
            return Ok(verdict);
        }
        // It speaks no TCP: until it is tried again, its answers are as they were before it was.
        self.case.store(case::UNKNOWN, Relaxed);
        self.exchange(question, edns, false).await.map(|told| told.verdict)
    }

    /// Counts a positive answer; after some, tries the upstream with mixed case. No guest waits for that.
    fn count(self: &Arc<Self>, question: &Question, edns: bool, verdict: &Verdict) {
        let positive = matches!(verdict, Verdict::Answer(answer) if answer.is_positive());
        let enough = match self.case.load(Relaxed) {
            case::UNKNOWN => CASE_TRIAL,
            case::LOST => CASE_RETRIAL,
            _ => return,
        };
        if positive && self.positive.fetch_add(1, Relaxed) + 1 == enough {
            let (pool, question) = (self.clone(), question.clone());
            tokio::spawn(async move {
                if let Ok(Some(kept)) = timeout(PROBE, pool.keeps_case(&question, edns)).await {
                    pool.learn(kept);
                }
                pool.positive.store(0, Relaxed);
            });
        }
    }

    fn learn(&self, kept: bool) {
        self.case.store(if kept { case::KEPT } else { case::LOST }, Relaxed);
    }

    /// Whether the upstream gives a name back in the case that it was sent in; none if it gives no answer. That it does not is
    /// believed by TCP only, if it speaks that.
    async fn keeps_case(&self, question: &Question, edns: bool) -> Option<bool> {
        for _ in 0..2 {
            let told = self.exchange(question, edns, true).await.ok()?;
            match told.verdict {
                Verdict::Answer(answer) if told.as_sent && answer.is_positive() => return Some(true),
                _ if told.as_sent => return None,
                _ => {}
            }
        }
        let by_tcp = tcp::ask_mixed(self.upstream, question, edns).await;
        Some(by_tcp.is_ok_and(|(_, kept)| kept))
    }

    async fn exchange(&self, question: &Question, edns: bool, mixed: bool) -> io::Result<Told> {
        let socket = self.socket().await?;
        let (id, mut answer) = socket.wait(question);
        let _leave = Leave { socket: &socket, id };
        let mut message = wire::query(question, id, edns);
        let name_len = question.name.as_wire().len();
        if mixed {
            mix_case(&mut message, name_len);
            socket.sent_as(id, &message[HEADER..HEADER + name_len]);
        }
        if socket.udp.send(&message).await.is_err() {
            // What the kernel had to say of a datagram before this (udp(7)): then this one has not been sent.
            socket.udp.send(&message).await?;
        }
        for pause in RESEND {
            tokio::select! {
                told = &mut answer => return told.unwrap_or_else(|_| Err(closed())),
                // One that cannot be sent is as one that is lost. A port that is closed is for the reader to tell.
                () = sleep(pause) => drop(socket.udp.send(&message).await),
            }
        }
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// A socket to ask from: a new one as long as there are few, else any of them.
    async fn socket(&self) -> io::Result<Arc<Socket>> {
        {
            // Once: every question looks at all of them.
            let now = Instant::now();
            let mut sockets = lock(&self.sockets);
            sockets.retain(|socket| {
                let fit = socket.is_fit(now);
                if !fit {
                    socket.retire();
                }
                fit
            });
            if sockets.len() >= SOCKETS {
                let any = rand::random_range(0..sockets.len());
                return Ok(sockets[any].clone());
            }
        }
        let any: IpAddr =
            if self.upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // The kernel picks a random free port; connected, the socket takes datagrams from the upstream only, and learns
        // of a closed port at once.
        let udp = UdpSocket::bind((any, 0)).await?;
        udp.connect(self.upstream).await?;
        let socket = Arc::new(Socket {
            udp,
            born: Instant::now(),
            uses: AtomicU32::new(0),
            questions: Mutex::default(),
            left: Notify::new(),
            retired: AtomicBool::new(false),
        });
        tokio::spawn(read(socket.clone()));
        lock(&self.sockets).push(socket.clone());
        Ok(socket)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for socket in lock(&self.sockets).drain(..) {
            socket.retire();
        }
    }
}

impl Socket {
    fn is_fit(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.born);
        self.uses.load(Relaxed) < USES && age < AGE && !self.retired.load(Relaxed)
    }

    fn retire(&self) {
        self.retired.store(true, Relaxed);
        self.left.notify_one();
    }

    /// Waits for the answer to `question` under an id that nobody else waits under.
    fn wait(&self, question: &Question) -> (u16, oneshot::Receiver<io::Result<Told>>) {
        self.uses.fetch_add(1, Relaxed);
        let (tell, told) = oneshot::channel();
        let name = question.name.as_wire().into();
        let mut questions = lock(&self.questions);
        loop {
            // Few of 65,536 are taken: a socket has few uses.
            let id = rand::random();
            if questions.settled.contains(&id) {
                continue;
            }
            if let std::collections::hash_map::Entry::Vacant(free) = questions.waiting.entry(id) {
                free.insert(Waiting { question: question.clone(), name, tell });
                return (id, told);
            }
        }
    }

    fn sent_as(&self, id: u16, name: &[u8]) {
        if let Some(waiting) = lock(&self.questions).waiting.get_mut(&id) {
            waiting.name = name.into();
        }
    }

    /// Gives a datagram to who waits for it; `false` if nobody does, or ever did.
    fn deliver(&self, message: &[u8]) -> bool {
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return false };
        let mut questions = lock(&self.questions);
        let Some(waiting) = questions.waiting.get(&id) else { return questions.settled.contains(&id) };
        let verdict = answer::read(message, id, &waiting.question);
        if matches!(verdict, Verdict::Foreign) {
            return false;
        }
        let as_sent = is_as_sent(message, &waiting.name);
        if let Some(waiting) = questions.waiting.remove(&id) {
            questions.settled.insert(id);
            // An error means that it has just stopped waiting.
            let _ = waiting.tell.send(Ok(Told { verdict, as_sent }));
        }
        true
    }

    fn end(&self, outcome: impl Fn() -> io::Result<Told>) {
        self.retire();
        for (_, waiting) in lock(&self.questions).waiting.drain() {
            let _ = waiting.tell.send(outcome());
        }
    }
}

/// Gives a question's name a case that nobody can know.
pub(super) fn mix_case(message: &mut [u8], name_len: usize) {
    let bits: [u64; 4] = std::array::from_fn(|_| rand::random());
    wire::mix_case(message, name_len, (0..256).map(|n| bits[n / 64] >> (n % 64) & 1 == 1));
}

/// An error message may come without the question; an answer has its name as it was sent.
fn is_as_sent(message: &[u8], name: &[u8]) -> bool {
    let count = message.get(4..6);
    count == Some(&[0, 0]) || message.get(HEADER..HEADER + name.len()) == Some(name)
}

/// Reads what comes until the socket is retired and nobody waits.
async fn read(socket: Arc<Socket>) {
    let mut foreign = 0;
    loop {
        if socket.retired.load(Relaxed) && lock(&socket.questions).waiting.is_empty() {
            return;
        }
        let ready = tokio::select! {
            ready = socket.udp.readable() => ready,
            () = socket.left.notified() => continue,
        };
        // On the stack: while it waits, a socket has no buffer.
        let mut buffer = [0; LONGEST];
        match ready.and_then(|()| socket.udp.try_recv(&mut buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(length) if socket.deliver(&buffer[..length]) => {}
            Ok(_) => {
                foreign += 1;
                if foreign > FOREIGN {
                    return socket.end(|| Ok(Told { verdict: Verdict::Foreign, as_sent: true }));
                }
            }
            // The upstream's port is closed, or there is no way to it.
            Err(error) => return socket.end(|| Err(io::Error::new(error.kind(), error.to_string()))),
        }
    }
}

/// Takes who waited off the list, however it ended.
struct Leave<'a> {
    socket: &'a Socket,
    id: u16,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut questions = lock(&self.socket.questions);
        if questions.waiting.remove(&self.id).is_some() {
            questions.settled.insert(self.id);
        }
        drop(questions);
        if self.socket.retired.load(Relaxed) {
            self.socket.left.notify_one();
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the socket to it was closed")
}

// Tables are changed in one go, so a panic elsewhere leaves them whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

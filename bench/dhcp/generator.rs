//! The load: DHCP clients with MACs of their own on one interface, speaking raw Ethernet as clients without an address do.
//! One thread, batches both ways.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

const BATCH: usize = 64;
const FRAME: usize = 1024;
/// A client without an answer sends again after about two seconds; not all at the same moment (RFC 2131 section 4.1).
fn retry_after(n: usize) -> Duration {
    Duration::from_millis(1_500 + (n as u64 * 37) % 1_000)
}

/// Where the parts of a frame lie: Ethernet 14, IP 20, UDP 8.
const UDP: usize = 34;
const BOOTP: usize = 42;
const OPTIONS: usize = BOOTP + 240;

/// The n-th client's MAC: its address in it, as guestnet's own.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x06, 0, a, b, c, d]
}

/// The n-th client's address.
pub fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 1, 0)) + n as u32)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Discovering,
    Requesting,
}

struct Client {
    discover: Vec<u8>,
    request: Vec<u8>,
    state: State,
    xid: u32,
    begun: Instant,
    sent: Instant,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of each finished exchange, DISCOVER to ACK, in milliseconds.
    pub exchanges: Vec<f64>,
    pub elapsed: Duration,
    /// Messages that were sent again because no answer came.
    pub retransmitted: usize,
    /// Clients without a lease when the time was up.
    pub unfinished: usize,
    /// DISCOVERs of the flooding client.
    pub flooded: usize,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.exchanges.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Clients on one interface.
pub struct Generator {
    socket: Socket,
    clients: Vec<Client>,
    round: u32,
    receiving: Vec<[u8; FRAME]>,
    /// Client, and whether its REQUEST or its DISCOVER.
    sending: Vec<(usize, State)>,
}

impl Generator {
    /// Has to be called in the namespace of `interface`.
    pub fn new(interface: &str, count: usize) -> Self {
        let socket = packet_socket(interface).unwrap_or_else(|error| panic!("{interface}: {error}"));
        let now = Instant::now();
        let client = |n| {
            let address = address(n);
            let (discover, request) = (frame(address, 1), frame(address, 3));
            Client { discover, request, state: State::Idle, xid: 0, begun: now, sent: now }
        };
        let clients = (0..count).map(client).collect();
        Self { socket, clients, round: 0, receiving: vec![[0; FRAME]; BATCH], sending: Vec::new() }
    }

    /// Exchanges with `window` clients under way at a time, one client after the other, for `time`. What is under way
    /// then is not waited for.
    pub fn steadily(&mut self, window: usize, time: Duration) -> Outcome {
        let outcome = self.run(window, usize::MAX, time);
        self.clients.iter_mut().for_each(|client| client.state = State::Idle);
        outcome
    }

    /// Every client once, all of them at once; those without a lease after `limit` are given up.
    pub fn storm(&mut self, limit: Duration) -> Outcome {
        let count = self.clients.len();
        let mut outcome = self.run(count, count, limit);
        outcome.unfinished = count - outcome.exchanges.len();
        outcome
    }

    /// The first client does `exchanges` one after the other while the last sends `rate` DISCOVERs a second; at most for
    /// `limit`. An exchange that is not done by then counts as long as it has taken.
    pub fn beside_a_flood(&mut self, rate: usize, exchanges: usize, limit: Duration) -> Outcome {
        let flooder = self.clients.len() - 1;
        let began = Instant::now();
        let mut outcome = Outcome::default();
        while outcome.exchanges.len() < exchanges && began.elapsed() < limit {
            let due = (began.elapsed().as_secs_f64() * rate as f64) as usize - outcome.flooded;
            let due = due.min(BATCH);
            self.sending.extend(std::iter::repeat_n((flooder, State::Discovering), due));
            outcome.flooded += due;
            if self.clients[0].state == State::Idle {
                self.begin(0);
            }
            self.retry(0..1, &mut outcome);
            self.flush();
            self.take_answers(&mut outcome, Duration::ZERO);
        }
        if self.clients[0].state != State::Idle {
            outcome.exchanges.push(self.clients[0].begun.elapsed().as_secs_f64() * 1000.0);
        }
        outcome.elapsed = began.elapsed();
        outcome
    }

    /// Begins at most `most` exchanges and ends when they are done, or the time is up.
    fn run(&mut self, window: usize, most: usize, limit: Duration) -> Outcome {
        let began = Instant::now();
        let mut outcome = Outcome::default();
        let (mut begun, mut next) = (0, 0);
        let mut looked = began;
        while outcome.exchanges.len() < most && began.elapsed() < limit {
            let under_way = begun - outcome.exchanges.len();
            let free = window.saturating_sub(under_way).min(BATCH).min(most - begun);
            for _ in 0..free {
                // A client that waits for an answer is passed over.
                if let Some(n) = self.next_idle(next) {
                    self.begin(n);
                    begun += 1;
                    next = n + 1;
                }
            }
            self.flush();
            self.take_answers(&mut outcome, Duration::from_millis(1));
            if looked.elapsed() > Duration::from_millis(100) {
                looked = Instant::now();
                self.retry(0..self.clients.len(), &mut outcome);
            }
        }
        outcome.elapsed = began.elapsed();
        outcome
    }

    /// The first client from `from` on, around, that waits for nothing.
    fn next_idle(&self, from: usize) -> Option<usize> {
        let count = self.clients.len();
        (from..from + count).map(|n| n % count).find(|n| self.clients[*n].state == State::Idle)
    }

    fn begin(&mut self, n: usize) {
        self.round += 1;
        let client = &mut self.clients[n];
        client.xid = (n as u32) << 16 ^ self.round;
        let now = Instant::now();
        (client.state, client.begun, client.sent) = (State::Discovering, now, now);
        for frame in [&mut client.discover, &mut client.request] {
            set_xid(frame, client.xid);
        }
        self.sending.push((n, State::Discovering));
    }

    fn retry(&mut self, clients: Range<usize>, outcome: &mut Outcome) {
        let now = Instant::now();
        for n in clients {
            let client = &mut self.clients[n];
            if client.state != State::Idle && now.duration_since(client.sent) > retry_after(n) {
                // As a client does: from the beginning.
                client.state = State::Discovering;
                client.sent = now;
                outcome.retransmitted += 1;
                self.sending.push((n, State::Discovering));
            }
        }
    }

    fn take_answers(&mut self, outcome: &mut Outcome, wait: Duration) {
        let lengths = self.receive(wait);
        for (at, length) in lengths.into_iter().enumerate() {
            let frame = &self.receiving[at][..length];
            let Some((n, kind, xid)) = answer(frame) else { continue };
            let Some(client) = self.clients.get_mut(n).filter(|client| client.xid == xid) else { continue };
            match (kind, client.state) {
                (2, State::Discovering) => {
                    client.state = State::Requesting;
                    client.sent = Instant::now();
                    self.sending.push((n, State::Requesting));
                }
                (5, State::Requesting) => {
                    client.state = State::Idle;
                    outcome.exchanges.push(client.begun.elapsed().as_secs_f64() * 1000.0);
                }
                _ => {}
            }
        }
    }

    /// Takes what is there; waits only when nothing is.
    fn receive(&mut self, wait: Duration) -> Vec<usize> {
        let lengths = self.receive_now();
        if !lengths.is_empty() || wait.is_zero() {
            return lengths;
        }
        let mut entry = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that outlives the call.
        unsafe { libc::poll(&raw mut entry, 1, wait.as_millis() as libc::c_int) };
        self.receive_now()
    }

    fn receive_now(&mut self) -> Vec<usize> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| libc::iovec {
            iov_base: self.receiving[at].as_mut_ptr().cast(),
            iov_len: FRAME,
        });
        // SAFETY: all-zero bytes are a valid mmsghdr; each is pointed to one iovec over a buffer of its length, all of which
        // outlive the call.
        unsafe {
            let mut headers: [libc::mmsghdr; BATCH] = zeroed();
            for (header, vector) in headers.iter_mut().zip(&mut vectors) {
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
            }
            let count = libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            );
            headers[..usize::try_from(count).unwrap_or(0)]
                .iter()
                .map(|header| header.msg_len as usize)
                .collect()
        }
    }

    fn flush(&mut self) {
        let mut at = 0;
        while at < self.sending.len() {
            let batch = &self.sending[at..self.sending.len().min(at + BATCH)];
            let frame = |(n, message): &(usize, State)| match message {
                State::Requesting => &self.clients[*n].request,
                _ => &self.clients[*n].discover,
            };
            let mut vectors: Vec<libc::iovec> = batch
                .iter()
                .map(frame)
                .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
                .collect();
            // SAFETY: as in `receive_now`; sending only reads.
            let sent = unsafe {
                let mut headers: [libc::mmsghdr; BATCH] = zeroed();
                for (header, vector) in headers.iter_mut().zip(&mut vectors) {
                    header.msg_hdr.msg_iov = vector;
                    header.msg_hdr.msg_iovlen = 1;
                }
                libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), batch.len() as libc::c_uint, 0)
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                _ => panic!("sending: {}", io::Error::last_os_error()),
            }
        }
        self.sending.clear();
    }
}

/// Which client an OFFER or ACK is for, its message type and transaction.
fn answer(frame: &[u8]) -> Option<(usize, u8, u32)> {
    if frame.get(12..14)? != [8, 0] || frame.get(UDP..UDP + 4)? != [0, 67, 0, 68] {
        return None;
    }
    let yiaddr: [u8; 4] = frame.get(BOOTP + 16..BOOTP + 20)?.try_into().ok()?;
    let xid = u32::from_be_bytes(frame.get(BOOTP + 4..BOOTP + 8)?.try_into().ok()?);
    let n = u32::from_be_bytes(yiaddr).checked_sub(u32::from(address(0)))? as usize;
    let mut options = frame.get(OPTIONS..)?;
    while let [code, length, rest @ ..] = options {
        match code {
            53 => {
                // The address that is reserved for this very MAC, or the answer is wrong.
                let is_ours = frame[..6] == mac(address(n)) && frame[BOOTP + 28..BOOTP + 34] == frame[..6];
                return is_ours.then_some((n, rest[0], xid));
            }
            255 => return None,
            0 => options = &options[1..],
            _ => options = rest.get(usize::from(*length)..)?,
        }
    }
    None
}

/// A broadcast frame of the client that has `address`, every checksum complete: DISCOVER (1), or REQUEST (3) after an OFFER.
fn frame(client: Ipv4Addr, kind: u8) -> Vec<u8> {
    let mut bootp = vec![0; 240];
    bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
    bootp[28..34].copy_from_slice(&mac(client));
    bootp[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bootp.extend([53, 1, kind]);
    if kind == 3 {
        bootp.extend([50, 4]);
        bootp.extend(client.octets());
        bootp.extend([54, 4, 10, 9, 0, 1]);
    }
    bootp.extend([61, 7, 1]);
    bootp.extend(mac(client));
    bootp.extend([57, 2, 2, 64, 55, 8, 1, 3, 6, 12, 15, 28, 42, 121, 60, 12]);
    bootp.extend(b"udhcp 1.35.0");
    bootp.push(255);
    bootp.resize(bootp.len().max(300), 0);
    let mut udp = vec![0, 68, 0, 67];
    udp.extend(((bootp.len() + 8) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(bootp);
    let pseudo = [0, 0, 0, 0, 255, 255, 255, 255, 0, 17, udp[4], udp[5]];
    let sum = checksum(&[&pseudo[..], &udp].concat());
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0];
    ip.extend(((udp.len() + 20) as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0xff; 6][..], &mac(client), &[8, 0], &ip, &udp].concat()
}

/// Another transaction, and the UDP checksum with it (RFC 1624).
fn set_xid(frame: &mut [u8], xid: u32) {
    let field = BOOTP + 4..BOOTP + 8;
    let words = |bytes: &[u8]| -> u32 {
        u32::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            + u32::from(u16::from_be_bytes([bytes[2], bytes[3]]))
    };
    let before = words(&frame[field.clone()]);
    frame[field.clone()].copy_from_slice(&xid.to_be_bytes());
    let after = words(&frame[field]);
    let old = u32::from(!u16::from_be_bytes([frame[UDP + 6], frame[UDP + 7]]));
    let sum = fold(old + after + 2 * 0xffff - before);
    frame[UDP + 6..UDP + 8].copy_from_slice(&(!sum).to_be_bytes());
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    !fold(words.sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A raw socket that hears IPv4 on an interface of this thread's namespace.
pub fn packet_socket(interface: &str) -> io::Result<Socket> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBufForce, &(16 << 20))?;
    // SAFETY: a sockaddr_ll fits into a sockaddr_storage and is aligned in it; the length set is its own.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_protocol = (libc::ETH_P_IP as u16).to_be();
            (*link).sll_ifindex = index as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket)
}

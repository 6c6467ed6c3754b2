//! A route netlink socket: many requests in one system call, dumps that are whole. Blocking, for the kernel's own threads; it
//! stays in the network namespace it was opened in.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::fault;

/// Requests in one system call: their acknowledgements fit a socket's default receive buffer.
const AT_ONCE: usize = 64;
/// More than the kernel puts into one datagram of a dump.
const RECEIVE: usize = 64 << 10;

/// A change to ask for. It is acknowledged, whatever `flags` say.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub flags: u16,
    pub message: RouteNetlinkMessage,
}

impl Request {
    pub(super) fn new(flags: u16, message: RouteNetlinkMessage) -> Self {
        Self { flags, message }
    }
}

pub(super) struct Rtnl {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnl {
    /// A socket in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        fault::operation()?;
        Self::on(Socket::new(NETLINK_ROUTE)?, None)
    }

    fn on(mut socket: Socket, bound: Option<u32>) -> io::Result<Self> {
        let port = match bound {
            Some(port) => port,
            None => socket.bind_auto()?.port_number(),
        };
        socket.connect(&SocketAddr::new(0, 0))?;
        // The answer to a refused request says why, without the request.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::new() })
    }

    /// The same of that port, if nobody has it there: by it the kernel names what this socket asks for.
    pub(super) fn open_as(port: u32) -> io::Result<Self> {
        fault::operation()?;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let bound = socket.bind(&SocketAddr::new(port, 0));
        Self::on(socket, bound.is_ok().then_some(port))
    }

    /// The port by which the kernel names what this socket asked for.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Carries out every request, whatever becomes of the others: an outcome for each, in order.
    pub(super) fn execute(&mut self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        if fault::possible() {
            let one = |request| {
                fault::operation()
                    .and_then(|()| self.exchange(std::slice::from_ref(request))?.into_iter().collect())
            };
            return Ok(requests.iter().map(one).collect());
        }
        self.exchange(requests)
    }

    fn exchange(&mut self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for requests in requests.chunks(AT_ONCE) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for Request { flags, message } in requests {
                self.push(&mut bytes, NLM_F_REQUEST | NLM_F_ACK | flags, message.clone());
            }
            self.socket.send(&bytes, 0)?;
            let mut answered: Vec<Option<io::Result<()>>> = requests.iter().map(|_| None).collect();
            let mut open = requests.len();
            while open > 0 {
                self.receive()?;
                for message in messages(&self.buffer) {
                    let message = message?;
                    let at = message.header.sequence_number.wrapping_sub(first) as usize;
                    if let NetlinkPayload::Error(error) = message.payload
                        && let Some(slot @ None) = answered.get_mut(at)
                    {
                        *slot = Some(if error.code.is_some() { Err(error.to_io()) } else { Ok(()) });
                        open -= 1;
                    }
                }
            }
            outcomes.extend(answered.into_iter().flatten());
        }
        Ok(outcomes)
    }

    /// One request.
    pub(super) fn request(&mut self, flags: u16, message: RouteNetlinkMessage) -> io::Result<()> {
        self.all(&[Request::new(flags, message)])
    }

    /// Every request; the first error.
    pub(super) fn all(&mut self, requests: &[Request]) -> io::Result<()> {
        self.execute(requests)?.into_iter().collect()
    }

    /// One object; `None` when there is none.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        fault::operation()?;
        let mut bytes = Vec::new();
        let sequence = self.push(&mut bytes, NLM_F_REQUEST, message);
        self.socket.send(&bytes, 0)?;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) => {
                        return match -error.raw_code() {
                            libc::ENODEV => Ok(None),
                            _ => Err(error.to_io()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// All objects of a kind, as they were at one moment: what changed underneath is asked for again.
    pub(super) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            if let Some(found) = self.try_dump(message.clone())? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the list changed whenever it was read"))
    }

    fn try_dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        fault::operation()?;
        let mut bytes = Vec::new();
        let sequence = self.push(&mut bytes, NLM_F_REQUEST | NLM_F_DUMP, message);
        self.socket.send(&bytes, 0)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                    _ => {}
                }
            }
        }
    }

    /// Appends the request to `bytes`; its sequence number.
    fn push(&mut self, bytes: &mut Vec<u8>, flags: u16, message: RouteNetlinkMessage) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let at = bytes.len();
        bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[at..]);
        self.sequence
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE);
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.map(drop),
            }
        }
    }
}

/// The messages of one datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message).map_err(io::Error::other))
    })
}

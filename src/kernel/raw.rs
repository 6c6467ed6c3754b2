//! Netlink without a parser's allocations, for dumps of many thousand objects and for what has no parser: requests as bytes,
//! answers as slices of the buffer that they came in.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

// include/uapi/linux/netlink.h
const HEADER: usize = 16;
const NLM_F_ECHO: u16 = 8;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel fills at most 32 KiB at a time.
pub(super) const BUFFER: usize = 64 << 10;
/// A dump that objects come and go under is interrupted; one that always is still beats none.
const TRIES: usize = 8;
/// The kernel answers at once; a call that it does not answer must not hang for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket in the calling thread's network namespace.
pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    super::fault::operation()?;
    let socket = Socket::new(protocol)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))?;
    Ok(socket)
}

fn send(socket: &Socket, messages: &[u8]) -> io::Result<()> {
    super::fault::operation()?;
    socket.send_to(messages, &SocketAddr::new(0, 0), 0)?;
    Ok(())
}

fn push(messages: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, request: &[u8]) {
    // struct nlmsghdr begins at a multiple of four.
    messages.resize(messages.len().next_multiple_of(4), 0);
    messages.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    messages.extend(kind.to_ne_bytes());
    messages.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    messages.extend(sequence.to_ne_bytes());
    messages.extend([0; 4]); // our port, which the kernel knows
    messages.extend(request);
}

/// Hands every answer of a dump to `each`; again from the start when the kernel says that it was interrupted, so `each`
/// has to bear a repetition.
pub(super) fn dump(
    socket: &mut Socket,
    request_kind: u16,
    request: &[u8],
    answer_kind: u16,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let (mut asked, mut buffer) = (Vec::new(), Vec::with_capacity(BUFFER));
    // On a socket of its own, which nobody asks again after an error.
    push(&mut asked, request_kind, libc::NLM_F_DUMP as u16, 0, request);
    for _ in 0..TRIES {
        send(socket, &asked)?;
        let (mut done, mut interrupted) = (false, false);
        while !done {
            buffer.clear();
            socket.recv(&mut buffer, 0)?;
            for Message { kind, flags, payload: message, .. } in Messages(&buffer) {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match i32::from(kind) {
                    libc::NLMSG_DONE => done = true,
                    libc::NLMSG_ERROR => return Err(refusal(message)),
                    _ if kind == answer_kind => each(message),
                    _ => {}
                }
            }
        }
        if !interrupted {
            break;
        }
    }
    Ok(())
}

/// The answer about one device.
pub(super) fn one<T>(
    socket: &mut Socket,
    sequence: u32,
    request_kind: u16,
    request: &[u8],
    answer_kind: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let [answer] = several(socket, sequence, request_kind, [request], answer_kind, read)?;
    answer
}

/// The answers to questions that go out at once, numbered from `first` on. What is left of questions with other numbers, whose asker got
/// an error, is passed over.
pub(super) fn several<T, const N: usize>(
    socket: &mut Socket,
    first: u32,
    request_kind: u16,
    requests: [&[u8]; N],
    answer_kind: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<[io::Result<Option<T>>; N]> {
    let mut asked = Vec::new();
    for (sequence, request) in (0..).map(|number| first.wrapping_add(number)).zip(requests) {
        // With ECHO, kernels that answer a queue's request as a notification send it to us too.
        push(&mut asked, request_kind, NLM_F_ECHO | libc::NLM_F_ACK as u16, sequence, request);
    }
    send(socket, &asked)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut found = [const { None }; N];
    let mut acknowledged = [const { None }; N];
    while acknowledged.iter().any(Option::is_none) {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for Message { kind, sequence, payload: message, .. } in Messages(&buffer) {
            let at = sequence.wrapping_sub(first) as usize;
            let (Some(found), Some(acknowledged)) = (found.get_mut(at), acknowledged.get_mut(at)) else {
                continue;
            };
            if kind == answer_kind {
                *found = read(message);
            } else if i32::from(kind) == libc::NLMSG_ERROR {
                // Number 0 acknowledges: the answer, if there is one, has come before it.
                let refusal = refusal(message);
                let is_done = refusal.raw_os_error() == Some(0);
                *acknowledged = Some(if is_done { Ok(found.take()) } else { Err(refusal) });
            }
        }
    }
    Ok(acknowledged.map(|outcome| outcome.unwrap_or(Ok(None))))
}

/// struct nlmsgerr: a negative error number first.
fn refusal(message: &[u8]) -> io::Error {
    let number = message.first_chunk().map_or(-libc::EPROTO, |number| i32::from_ne_bytes(*number));
    io::Error::from_raw_os_error(-number)
}

/// The payload of the first attribute of that kind, nested flag and all.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & 0x3fff;
        let payload = attributes.get(4..length)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// struct nlmsghdr, and what follows it.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages of a buffer. Ends at the first that is not whole.
pub(super) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*self.0.get(6..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*self.0.get(8..)?.first_chunk()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    }
}

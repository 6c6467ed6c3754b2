//! One nfnetlink socket: a batch or a question goes out, the kernel's answers come in before the next.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_sys::{Socket as Netlink, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::super::fault;

use super::wire::{Batch, Buffer, messages};

const NETLINK_NETFILTER: isize = 12;
/// A batch is sent in one piece: all that some ten thousand VMs need.
const LARGEST_BATCH: usize = 256 << 20;
/// The kernel answers at once, or after other writers of its rules.
const PATIENCE: i64 = 30;
/// A dump that keeps being interrupted by changes is given up.
const DUMP_TRIES: u32 = 20;

pub(super) struct Socket {
    netlink: Netlink,
    /// The port by which the kernel names what this socket asked for.
    pub(super) port: u32,
}

impl Socket {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Netlink::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        // SAFETY: the descriptor is the socket's own and outlives the borrow, which ends with this function.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        setsockopt(&fd.as_fd(), sockopt::SndBufForce, &LARGEST_BATCH)?;
        setsockopt(&fd.as_fd(), sockopt::RcvBufForce, &(8 << 20))?;
        setsockopt(&fd.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Self { netlink: socket, port })
    }

    /// Carries out the batch, or nothing of it: then which change the kernel refused, and why.
    pub(super) fn commit(&self, mut batch: Batch) -> Result<(), (String, io::Error)> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.sequence();
        let whole = |error: io::Error| ("sending a batch".to_owned(), error);
        fault::operation().map_err(whole)?;
        self.discard_late_answers();
        self.netlink.send_to(batch.finish(), &SocketAddr::new(0, 0), 0).map_err(whole)?;
        let mut refused: Option<(String, io::Error)> = None;
        loop {
            let (received, _) = self.netlink.recv_from_full().map_err(whole)?;
            for (kind, _, sequence, body) in messages(&received) {
                if i32::from(kind) != libc::NLMSG_ERROR {
                    continue;
                }
                let code = error_code(body);
                if code != 0 && refused.is_none() {
                    refused = Some((batch.name(sequence).to_owned(), io::Error::from_raw_os_error(-code)));
                }
                // Errors come in the order of the changes; sequence 0 is the commit of the whole.
                if sequence == last || (sequence == 0 && code != 0) {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Everything of one kind: `each` sees the body of every message, from its attributes on. Started again when it was
    /// interrupted by a change, so `each` may see a thing twice.
    pub(super) fn dump<T>(
        &self,
        kind: u16,
        family: u8,
        write: impl Fn(&mut Buffer),
        mut each: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        fault::operation()?;
        for _ in 0..DUMP_TRIES {
            let mut request = Buffer::default();
            let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
            request.message(kind, flags, 1, family, &write);
            self.discard_late_answers();
            self.netlink.send_to(&request.0, &SocketAddr::new(0, 0), 0)?;
            if let Some(found) = self.receive_dump(&mut each)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's list changes faster than it can be read"))
    }

    /// `None` when it was interrupted.
    fn receive_dump<T>(&self, each: &mut impl FnMut(u16, &[u8]) -> Option<T>) -> io::Result<Option<Vec<T>>> {
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let (received, _) = self.netlink.recv_from_full()?;
            for (kind, flags, _, body) in messages(&received) {
                interrupted |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    libc::NLMSG_ERROR => match -error_code(body) {
                        libc::EINTR | libc::EAGAIN => return Ok(None),
                        // What the dump is of is not there.
                        libc::ENOENT => return Ok(Some(Vec::new())),
                        code => return Err(io::Error::from_raw_os_error(code)),
                    },
                    _ => found.extend(each(kind, body.get(4..).unwrap_or_default())),
                }
            }
        }
    }

    /// One message that changes something, or asks whether it is there, and is acknowledged.
    pub(super) fn ask(&self, kind: u16, family: u8, write: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        fault::operation()?;
        let mut request = Buffer::default();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        request.message(kind, flags, 1, family, write);
        self.discard_late_answers();
        self.netlink.send_to(&request.0, &SocketAddr::new(0, 0), 0)?;
        loop {
            let (received, _) = self.netlink.recv_from_full()?;
            for (kind, _, _, body) in messages(&received) {
                if i32::from(kind) == libc::NLMSG_ERROR {
                    return match error_code(body) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
            }
        }
    }

    /// What is left of an exchange that was given up must not be taken for the answer to the next.
    fn discard_late_answers(&self) {
        let mut nothing = [0_u8; 1];
        while self.netlink.recv(&mut &mut nothing[..], libc::MSG_DONTWAIT).is_ok() {}
    }
}

/// The error of a NLMSG_ERROR, 0 for an acknowledgement.
fn error_code(body: &[u8]) -> i32 {
    body.get(..4).and_then(|code| code.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes)
}

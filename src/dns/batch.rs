//! Datagrams many at a time: one system call takes what is waiting, one sends the answers (recvmmsg(2), sendmmsg(2)). In: a
//! socket. Out: messages with their senders, each with a buffer for its answer. All memory is made once.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use super::query::LONGEST;

/// Datagrams taken at once. More would keep the first waiting for the last.
pub(super) const BATCH: usize = 64;

pub(super) struct Batch {
    received: Vec<[u8; LONGEST]>,
    answers: Vec<Vec<u8>>,
    addresses: Vec<libc::sockaddr_in>,
    lengths: [usize; BATCH],
    /// How many were received.
    count: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        // SAFETY: sockaddr_in is plain data, for which all zeroes is a value.
        let address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        Self {
            received: vec![[0; LONGEST]; BATCH],
            answers: (0..BATCH).map(|_| Vec::with_capacity(512)).collect(),
            addresses: vec![address; BATCH],
            lengths: [0; BATCH],
            count: 0,
        }
    }

    /// Waits for a datagram and takes it with all that wait behind it, up to `BATCH`; how many.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: iovec and mmsghdr are plain data, for which all zeroes is a value.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        for (n, header) in headers.iter_mut().enumerate() {
            parts[n].iov_base = self.received[n].as_mut_ptr().cast();
            parts[n].iov_len = LONGEST;
            header.msg_hdr.msg_name = (&raw mut self.addresses[n]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut parts[n];
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each header points to a buffer and an address of `self` with their true lengths; all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (n, header) in headers.iter().enumerate().take(self.count) {
            let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            // A longer message is no query: as an empty one it gets no answer.
            self.lengths[n] = if cut { 0 } else { (header.msg_len as usize).min(LONGEST) };
            self.answers[n].clear();
        }
        Ok(self.count)
    }

    /// The `n`-th message, its sender, and the buffer for its answer; empty is no answer.
    pub(super) fn at(&mut self, n: usize) -> (&[u8], SocketAddrV4, &mut Vec<u8>) {
        let address = &self.addresses[n];
        let from = SocketAddrV4::new(
            Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)),
            u16::from_be(address.sin_port),
        );
        (&self.received[n][..self.lengths[n]], from, &mut self.answers[n])
    }

    /// Sends the answers. What the socket cannot take is lost, as the network may lose it; the guest asks again.
    pub(super) fn send(&mut self, socket: &UdpSocket) {
        // SAFETY: as in `receive`.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut filled = 0;
        for n in 0..self.count {
            if self.answers[n].is_empty() {
                continue;
            }
            parts[filled].iov_base = self.answers[n].as_mut_ptr().cast();
            parts[filled].iov_len = self.answers[n].len();
            let header = &mut headers[filled].msg_hdr;
            header.msg_name = (&raw mut self.addresses[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[filled];
            header.msg_iovlen = 1;
            filled += 1;
        }
        let mut sent = 0;
        while sent < filled {
            // SAFETY: the headers from `sent` on are filled, and point to buffers of `self` that outlive the call.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr().add(sent),
                    (filled - sent) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            // The first of those left could not be sent (a guest that is gone): on with the next.
            sent += usize::try_from(count).unwrap_or(1).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_datagrams_are_answered_each_to_its_sender() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for (n, client) in clients.iter().enumerate() {
            client.send_to(&[n as u8; 3], server.local_addr().unwrap()).unwrap();
        }
        clients[0].send_to(&[9; LONGEST + 1], server.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server).unwrap(), 4);
        for (n, client) in clients.iter().enumerate() {
            let (message, from, answer) = batch.at(n);
            assert_eq!(from.to_string(), client.local_addr().unwrap().to_string());
            answer.extend_from_slice(message);
            answer.push(7);
        }
        assert!(batch.at(3).0.is_empty());
        batch.send(&server);
        for (n, client) in clients.iter().enumerate() {
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], [n as u8, n as u8, n as u8, 7]);
        }
    }
}

//! What goes by a device, as a packet socket sees it.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Namespace;
use super::frames::Frame;

pub struct Sniffer(Socket);

impl Sniffer {
    /// Every frame of `device` in the namespace, from now on.
    pub fn new(namespace: &Namespace, device: &str) -> Self {
        namespace.run(|| {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
            let index =
                nix::net::if_::if_nametoindex(device).unwrap_or_else(|error| panic!("{device}: {error}"));
            let address = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: all,
                sll_ifindex: index as i32,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            // SAFETY: the storage is larger than a sockaddr_ll and aligned for any address; the length is its.
            let ((), address) = unsafe {
                SockAddr::try_init(|storage, length| {
                    storage.cast::<libc::sockaddr_ll>().write(address);
                    *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                    Ok(())
                })
            }
            .unwrap();
            socket.bind(&address).unwrap();
            socket.set_nonblocking(true).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("a receive buffer");
            Self(socket)
        })
    }

    /// Writes a frame to the device, as it is.
    pub fn send(&self, frame: &[u8]) {
        self.0.send(frame).expect("a frame on a packet socket");
    }

    /// The next frame that comes in time.
    pub fn receive(&self, patience: Duration) -> Option<Frame> {
        let deadline = Instant::now() + patience;
        loop {
            let mut bytes = Vec::with_capacity(70_000);
            match self.0.recv(bytes.spare_capacity_mut()) {
                Ok(length) => {
                    // SAFETY: recv has filled this much.
                    unsafe { bytes.set_len(length) };
                    return Some(Frame(bytes));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("a packet socket: {error}"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::try_from(left.as_millis() as i32 + 1).unwrap()).unwrap();
        }
    }

    /// Everything that has come.
    pub fn drain(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.receive(Duration::ZERO)).collect()
    }

    pub fn wait(&self, patience: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let deadline = Instant::now() + patience;
        loop {
            let frame = self.receive(deadline.saturating_duration_since(Instant::now()))?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }
}

//! The server's sockets: frames in and out of one device in batches, and a port held against ICMP errors. All the unsafe
//! code of the DHCP server is here. In: a device. Out: frames with what the kernel says about them.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::{CLIENT_PORT, SERVER_PORT};
use crate::model::{IfName, Mac};

/// Frames per system call.
const BATCH: usize = 64;
/// No DHCP message is longer; what is cut off here fails its length check.
const FRAME: usize = 2048;
/// Room for a boot storm: 10,000 requests while the server waits for the CPU.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 4 << 20;

// linux/if_packet.h; the libc crate has them not.
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AuxData {
    status: u32,
    length: u32,
    captured: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// A received frame.
pub(super) struct Frame<'a> {
    pub(super) bytes: &'a [u8],
    /// Its sender left the UDP checksum to offload.
    pub(super) checksum_left: bool,
    pub(super) vlan: bool,
}

/// A packet socket on one device that gets DHCP requests only.
pub(super) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens the socket; nothing is queued on it before the filter stands, because it has no protocol until it is bound.
    pub(super) fn open(ifindex: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&requests_only())?;
        // Forced, past the host's rmem_max: guestnet has CAP_NET_ADMIN.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        let on: libc::c_int = 1;
        // SAFETY: `on` outlives the call and the length is its own.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_AUXDATA,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        socket.bind(&device_address(ifindex, libc::ETH_P_IP as u16)?)?;
        Ok(Self(socket))
    }

    /// The device's own MAC: a bridge's may change with its ports.
    pub(super) fn device_mac(&self) -> io::Result<Mac> {
        device_mac(&self.0)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Receives what is there, at most a batch. Never waits.
    pub(super) fn receive(&self, batch: &mut Batch) -> io::Result<()> {
        batch.count = 0;
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| libc::iovec {
            iov_base: batch.frames[at].as_mut_ptr().cast(),
            iov_len: FRAME,
        });
        // SAFETY: all-zero bytes are a valid mmsghdr: null pointers with zero lengths.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for (at, header) in headers.iter_mut().enumerate() {
            header.msg_hdr.msg_iov = &raw mut vectors[at];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = batch.controls[at].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL;
        }
        // SAFETY: each header points to an iovec and a control buffer of the stated lengths, which live until after the
        // call and are borrowed by nobody else; `batch` is mutably ours.
        let received = unsafe {
            libc::recvmmsg(
                self.0.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        batch.count = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (at, header) in headers[..batch.count].iter().enumerate() {
            batch.lengths[at] = (header.msg_len as usize).min(FRAME);
            batch.status[at] = status(&header.msg_hdr);
        }
        Ok(())
    }

    /// Frames that found the queue full since the last time this was asked.
    pub(super) fn lost(&self) -> u32 {
        dropped(self.as_fd())
    }

    /// Sends whole frames; how many of them the kernel took. Never waits.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> usize {
        let (mut at, mut sent) = (0, 0);
        while at < frames.len() {
            let batch = &frames[at..frames.len().min(at + BATCH)];
            let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| match batch.get(at) {
                Some(frame) => {
                    libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() }
                }
                None => libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            });
            // SAFETY: all-zero bytes are a valid mmsghdr: null pointers with zero lengths.
            let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
            for (at, header) in headers.iter_mut().enumerate() {
                header.msg_hdr.msg_iov = &raw mut vectors[at];
                header.msg_hdr.msg_iovlen = 1;
            }
            // SAFETY: as many headers as there are frames in `batch` are passed; each points to an iovec over a frame that
            // is borrowed until after the call, and sending only reads it. Without an address the frame goes to the device
            // the socket is bound to.
            let taken = unsafe {
                libc::sendmmsg(
                    self.0.as_raw_fd(),
                    headers.as_mut_ptr(),
                    batch.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => (at, sent) = (at + taken, sent + taken),
                // The first of them is longer than what the device carries, or the device is down; the others may pass.
                _ => at += 1,
            }
        }
        sent
    }
}

/// Frames that found the queue of a packet socket full since the last time this was asked.
pub(crate) fn dropped(socket: BorrowedFd<'_>) -> u32 {
    // struct tpacket_stats: frames in all, frames dropped.
    let mut stats = [0_u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: `stats` and `length` outlive the call, and the length is its own.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if done == 0 { stats[1] } else { 0 }
}

/// Buffers of one receive call, used again and again.
pub(super) struct Batch {
    frames: Vec<[u8; FRAME]>,
    controls: Vec<Control>,
    lengths: [usize; BATCH],
    status: [u32; BATCH],
    count: usize,
}

const CONTROL: usize = 64;

/// Aligned as a `cmsghdr` has to be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Batch {
    /// Whether there may be more.
    pub(super) fn is_full(&self) -> bool {
        self.count == BATCH
    }

    pub(super) fn new() -> Self {
        Self {
            frames: vec![[0; FRAME]; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            lengths: [0; BATCH],
            status: [0; BATCH],
            count: 0,
        }
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        (0..self.count).map(|at| Frame {
            bytes: &self.frames[at][..self.lengths[at]],
            checksum_left: self.status[at] & TP_STATUS_CSUMNOTREADY != 0,
            vlan: self.status[at] & TP_STATUS_VLAN_VALID != 0,
        })
    }
}

/// The frame's TP_STATUS bits; none if the kernel gave none.
fn status(header: &libc::msghdr) -> u32 {
    // SAFETY: `header` is as recvmmsg left it, its control buffer is alive, and CMSG_FIRSTHDR and CMSG_NXTHDR stay within
    // its length.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so it points to a whole cmsghdr within the control buffer, aligned by `Control`.
        let head = unsafe { *message };
        let wanted = head.cmsg_level == libc::SOL_PACKET && head.cmsg_type == PACKET_AUXDATA;
        // SAFETY: the kernel wrote at least an AuxData behind the header; its length was just read.
        let least = unsafe { libc::CMSG_LEN(size_of::<AuxData>() as libc::c_uint) } as usize;
        if wanted && head.cmsg_len >= least {
            // SAFETY: `cmsg_len` says that an AuxData is there; any bytes are a valid one; read without alignment.
            let data = unsafe { libc::CMSG_DATA(message).cast::<AuxData>().read_unaligned() };
            return data.status;
        }
        // SAFETY: as for CMSG_FIRSTHDR above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    0
}

/// Where a packet socket for one protocol of one device is bound.
pub(super) fn device_address(ifindex: u32, protocol: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: a sockaddr_ll fits into a sockaddr_storage and is aligned in it; the length set is its own.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_protocol = protocol.to_be();
            (*link).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

/// The MAC, as it is now, of the device that a packet socket is bound to.
pub(super) fn device_mac(bound: &Socket) -> io::Result<Mac> {
    let address = bound.local_addr()?;
    // SAFETY: a SockAddr has the size of a sockaddr_storage, and this one is a packet socket's: the kernel wrote a
    // sockaddr_ll, of which it leaves out only unused octets of sll_addr; these are zero.
    let link = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
    let octets = link.sll_addr.first_chunk::<6>().filter(|_| link.sll_hatype == libc::ARPHRD_ETHER);
    octets
        .and_then(|octets| Mac::try_from(*octets).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not an Ethernet device"))
}

/// Classic BPF over a frame: IPv4 UDP to the server port, or to the client port from another server, to this host or to
/// all; of fragments the first, which has the ports. Everything else the device hears costs us nothing.
fn requests_only() -> [SockFilter; 14] {
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX};
    use libc::{BPF_MSH, BPF_RET, PACKET_BROADCAST, SKF_AD_OFF, SKF_AD_PKTTYPE};
    let op = |code: u32, yes: u8, no: u8, k: u32| SockFilter::new(code as u16, yes, no, k);
    let load = |size: u32, at: u32| op(BPF_LD | size | BPF_ABS, 0, 0, at);
    // Each jump that leaves goes to the last instruction.
    [
        load(BPF_H, 12),
        op(BPF_JMP | BPF_JEQ | BPF_K, 0, 11, libc::ETH_P_IP as u32),
        load(BPF_B, 23),
        op(BPF_JMP | BPF_JEQ | BPF_K, 0, 9, libc::IPPROTO_UDP as u32),
        load(BPF_H, 20),
        op(BPF_JMP | BPF_JSET | BPF_K, 7, 0, 0x1fff),
        op(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 14),
        op(BPF_LD | BPF_H | BPF_IND, 0, 0, 16),
        op(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SERVER_PORT.into()),
        op(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, CLIENT_PORT.into()),
        load(BPF_B, (SKF_AD_OFF + SKF_AD_PKTTYPE) as u32),
        op(BPF_JMP | BPF_JGT | BPF_K, 1, 0, PACKET_BROADCAST.into()),
        op(BPF_RET | BPF_K, 0, 0, u32::MAX),
        op(BPF_RET | BPF_K, 0, 0, 0),
    ]
}

/// Holds the server port on the gateway address. A guest renews by unicast; the packet socket hears that, but the kernel
/// sees a datagram to a port nobody has and would answer with an ICMP error next to our ACK. This socket takes it, and
/// its filter throws it away before it is queued.
pub(super) fn hold_server_port(device: &IfName, gateway: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.attach_filter(&[SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)])?;
    // The kernel makes it its minimum.
    socket.set_recv_buffer_size(1)?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    socket.bind(&SocketAddrV4::new(gateway, SERVER_PORT).into())?;
    Ok(socket)
}

/// Waits until there are frames; `false` when `stop` was closed by its other end.
pub(super) fn wait(socket: &PacketSocket, stop: BorrowedFd<'_>) -> io::Result<bool> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(socket.as_fd()), entry(stop)];
    // SAFETY: two pollfds that outlive the call.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
    }
    Ok(entries[1].revents == 0)
}

//! `guestnet capture VM`: the packets of one guest, as pcap, from its port on the bridge. In: an AF_PACKET socket. Out: a file
//! or standard output that tcpdump and Wireshark read; it ends by itself, and outlives a restart of the service.

use std::fs::File;
use std::io::{self, IoSliceMut, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::CliError;
use super::client::Client;
use crate::dhcp::dropped;
use crate::model::VmId;
use crate::proto::guestnet::v1;

#[derive(Debug, Args)]
pub(super) struct CaptureArguments {
    vm_id: VmId,
    /// Where to write; standard output otherwise, as in: guestnet capture web-1 | tcpdump -n -r -
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// End after so many packets.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    packets: u64,
    /// End after so many seconds.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    seconds: u64,
    /// Bytes kept of each packet.
    #[arg(long, default_value_t = 65_535, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=65_535))]
    snaplen: u32,
}

/// Magic of microseconds, version 2.4, Ethernet (pcap-savefile(5)).
fn header(snaplen: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(24);
    header.extend(0xa1b2_c3d4u32.to_ne_bytes());
    header.extend(2u16.to_ne_bytes());
    header.extend(4u16.to_ne_bytes());
    header.extend([0; 8]);
    header.extend(snaplen.to_ne_bytes());
    header.extend(1u32.to_ne_bytes());
    header
}

fn record(at: SystemTime, packet: &[u8], whole: usize) -> Vec<u8> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
    let mut record = Vec::with_capacity(16 + packet.len());
    record.extend(word(since.as_secs()));
    record.extend(since.subsec_micros().to_ne_bytes());
    record.extend(word(packet.len() as u64));
    record.extend(word(whole as u64));
    record.extend(packet);
    record
}

pub(super) async fn run(client: &Client, asked: CaptureArguments) -> Result<(), CliError> {
    if asked.out.is_none() && io::stdout().is_terminal() {
        return Err(CliError::Binary("a capture".into()));
    }
    let vm = client.get(&asked.vm_id).await?;
    let port = vm.host_device.clone();
    let failed = |what: String| move |source| CliError::Io { what: what.clone(), source };
    let socket = open(&port).map_err(failed(format!("listening on {port} (needs root)")))?;
    let mut out: Box<dyn Write + Send> = match &asked.out {
        Some(path) => Box::new(File::create(path).map_err(failed(format!("writing {}", path.display())))?),
        None => Box::new(io::stdout()),
    };
    let failed = failed("capturing".into());
    let mut capture = Capture::new(socket, &asked);
    let mut is_read = write(out.as_mut(), &header(asked.snaplen)).map_err(&failed)?;
    // Packets that nobody knows yet whose they are.
    let mut heard: Vec<Vec<u8>> = Vec::new();
    let mut has_left = false;
    while is_read && !has_left && !capture.is_over() {
        let held = (heard.len(), heard.iter().map(Vec::len).sum());
        let round = tokio::task::spawn_blocking(move || {
            let records = capture.round(held);
            (capture, records)
        });
        let (back, records) = round.await.map_err(io::Error::other).map_err(&failed)?;
        capture = back;
        let whose = whose(client, &asked.vm_id, &vm).await;
        has_left = whose == Whose::Others;
        if has_left {
            heard.clear();
            break;
        }
        heard.extend(records.map_err(&failed)?);
        if whose == Whose::Its {
            for record in heard.drain(..) {
                is_read = is_read && write(out.as_mut(), &record).map_err(&failed)?;
                capture.written += u64::from(is_read);
            }
        }
    }
    // Beside the pcap, for people.
    let dropped = dropped(capture.socket.as_fd());
    let mut said = format!("{} packets on {port}, {dropped} packets dropped by the kernel", capture.written);
    if has_left {
        said += &format!("; VM {} has left it", asked.vm_id);
    }
    if !heard.is_empty() {
        said += &format!("; {} left out: the service did not say whose they are", heard.len());
    }
    let _ = writeln!(io::stderr(), "{said}");
    Ok(())
}

/// Whose the packets are that were heard.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Its,
    /// The VM has left the port, which is the next one's.
    Others,
    /// The service does not answer: until it does, nobody is given the port.
    Unknown,
}

async fn whose(client: &Client, vm_id: &VmId, vm: &v1::VmNetwork) -> Whose {
    match tokio::time::timeout(ANSWER, client.get(vm_id)).await {
        Ok(Ok(now)) if now.host_device == vm.host_device && now.mac_address == vm.mac_address => Whose::Its,
        Ok(Ok(_) | Err(CliError::NoNetwork { .. })) => Whose::Others,
        Ok(Err(_)) | Err(_) => Whose::Unknown,
    }
}

/// Every protocol, of one device.
fn open(device: &str) -> io::Result<Socket> {
    let index = nix::net::if_::if_nametoindex(device)?;
    // packet(7): in network byte order.
    let every = (libc::ETH_P_ALL as u16).to_be();
    // Without a protocol it takes nothing until it is bound: other devices' packets are other guests'.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    // Forced, past the host's rmem_max; whoever may listen and not that does with what there is.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll is smaller than the storage, aligned no stricter, and valid with every bit pattern.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the storage begins with a whole sockaddr_ll of that length, written above.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket.bind(&address)?;
    Ok(socket)
}

/// How long packets wait until it is known whose they are.
const ROUND: Duration = Duration::from_millis(200);

/// For the service to say it.
const ANSWER: Duration = Duration::from_secs(1);

/// Packets that come in bursts wait here.
const RECEIVE_BUFFER: usize = 16 << 20;

/// What is held while the service does not answer: beyond it the kernel holds them.
const HELD: usize = 65_536;
const HELD_BYTES: usize = 64 << 20;

/// Of one round at most: beyond it the kernel holds them, and drops what is too much.
const MOST: usize = 4_096;

struct Capture {
    socket: Socket,
    end: Instant,
    most: u64,
    snaplen: usize,
    written: u64,
    buffer: Vec<u8>,
}

impl Capture {
    fn new(socket: Socket, asked: &CaptureArguments) -> Self {
        let end = Instant::now() + Duration::from_secs(asked.seconds);
        let (most, snaplen) = (asked.packets, asked.snaplen as usize);
        Self { socket, end, most, snaplen, written: 0, buffer: vec![0; 1 << 16] }
    }

    fn is_over(&self) -> bool {
        self.written >= self.most || Instant::now() >= self.end
    }

    /// What comes until the round's end, as records of a pcap, beside those that are held and their bytes.
    fn round(&mut self, (held, held_bytes): (usize, usize)) -> io::Result<Vec<Vec<u8>>> {
        let end = self.end.min(Instant::now() + ROUND);
        let wanted = usize::try_from(self.most - self.written).unwrap_or(usize::MAX).min(HELD);
        let (most, mut room) = (wanted.saturating_sub(held).min(MOST), HELD_BYTES.saturating_sub(held_bytes));
        let mut records = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || records.len() == MOST {
                return Ok(records);
            }
            if records.len() == most || room == 0 {
                if held == 0 {
                    return Ok(records);
                }
                std::thread::sleep(left);
                return Ok(records);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.receive() {
                Ok(record) => {
                    room = room.saturating_sub(record.len());
                    records.push(record);
                }
                // EINTR: it was stopped, and goes on (signal(7)).
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(records),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next packet, with when the kernel heard it.
    fn receive(&mut self) -> Result<Vec<u8>, Errno> {
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut into = [IoSliceMut::new(&mut self.buffer)];
        let got = recvmsg::<()>(self.socket.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::MSG_TRUNC)?;
        let heard = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(at) => Some(at),
            _ => None,
        });
        let since = heard.map(Duration::from);
        let (at, whole) = (since.map_or_else(SystemTime::now, |since| UNIX_EPOCH + since), got.bytes);
        Ok(record(at, &self.buffer[..whole.min(self.buffer.len()).min(self.snaplen)], whole))
    }
}

/// Whether there still is a reader. Each packet goes out at once: who watches wants to see it.
fn write(out: &mut dyn Write, bytes: &[u8]) -> io::Result<bool> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_how_long_the_packet_was_and_how_much_of_it_is_there() {
        let record = record(UNIX_EPOCH + Duration::new(3, 5_000), b"abc", 1_500);
        assert_eq!(record.len(), 19);
        let words: Vec<u32> =
            record[..16].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [3, 5, 3, 1_500]);
        assert_eq!(header(96).len(), 24);
    }
}

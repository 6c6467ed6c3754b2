//! `guestnet capture VM`: the packets of one guest, as pcap, from its port on the bridge. In: an AF_PACKET socket. Out: a file
//! or standard output that tcpdump and Wireshark read; it ends by itself.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::CliError;
use super::client::Client;
use crate::model::VmId;

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
    let port = vm.host_device;
    let failed = |what: String| move |source| CliError::Io { what: what.clone(), source };
    let socket = open(&port).map_err(failed(format!("listening on {port} (needs root)")))?;
    let mut out: Box<dyn Write + Send> = match &asked.out {
        Some(path) => Box::new(File::create(path).map_err(failed(format!("writing {}", path.display())))?),
        None => Box::new(io::stdout()),
    };
    let failed = failed("capturing".into());
    let mut capture = Capture::new(socket, &asked);
    let mut is_read = write(out.as_mut(), &header(asked.snaplen)).map_err(&failed)?;
    let mut its_own = true;
    while is_read && its_own && !capture.is_over() {
        let round = tokio::task::spawn_blocking(move || {
            let records = capture.round();
            (capture, records)
        });
        let (back, records) = round.await.map_err(io::Error::other).map_err(&failed)?;
        capture = back;
        // A port that its VM has left is the next one's: what was heard is its own if it still has the port.
        its_own = match client.get(&asked.vm_id).await {
            Ok(now) => now.host_device == port && now.mac_address == vm.mac_address,
            Err(CliError::NoNetwork { .. }) => false,
            Err(error) => return Err(error),
        };
        if its_own {
            for record in records.map_err(&failed)? {
                is_read = is_read && write(out.as_mut(), &record).map_err(&failed)?;
                capture.written += u64::from(is_read);
            }
        }
    }
    // Beside the pcap, for people.
    let why = if its_own { String::new() } else { format!("; VM {} has left it", asked.vm_id) };
    let _ = writeln!(io::stderr(), "{} packets on {port}{why}", capture.written);
    Ok(())
}

/// Every protocol, of one device.
fn open(device: &str) -> io::Result<Socket> {
    let index = nix::net::if_::if_nametoindex(device)?;
    // packet(7): in network byte order.
    let every = (libc::ETH_P_ALL as u16).to_be();
    // Without a protocol it takes nothing until it is bound: other devices' packets are other guests'.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
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

    /// What comes until the round's end, as records of a pcap.
    fn round(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let end = self.end.min(Instant::now() + ROUND);
        let most = MOST.min(usize::try_from(self.most - self.written).unwrap_or(MOST));
        let mut records = Vec::new();
        while records.len() < most {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match (&self.socket).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error),
            };
            records.push(record(SystemTime::now(), &self.buffer[..length.min(self.snaplen)], length));
        }
        Ok(records)
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

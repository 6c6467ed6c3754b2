//! Asks a link who has an address, by a probe, from which nobody learns anything (RFC 5227 section 2.1.1). In: the device, the
//! address. Out: the MACs that answer.

use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::socket::{device_address, device_mac};
use crate::model::Mac;

const WAIT: Duration = Duration::from_millis(300);
/// Frames read after that time: what had come before it.
const LATE: usize = 64;
/// More hosts than that under one address are told as that many.
const MOST: usize = 4;

/// Everyone but `except` that answers for `address`.
pub(super) fn who_has(ifindex: u32, address: Ipv4Addr, except: Mac) -> io::Result<Vec<Mac>> {
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.bind(&device_address(ifindex, libc::ETH_P_ARP as u16)?)?;
    let own = device_mac(&socket)?;
    socket.write_all(&question(own, address))?;
    let until = Instant::now() + WAIT;
    let (mut macs, mut buffer) = (Vec::new(), [0; 128]);
    let mut late = 0;
    while macs.len() < MOST && late < LATE {
        // What has come by then is read, even if this thread was kept waiting.
        let left = until.saturating_duration_since(Instant::now());
        late += usize::from(left.is_zero());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => {
                break;
            }
            Err(error) => return Err(error),
        };
        if let Some(mac) = answer(&buffer[..length], address)
            && mac != except
            && mac != own
            && !macs.contains(&mac)
        {
            macs.push(mac);
        }
    }
    Ok(macs)
}

/// Ethernet, IPv4, six and four octets.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

fn question(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(own.octets());
    frame.extend([0x08, 0x06]);
    frame.extend(KIND);
    frame.extend([0, 1]);
    frame.extend(own.octets());
    frame.extend(Ipv4Addr::UNSPECIFIED.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Who says that it has `address`: an answer, or an announcement (RFC 5227 section 3).
fn answer(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(14..42)?;
    let sender: [u8; 6] = arp[8..14].try_into().ok()?;
    (arp[..6] == KIND && arp[14..18] == address.octets()).then(|| Mac::try_from(sender).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_sender_and_the_question_does_not() {
        let own: Mac = "02:00:00:00:00:01".parse().unwrap();
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let mut frame = question(own, address);
        assert_eq!((frame.len(), answer(&frame, address)), (42, None));
        let other: Mac = "02:00:00:00:00:07".parse().unwrap();
        frame[21] = 2;
        frame[22..28].copy_from_slice(&other.octets());
        frame[28..32].copy_from_slice(&address.octets());
        assert_eq!(answer(&frame, address), Some(other));
        assert_eq!(answer(&frame[..40], address), None);
    }
}

//! `dhcp-behaviour`: what DHCP servers do with the messages that microVM hosts see, asked of each by raw frames. 1 is what a
//! host wishes for, 0 is something else: docs/dhcp.md's table, measured.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::generator::{address, checksum, mac, packet_socket};
use super::servers::{CLIENTS, Kind, Link, SERVER, start};
use crate::debian;
use crate::report::{Better, Figure, Report};

const COUNT: usize = 12;
/// A server that has not answered by then does not.
const PATIENCE: Duration = Duration::from_millis(1500);

type Case = (&'static str, fn(&mut Wire) -> bool);

const CASES: &[Case] = &[
    ("clones_keep_their_addresses", clones_keep_their_addresses),
    ("init_reboot_of_a_reservation_never_leased_is_acknowledged", init_reboot_is_acknowledged),
    ("a_moved_address_is_refused_by_broadcast", a_moved_address_is_refused),
    ("decline_keeps_the_reservation", decline_keeps_the_reservation),
    ("a_frame_for_anothers_mac_is_dropped", a_foreign_frame_is_dropped),
    ("udp_checksum_is_complete", checksum_is_complete),
    ("an_unknown_mac_gets_no_answer", an_unknown_mac_gets_no_answer),
    ("rapid_commit", rapid_commit),
    ("bootp", bootp),
    ("relay_agents_option_is_echoed", relay_agents_option_is_echoed),
];

pub fn run() -> Report {
    debian::install(&["dnsmasq-base", "kea-dhcp4-server", "isc-dhcp-server", "iproute2", "systemd"]);
    let ours = ask(Kind::Guestnet);
    let peers = Kind::ALL_PEERS.map(|peer| (peer.name(), ask(peer)));
    let number = |answers: &Result<Vec<bool>, String>, n: usize| match answers {
        Ok(answers) => f64::from(u8::from(answers[n])),
        Err(_) => f64::NAN,
    };
    let figure = |(n, (name, _)): (usize, &Case)| Figure {
        name: (*name).into(),
        unit: "",
        better: Better::Higher,
        guestnet: number(&ours, n),
        peers: peers.iter().map(|(peer, answers)| (*peer, number(answers, n))).collect(),
        goal: 1.0,
        absent: peers
            .iter()
            .filter_map(|(peer, answers)| Some((*peer, answers.as_ref().err()?.clone())))
            .collect(),
    };
    Report(CASES.iter().enumerate().map(figure).collect())
}

fn ask(kind: Kind) -> Result<Vec<bool>, String> {
    let link = Link::new();
    let _server = start(kind, &link, COUNT)?;
    Ok(link.clients.run(|| {
        let mut wire = Wire { socket: packet_socket(CLIENTS).expect("a packet socket"), xid: 7 };
        CASES.iter().map(|(_, case)| case(&mut wire)).collect()
    }))
}

/// The clients' end of the link.
struct Wire {
    socket: Socket,
    xid: u32,
}

/// One message of a client.
#[derive(Clone, Default)]
struct Message {
    /// Ethernet source, where it is not the client's own MAC.
    from: Option<[u8; 6]>,
    chaddr: [u8; 6],
    giaddr: Option<Ipv4Addr>,
    /// After the cookie, without End.
    options: Vec<u8>,
}

/// A reply to the message that was sent last.
struct Reply {
    frame: Vec<u8>,
}

impl Reply {
    fn bootp(&self) -> &[u8] {
        &self.frame[42..]
    }

    fn address(&self) -> Ipv4Addr {
        let at = &self.bootp()[16..20];
        Ipv4Addr::new(at[0], at[1], at[2], at[3])
    }

    fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut options = self.bootp().get(240..)?;
        loop {
            match *options {
                [0, ref rest @ ..] => options = rest,
                [code, length, ref rest @ ..] if code != 255 => {
                    let (data, rest) = rest.split_at_checked(length.into())?;
                    if code == wanted {
                        return Some(data);
                    }
                    options = rest;
                }
                _ => return None,
            }
        }
    }

    fn kind(&self) -> u8 {
        self.option(53).and_then(|data| data.first().copied()).unwrap_or_default()
    }
}

impl Message {
    /// Of the n-th client.
    fn of(n: usize, options: &[u8]) -> Self {
        Self { chaddr: mac(address(n)), options: options.to_vec(), ..Self::default() }
    }

    fn frame(&self, xid: u32) -> Vec<u8> {
        let mut bootp = vec![0; 236];
        bootp[..4].copy_from_slice(&[1, 1, 6, u8::from(self.giaddr.is_some())]);
        bootp[4..8].copy_from_slice(&xid.to_be_bytes());
        bootp[24..28].copy_from_slice(&self.giaddr.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bootp[28..34].copy_from_slice(&self.chaddr);
        bootp.extend([99, 130, 83, 99]);
        bootp.extend(&self.options);
        bootp.push(255);
        bootp.resize(bootp.len().max(300), 0);
        let source = self.giaddr.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        let port = if self.giaddr.is_some() { 67 } else { 68 };
        let mut udp = vec![0, port, 0, 67];
        udp.extend(((bootp.len() + 8) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(bootp);
        let sum = checksum(&[&source[..], &[255; 4], &[0, 17], &udp[4..6], &udp].concat());
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend(((udp.len() + 20) as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(source);
        ip.extend([255; 4]);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&[0xff; 6][..], &self.from.unwrap_or(self.chaddr), &[8, 0], &ip, &udp].concat()
    }
}

impl Wire {
    /// The first reply to a message, if one comes.
    fn ask(&mut self, message: &Message) -> Option<Reply> {
        self.xid += 1;
        self.socket.write_all(&message.frame(self.xid)).expect("sending");
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).expect("a timeout");
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => break,
                Err(error) => panic!("receiving: {error}"),
            };
            let frame = buffer[..length].to_vec();
            let is_it = frame.len() >= 282
                && frame[12..14] == [8, 0]
                && frame[23] == 17
                && frame[34..36] == [0, 67]
                && frame[42] == 2
                && frame[46..50] == self.xid.to_be_bytes();
            if is_it {
                return Some(Reply { frame });
            }
        }
        None
    }

    /// Discovers and requests; the address of the ACK.
    fn lease(&mut self, n: usize, more: &[u8]) -> Option<Ipv4Addr> {
        let offer = self.ask(&Message::of(n, &[&[53, 1, 1], more].concat()))?;
        let ack = self.ask(&Message::of(n, &[&selecting(offer.address()), more].concat()))?;
        (ack.kind() == 5).then(|| ack.address())
    }
}

fn selecting(address: Ipv4Addr) -> Vec<u8> {
    [&[53, 1, 3, 54, 4][..], &SERVER.octets(), &[50, 4], &address.octets()].concat()
}

fn clones_keep_their_addresses(wire: &mut Wire) -> bool {
    const CLONED: [u8; 9] = [61, 7, 255, 0, 0, 0, 1, 0, 3];
    (0..2).all(|n| wire.lease(n, &CLONED) == Some(address(n)))
}

fn init_reboot_is_acknowledged(wire: &mut Wire) -> bool {
    let options = [&[53, 1, 3, 50, 4][..], &address(2).octets()].concat();
    wire.ask(&Message::of(2, &options)).is_some_and(|reply| reply.kind() == 5)
}

fn a_moved_address_is_refused(wire: &mut Wire) -> bool {
    let options = [&[53, 1, 3, 50, 4][..], &address(200).octets()].concat();
    let reply = wire.ask(&Message::of(3, &options));
    reply.is_some_and(|reply| reply.kind() == 6 && reply.frame[..6] == [0xff; 6])
}

fn decline_keeps_the_reservation(wire: &mut Wire) -> bool {
    if wire.lease(4, &[]) != Some(address(4)) {
        return false;
    }
    let decline = [&[53, 1, 4, 54, 4][..], &SERVER.octets(), &[50, 4], &address(4).octets()].concat();
    wire.ask(&Message::of(4, &decline));
    wire.ask(&Message::of(4, &[53, 1, 1])).is_some_and(|offer| offer.address() == address(4))
}

fn a_foreign_frame_is_dropped(wire: &mut Wire) -> bool {
    let from = Some([2, 0, 0, 0, 0, 0x66]);
    wire.ask(&Message { from, ..Message::of(5, &[53, 1, 1]) }).is_none()
}

/// As the bytes are on the link: no hardware completes them on a TAP.
fn checksum_is_complete(wire: &mut Wire) -> bool {
    wire.ask(&Message::of(6, &[53, 1, 1])).is_some_and(|reply| {
        let (ip, udp) = (&reply.frame[14..34], &reply.frame[34..]);
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        udp[6..8] == [0, 0] || checksum(&[&ip[12..20], &[0, 17], &udp[4..6], &udp[..length]].concat()) == 0
    })
}

fn an_unknown_mac_gets_no_answer(wire: &mut Wire) -> bool {
    wire.ask(&Message::of(300, &[53, 1, 1])).is_none()
}

fn rapid_commit(wire: &mut Wire) -> bool {
    wire.ask(&Message::of(7, &[53, 1, 1, 80, 0])).is_some_and(|reply| reply.kind() == 5)
}

fn bootp(wire: &mut Wire) -> bool {
    wire.ask(&Message::of(8, &[])).is_some_and(|reply| reply.address() == address(8))
}

fn relay_agents_option_is_echoed(wire: &mut Wire) -> bool {
    let agent = [82, 5, 1, 3, b'g', b'v', b'7'];
    let message = Message::of(9, &[&[53, 1, 1][..], &agent].concat());
    let relay = Ipv4Addr::new(10, 9, 0, 9);
    let from = Some([2, 0, 0, 0, 0, 9]);
    // Who has the relay agent's address is asked by servers that send by the kernel.
    super::servers::give_address(CLIENTS, "10.9.0.9/16", "02:00:00:00:00:09");
    let reply = wire.ask(&Message { from, giaddr: Some(relay), ..message });
    reply.is_some_and(|reply| reply.address() == address(9) && reply.option(82) == Some(&agent[2..]))
}

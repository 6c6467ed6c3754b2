//! A network that somebody else made: a bridge on the lab's host with a namespace at each port, as libvirt or a CNI plugin
//! leaves it. guestnet serves on it and touches nothing of it.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::Decodable;
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Lab, Namespace, succeed};

/// The bridge, and its address, which is the server's.
pub const BRIDGE: &str = "lan0";
pub const SERVER: &str = "10.9.0.1";

/// `[[network]]` of this LAN, `more` being further lines of it.
pub fn network(more: &str) -> String {
    format!(
        "[[network]]\nname = \"lan\"\nplumbing = \"external\"\nbridge_name = \"{BRIDGE}\"\nbridge_ip = \"{SERVER}/16\"\n\
         vm_subnet = \"10.9.0.0/16\"\n{more}\n"
    )
}

/// Makes the bridge on the lab's host.
pub fn make(lab: &Lab) {
    lab.on_host("ip", &["link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"]);
    lab.on_host("ip", &["addr", "add", &format!("{SERVER}/16"), "dev", BRIDGE]);
    lab.on_host("ip", &["link", "set", BRIDGE, "up"]);
}

/// A machine at port `port` of the bridge; its interface is `eth0`, which is up and has this MAC and no address.
pub fn machine(lab: &Lab, port: &str, mac: &str) -> Namespace {
    let machine = Namespace::new_with_mounts();
    let far = format!("/proc/{}/fd/{}", std::process::id(), machine.net_fd());
    let veth = ["link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", &far];
    lab.on_host("ip", &veth);
    lab.on_host("ip", &["link", "set", port, "master", BRIDGE]);
    lab.on_host("ip", &["link", "set", port, "up"]);
    succeed(machine.command("ip").args(["link", "set", "lo", "up"]));
    succeed(machine.command("ip").args(["link", "set", "eth0", "up"]));
    machine
}

/// A DHCP message that went by.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Of the frame's source.
    pub mac: String,
    pub to_mac: String,
    pub to: Ipv4Addr,
    pub message: Message,
    /// The message as it was on the wire.
    pub bytes: Vec<u8>,
}

impl Seen {
    /// None for a frame that is not of DHCP.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let is_dhcp = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17;
        let ports = [frame.get(34..36)?, frame.get(36..38)?];
        if !is_dhcp || !ports.iter().all(|port| [[0, 67], [0, 68]].iter().any(|known| known == port)) {
            return None;
        }
        let mac = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        Some(Self {
            mac: mac(&frame[6..12]),
            to_mac: mac(&frame[..6]),
            to: Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]),
            message: Message::from_bytes(frame.get(42..)?).ok()?,
            bytes: frame.get(42..)?.to_vec(),
        })
    }

    pub fn kind(&self) -> Option<MessageType> {
        self.message.opts().msg_type()
    }

    pub fn has(&self, code: OptionCode) -> bool {
        self.message.opts().get(code).is_some()
    }

    /// Whether this is a REQUEST of that state (RFC 2131 section 4.3.2).
    pub fn is(&self, state: State) -> bool {
        let unbound = self.message.ciaddr().is_unspecified();
        self.kind() == Some(MessageType::Request)
            && match state {
                State::InitReboot => unbound && !self.has(OptionCode::ServerIdentifier),
                State::Renewing => !unbound && self.to != Ipv4Addr::BROADCAST,
                State::Rebinding => !unbound && self.to == Ipv4Addr::BROADCAST,
            }
    }

    /// The data of an option, byte by byte as it was sent; its pieces joined.
    pub fn data(&self, wanted: u8) -> Option<Vec<u8>> {
        let mut found: Option<Vec<u8>> = None;
        let mut rest = self.bytes.get(240..)?;
        while let [code, length, after @ ..] = rest
            && *code != 255
        {
            let (data, after) = after.split_at_checked(usize::from(*length))?;
            if *code == wanted {
                found.get_or_insert_default().extend(data);
            }
            rest = after;
        }
        found
    }

    pub fn requested(&self) -> Option<Ipv4Addr> {
        match self.message.opts().get(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    InitReboot,
    Renewing,
    Rebinding,
}

/// Everything of DHCP that goes through an interface, both ways.
pub struct Sniffer {
    socket: Socket,
    seen: VecDeque<Seen>,
}

impl Sniffer {
    pub fn new(on: &Namespace, interface: &str) -> Self {
        let socket = on.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("a packet socket");
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))
                .expect("a receive buffer");
            let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
            // SAFETY: a sockaddr_ll fits into a sockaddr_storage and is aligned in it; the length set is its own.
            let ((), address) = unsafe {
                SockAddr::try_init(|storage, length| {
                    let link = storage.cast::<libc::sockaddr_ll>();
                    (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
                    (*link).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
                    (*link).sll_ifindex = index as i32;
                    *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                    Ok(())
                })
            }
            .expect("an address");
            socket.bind(&address).expect("a bound socket");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            socket
        });
        Self { socket, seen: VecDeque::new() }
    }

    /// Puts a frame on the interface.
    pub fn send(&self, frame: &[u8]) {
        let sent = self.socket.send(frame).expect("sending a frame");
        assert_eq!(sent, frame.len());
    }

    /// Waits for a message that `wanted` says yes to; those before it are passed over.
    pub fn wait(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + limit;
        let mut passed = Vec::new();
        loop {
            while let Some(seen) = self.seen.pop_front() {
                if wanted(&seen) {
                    return seen;
                }
                passed.push(format!(
                    "{} → {} {:?} {}",
                    seen.mac,
                    seen.to,
                    seen.kind(),
                    seen.message.ciaddr()
                ));
            }
            assert!(Instant::now() < deadline, "{what} did not come; what came: {passed:#?}");
            self.receive();
        }
    }

    /// What has gone by since the last look.
    pub fn all(&mut self) -> Vec<Seen> {
        while self.receive() {}
        self.seen.drain(..).collect()
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        let length = match self.socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return false;
            }
            Err(error) => panic!("sniffing: {error}"),
        };
        // SAFETY: the kernel wrote `length` bytes.
        let frame: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        self.seen.extend(Seen::of(&frame));
        true
    }
}

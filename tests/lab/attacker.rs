//! A guest that writes any bytes it likes: the lab holds the VM's TAP and is its VMM, its network card and its mind.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use super::Lab;
use super::frames::{self, Arp, Frame, Mac};

mod ioctl {
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// Long enough for a frame to go through the host, whatever else runs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's side of a TAP.
pub struct Attacker {
    tap: File,
    pub vm_id: String,
    pub mac: Mac,
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub gateway_mac: Mac,
    pub port: String,
}

impl Attacker {
    /// Opens the TAP of a VM, `vm create --json`'s answer, as a VMM in its netns does.
    pub fn new(lab: &Lab, vm: &Value) -> Self {
        let text = |name: &str| vm[name].as_str().unwrap_or_else(|| panic!("no {name}: {vm}")).to_owned();
        let namespace = lab.host.enter(&Path::new("/run/netns").join(text("namespace")));
        let tap = namespace.run(|| open(&text("tap_device")));
        let gateway: Ipv4Addr = text("gateway").parse().expect("a gateway");
        let octets = gateway.octets();
        let attacker = Self {
            tap,
            vm_id: text("vm_id"),
            mac: frames::mac(&text("mac_address")),
            ip: text("ip_address").parse().expect("an address"),
            gateway,
            gateway_mac: [6, 0, octets[0], octets[1], octets[2], octets[3]],
            port: text("host_device"),
        };
        attacker.wait_for_carrier();
        attacker
    }

    /// Opens the TAP of a slot, by its number, before there is a VM on it that will have `ip`; otherwise as `neighbour` is.
    pub fn early(lab: &Lab, slot: &str, ip: Ipv4Addr, neighbour: &Self) -> Self {
        let namespace = lab.host.enter(&Path::new("/run/netns").join(format!("guestnet-{slot}")));
        let octets = ip.octets();
        Self {
            tap: namespace.run(|| open("tap0")),
            vm_id: "early".into(),
            mac: [6, 0, octets[0], octets[1], octets[2], octets[3]],
            ip,
            gateway: neighbour.gateway,
            gateway_mac: neighbour.gateway_mac,
            port: format!("gv{slot}"),
        }
    }

    /// A TAP carries only some time after it was opened: the kernel starts its queue when it gets to it, within a second.
    fn wait_for_carrier(&self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        while self.ping(self.gateway, Duration::from_millis(100)).is_none() {
            assert!(Instant::now() < deadline, "{}: the gateway does not answer", self.vm_id);
        }
        while self.receive(Duration::from_millis(20)).is_some() {}
    }

    /// Writes a frame, as it is.
    pub fn send(&self, frame: &[u8]) {
        // struct virtio_net_hdr, all zero: nothing is left to the host.
        let bytes = [&[0; 10][..], frame].concat();
        (&self.tap).write_all(&bytes).expect("a frame on the TAP");
    }

    /// The next frame, if one comes in time.
    pub fn receive(&self, patience: Duration) -> Option<Frame> {
        let deadline = Instant::now() + patience;
        loop {
            let mut bytes = vec![0; 70_000];
            match (&self.tap).read(&mut bytes) {
                Ok(length) => return Some(Frame(bytes[10..length].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("reading the TAP of {}: {error}", self.vm_id),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut ready = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            let milliseconds = PollTimeout::try_from(left.as_millis() as i32 + 1).expect("some seconds");
            poll(&mut ready, milliseconds).expect("waiting for a frame");
        }
    }

    /// Waits for a frame like this, passing others by; answers ARP questions about itself meanwhile.
    pub fn expect(&self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        self.wait(PATIENCE, wanted).unwrap_or_else(|| panic!("{} did not see {what}", self.vm_id))
    }

    pub fn wait(&self, patience: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let deadline = Instant::now() + patience;
        loop {
            let frame = self.receive(deadline.saturating_duration_since(Instant::now()))?;
            if wanted(&frame) {
                return Some(frame);
            }
            if let Some(arp) = frame.arp()
                && arp.operation == 1
                && arp.target_ip == self.ip
            {
                self.send(&self.arp_reply(arp));
            }
        }
    }

    /// Everything that is there to be read now.
    pub fn drain(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.receive(Duration::ZERO)).collect()
    }

    fn arp_reply(&self, question: Arp) -> Vec<u8> {
        frames::arp(
            self.mac,
            question.sender_mac,
            &Arp {
                operation: 2,
                sender_mac: self.mac,
                sender_ip: self.ip,
                target_mac: question.sender_mac,
                target_ip: question.sender_ip,
            },
        )
    }

    /// A UDP datagram of its own by the gateway, as a guest that means well sends it.
    pub fn udp(&self, to: Ipv4Addr, ports: (u16, u16), text: &[u8]) -> Vec<u8> {
        frames::udp(self.mac, self.gateway_mac, self.ip, to, ports, text)
    }

    /// The first segment of a TCP connection, with text in it to be known by.
    pub fn tcp(&self, to: Ipv4Addr, ports: (u16, u16), text: &[u8]) -> Vec<u8> {
        frames::tcp((self.mac, self.gateway_mac), (self.ip, to), ports, (frames::SYN, 1, 0), text)
    }

    /// A packet of any protocol of IPv4.
    pub fn packet(&self, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let packet = frames::ipv4(self.ip, to, protocol, payload);
        frames::ethernet(self.mac, self.gateway_mac, 0x0800, &packet)
    }

    pub fn echo(&self, to: Ipv4Addr, sequence: u16) -> Vec<u8> {
        frames::echo(self.mac, self.gateway_mac, self.ip, to, sequence)
    }

    /// Pings `to`, and says how long the answer took.
    pub fn ping(&self, to: Ipv4Addr, patience: Duration) -> Option<Duration> {
        let sequence = rand_sequence();
        let begun = Instant::now();
        self.send(&self.echo(to, sequence));
        self.wait(patience, |frame| frame.is_echo_reply(to, sequence)).map(|_| begun.elapsed())
    }

    /// Returns when everything that it sent before, and all that was on its way to it, has been through the host. What it has
    /// received by then.
    pub fn settle(&self) -> Vec<Frame> {
        self.settle_with(self.gateway)
    }

    /// The same by way of an answer from `to`.
    pub fn settle_with(&self, to: Ipv4Addr) -> Vec<Frame> {
        on_every_cpu(|| self.settle_here(to)).concat()
    }

    fn settle_here(&self, to: Ipv4Addr) -> Vec<Frame> {
        let sequence = rand_sequence();
        self.send(&self.echo(to, sequence));
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Some(frame) = self.receive(deadline.saturating_duration_since(Instant::now())) {
            if frame.is_echo_reply(to, sequence) {
                return seen;
            }
            seen.push(frame);
        }
        panic!("{}: no answer from {to}; received {seen:?}", self.vm_id);
    }
}

/// Does `work` on each processor that this thread may have: the kernel handles in order what was sent from one, and what was
/// sent from another may wait there behind whatever else runs.
pub fn on_every_cpu<T>(mut work: impl FnMut() -> T) -> Vec<T> {
    let this = Pid::from_raw(0);
    let mine = sched_getaffinity(this).expect("the thread's processors");
    let done = (0..CpuSet::count())
        .filter(|cpu| mine.is_set(*cpu).unwrap_or(false))
        .map(|cpu| {
            let mut one = CpuSet::new();
            one.set(cpu)
                .and_then(|()| sched_setaffinity(this, &one))
                .expect("one of the thread's processors");
            work()
        })
        .collect();
    sched_setaffinity(this, &mine).expect("the thread's processors");
    done
}

fn rand_sequence() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn open(name: &str) -> File {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `tap` is open and `request` is a whole ifreq with a terminated name; the kernel only reads it.
    unsafe { ioctl::tunsetiff(tap.as_raw_fd(), &request) }
        .unwrap_or_else(|error| panic!("TAP {name}: {error}"));
    tap
}

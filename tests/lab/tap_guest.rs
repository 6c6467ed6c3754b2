//! Namespace guests: a network namespace behind a VM's TAP in the place of a booted kernel. Its `eth0` is a TAP too, and two
//! threads carry frames between the two as a VMM does, virtio-net headers and unsegmented TCP included: real TCP at real
//! speed, in a tenth of a second.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::{Lab, Namespace, succeed};

mod ioctl {
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int!(tunsetoffload, b'T', 208);
}

/// A guest whose kernel is this machine's. Unplugged when dropped; its VM's network is left as it is.
pub struct TapGuest {
    pub namespace: Namespace,
    _cable: Cable,
}

impl TapGuest {
    /// Plugs a guest into the VM's TAP, its network configured as `vm` (`vm create --json`) says.
    pub fn attach(lab: &Lab, vm: &Value) -> Self {
        Self::attach_to(open_tap_of(lab, vm), vm)
    }

    /// The same with the VM's TAP open already.
    pub fn attach_to(tap: File, vm: &Value) -> Self {
        Self::configure(tap, vm, libc::IFF_VNET_HDR)
    }

    /// The same with a TAP that was opened as `PLAIN`.
    pub fn attach_to_plain(tap: File, vm: &Value) -> Self {
        Self::configure(tap, vm, PLAIN)
    }

    fn configure(tap: File, vm: &Value, flags: i32) -> Self {
        let field = |name: &str| vm[name].as_str().unwrap_or_else(|| panic!("no {name}: {vm}"));
        let namespace = Namespace::new();
        let own = namespace.run(|| open_tap("eth0", flags).expect("the guest's own TAP"));
        let guest = Self { _cable: Cable::plug(&tap, &own), namespace };
        let mtu = vm["mtu"].to_string();
        guest.run(
            "sysctl",
            &["-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"],
        );
        guest.run("ip", &["link", "set", "eth0", "address", field("mac_address"), "mtu", &mtu]);
        let address = format!("{}/{}", field("ip_address"), vm["prefix_len"]);
        guest.run("ip", &["addr", "add", &address, "dev", "eth0"]);
        guest.run("ip", &["link", "set", "eth0", "up"]);
        guest.run("ip", &["route", "add", "default", "via", field("gateway")]);
        guest
    }

    /// Runs a program in the guest; it has to succeed. Its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.namespace.command(program).args(arguments))
    }

    /// One of the guest's own counters of its interface.
    pub fn counter(&self, name: &str) -> u64 {
        let shown = self.run("ip", &["-j", "-s", "-s", "link", "show", "eth0"]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON of ip");
        let (direction, counter) = name.split_once('_').expect("rx_ or tx_");
        shown[0]["stats64"][direction][counter].as_u64().unwrap_or_else(|| panic!("no {name}: {shown}"))
    }
}

/// Carries frames both ways between two TAPs until it is dropped.
pub struct Cable {
    stop: Option<io::PipeWriter>,
    carriers: Vec<JoinHandle<()>>,
    /// DHCP messages from the one to the other, and back, whose sender left the checksum to who takes them.
    unsummed: [Arc<AtomicU64>; 2],
}

impl Cable {
    pub fn plug(one: &File, other: &File) -> Self {
        let (stopped, stop) = io::pipe().expect("a pipe");
        let clone = |file: &File| file.try_clone().expect("a file");
        let unsummed = [Arc::<AtomicU64>::default(), Arc::default()];
        let carriers =
            [(one, other, &unsummed[0]), (other, one, &unsummed[1])].map(|(from, to, unsummed)| {
                let (from, to, stopped) = (clone(from), clone(to), stopped.try_clone().expect("a pipe"));
                let unsummed = unsummed.clone();
                std::thread::spawn(move || carry(from, to, &stopped, &unsummed))
            });
        Self { stop: Some(stop), carriers: carriers.into(), unsummed }
    }

    /// How many DHCP messages came with their checksum left to their taker: to the first of the two, and to the second.
    pub fn unsummed(&self) -> [u64; 2] {
        let [to_other, to_one] = &self.unsummed;
        [to_one.load(Relaxed), to_other.load(Relaxed)]
    }
}

/// What `carry` reads is a DHCP message that has no checksum yet: struct virtio_net_hdr, of 10 bytes, begins with its flags.
fn is_unsummed_dhcp(bytes: &[u8]) -> bool {
    const NEEDS_CSUM: u8 = 1;
    let port = |at: usize| bytes.get(10 + at..12 + at);
    let is_udp = bytes.get(10 + 12..10 + 14) == Some(&[8, 0]) && bytes.get(10 + 23) == Some(&17);
    let of_dhcp = |port: Option<&[u8]>| [Some(&[0, 67][..]), Some(&[0, 68])].contains(&port);
    bytes[0] & NEEDS_CSUM != 0 && is_udp && of_dhcp(port(34)) && of_dhcp(port(36))
}

impl Drop for Cable {
    fn drop(&mut self) {
        drop(self.stop.take());
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// Carries frames until `stopped` is closed at its other end.
fn carry(mut from: File, mut to: File, stopped: &io::PipeReader, unsummed: &AtomicU64) {
    let mut frame = vec![0; 128 << 10];
    loop {
        let mut ready =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::empty())];
        let _ = poll(&mut ready, PollTimeout::NONE);
        if ready[1].revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        let Ok(length) = from.read(&mut frame) else { return };
        unsummed.fetch_add(is_unsummed_dhcp(&frame[..length]).into(), Relaxed);
        // A frame that the other side does not take is lost, as on a wire.
        let _ = to.write(&frame[..length]);
    }
}

/// The TAP of a VM, with virtio-net headers.
pub fn open_tap_of(lab: &Lab, vm: &Value) -> File {
    let field = |name: &str| vm[name].as_str().unwrap_or_else(|| panic!("no {name}: {vm}"));
    let netns = lab.host.enter(&Path::new("/run/netns").join(field("namespace")));
    netns.run(|| open_tap(field("tap_device"), libc::IFF_VNET_HDR).expect("the VM's TAP"))
}

/// Frames without virtio-net headers: no flag.
pub const PLAIN: i32 = 0;

/// A TAP of the calling thread's namespace, made if it is not there, as a VMM opens it: with IFF_VNET_HDR in `flags`, checksums
/// and segmentation are left to the other side.
pub fn open_tap(name: &str, flags: i32) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    // SAFETY: `tap` is open and `request` is a whole ifreq with a terminated name; the kernel only reads it.
    unsafe { ioctl::tunsetiff(tap.as_raw_fd(), &request)? };
    if flags & libc::IFF_VNET_HDR != 0 {
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: takes an integer, no memory.
        unsafe { ioctl::tunsetoffload(tap.as_raw_fd(), offloads.into())? };
    }
    Ok(tap)
}

//! TAP devices by ioctl (Documentation/networking/tuntap.rst): rtnetlink cannot make them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::Nla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoTun, LinkAttribute, LinkInfo};
use nix::net::if_::if_nametoindex;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::fault;
use super::rtnl::Rtnl;
use crate::model::TapOptions;

mod ioctl {
    nix::ioctl_write_int!(tunsetpersist, b'T', 203);
    nix::ioctl_write_int!(tunsetowner, b'T', 204);
    nix::ioctl_write_int!(tunsetgroup, b'T', 206);
    nix::ioctl_write_int!(tunsetoffload, b'T', 208);
    // These are declared as _IOW('T', n, int) and take a pointer.
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr!(tunsettxfilter, b'T', 209, u32);
    nix::ioctl_write_ptr!(tunsetsndbuf, b'T', 212, libc::c_int);
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
    nix::ioctl_write_ptr!(tunsetifindex, b'T', 218, libc::c_uint);
    nix::ioctl_write_ptr!(tunsetvnetle, b'T', 220, libc::c_int);
    nix::ioctl_write_ptr!(tundetachfilter, b'T', 214, libc::sock_fprog);
    // Declared as _IOR, though the kernel reads.
    nix::ioctl_write_ptr_bad!(
        tunsetsteeringebpf,
        nix::request_code_read!(b'T', 224, size_of::<libc::c_int>()),
        libc::c_int
    );
    nix::ioctl_write_ptr_bad!(
        tunsetfilterebpf,
        nix::request_code_read!(b'T', 225, size_of::<libc::c_int>()),
        libc::c_int
    );
}

// include/uapi/linux/if_link.h
pub(super) const IFLA_TUN_OWNER: u16 = 1;
pub(super) const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// The virtio-net header that a TAP starts with: struct virtio_net_hdr.
const HEADER: libc::c_int = 10;

/// A TAP that this process has open, so nobody else has: its queue takes one at a time.
#[derive(Debug)]
pub struct HeldTap(File);

fn open() -> io::Result<File> {
    fault::operation()?;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.map_err(|error| io::Error::new(error.kind(), format!("/dev/net/tun: {error}")))
}

/// With `flags` beside those that every TAP of ours has.
fn attach(tun: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    fault::operation()?;
    let mut request = request_for(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    // SAFETY: `tun` is open and `request` is a whole ifreq with a terminated name; the kernel only reads it.
    unsafe { ioctl::tunsetiff(tun.as_raw_fd(), &request)? };
    Ok(())
}

/// Makes a persistent TAP of that index, with virtio-net headers, in the calling thread's namespace.
pub(super) fn create(name: &str, index: u32, multi_queue: bool) -> io::Result<()> {
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let tun = open()?;
    // SAFETY: the kernel reads one unsigned integer, which outlives the call.
    unsafe { ioctl::tunsetifindex(tun.as_raw_fd(), &index)? };
    attach(&tun, name, libc::IFF_VNET_HDR | queues)?;
    fault::operation()?;
    // SAFETY: takes an integer, no memory.
    unsafe { ioctl::tunsetpersist(tun.as_raw_fd(), 1)? };
    Ok(())
}

/// Opens the TAP `name` of the calling thread's namespace, as a VMM does: EBUSY says that one has it open. `None` when there is
/// no such TAP.
pub(super) fn hold(name: &str, index: u32) -> io::Result<Option<HeldTap>> {
    if !is(name, index) {
        return Ok(None);
    }
    let tun = open()?;
    match attach(&tun, name, libc::IFF_VNET_HDR) {
        // One of several queues, on which this would be one more: it cannot be held, but it can be in use.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return match queues(&mut Rtnl::open()?, index)? {
                0 => Ok(None),
                _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            };
        }
        attached => attached?,
    }
    // One that its last user did not leave persistent may have gone in between; this is then a new one, which goes with `tun`.
    Ok(is(name, index).then_some(HeldTap(tun)))
}

/// Sets who may open the TAP `name` of the calling thread's namespace, and whether frames have a virtio-net header.
pub(super) fn set(name: &str, options: TapOptions) -> io::Result<()> {
    let queues = if options.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let headers = if options.offload { libc::IFF_VNET_HDR } else { 0 };
    let tun = open()?;
    attach(&tun, name, headers | queues)?;
    fault::operation()?;
    // SAFETY: each takes an integer, no memory.
    unsafe {
        if let Some(uid) = options.uid {
            ioctl::tunsetowner(tun.as_raw_fd(), uid.into())?;
        }
        if let Some(gid) = options.gid {
            ioctl::tunsetgroup(tun.as_raw_fd(), gid.into())?;
        }
    }
    Ok(())
}

impl HeldTap {
    /// Takes back whatever the last one who had it open may have set, which needs no privilege then. Only an owner or a group
    /// cannot be taken back.
    pub(super) fn wipe(&self) -> io::Result<()> {
        fault::operation()?;
        let tun = self.0.as_raw_fd();
        let no_program = -1_i32;
        let (everything, off) = (libc::c_int::MAX, 0_i32);
        let no_filter = libc::sock_fprog { len: 0, filter: std::ptr::null_mut() };
        // struct tun_filter without addresses: everything passes.
        let no_addresses = 0_u32;
        // SAFETY: each takes an integer or reads one value of the type it is declared with, which outlives the call. Detaching
        // reads nothing.
        unsafe {
            ioctl::tunsetpersist(tun, 1)?;
            ioctl::tunsetoffload(tun, 0)?;
            ioctl::tunsettxfilter(tun, &no_addresses)?;
            ioctl::tunsetsndbuf(tun, &everything)?;
            ioctl::tunsetvnethdrsz(tun, &HEADER)?;
            ioctl::tunsetvnetle(tun, &off)?;
            ioctl::tundetachfilter(tun, &no_filter)?;
            ioctl::tunsetsteeringebpf(tun, &no_program)?;
            ioctl::tunsetfilterebpf(tun, &no_program)?;
        }
        Ok(())
    }
}

/// How many queues of a TAP are open.
fn queues(rtnl: &mut Rtnl, index: u32) -> io::Result<u32> {
    let facts = facts(rtnl, index)?;
    let open = facts.iter().find(|fact| fact.kind() == IFLA_TUN_NUM_QUEUES).map(|fact| {
        let mut value = [0; 4];
        if fact.value_len() == value.len() {
            fact.emit_value(&mut value);
        }
        u32::from_ne_bytes(value)
    });
    Ok(open.unwrap_or_default())
}

/// What the kernel tells of a TAP; nothing when there is none of that index.
fn facts(rtnl: &mut Rtnl, index: u32) -> io::Result<Vec<InfoTun>> {
    let asked = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
    let Some(RouteNetlinkMessage::NewLink(link)) = rtnl.get(RouteNetlinkMessage::GetLink(asked))? else {
        return Ok(Vec::new());
    };
    let infos = link.attributes.into_iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let of_tun = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(facts)) => Some(facts),
        _ => None,
    });
    Ok(of_tun.flatten().collect())
}

/// Whether the calling thread's namespace has a device of that name and index.
pub(super) fn is(name: &str, index: u32) -> bool {
    if_nametoindex(name).is_ok_and(|found| found == index)
}

fn request_for(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: names here are constants or an `IfName`, at most 15 bytes.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

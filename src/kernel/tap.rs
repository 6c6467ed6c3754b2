//! TAP devices by ioctl (Documentation/networking/tuntap.rst): rtnetlink cannot make them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;

use crate::model::TapOwner;

mod ioctl {
    nix::ioctl_write_int!(tunsetpersist, b'T', 203);
    nix::ioctl_write_int!(tunsetowner, b'T', 204);
    nix::ioctl_write_int!(tunsetgroup, b'T', 206);
    // TUNSETIFF is declared as _IOW('T', 202, int) and takes a struct ifreq.
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifmtu, libc::SIOCSIFMTU, libc::ifreq);
}

/// Makes a persistent TAP with virtio-net headers in the calling thread's namespace and takes it up.
pub(super) fn create(name: &str, mtu: u16, owner: TapOwner) -> io::Result<()> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| io::Error::new(error.kind(), format!("/dev/net/tun: {error}")))?;
    let mut request = request_for(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `tun` is open and `request` is a whole ifreq with a terminated name; the kernel only reads it.
    unsafe { ioctl::tunsetiff(tun.as_raw_fd(), &request)? };
    if let Some(uid) = owner.uid {
        // SAFETY: takes an integer, no memory.
        unsafe { ioctl::tunsetowner(tun.as_raw_fd(), uid.into())? };
    }
    if let Some(gid) = owner.gid {
        // SAFETY: takes an integer, no memory.
        unsafe { ioctl::tunsetgroup(tun.as_raw_fd(), gid.into())? };
    }
    // SAFETY: takes an integer, no memory.
    unsafe { ioctl::tunsetpersist(tun.as_raw_fd(), 1)? };
    set_mtu(name, mtu)?;
    set_up(name)
}

fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request_for(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: the socket is open and `request` is a whole ifreq with a terminated name; the kernel only reads it.
    unsafe { ioctl::siocsifmtu(control_socket()?.as_raw_fd(), &request)? };
    Ok(())
}

/// Takes a device of the calling thread's namespace up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = request_for(name);
    // SAFETY: the socket is open and `request` is a whole ifreq with a terminated name; the kernel writes the flags
    // into the union's `ifru_flags`.
    unsafe { ioctl::siocgifflags(socket.as_raw_fd(), &mut request)? };
    // SAFETY: SIOCGIFFLAGS has just written this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as above; the kernel only reads it.
    unsafe { ioctl::siocsifflags(socket.as_raw_fd(), &request)? };
    Ok(())
}

/// Whether the calling thread's namespace has a device of that name.
pub(super) fn exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

fn control_socket() -> io::Result<File> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    Ok(File::from(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
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

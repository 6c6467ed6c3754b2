//! The iptables of before nf_tables (iptables-legacy), of whose changes the kernel tells nobody. Out: what it says of its tables at a
//! glance, by one system call each: rules that come or go change it. Nothing is asked where nobody uses them.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Those that our rules are in.
const TABLES: [&str; 2] = ["filter", "nat"];
/// Tables that are in use in this namespace, one a line. Asking for another one would load its module.
const IN_USE: &str = "/proc/thread-self/net/ip_tables_names";
// include/uapi/linux/netfilter_ipv4/ip_tables.h
const IPT_SO_GET_INFO: libc::c_int = 64;

/// struct ipt_getinfo.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Glance {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    /// Rules, with the heads of chains and their policies.
    num_entries: u32,
    size: u32,
}

/// The tables that are in use, at a glance.
pub(super) fn tables() -> io::Result<BTreeMap<&'static str, Glance>> {
    let in_use = match std::fs::read_to_string(IN_USE) {
        // A kernel without them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let in_use = TABLES.into_iter().filter(|table| in_use.lines().any(|name| name == *table));
    in_use.map(|table| Ok((table, glance(table)?))).collect()
}

fn glance(table: &str) -> io::Result<Glance> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut glance = Glance::default();
    glance.name[..table.len()].copy_from_slice(table.as_bytes());
    let mut length = size_of::<Glance>() as libc::socklen_t;
    // SAFETY: `glance` is `length` bytes of plain data that outlive the call, as the kernel's struct is.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            IPT_SO_GET_INFO,
            (&raw mut glance).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(glance) }
}

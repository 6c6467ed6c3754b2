//! What the service may do: of root's capabilities only those that its work needs, from before its first thread on, and never
//! more again, whatever it runs. By hand what the unit's CapabilityBoundingSet and NoNewPrivileges do under systemd.

use std::io;

use nix::sys::prctl;

/// capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER for sockets and TAPs of others; NET_BIND_SERVICE for ports 53 and 67; NET_ADMIN
/// for links, routes, rules; NET_BROADCAST to hear of TAPs inside slots; NET_RAW for DHCP's packet sockets; SYS_ADMIN for namespaces
/// and their mounts.
const NEEDED: [u32; 8] = [0, 1, 3, 10, 11, 12, 13, 21];

/// _LINUX_CAPABILITY_VERSION_3.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Confines the calling thread and all that it starts. One that is not root has nothing to give up, and is told later.
pub fn confine() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    for capability in (0..64).filter(|capability| !NEEDED.contains(capability)) {
        // SAFETY: takes integers, no memory.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) } == -1 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // Beyond the last one that the kernel knows, or no right to drop: what is left is what we were given.
                Some(libc::EINVAL | libc::EPERM) => break,
                _ => return Err(error),
            }
        }
    }
    let header = Header { version: VERSION, pid: 0 };
    let mut given = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: header and data are those of this version of the call, two words for 64 capabilities; the kernel writes data.
    if unsafe { libc::syscall(libc::SYS_capget, &header, given.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let needed = NEEDED.iter().fold(0, |bits, capability| bits | 1_u32 << capability);
    let kept = given[0].permitted & needed;
    let low = Data { effective: kept, permitted: kept, inheritable: 0 };
    let data = [low, Data { effective: 0, permitted: 0, inheritable: 0 }];
    // SAFETY: as above; the kernel only reads both.
    if unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

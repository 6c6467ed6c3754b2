//! Settings under /proc/sys/net, of the calling thread's network namespace. Written only when they differ.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use tracing::debug;

use super::fault;

fn path_of(key: &str) -> String {
    format!("/proc/sys/net/{key}")
}

/// The value of `key`, a path below /proc/sys/net.
pub(super) fn read(key: &str) -> io::Result<String> {
    fault::operation()?;
    Ok(fs::read_to_string(path_of(key))?.trim().to_owned())
}

/// Sets `key`; what it was before if that was another value.
pub(super) fn write(key: &str, value: &str) -> io::Result<Option<String>> {
    let before = read(key)?;
    if before == value {
        return Ok(None);
    }
    fault::operation()?;
    fs::write(path_of(key), value)
        .map_err(|error| io::Error::new(error.kind(), format!("{key}: {error}")))?;
    Ok(Some(before))
}

/// procfs, mounted where no path leads. The kernel keeps the directories of all namespaces under one parent and one name, each mount its own,
/// and a lookup goes through all that were looked up there before (fs/proc/proc_sysctl.c, proc_sys_compare): with 4,000 namespaces 3 to 7
/// ms in one go, for which whoever else was to run on that processor waited. So a mount serves few.
#[derive(Default)]
pub(super) struct ProcApart {
    mounted: Option<OwnedFd>,
    lookups: usize,
}

/// Namespaces looked up in one mount.
const LOOKUPS: usize = 64;

impl ProcApart {
    /// `ipv6/conf` of the calling thread's namespace.
    fn ipv6_conf(&mut self) -> io::Result<File> {
        fault::operation()?;
        if self.lookups >= LOOKUPS {
            *self = Self::default();
        }
        self.lookups += 1;
        let mounted = match &mut self.mounted {
            Some(mounted) => mounted,
            none => none.insert(mount_proc()?),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(mounted, "sys/net/ipv6/conf", flags, Mode::empty())?))
    }
}

fn mount_proc() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// `ipv6/conf` of one namespace, found once, by the first use in it.
#[derive(Default)]
pub(super) struct Ipv6Conf(Option<File>);

impl Ipv6Conf {
    /// Of the calling thread's namespace, one of many. Where we are not let, by a filter of system calls or a security module, it is found by
    /// the path that everybody has, which is only slower.
    pub(super) fn of_slot(proc: &mut ProcApart) -> Self {
        let apart = proc.ipv6_conf().inspect_err(|error| debug!(%error, "no procfs of our own"));
        Self(apart.ok())
    }

    /// No IPv6 on `device`; a kernel without IPv6 has nothing to switch off.
    pub(super) fn disable(&mut self, device: &str) -> io::Result<()> {
        fault::operation()?;
        let directory = match &mut self.0 {
            Some(directory) => directory,
            none => match File::open(path_of("ipv6/conf")) {
                Ok(directory) => none.insert(directory),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let path = format!("{device}/disable_ipv6");
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mut setting = File::from(openat(directory, path.as_str(), flags, Mode::empty())?);
        let mut before = String::new();
        setting.read_to_string(&mut before)?;
        if before.trim() == "1" {
            return Ok(());
        }
        fault::operation()?;
        setting.write_all_at(b"1", 0)
    }
}

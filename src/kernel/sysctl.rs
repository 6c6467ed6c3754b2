//! Settings under /proc/sys/net, of the calling thread's network namespace. Written only when they differ.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

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

/// `ipv6/conf` of one namespace, found once, by the first use in it: the kernel keeps the directories of all namespaces under one parent and
/// one name, and a lookup of a path goes through them one by one (proc_sys_compare). With 4,000 namespaces that was half of what it took to
/// build a slot.
#[derive(Default)]
pub(super) struct Ipv6Conf(Option<File>);

impl Ipv6Conf {
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

//! Settings under /proc/sys/net, of the calling thread's network namespace. Written only when they differ.

use std::{fs, io};

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

/// No IPv6 on `device`; a kernel without IPv6 has nothing to switch off.
pub(super) fn disable_ipv6(device: &str) -> io::Result<()> {
    match write(&format!("ipv6/conf/{device}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(|_| ()),
    }
}

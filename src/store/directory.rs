use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::StoreError;

/// The state directory held for one guestnet alone, for as long as this value lives. The kernel lets go of it however the
/// process ends.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

/// Makes `directory` where there is none, closed to others, and takes it for this process.
pub(super) fn take(directory: &Path) -> Result<DirectoryLock, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(StoreError::directory("create", directory))?;
    let path = directory.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::directory("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::InUse { directory: directory.to_owned(), pid: read_pid(&file) });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::directory("lock", &path)(source)),
    }
    // Only for the message above: whose lock it is, the kernel knows.
    file.set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(StoreError::directory("write", &path))?;
    Ok(DirectoryLock { _file: file })
}

fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::StoreError;

/// How long the lock of a guestnet that has ended may stay behind it.
const REMAINS: Duration = Duration::from_secs(10);

/// The state directory held for one guestnet alone, for as long as this value lives. The kernel lets go of it however the
/// process ends, and last of what has a higher descriptor: it closes files in ascending order (exit, execve(2)) and lets go of what they were
/// in the opposite one (task_work_add of fs/file_table.c, the latest first; measured). Whoever takes it before all that only one guestnet can
/// have, sockets and tables, finds those of one that has ended free once the lock is.
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
    let failed = |action| StoreError::directory(action, &path);
    let locked = match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        Err(TryLockError::WouldBlock) => {
            let pid = read_pid(&file);
            // Killed while it was starting a program, it leaves a fork that shares its files until execve closes them.
            let waited = if pid.is_some_and(has_ended) { lock_within(&file, REMAINS) } else { Ok(false) };
            waited.map_err(failed("lock"))?
        }
    };
    if !locked {
        return Err(StoreError::InUse { directory: directory.to_owned(), pid: read_pid(&file) });
    }
    // Only for the message above: whose lock it is, the kernel knows.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(failed("write"))?;
    Ok(DirectoryLock { _file: file })
}

/// Whether the lock was given within `limit`. A wait that is given up goes on in a thread of its own until the process ends.
fn lock_within(file: &File, limit: Duration) -> io::Result<bool> {
    let (done, given) = mpsc::channel();
    let file = file.try_clone()?;
    thread::spawn(move || done.send(file.lock()));
    given.recv_timeout(limit).map_or(Ok(false), |locked| locked.map(|()| true))
}

fn has_ended(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// The process whose lock it is, by its own word.
fn read_pid(mut file: &File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The state directory, locked by somebody who wrote `pid` down.
    fn held_by(pid: u32) -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let mut lock = File::create(directory.path().join("lock")).unwrap();
        lock.lock().unwrap();
        write!(lock, "{pid}").unwrap();
        (directory, lock)
    }

    #[test]
    fn a_lock_of_one_that_lives_is_refused_at_once_with_its_pid() {
        let (directory, _lock) = held_by(std::process::id());
        let refused = take(directory.path()).unwrap_err();
        assert!(refused.to_string().contains(&format!("(pid {})", std::process::id())), "{refused}");
    }

    #[test]
    fn what_a_killed_one_leaves_behind_is_waited_for() {
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let (directory, lock) = held_by(ended.id());
        let path = directory.path().to_owned();
        let (done, taken) = mpsc::channel();
        thread::spawn(move || done.send(take(&path)));
        taken.recv_timeout(Duration::from_millis(200)).unwrap_err();
        drop(lock);
        let _held = taken.recv().unwrap().unwrap();
        let written = std::fs::read_to_string(directory.path().join("lock")).unwrap();
        assert_eq!(written, format!("{}\n", std::process::id()));
    }
}

//! Network namespaces with a name under /run/netns, as `ip netns` keeps them. A namespace is made by a thread that
//! unshares, so the daemon itself never leaves its own and nothing is forked.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::error::{Doing, KernelError};
use super::sysctl;

const DIRECTORY: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes the namespace `name`, without IPv6; it is an error if the name is taken.
pub(super) fn create(name: &str) -> Result<(), KernelError> {
    // One at a time: two that both find no mount there would stack theirs.
    static PREPARING: Mutex<()> = Mutex::new(());
    let preparing = PREPARING.lock().unwrap_or_else(PoisonError::into_inner);
    prepare_directory().doing(|| format!("preparing {DIRECTORY}"))?;
    drop(preparing);
    let path = path_of(name);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)
        .doing(|| format!("creating {}", path.display()))?;
    let made = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        sysctl::disable_ipv6("all")?;
        sysctl::disable_ipv6("default")?;
        mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if made.is_err() {
        // The name must not stay behind without its namespace; the first error is the one that tells.
        let _ = fs::remove_file(&path);
    }
    made.doing(|| format!("making network namespace {name}"))
}

/// Removes the name; the kernel frees the namespace when its last process is gone.
pub(super) fn remove(name: &str) -> Result<(), KernelError> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there and nothing is mounted on it.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno).doing(|| format!("unmounting {}", path.display())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A handle on the namespace `name`; `None` when there is none.
pub(super) fn open(name: &str) -> Result<Option<File>, KernelError> {
    let path = path_of(name);
    match File::open(&path) {
        Ok(file) if is_namespace(&path) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("opening {}", path.display())),
    }
}

/// The names under /run/netns that are namespaces: a file that an admin unmounted is none.
pub(super) fn names() -> Result<Vec<String>, KernelError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(|| format!("reading {DIRECTORY}")),
    };
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| is_namespace(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Runs `work` inside the namespace, on a thread of its own.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_own_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// /run/netns as `ip netns add` prepares it: a shared mount, so that every mount namespace sees what is mounted there.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    fs::set_permissions(DIRECTORY, Permissions::from_mode(0o755))?;
    let share =
        || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if share().is_ok() {
        return Ok(());
    }
    // EINVAL: not a mount point yet.
    mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    share()?;
    Ok(())
}

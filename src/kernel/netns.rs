//! Network namespaces under /run/netns, as `ip netns` keeps them. A slot's is a mount, made by a thread that unshares, so
//! nothing is forked; a VM's name for it is a link beside it, made and removed in microseconds at any number of VMs, which a
//! mount is not.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::error::{Doing, KernelError};
use super::lane::Hands;
use super::observe::mark;
use super::rtnl::Rtnl;
use super::sysctl::Ipv6Conf;
use super::{fault, links};
use crate::model::Slot;

const DIRECTORY: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// A handle on the calling thread's namespace.
pub(super) fn own() -> io::Result<File> {
    File::open(OWN)
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes the namespace of `slot`, without IPv6, its `lo` marked by the index of the slot's port; it is an error if the name is taken.
pub(super) fn create(hands: &mut Hands, slot: Slot, port: u32) -> Result<(), KernelError> {
    fault::operation().and_then(|()| prepare_directory()).doing(|| format!("preparing {DIRECTORY}"))?;
    let path = path_of(&slot.namespace());
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)
        .doing(|| format!("creating {}", path.display()))?;
    let made = (|| {
        fault::operation()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let mut ipv6 = Ipv6Conf::of_slot(&mut hands.proc);
        ipv6.disable("all")?;
        ipv6.disable("default")?;
        // Before it has a name: a namespace of that name without the mark is somebody else's.
        Rtnl::open()?.all(&[links::alias(1, &mark(port))])?;
        number(&mut hands.rtnl, &own()?, port)?;
        fault::operation()?;
        // Last: without it the namespace goes as this thread leaves.
        mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })();
    let home = hands.go_home();
    if made.is_err() {
        // The name must not stay behind without its namespace; the first error is the one that tells.
        let _ = fs::remove_file(&path);
    }
    made.and(home).doing(|| format!("making network namespace {}", slot.namespace()))
}

/// Gives a namespace its number in the host's. The kernel looks for it by going through all numbers from the least on, for each message that
/// tells of something inside and for each that names a veth's other end (net/core/net_namespace.c, __peernet2id). By itself it
/// counts up: where most VMs stay and some come and go, those of the highest slots, theirs would be found last. So these count down.
fn number(rtnl: &mut Rtnl, namespace: &File, port: u32) -> io::Result<()> {
    let id = i32::MAX.saturating_sub_unsigned(port);
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Id(id), NsidAttribute::Fd(namespace.as_raw_fd() as u32)];
    match rtnl.request(0, RouteNetlinkMessage::NewNsId(message)) {
        // Somebody else's number: the kernel gives another, when it needs one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Removes the slot's namespace; the kernel frees it when its last process is gone.
pub(super) fn remove(slot: Slot) -> Result<(), KernelError> {
    let path = path_of(&slot.namespace());
    fault::operation().doing(|| format!("unmounting {}", path.display()))?;
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there and nothing is mounted on it.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno).doing(|| format!("unmounting {}", path.display())),
    }
    unlink(&path)
}

fn unlink(path: &Path) -> Result<(), KernelError> {
    match fault::operation().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Gives the slot's namespace the name `name` as well. What is in the way is an error if it is somebody's namespace, or
/// another slot's name; a file without one behind it, as an unmounted namespace leaves it, is replaced.
pub(super) fn give_name(name: &str, slot: Slot) -> Result<(), KernelError> {
    let (path, target) = (path_of(name), slot.namespace());
    let doing = || format!("giving {target} the name {}", path.display());
    match fault::operation().and_then(|()| symlink(&target, &path)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return done.doing(doing),
    }
    if leads_to(&path) == Some(slot) {
        return Ok(());
    }
    if is_namespace(&path) {
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "a network namespace of that name exists");
        return Err(taken).doing(doing);
    }
    fs::remove_file(&path).and_then(|()| symlink(&target, &path)).doing(doing)
}

/// Takes a name away from the slot's namespace; one that leads elsewhere is left alone.
pub(super) fn take_name(name: &str, slot: Slot) -> Result<(), KernelError> {
    let path = path_of(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() && leads_to(&path) != Some(slot) => Ok(()),
        // What an admin who removed the name put there, a namespace with processes in it perhaps.
        Ok(found) if !found.is_symlink() => Ok(()),
        _ => unlink(&path),
    }
}

/// The slot that a link under /run/netns leads to.
fn leads_to(path: &Path) -> Option<Slot> {
    Slot::of_namespace(fs::read_link(path).ok()?.to_str()?)
}

/// A handle on the slot's namespace; `None` when there is none.
pub(super) fn open(slot: Slot) -> Result<Option<File>, KernelError> {
    let path = path_of(&slot.namespace());
    match fault::operation().and_then(|()| File::open(&path)) {
        Ok(file) if is_namespace(&path) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("opening {}", path.display())),
    }
}

/// The same of a slot that has to have one.
pub(super) fn existing(slot: Slot) -> Result<File, KernelError> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    open(slot)?
        .ok_or_else(|| KernelError::new(format!("opening network namespace {}", slot.namespace()), missing()))
}

/// What is under /run/netns of ours.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Slots' own names, and whether each is a namespace: a file that an admin unmounted is none.
    pub anchors: BTreeMap<Slot, bool>,
    /// Names of VMs.
    pub names: BTreeMap<String, Slot>,
}

pub(super) fn names() -> Result<Names, KernelError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Names::default()),
        Err(error) => return Err(error).doing(|| format!("reading {DIRECTORY}")),
    };
    let mut found = Names::default();
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some(slot) = Slot::of_namespace(&name) {
            found.anchors.insert(slot, is_namespace(&entry.path()));
        } else if let Some(slot) = leads_to(&entry.path()) {
            found.names.insert(name, slot);
        }
    }
    Ok(found)
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// /run/netns as `ip netns add` prepares it: a shared mount, so that every mount namespace sees what is mounted there. Once:
/// sharing it again walks all that is mounted there.
fn prepare_directory() -> io::Result<()> {
    static PREPARED: Mutex<bool> = Mutex::new(false);
    let mut prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    if *prepared && Path::new(DIRECTORY).is_dir() {
        return Ok(());
    }
    fs::create_dir_all(DIRECTORY)?;
    fs::set_permissions(DIRECTORY, Permissions::from_mode(0o755))?;
    let share =
        || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if share().is_err() {
        // EINVAL: not a mount point yet.
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        share()?;
    }
    *prepared = true;
    Ok(())
}

//! Namespaces without a name, held by file descriptors.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

pub struct Namespace {
    net: File,
    mnt: Option<File>,
}

impl Namespace {
    /// A network namespace.
    pub fn new() -> Self {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self { net: File::open("/proc/thread-self/ns/net")?, mnt: None })
        })
    }

    /// The network namespace that a file of /proc or /run/netns is.
    pub fn of(net: File) -> Self {
        Self { net, mnt: None }
    }

    /// A network namespace with a mount namespace to it: an empty /run, a /sys that shows its devices.
    pub fn new_with_mounts() -> Self {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)?;
            let net = File::open("/proc/thread-self/ns/net")?;
            Ok(Self { net, mnt: Some(File::open("/proc/thread-self/ns/mnt")?) })
        })
    }

    /// The network namespace at `path` as seen from inside `self`, with `self`'s mounts.
    pub fn enter(&self, path: &Path) -> Self {
        let mnt = self.mnt.as_ref().map(|file| file.try_clone().expect("a file descriptor"));
        let net = on_thread(|| {
            unshare(CloneFlags::CLONE_FS)?;
            if let Some(mnt) = &mnt {
                setns(mnt, CloneFlags::CLONE_NEWNS)?;
            }
            File::open(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        });
        Self { net, mnt }
    }

    /// The same network namespace, once more, with this machine's mounts.
    pub fn again(&self) -> Self {
        Self::of(self.net.try_clone().expect("a file descriptor"))
    }

    pub fn net_fd(&self) -> i32 {
        self.net.as_raw_fd()
    }

    /// A command that runs in here and dies with the thread that starts it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let net = self.net.try_clone().expect("a file descriptor");
        let mnt = self.mnt.as_ref().map(|file| file.try_clone().expect("a file descriptor"));
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns, prctl and sigprocmask are called, all async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if let Some(mnt) = &mnt {
                    setns(mnt, CloneFlags::CLONE_NEWNS)?;
                }
                setns(&net, CloneFlags::CLONE_NEWNET)?;
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The demo blocks the signals that it waits for.
                SigSet::empty().thread_set_mask()?;
                Ok(())
            });
        }
        command
    }

    /// Runs `work` on a thread in here: sockets made there stay here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(&self.net, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().expect("the namespace's thread"))
        .unwrap_or_else(|error| panic!("entering a namespace: {error}"))
}

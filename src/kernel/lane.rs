//! A thread that does one thing after the other to the kernel: its calls block, and a namespace is entered by a thread. In:
//! work from any task. Out: its results. There are few lanes, whatever the number of VMs.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::counters::Questions;
use super::error::KernelError;
use super::netns;
use super::rtnl::Rtnl;
use super::sysctl::{Ipv6Conf, ProcApart};

/// What work on a lane has at hand.
pub(super) struct Hands {
    /// In the host's namespace, wherever the thread is.
    pub rtnl: Rtnl,
    /// The same.
    pub questions: Questions,
    /// Of the host's namespace.
    pub ipv6: Ipv6Conf,
    /// For the slots' namespaces.
    pub proc: ProcApart,
    home: File,
}

type Work = Box<dyn FnOnce(&mut Hands) + Send>;

/// Clones share one thread, which ends with the last of them.
#[derive(Clone)]
pub(super) struct Lane {
    queue: mpsc::Sender<Work>,
    /// Of its route netlink socket.
    port: u32,
}

impl Lane {
    /// A thread in the calling thread's network namespace.
    pub(super) fn start(name: &str, questions: Questions) -> io::Result<Self> {
        let home = netns::own()?;
        let (ipv6, proc) = (Ipv6Conf::default(), ProcApart::default());
        let mut hands = Hands { rtnl: Rtnl::open()?, questions, ipv6, proc, home };
        let port = hands.rtnl.port();
        let (lane, queue) = mpsc::channel::<Work>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(work) = queue.recv() {
                // The panic is reported by who waits for the result; others go on.
                let done = catch_unwind(AssertUnwindSafe(|| work(&mut hands)));
                if done.is_err() && setns(&hands.home, CloneFlags::CLONE_NEWNET).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { queue: lane, port })
    }

    /// The port by which the kernel names what was done here.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Runs `work` when its turn comes. Work that has been handed in is done even when nobody waits for it any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Hands) -> T + Send + 'static,
    ) -> Result<T, KernelError> {
        let ended = || KernelError::new("waiting for the kernel", io::Error::other("its thread has ended"));
        let (done, result) = oneshot::channel();
        let work = move |hands: &mut Hands| {
            // Who does not wait needs no result.
            let _ = done.send(work(hands));
        };
        self.queue.send(Box::new(work)).map_err(|_| ended())?;
        result.await.map_err(|_| ended())
    }
}

impl Hands {
    /// Does `work` inside the namespace. What it is given is the port for its sockets there, by which our own changes are known.
    pub(super) fn inside<T>(
        &mut self,
        namespace: &File,
        work: impl FnOnce(u32) -> io::Result<T>,
    ) -> io::Result<T> {
        super::fault::operation()?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let done = work(self.rtnl.port());
        self.go_home()?;
        done
    }

    /// Does `work`; a panic in it is an error, and what comes after it goes on.
    pub(super) fn surviving<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Result<T, KernelError> {
        let panicked = || KernelError::new("changing the kernel", io::Error::other("it panicked"));
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        done.or_else(|_| {
            self.go_home()
                .map_err(|error| KernelError::new("coming back into the host's namespace", error))?;
            Err(panicked())
        })
    }

    /// Back into the host's namespace.
    pub(super) fn go_home(&self) -> io::Result<()> {
        Ok(setns(&self.home, CloneFlags::CLONE_NEWNET)?)
    }
}

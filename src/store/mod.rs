//! Durable desired state in SQLite: what the API has answered survives a crash and a power loss. In: VMs to keep or drop,
//! devices and settings that are ours. Out: success once it is on the disk. One thread writes; changes that wait while it
//! commits share the next commit.

mod directory;
mod error;
mod owned;
mod schema;
mod vms;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, Savepoint};
use tokio::sync::oneshot;

pub use error::{StoreError, Taken};
pub use owned::{ChangedSysctl, LinkKind, OwnedLink};

use crate::model::{NetworkName, Vm, VmId};
use error::Fault;

/// Changes that may wait for the writer; a caller that finds the queue full waits its turn.
const QUEUE: usize = 1024;
/// Changes of one commit: bounds how long the first of them waits.
const BATCH: usize = 256;

/// An address that a VM had, and when it was freed: microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    pub network: NetworkName,
    pub address: Ipv4Addr,
    pub freed_at_us: i64,
}

/// What has become of the kernel since the last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootChange {
    /// There was no start before.
    First,
    /// The kernel is the one of the last start: what was made is still there.
    Same,
    /// It is another: nothing that was made is there.
    Rebooted,
}

/// A change with the way its result goes back to who asked for it.
type Job = Box<dyn FnOnce(&mut Connection, &Path) -> Box<dyn FnOnce(Result<(), StoreError>) + Send> + Send>;

/// The state directory, held for this process. Clones share one writer, which ends with the last of them.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    jobs: Option<mpsc::SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    _lock: directory::DirectoryLock,
}

impl Store {
    /// Takes the directory for this process and opens its database, which is made if there has never been one.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let lock = directory::take(directory)?;
        let (connection, file) = schema::open(directory)?;
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write(connection, &file, &queue))
            .map_err(StoreError::directory("start the writer of", directory))?;
        Ok(Self(Arc::new(Inner { jobs: Some(jobs), writer: Some(writer), _lock: lock })))
    }

    /// Every VM, first created first.
    pub async fn load(&self) -> Result<Vec<Vm>, StoreError> {
        self.run(|connection| Ok(vms::load(connection)?)).await
    }

    /// The addresses that VMs had and nobody has now, first freed first.
    pub async fn load_freed(&self) -> Result<Vec<Freed>, StoreError> {
        self.run(|connection| Ok(vms::load_freed(connection)?)).await
    }

    /// Keeps a VM. On the disk when it returns.
    pub async fn insert(&self, vm: Vm) -> Result<(), StoreError> {
        self.run(move |connection| vms::insert(connection, &vm)).await
    }

    /// Drops a VM; whether there was one. On the disk when it returns.
    pub async fn remove(&self, vm_id: VmId, now_us: i64) -> Result<bool, StoreError> {
        self.run(move |connection| Ok(vms::remove(connection, &vm_id, now_us)?)).await
    }

    /// Records which boot of the machine this is. After another one, devices and settings of ours are forgotten.
    pub async fn record_boot(&self, boot_id: String) -> Result<BootChange, StoreError> {
        self.run(move |connection| Ok(owned::record_boot(connection, &boot_id)?)).await
    }

    /// Records a device that we made.
    pub async fn record_link(&self, link: OwnedLink) -> Result<(), StoreError> {
        self.run(move |connection| Ok(owned::record_link(connection, &link)?)).await
    }

    pub async fn forget_link(&self, ifindex: u32) -> Result<bool, StoreError> {
        self.run(move |connection| Ok(owned::forget_link(connection, ifindex)?)).await
    }

    pub async fn links(&self) -> Result<Vec<OwnedLink>, StoreError> {
        self.run(|connection| Ok(owned::links(connection)?)).await
    }

    /// Records a setting that we changed; the first record of it stands. Whether this is the first.
    pub async fn record_sysctl(&self, changed: ChangedSysctl) -> Result<bool, StoreError> {
        self.run(move |connection| Ok(owned::record_sysctl(connection, &changed)?)).await
    }

    pub async fn forget_sysctl(&self, path: String) -> Result<bool, StoreError> {
        self.run(move |connection| Ok(owned::forget_sysctl(connection, &path)?)).await
    }

    pub async fn sysctls(&self) -> Result<Vec<ChangedSysctl>, StoreError> {
        self.run(|connection| Ok(owned::sysctls(connection)?)).await
    }

    /// Has the writer do `work`; its result once that is on the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |connection, file| {
            let done = in_savepoint(connection, file, work);
            // The caller may have gone; what was done stands all the same.
            Box::new(move |committed| drop(answer.send(committed.and(done))))
        });
        let jobs = self.0.jobs.clone().ok_or(StoreError::Stopped)?;
        let sent = match jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Full(job)) => tokio::task::spawn_blocking(move || jobs.send(job))
                .await
                .map_or(Err(()), |sent| sent.map_err(drop)),
            Err(mpsc::TrySendError::Disconnected(_)) => Err(()),
        };
        sent.map_err(|()| StoreError::Stopped)?;
        result.await.map_err(|_| StoreError::Stopped)?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // It has answered everyone; a panic of it has been told by the channels.
            let _ = writer.join();
        }
    }
}

/// A change that fails undoes itself only, not the changes it shares a commit with.
fn in_savepoint<T>(
    connection: &mut Connection,
    file: &Path,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, StoreError> {
    let failed = StoreError::sqlite(file);
    let savepoint: Savepoint<'_> = connection.savepoint().map_err(&failed)?;
    match work(&savepoint) {
        Ok(done) => savepoint.commit().map(|()| done).map_err(failed),
        // Dropped, the savepoint is rolled back.
        Err(Fault::Refused(error)) => Err(error),
        Err(Fault::Sqlite(error)) => Err(failed(error)),
    }
}

/// The writer: takes what waits, commits it at once, then answers everyone.
fn write(mut connection: Connection, file: &Path, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let jobs = std::iter::once(first).chain(queue.try_iter().take(BATCH - 1));
        commit(&mut connection, file, jobs);
    }
}

fn commit(connection: &mut Connection, file: &Path, jobs: impl Iterator<Item = Job>) {
    let failed = StoreError::sqlite(file);
    let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(&failed);
    let answers: Vec<_> = jobs.map(|job| job(connection, file)).collect();
    let committed = begun.and_then(|()| {
        connection
            .execute_batch("UPDATE meta SET value = value + 1 WHERE key = 'generation'; COMMIT")
            .map_err(&failed)
    });
    if committed.is_err() && !connection.is_autocommit() {
        // Nothing more can be done for a database that cannot even roll back: every caller is told of the commit.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for answer in answers {
        answer(committed.clone());
    }
}

#[cfg(test)]
mod tests;

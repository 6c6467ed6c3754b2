//! Group commit: changes that wait together share one transaction and one sync of the disk. In: changes from any number
//! of callers. Out: to each its own answer, once it is durable.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::error::Fault;
use super::{
    ChangedSysctl, OwnedLink, StoreError, StoredAccount, accounts, dns_records, owned, policies,
    reservations, user_data, vms,
};
use crate::model::{Account, DnsRecord, Mac, NetworkName, PortForward, Reservation, Subnet, Vm, VmId};
use crate::policy::Scope;

/// More wait in their callers.
const QUEUE: usize = 1024;
/// Bounds how long the first of a batch waits for the rest of it.
const LARGEST_BATCH: usize = 256;
/// After a commit that failed and could not be settled: until that is tried again, unless a change comes before, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How soon a change is seen meanwhile.
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) enum Change {
    Insert(Box<Vm>, Box<Account>),
    Update(Box<Vm>),
    KeepAccounts(Vec<StoredAccount>),
    Remove { vm_id: VmId, now_us: i64 },
    ForgetFreed(Vec<(NetworkName, Ipv4Addr)>),
    InsertReservations(Vec<Arc<Reservation>>),
    RemoveReservation { network: NetworkName, mac: Mac },
    RecordLink(OwnedLink),
    ForgetLink(u32),
    RecordSysctl(ChangedSysctl),
    ForgetSysctl(String),
    RecordSubnet(Subnet),
    ForgetSubnet(Subnet),
    RecordBoot(String),
    SetUserData { vm_id: VmId, content: Option<Vec<u8>> },
    SetPolicy { scope: Scope, spec: Option<String> },
    AddForward(PortForward),
    RemoveForward(PortForward),
    SetDnsRecord(NetworkName, DnsRecord),
    DeleteDnsRecord(NetworkName, DnsRecord),
}

/// What a change found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It was so already.
    Nothing,
    Changed,
    /// The boot recorded before was another one.
    Rebooted,
}

impl From<bool> for Effect {
    fn from(changed: bool) -> Self {
        if changed { Self::Changed } else { Self::Nothing }
    }
}

struct Job {
    change: Change,
    reply: oneshot::Sender<Result<Effect, StoreError>>,
}

/// The thread that alone writes. Dropped, it finishes what was queued and closes the database.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, file: PathBuf) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = Builder::new().name("store".into()).spawn(move || run(connection, &file, queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Returns when `change` is durable. A caller that stops waiting does not take back what it has queued.
    pub(super) async fn write(&self, change: Change) -> Result<Effect, StoreError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Stopped)?;
        jobs.send(Job { change, reply }).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A thread that panicked has nothing left to finish.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(mut connection: Connection, file: &Path, mut queue: mpsc::Receiver<Job>) {
    let mut unsettled = None;
    loop {
        let first = match &mut unsettled {
            None => match queue.blocking_recv() {
                Some(first) => Some(first),
                None => return,
            },
            Some(pause) => match recv_within(&mut queue, *pause) {
                Ok(first) => {
                    *pause = LONGEST_PAUSE.min(*pause * 2);
                    first
                }
                Err(Ended) => return,
            },
        };
        let mut batch: Vec<Job> = first.into_iter().collect();
        while !batch.is_empty()
            && batch.len() < LARGEST_BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        if unsettled.is_some() {
            match settle(&mut connection) {
                Ok(()) => unsettled = None,
                Err(error) => {
                    refuse(batch, &StoreError::sqlite(file)(error));
                    continue;
                }
            }
        }
        match commit(&mut connection, batch.iter().map(|job| &job.change)) {
            Ok(outcomes) => {
                for (job, outcome) in batch.into_iter().zip(outcomes) {
                    // Whoever no longer waits for the answer does without.
                    let _ = job.reply.send(outcome);
                }
            }
            Err(error) => {
                // Before the answer: who is told that nothing was made finds nothing after a crash. While another program has the
                // database nothing is even begun.
                let begun = error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy);
                if begun && settle(&mut connection).is_err() {
                    unsettled = Some(FIRST_PAUSE);
                }
                refuse(batch, &StoreError::sqlite(file)(error));
            }
        }
    }
}

fn refuse(batch: Vec<Job>, error: &StoreError) {
    for job in batch {
        let _ = job.reply.send(Err(error.clone()));
    }
}

struct Ended;

/// What comes before `pause` is over; none then.
fn recv_within(queue: &mut mpsc::Receiver<Job>, pause: Duration) -> Result<Option<Job>, Ended> {
    let until = Instant::now() + pause;
    loop {
        match queue.try_recv() {
            Ok(job) => return Ok(Some(job)),
            Err(mpsc::error::TryRecvError::Disconnected) => return Err(Ended),
            Err(mpsc::error::TryRecvError::Empty) if Instant::now() >= until => return Ok(None),
            Err(mpsc::error::TryRecvError::Empty) => std::thread::sleep(POLL),
        }
    }
}

/// A commit of its own in the place of one that failed. That one may be in the log whole, its sync alone refused: a crash would
/// bring it back. What is written here takes its place there, and ends what was behind (sqlite.org, "WAL-mode File Format": each frame's
/// checksum goes on from the one before).
fn settle(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let counted = "INSERT INTO meta (key, value) VALUES ('failed_commits', 1)
                   ON CONFLICT (key) DO UPDATE SET value = value + 1";
    transaction.execute(counted, [])?;
    transaction.commit()
}

/// All of `changes` in one transaction, with an outcome for each. One that is refused leaves no trace and does not hold
/// up the others; when the database itself fails, none is made.
fn commit<'a>(
    connection: &mut Connection,
    changes: impl Iterator<Item = &'a Change>,
) -> rusqlite::Result<Vec<Result<Effect, StoreError>>> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::new();
    for change in changes {
        let savepoint = transaction.savepoint()?;
        match apply(&savepoint, change) {
            Ok(effect) => {
                savepoint.commit()?;
                outcomes.push(Ok(effect));
            }
            Err(Fault::Refused(error)) => {
                savepoint.finish()?;
                outcomes.push(Err(error));
            }
            Err(Fault::Sqlite(error)) => return Err(error),
        }
    }
    if outcomes.iter().any(|outcome| matches!(outcome, Ok(effect) if *effect != Effect::Nothing)) {
        transaction
            .prepare_cached("UPDATE meta SET value = value + 1 WHERE key = 'generation'")?
            .execute([])?;
    }
    transaction.commit()?;
    Ok(outcomes)
}

fn apply(connection: &Connection, change: &Change) -> Result<Effect, Fault> {
    Ok(match change {
        Change::Insert(vm, account) => {
            vms::insert(connection, vm)?;
            let Vm { vm_id, created_at_us, .. } = &**vm;
            let (vm_id, account) = (vm_id.clone(), (**account).clone());
            let stored = StoredAccount { vm_id, created_at_us: *created_at_us, account };
            accounts::keep(connection, &stored).map(|()| Effect::Changed)?
        }
        Change::Update(vm) => vms::update(connection, vm)?.into(),
        Change::KeepAccounts(counted) => {
            for stored in counted {
                accounts::keep(connection, stored)?;
            }
            // What is counted is no change of what is desired.
            Effect::Nothing
        }
        Change::Remove { vm_id, now_us } => vms::remove(connection, vm_id, *now_us)?.into(),
        Change::ForgetFreed(addresses) => vms::forget_freed(connection, addresses)?.into(),
        Change::InsertReservations(all) => reservations::insert(connection, all).map(|()| Effect::Changed)?,
        Change::RemoveReservation { network, mac } => reservations::remove(connection, network, *mac)?.into(),
        Change::RecordLink(link) => owned::record_link(connection, link).map(|()| Effect::Changed)?,
        Change::ForgetLink(ifindex) => owned::forget_link(connection, *ifindex)?.into(),
        Change::RecordSubnet(subnet) => owned::record_subnet(connection, *subnet)?.into(),
        Change::ForgetSubnet(subnet) => owned::forget_subnet(connection, *subnet)?.into(),
        Change::RecordSysctl(changed) => owned::record_sysctl(connection, changed)?.into(),
        Change::ForgetSysctl(path) => owned::forget_sysctl(connection, path)?.into(),
        Change::SetUserData { vm_id, content } => {
            user_data::set(connection, vm_id, content.as_deref())?.into()
        }
        Change::SetPolicy { scope, spec } => policies::set(connection, scope, spec.as_deref())?.into(),
        Change::AddForward(forward) => policies::add_forward(connection, forward)?.into(),
        Change::RemoveForward(forward) => policies::remove_forward(connection, forward)?.into(),
        Change::SetDnsRecord(network, record) => dns_records::set(connection, network, record)?.into(),
        Change::DeleteDnsRecord(network, record) => dns_records::delete(connection, network, record)?.into(),
        Change::RecordBoot(boot_id) => owned::record_boot(connection, boot_id)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;
    use crate::store::tests::vm;

    #[test]
    fn a_full_disk_refuses_the_batch_and_keeps_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = schema::open(directory.path()).unwrap();
        commit(&mut connection, [Change::Insert(Box::new(vm(0)), Box::default())].iter()).unwrap();
        connection.pragma_update(None, "max_page_count", 1).unwrap();
        let many: Vec<Change> = (1..500).map(|n| Change::Insert(Box::new(vm(n)), Box::default())).collect();
        let error = commit(&mut connection, many.iter()).map_err(StoreError::sqlite(&file)).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("full: free some space"), "{error}");
        assert_eq!(vms::load(&connection).unwrap(), [vm(0)]);

        connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        let outcomes = commit(&mut connection, many.iter()).unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(vms::load(&connection).unwrap().len(), 500);
    }

    #[test]
    fn one_refused_change_does_not_hold_up_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, _) = schema::open(directory.path()).unwrap();
        let changes = [1, 1, 2].map(|n| Change::Insert(Box::new(vm(n)), Box::default()));
        let outcomes = commit(&mut connection, changes.iter()).unwrap();
        assert!(matches!(&outcomes[..], [Ok(_), Err(StoreError::Taken { .. }), Ok(_)]), "{outcomes:?}");
        assert_eq!(vms::load(&connection).unwrap(), [vm(1), vm(2)]);
    }
}

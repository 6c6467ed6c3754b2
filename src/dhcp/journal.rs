//! The lease log: what changed is appended in groups and synced, so that a restart knows how each lease stands; the groups
//! go to watchers and, as far as they are new leases, to the events. Nothing of it is on the way of an answer: what the
//! last instant before a crash takes with it is found again at the guest's next message, because the reservation stands.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info};

use super::expiry::Expiries;
use super::leases::{Entry, LeaseChange, Leases};
use super::log_line::{self, Line};
use super::record::Standing;
use crate::events::{EventKind, Events};
use crate::model::{Mac, NetworkName};
use crate::registry::Reserved;

/// Gathers a group; after a large one longer, so that a storm costs a bounded share of the processor.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_PER_LEASE: Duration = Duration::from_micros(100);
const LONGEST_GATHER: Duration = Duration::from_secs(1);
/// The log is written anew when it is this much longer than what it says.
const SLACK: usize = 4;
const LEAST_LINES: usize = 10_000;
/// How often the events tell of one guest's leases at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Events of one group; the rest is one event with their number.
const MOST_EVENTS: usize = 256;

#[derive(Debug, thiserror::Error)]
#[error("the lease log {}: {source}", path.display())]
pub struct JournalError {
    path: PathBuf,
    source: io::Error,
}

/// The thread that keeps the log. Dropped, it writes what is left and ends.
#[derive(Debug)]
pub struct Journal {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// Reads the log in `directory` into `leases` and keeps it from now on.
    pub(super) fn start(directory: &Path, leases: Leases, events: Events) -> Result<Self, JournalError> {
        let path = directory.join("leases.log");
        let failed = |source| JournalError { path: path.clone(), source };
        let kept = match std::fs::read(&path) {
            Ok(bytes) => restore(&leases, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error)),
        };
        let mut log = Log { file: None, lines: 0, path: path.clone() };
        log.rewrite(&leases).map_err(failed)?;
        if kept > 0 {
            info!(leases = kept, "read the lease log");
        }
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let wake = leases.wake.clone();
        let run = move || run(log, &leases, &events, &stopped);
        let thread = std::thread::Builder::new().name("lease-log".into()).spawn(run).map_err(failed)?;
        wake.set_thread(thread.thread().clone());
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // One that panicked has nothing left to write.
            let _ = thread.join();
        }
    }
}

/// Takes in what the log says; of each guest its last line counts. A line that was cut off by a crash says nothing.
fn restore(leases: &Leases, bytes: &[u8]) -> usize {
    let mut last = HashMap::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        match log_line::read(line) {
            Some((network, mac, Line::Stands(record))) => last.insert((network, mac), record),
            Some((network, mac, Line::Gone)) => last.remove(&(network, mac)),
            None => None,
        };
    }
    let kept = last.len();
    for ((network, mac), record) in last {
        leases.book(&network).open().entries.insert(mac, Entry::restored(record));
    }
    kept
}

fn run(mut log: Log, leases: &Leases, events: &Events, stopped: &AtomicBool) {
    let mut text = String::new();
    let mut failing = false;
    let mut expiries = read_back(leases);
    loop {
        let stopping = stopped.load(Relaxed);
        text.clear();
        if leases.wake.taken() || stopping {
            let changed = gather(leases, events, &mut expiries, &mut text);
            let written = log.append(&text, leases);
            if let (Err(error), false) = (&written, failing) {
                error!(%error, path = %log.path.display(), "the lease log cannot be written: leases go on, a restart may not know them");
            }
            failing = written.is_err();
            let gather = GATHER + GATHER_PER_LEASE * u32::try_from(changed.len()).unwrap_or(u32::MAX);
            if !changed.is_empty() {
                leases.tell(changed.into());
            }
            if !stopping {
                rest(gather.min(LONGEST_GATHER), stopped);
            }
        } else {
            match expiries.next().map(|end| end.duration_since(SystemTime::now())) {
                None => std::thread::park(),
                Some(Ok(left)) => std::thread::park_timeout(left),
                Some(Err(_)) => {}
            }
        }
        let ended = ended(leases, &mut expiries, SystemTime::now());
        if !ended.is_empty() {
            leases.tell(ended.into());
        }
        if stopping {
            return;
        }
    }
}

/// When the leases that were read back end.
fn read_back(leases: &Leases) -> Expiries {
    let mut expiries = Expiries::default();
    for (network, book) in leases.books() {
        for (mac, entry) in &book.open().entries {
            if let Standing::Bound(Some(end)) = entry.record.standing {
                expiries.note((network.clone(), *mac), end);
            }
        }
    }
    expiries
}

/// The leases that have ended since the last time.
fn ended(leases: &Leases, expiries: &mut Expiries, now: SystemTime) -> Vec<LeaseChange> {
    let mut ended = Vec::new();
    while let Some((network, mac)) = expiries.take(now) {
        let book = leases.book(&network);
        let standing = book.open().entries.get(&mac).map(|entry| entry.record.standing);
        match standing {
            Some(Standing::Bound(Some(end))) if end > now => expiries.note((network, mac), end),
            Some(Standing::Bound(Some(_))) => ended.push(LeaseChange::Stands(network, mac)),
            _ => {}
        }
    }
    ended
}

/// Lets a group gather. What changes meanwhile wakes the thread, which is no reason to write it down alone.
fn rest(time: Duration, stopped: &AtomicBool) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now())
        && !left.is_zero()
        && !stopped.load(Relaxed)
    {
        std::thread::park_timeout(left);
    }
}

/// The changes since the last time, written down in `text`.
fn gather(leases: &Leases, events: &Events, expiries: &mut Expiries, text: &mut String) -> Vec<LeaseChange> {
    let now = SystemTime::now();
    let mut all = Vec::new();
    let mut given = Vec::new();
    for (network, book) in leases.books() {
        let mut page = book.open();
        for (mac, reserved) in std::mem::take(&mut page.gone) {
            log_line::write_gone(text, &network, mac);
            expiries.forget(&(network.clone(), mac));
            all.extend(reserved.map(LeaseChange::Gone));
        }
        let changed = std::mem::take(&mut page.changed);
        for mac in &changed {
            let Some(entry) = page.entries.get_mut(mac) else { continue };
            entry.in_changed = false;
            // An offer is no lease yet.
            if entry.record.standing != Standing::Offered {
                log_line::write(text, &network, *mac, &entry.record, now);
            }
            if let Standing::Bound(Some(end)) = entry.record.standing {
                expiries.note((network.clone(), *mac), end);
            }
            let bound = matches!(entry.record.standing, Standing::Bound(_));
            let Some(reserved) = entry.reserved().cloned() else { continue };
            if bound && !std::mem::replace(&mut entry.announced, true) {
                // A guest that gives its lease back and takes it again, over and over, is told of now and then.
                let told = entry.told.and_then(|told| now.duration_since(told).ok());
                if told.is_none_or(|ago| ago >= TOLD_EVERY) {
                    entry.told = Some(now);
                    given.push(reserved.clone());
                }
            } else if !bound && entry.record.standing != Standing::Offered {
                entry.announced = false;
            }
            all.push(LeaseChange::Stands(network.clone(), *mac));
        }
        // The room is used again.
        if page.changed.is_empty() {
            page.changed = changed;
            page.changed.clear();
        }
    }
    announce(events, &given);
    all
}

fn announce(events: &Events, given: &[Arc<Reserved>]) {
    for reserved in given.iter().take(MOST_EVENTS) {
        let detail = format!("{} has its lease of {}", reserved.guest.mac, reserved.guest.address);
        events.send(EventKind::LeaseGiven, reserved.vm_id.as_ref(), Some(&reserved.network.name), detail);
    }
    if let Some(more) = given.len().checked_sub(MOST_EVENTS).filter(|more| *more > 0) {
        events.send(EventKind::LeaseGiven, None, None, format!("{more} more guests have their leases"));
    }
}

struct Log {
    file: Option<File>,
    lines: usize,
    path: PathBuf,
}

impl Log {
    fn append(&mut self, text: &str, leases: &Leases) -> io::Result<()> {
        if text.is_empty() && self.file.is_some() {
            return Ok(());
        }
        let live: usize = leases.books().iter().map(|(_, book)| book.open().entries.len()).sum();
        // After an error it may end in half a line.
        if self.file.is_none() || self.lines > LEAST_LINES.max(live * SLACK) {
            return self.rewrite(leases);
        }
        self.lines += text.lines().count();
        let Some(mut file) = self.file.take() else { return Ok(()) };
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes down how all leases stand, in a new file that takes the place of the old one when it is whole.
    fn rewrite(&mut self, leases: &Leases) -> io::Result<()> {
        self.file = None;
        let now = SystemTime::now();
        let mut text = String::new();
        for (network, book) in leases.books() {
            for (mac, entry) in &book.open().entries {
                log_line::write(&mut text, &network, *mac, &entry.record, now);
            }
        }
        let draft = self.path.with_extension("log-new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        std::fs::rename(&draft, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        self.lines = text.lines().count();
        self.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        Ok(())
    }
}

/// Key of a lease in the log.
pub(super) type LogKey = (NetworkName, Mac);

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, MessageType};

    use super::super::fixture::{ADDRESS, GATEWAY, Lab, broadcast, discover, message, network, selecting};
    use super::super::{L4Checksum, Request};
    use super::*;
    use crate::model::LeaseState;
    use crate::registry::Registry;

    fn exchange(leases: &Leases, registry: &Registry, lab: &Lab, message: &dhcproto::v4::Message) {
        let frame = broadcast(message);
        let request = Request::parse(&frame, L4Checksum::Complete).unwrap();
        let name = network().name;
        let book = leases.book(&name);
        let mut page = book.open();
        page.exchange(registry, &name, &request, lab.now);
        book.close(page);
    }

    #[test]
    fn a_lease_is_known_after_a_restart_whatever_the_end_of_the_log_looks_like() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, registry, events) = (Lab::new(), Registry::default(), Events::default());
        let mut watcher = events.watch();
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        let (leases, journal) = Leases::open(directory.path(), events.clone()).unwrap();
        exchange(&leases, &registry, &lab, &discover(&[]));
        exchange(&leases, &registry, &lab, &selecting(ADDRESS, GATEWAY));
        drop(journal);
        let event = watcher.try_recv().unwrap();
        assert_eq!((event.kind, event.vm_id), (EventKind::LeaseGiven, reserved.vm_id.clone()));

        let path = directory.path().join("leases.log");
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(b"default 06:00:0a:64:01:02 10.1").unwrap();
        let (leases, journal) = Leases::open(directory.path(), Events::default()).unwrap();
        let view = leases.view(&reserved.network.name, &reserved.guest, lab.now);
        assert_eq!((view.state, view.last_seen.is_some()), (LeaseState::Bound, true));
        assert_eq!(read_back(&leases).next(), view.expires_at);

        leases.forget(reserved.clone());
        drop(journal);
        let (leases, _journal) = Leases::open(directory.path(), Events::default()).unwrap();
        assert_eq!(leases.view(&reserved.network.name, &reserved.guest, lab.now).state, LeaseState::Reserved);
    }

    #[test]
    fn a_lease_of_a_reservation_that_is_gone_does_not_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, registry) = (Lab::new(), Registry::default());
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        let (leases, journal) = Leases::open(directory.path(), Events::default()).unwrap();
        exchange(&leases, &registry, &lab, &selecting(ADDRESS, GATEWAY));
        drop(journal);
        // A crash came before the log had heard of the deletion.
        let state = |leases: &Leases| leases.view(&reserved.network.name, &reserved.guest, lab.now).state;
        for (registry, state_then) in
            [(&registry, LeaseState::Bound), (&Registry::default(), LeaseState::Reserved)]
        {
            let (leases, journal) = Leases::open(directory.path(), Events::default()).unwrap();
            leases.forget_unreserved(registry);
            assert_eq!(state(&leases), state_then);
            drop(journal);
        }
        let (leases, _journal) = Leases::open(directory.path(), Events::default()).unwrap();
        assert_eq!(state(&leases), LeaseState::Reserved, "nor by the log");
    }

    #[test]
    fn a_guest_that_takes_its_lease_over_and_over_is_told_of_once() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, registry, events) = (Lab::new(), Registry::default(), Events::default());
        let mut watcher = events.watch();
        registry.reserve([Arc::new(lab.reserved.clone().unwrap())]);
        let (leases, journal) = Leases::open(directory.path(), events.clone()).unwrap();
        let mut groups = leases.watch();
        let mut gives_back = message(MessageType::Release, &[DhcpOption::ServerIdentifier(GATEWAY)]);
        gives_back.set_ciaddr(ADDRESS);
        for message in [selecting(ADDRESS, GATEWAY), gives_back].iter().cycle().take(10) {
            exchange(&leases, &registry, &lab, message);
            groups.blocking_recv().unwrap();
        }
        drop(journal);
        assert_eq!(watcher.try_recv().unwrap().kind, EventKind::LeaseGiven);
        assert!(watcher.try_recv().is_err());
    }

    #[test]
    fn a_lease_that_ends_and_one_whose_reservation_goes_are_told_of() {
        let (lab, registry, events) = (Lab::new(), Registry::default(), Events::default());
        let reserved = Arc::new(lab.reserved.clone().unwrap());
        registry.reserve([reserved.clone()]);
        let (leases, mut expiries, mut text) = (Leases::default(), Expiries::default(), String::new());
        exchange(&leases, &registry, &lab, &selecting(ADDRESS, GATEWAY));
        gather(&leases, &events, &mut expiries, &mut text);
        let first_end = expiries.next().unwrap();
        let mut later = Lab::new();
        later.now += Duration::from_secs(60);
        exchange(&leases, &registry, &later, &selecting(ADDRESS, GATEWAY));
        gather(&leases, &events, &mut expiries, &mut text);
        // It has been renewed: what was its end is none.
        assert!(ended(&leases, &mut expiries, first_end).is_empty());
        let end = expiries.next().unwrap();
        assert_eq!(end, first_end + Duration::from_secs(60));
        let told = ended(&leases, &mut expiries, end);
        let is_it =
            |network: &NetworkName, mac| *network == reserved.network.name && mac == reserved.guest.mac;
        assert!(matches!(&told[..], [LeaseChange::Stands(network, mac)] if is_it(network, *mac)), "{told:?}");
        assert_eq!(leases.view(&reserved.network.name, &reserved.guest, end).state, LeaseState::Expired);

        leases.forget(reserved.clone());
        let told = gather(&leases, &events, &mut expiries, &mut text);
        assert!(matches!(&told[..], [LeaseChange::Gone(gone)] if Arc::ptr_eq(gone, &reserved)), "{told:?}");
    }

    #[test]
    fn what_changes_while_a_group_gathers_is_written_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, registry) = (Lab::new(), Registry::default());
        registry.reserve([Arc::new(lab.reserved.clone().unwrap())]);
        let (leases, _journal) = Leases::open(directory.path(), Events::default()).unwrap();
        let mut groups = leases.watch();
        // For as long as ten groups take, one change after the other.
        let (begun, mut changes) = (Instant::now(), 0);
        while begun.elapsed() < 10 * GATHER {
            exchange(&leases, &registry, &lab, &discover(&[]));
            exchange(&leases, &registry, &lab, &selecting(ADDRESS, GATEWAY));
            changes += 2;
            std::thread::sleep(Duration::from_micros(100));
        }
        let most = begun.elapsed().as_millis() / GATHER.as_millis() + 2;
        let groups = std::iter::from_fn(|| groups.try_recv().ok()).count() as u128;
        assert!((1..=most).contains(&groups), "{changes} changes in {groups} groups, {most} at most");
    }

    #[test]
    fn the_log_does_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, registry) = (Lab::new(), Registry::default());
        registry.reserve([Arc::new(lab.reserved.clone().unwrap())]);
        let (leases, journal) = Leases::open(directory.path(), Events::default()).unwrap();
        exchange(&leases, &registry, &lab, &selecting(ADDRESS, GATEWAY));
        drop(journal);
        let path = directory.path().join("leases.log");
        let line = std::fs::read_to_string(&path).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        std::fs::write(&path, line.repeat(LEAST_LINES)).unwrap();
        drop(Leases::open(directory.path(), Events::default()).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}

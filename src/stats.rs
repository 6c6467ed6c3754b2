//! What guests have sent and received. In: the kernel's counters of their ports. Out: totals per VM that begin at 0 when it
//! is created and never go back, over restarts, other VMs in the same slot and replaced devices. However many ask at a
//! time, one dump answers them.
//!
//! A crash of the service takes nothing back: the kernel counts on, and what is to be added to that is durable before a total is
//! told. With the kernel's counters, by a power loss, what was counted since the last `CHECKPOINT` is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, warn};

use crate::kernel::{Kernel, KernelError};
use crate::model::{Account, Counters, IfName, Reading, Vm, VmId};
use crate::registry::{Binding, Registry};
use crate::store::{Store, StoreError, StoredAccount};

/// How often totals are written down: what a power loss takes back of them at most.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// Accounts written down in one commit: calls wait for no longer one.
const AT_A_TIME: usize = 256;

/// Up to so many VMs are read one by one; for more, the dump of all is cheaper.
const ONE_BY_ONE: usize = 64;

/// Every VM's totals at one time, by vm_id.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub at: SystemTime,
    pub counters: BTreeMap<VmId, Counters>,
}

/// The totals of the host's VMs. Clones share one state.
#[derive(Clone)]
pub struct Stats(Arc<Inner>);

struct Inner {
    kernel: Kernel,
    store: Arc<Store>,
    registry: Registry,
    accounts: Mutex<HashMap<VmId, Entry>>,
    /// The last dump, with when it was begun. Held while readings are taken and added: one added after a later one would
    /// look like a counter that began again. Who comes while a dump is taken shares the next.
    latest: tokio::sync::Mutex<Option<(Instant, Arc<Snapshot>)>>,
    /// Held while accounts are written down: an older one must not come after a newer.
    writing: tokio::sync::Mutex<()>,
}

/// An account that is being counted on.
#[derive(Debug)]
struct Entry {
    account: Account,
    /// Of the VM, in microseconds: tells it from a later one of the same name.
    created_at_us: i64,
    /// What was read before this is not this VM's: a dump that began when another VM had the device, or the device before was there.
    opened: Instant,
    /// How often it has changed, and how many of these changes are written down.
    changes: u64,
    written: u64,
    /// As it is written down.
    durable: Account,
}

/// The account of a VM that is about to get a device, and from when on what is read of that is the VM's.
#[derive(Debug)]
pub struct Opened {
    account: Account,
    at: Instant,
}

impl Opened {
    /// As it is to be written down before it is counted on.
    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl Entry {
    /// On an account that is written down.
    fn new(created_at_us: i64, account: Account, opened: Instant) -> Self {
        Self { durable: account.clone(), account, created_at_us, opened, changes: 0, written: 0 }
    }

    /// Whether its total stands after a crash: it is durable, or comes to be again by what the device still counts.
    fn stands(&self) -> bool {
        self.account.counts_as(&self.durable)
    }

    /// The same of the device that `vm` has, which may have been deleted and made again on another since.
    fn read_of(&mut self, vm: &Vm, begun: Instant, device: u32, counted: Reading) {
        if vm.created_at_us == self.created_at_us {
            self.read(begun, device, counted);
        }
    }

    /// Adds what `device` has counted, by a reading that began then.
    fn read(&mut self, begun: Instant, device: u32, counted: Reading) {
        if begun >= self.opened {
            self.change(|account| account.read(device, counted));
        }
    }

    /// The device is gone; no reading that began before is added any more.
    fn device_is_gone(&mut self, now: Instant) {
        self.opened = now;
        self.change(Account::device_is_gone);
    }

    fn change(&mut self, change: impl FnOnce(&mut Account)) {
        let before = self.account.clone();
        change(&mut self.account);
        self.changes += u64::from(self.account != before);
    }

    /// What of it is yet to be written down.
    fn unwritten(&self) -> Option<Unwritten> {
        let Self { created_at_us, changes, .. } = *self;
        (self.written < changes).then(|| Unwritten { created_at_us, changes, account: self.account.clone() })
    }

    fn is_written(&mut self, written: &Unwritten) {
        if written.created_at_us == self.created_at_us {
            self.written = written.changes;
            self.durable = written.account.clone();
        } else {
            // It was that of an earlier VM of this name, and stands in this one's place now.
            self.changes += 1;
        }
    }
}

/// An account as it was after so many changes.
#[derive(Debug)]
struct Unwritten {
    created_at_us: i64,
    changes: u64,
    account: Account,
}

fn unwritten((vm_id, entry): (&VmId, &Entry)) -> Option<(VmId, Unwritten)> {
    Some((vm_id.clone(), entry.unwritten()?))
}

impl Stats {
    pub fn new(kernel: Kernel, store: Arc<Store>, registry: Registry) -> Self {
        let (accounts, latest, writing) = (Mutex::default(), Default::default(), Default::default());
        Self(Arc::new(Inner { kernel, store, registry, accounts, latest, writing }))
    }

    /// Takes up where an earlier run left off.
    pub fn load(&self) -> Result<(), StoreError> {
        let (accounts, now) = (self.0.store.accounts()?.into_iter(), Instant::now());
        let entry = |StoredAccount { vm_id, created_at_us, account }| {
            (vm_id, Entry::new(created_at_us, account, now))
        };
        self.0.accounts().extend(accounts.map(entry));
        Ok(())
    }

    /// The account of a VM that is about to get `device`: what has been counted on it so far is not this VM's.
    pub fn open_account(&self, device: &IfName) -> Result<Opened, KernelError> {
        let counted = self.0.kernel.counters_of(device)?;
        let account = counted.map(|(index, counted)| Account::on(index, counted)).unwrap_or_default();
        Ok(Opened { account, at: Instant::now() })
    }

    /// Begins to count a VM, whose account is durable.
    pub fn begin(&self, vm: &Vm, opened: Opened) {
        let entry = Entry::new(vm.created_at_us, opened.account, opened.at);
        self.0.accounts().insert(vm.vm_id.clone(), entry);
    }

    /// The VMs' devices are gone, and others of the same indexes will be in their place: what was counted is written down, for
    /// only here is it still told.
    pub async fn devices_are_gone(&self, vm_ids: impl Iterator<Item = &VmId>) {
        let mut any = false;
        {
            // What is being read is of the devices that are gone: it is counted first.
            let _reading = self.0.latest.lock().await;
            let mut accounts = self.0.accounts();
            for vm_id in vm_ids {
                let Some(entry) = accounts.get_mut(vm_id) else { continue };
                entry.device_is_gone(Instant::now());
                any |= entry.unwritten().is_some();
            }
        }
        if any && let Err(error) = self.checkpoint().await {
            warn!(%error, "could not write down guests' traffic");
        }
    }

    /// What a VM's device has counted is about to go, with the device or its queue: it is counted and written down, and until this is
    /// dropped nobody is told more.
    pub async fn closing<'a>(&'a self, vm_id: &'a VmId) -> Closing<'a> {
        let told = self.0.latest.lock().await;
        let closing = Closing { stats: self, vm_id, _told: told };
        closing.count().await;
        closing
    }

    /// Stops to count a VM.
    pub fn end(&self, vm_id: &VmId) {
        self.0.accounts().remove(vm_id);
    }

    /// Every VM's totals, from a dump that was begun after the call.
    pub async fn all(&self) -> Result<Arc<Snapshot>, KernelError> {
        let asked = Instant::now();
        let mut latest = self.0.latest.lock().await;
        if let Some((begun, snapshot)) = &*latest
            && *begun >= asked
        {
            return Ok(snapshot.clone());
        }
        let (begun, at) = (Instant::now(), SystemTime::now());
        let counted = self.0.kernel.counters().await?;
        let snapshot = Arc::new(Snapshot { at, counters: self.0.add_up(begun, &counted)? });
        self.make_stand(None).await;
        *latest = Some((begun, snapshot.clone()));
        Ok(snapshot)
    }

    /// The totals of those of `vm_ids` that are bound.
    pub async fn of(&self, vm_ids: &[VmId]) -> Result<Arc<Snapshot>, KernelError> {
        if vm_ids.len() > ONE_BY_ONE {
            let mut chosen = Arc::unwrap_or_clone(self.all().await?);
            let wanted: HashSet<&VmId> = vm_ids.iter().collect();
            chosen.counters.retain(|vm_id, _| wanted.contains(vm_id));
            return Ok(Arc::new(chosen));
        }
        let _reading = self.0.latest.lock().await;
        let at = SystemTime::now();
        let bindings = vm_ids.iter().filter_map(|vm_id| self.0.registry.by_vm(vm_id));
        let counters = bindings.map(|binding| self.0.read_one(&binding)).collect::<Result<Vec<_>, _>>()?;
        self.make_stand(Some(vm_ids)).await;
        Ok(Arc::new(Snapshot { at, counters: counters.into_iter().flatten().collect() }))
    }

    /// Writes down what has been counted since it was last written down.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.write_down(|accounts| accounts.iter().filter_map(unwritten).collect()).await
    }

    /// Makes totals that a crash would take back durable before they are told: of counters that have begun again. `None`: of every VM.
    async fn make_stand(&self, vm_ids: Option<&[VmId]>) {
        let fleeting: Vec<VmId> = {
            let accounts = self.0.accounts();
            let of = |vm_id| accounts.get_key_value(vm_id);
            let fleeting = |(vm_id, entry): (&VmId, &Entry)| (!entry.stands()).then(|| vm_id.clone());
            match vm_ids {
                Some(vm_ids) => vm_ids.iter().filter_map(of).filter_map(fleeting).collect(),
                None => accounts.iter().filter_map(fleeting).collect(),
            }
        };
        // Told all the same if the disk is full: `keep` warns of that.
        if let Err(error) = self.write_down_of(&fleeting).await {
            debug!(%error, "totals that a crash would take back could not be written down");
        }
    }

    async fn write_down_of(&self, vm_ids: &[VmId]) -> Result<(), StoreError> {
        if vm_ids.is_empty() {
            return Ok(());
        }
        let of = |accounts: &HashMap<VmId, Entry>| {
            vm_ids.iter().filter_map(|vm_id| unwritten(accounts.get_key_value(vm_id)?)).collect()
        };
        self.write_down(of).await
    }

    async fn write_down(
        &self,
        unwritten: impl FnOnce(&HashMap<VmId, Entry>) -> Vec<(VmId, Unwritten)>,
    ) -> Result<(), StoreError> {
        let _writing = self.0.writing.lock().await;
        let unwritten = unwritten(&self.0.accounts());
        for some in unwritten.chunks(AT_A_TIME) {
            let of = some.iter().map(|(vm_id, Unwritten { created_at_us, account, .. })| StoredAccount {
                vm_id: vm_id.clone(),
                created_at_us: *created_at_us,
                account: account.clone(),
            });
            self.0.store.keep_accounts(of.collect()).await?;
            let mut accounts = self.0.accounts();
            for (vm_id, unwritten) in some {
                if let Some(entry) = accounts.get_mut(vm_id) {
                    entry.is_written(unwritten);
                }
            }
        }
        Ok(())
    }

    /// Counts and writes down from time to time, until it is dropped.
    pub async fn keep(self) {
        let mut ticks = tokio::time::interval(CHECKPOINT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.count_and_write_down().await;
        }
    }

    /// Goes past errors: nothing waits for it.
    pub async fn count_and_write_down(&self) {
        if self.0.accounts().is_empty() {
            return;
        }
        if let Err(error) = self.all().await {
            warn!(%error, "could not count guests' traffic");
        }
        if let Err(error) = self.checkpoint().await {
            warn!(%error, "could not write down guests' traffic");
        }
    }
}

/// A VM of which nothing is told.
pub struct Closing<'a> {
    stats: &'a Stats,
    vm_id: &'a VmId,
    _told: tokio::sync::MutexGuard<'a, Option<(Instant, Arc<Snapshot>)>>,
}

impl Closing<'_> {
    /// Counts, and writes down.
    async fn count(&self) {
        let Some(binding) = self.stats.0.registry.by_vm(self.vm_id) else { return };
        if let Err(error) = self.stats.0.read_one(&binding) {
            warn!(%error, vm_id = %self.vm_id, "what a device has counted last is lost with it");
        }
        self.write_down().await;
    }

    async fn write_down(&self) {
        if let Err(error) = self.stats.write_down_of(std::slice::from_ref(self.vm_id)).await {
            warn!(%error, "could not write down guests' traffic");
        }
    }

    /// The queue is another: it is counted from where that begins.
    pub async fn queue_is_gone(self) {
        self.count().await;
    }

    /// The device is gone, and another of the same index will be in its place.
    pub async fn device_is_gone(self) {
        if let Some(entry) = self.stats.0.accounts().get_mut(self.vm_id) {
            entry.device_is_gone(Instant::now());
        }
        self.write_down().await;
    }
}

impl Inner {
    fn add_up(
        &self,
        begun: Instant,
        counted: &HashMap<u32, Reading>,
    ) -> Result<BTreeMap<VmId, Counters>, KernelError> {
        let mut totals = BTreeMap::new();
        for binding in self.registry.all() {
            let vm_id = &binding.vm.vm_id;
            let device = self.accounts().get(vm_id).and_then(|entry| entry.account.device());
            let known = device.and_then(|index| Some((index, *counted.get(&index)?)));
            totals.extend(match known {
                Some(_) => self.add(begun, &binding.vm, known),
                // A device that has been made or replaced since.
                None => self.read_one(&binding)?,
            });
        }
        Ok(totals)
    }

    fn read_one(&self, binding: &Binding) -> Result<Option<(VmId, Counters)>, KernelError> {
        let begun = Instant::now();
        let counted = self.kernel.counters_of(&binding.vm.slot.host_device())?;
        Ok(self.add(begun, &binding.vm, counted))
    }

    /// The VM's total with what its device has counted, by a reading that began then; `None` when it is not counted any more.
    fn add(&self, begun: Instant, vm: &Vm, counted: Option<(u32, Reading)>) -> Option<(VmId, Counters)> {
        let mut accounts = self.accounts();
        let entry = accounts.get_mut(&vm.vm_id)?;
        if let Some((device, reading)) = counted {
            entry.read_of(vm, begun, device, reading);
        }
        Some((vm.vm_id.clone(), entry.account.total().into()))
    }

    // A panic while it was held cannot leave an account half counted: adding does not fail.
    fn accounts(&self) -> MutexGuard<'_, HashMap<VmId, Entry>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counter, testing};

    fn all(number: u64) -> Reading {
        Reading([number; Reading::LEN])
    }

    fn later(at: Instant, seconds: u64) -> Instant {
        at + Duration::from_secs(seconds)
    }

    #[test]
    fn a_dump_that_began_before_a_vm_got_its_slot_says_nothing_of_it() {
        let begun = Instant::now();
        // The VM before has sent on after the dump, and has gone: this one begins where that one ended.
        let mut entry = Entry::new(1, Account::on(7, all(1_500)), later(begun, 1));
        entry.read(begun, 7, all(1_000));
        assert_eq!((entry.account.total(), entry.unwritten().is_none()), (all(0), true));
        entry.read(later(begun, 1), 7, all(1_501));
        assert_eq!(entry.account.total()[Counter::TxBytes], 1);
        // Nor does one that began before its device was replaced say anything of the new one.
        entry.device_is_gone(later(begun, 3));
        entry.read(later(begun, 2), 7, all(1_900));
        assert_eq!(entry.account.total()[Counter::TxBytes], 1);
        entry.read(later(begun, 3), 7, all(4));
        assert_eq!(entry.account.total()[Counter::TxBytes], 5);
    }

    #[test]
    fn what_could_not_be_written_down_is_to_be_written_down_still() {
        let now = Instant::now();
        let mut entry = Entry::new(1, Account::on(7, all(0)), now);
        assert!(entry.unwritten().is_none());
        entry.read(now, 7, all(1));
        // A write that failed tells nobody that it was done.
        assert_eq!(entry.unwritten().unwrap().account.total(), all(1));
        let writing = entry.unwritten().unwrap();
        entry.read(now, 7, all(2));
        entry.is_written(&writing);
        let rest = entry.unwritten().expect("what was counted while it was written");
        assert_eq!(rest.account.total(), all(2));
        entry.is_written(&rest);
        assert!(entry.unwritten().is_none());
    }

    #[test]
    fn a_total_of_counters_that_have_begun_again_stands_when_that_is_written_down() {
        let now = Instant::now();
        let mut entry = Entry::new(1, Account::on(7, all(9)), now);
        entry.read(now, 7, all(14));
        assert!(entry.stands(), "the kernel counts on from there");
        let earlier = entry.unwritten().unwrap();
        entry.read(now, 7, all(3));
        assert_eq!((entry.account.total(), entry.stands()), (all(8), false));
        // After a crash it would be 3 less 9.
        entry.is_written(&earlier);
        assert!(!entry.stands());
        let written = entry.unwritten().unwrap();
        entry.read(now, 7, all(4));
        entry.is_written(&written);
        assert!(entry.stands());
        let mut after = written.account;
        after.read(7, all(5));
        entry.read(now, 7, all(5));
        assert_eq!(after.total(), entry.account.total());
    }

    #[test]
    fn a_reading_of_an_earlier_vms_device_is_not_the_next_ones() {
        let now = Instant::now();
        let (earlier, vm) =
            (Vm { created_at_us: 1, ..testing::vm(0) }, Vm { created_at_us: 2, ..testing::vm(0) });
        let mut entry = Entry::new(vm.created_at_us, Account::on(7, all(9)), now);
        entry.read_of(&earlier, now, 3, all(1_000));
        assert_eq!(entry.account.total(), all(0));
        entry.read_of(&vm, now, 7, all(10));
        assert_eq!(entry.account.total(), all(1));
    }

    #[test]
    fn an_account_in_whose_place_an_earlier_vms_was_written_is_written_again() {
        let now = Instant::now();
        let mut before = Entry::new(1, Account::on(7, all(0)), now);
        before.read(now, 7, all(9));
        let writing = before.unwritten().unwrap();
        let mut after = Entry::new(2, Account::on(7, all(9)), now);
        after.is_written(&writing);
        assert_eq!(after.unwritten().unwrap().account, Account::on(7, all(9)));
    }
}

//! What guests have sent and received. In: the kernel's counters of their ports. Out: totals per VM that begin at 0 when it
//! is created and never go back, over restarts, other VMs in the same slot and replaced devices. However many ask at a
//! time, one dump answers them; what is kept for a power loss is at most `CHECKPOINT` old.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use crate::kernel::{Kernel, KernelError};
use crate::model::{Account, Counters, IfName, Reading, VmId};
use crate::registry::{Binding, Registry};
use crate::store::{Store, StoreError};

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
}

#[derive(Debug)]
struct Entry {
    account: Account,
    /// Counted on since it was last written down.
    changed: bool,
}

impl Stats {
    pub fn new(kernel: Kernel, store: Arc<Store>, registry: Registry) -> Self {
        let (accounts, latest) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { kernel, store, registry, accounts, latest }))
    }

    /// Takes up where an earlier run left off.
    pub fn load(&self) -> Result<(), StoreError> {
        let accounts = self.0.store.accounts()?.into_iter();
        self.0.accounts().extend(accounts.map(|(id, account)| (id, Entry { account, changed: false })));
        Ok(())
    }

    /// The account of a VM that is about to get `device`: what has been counted on it so far is not this VM's.
    pub fn open_account(&self, device: &IfName) -> Result<Account, KernelError> {
        let counted = self.0.kernel.counters_of(device)?;
        Ok(counted.map(|(index, counted)| Account::on(index, counted)).unwrap_or_default())
    }

    /// Begins to count a VM, whose account is durable.
    pub fn begin(&self, vm_id: VmId, account: Account) {
        self.0.accounts().insert(vm_id, Entry { account, changed: false });
    }

    /// The VMs' devices are gone, and others of the same indexes will be in their place: what was counted is written down, for
    /// only here is it still told.
    pub async fn devices_are_gone(&self, vm_ids: impl Iterator<Item = &VmId>) {
        let mut any = false;
        {
            // A reading of before, added after it, would be counted twice.
            let _reading = self.0.latest.lock().await;
            let mut accounts = self.0.accounts();
            for vm_id in vm_ids {
                let Some(Entry { account, changed }) = accounts.get_mut(vm_id) else { continue };
                let before = account.clone();
                account.device_is_gone();
                *changed |= *account != before;
                any |= *changed;
            }
        }
        if any && let Err(error) = self.checkpoint().await {
            warn!(%error, "could not write down guests' traffic");
        }
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
        let snapshot = Arc::new(Snapshot { at, counters: self.0.add_up(&counted)? });
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
        Ok(Arc::new(Snapshot { at, counters: counters.into_iter().flatten().collect() }))
    }

    /// Writes down what has been counted since it was last written down.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let changed: Vec<(VmId, Account)> = {
            let mut accounts = self.0.accounts();
            let changed = accounts.iter_mut().filter_map(|(vm_id, entry)| {
                std::mem::take(&mut entry.changed).then(|| (vm_id.clone(), entry.account.clone()))
            });
            changed.collect()
        };
        for accounts in changed.chunks(AT_A_TIME) {
            self.0.store.keep_accounts(accounts.to_vec()).await?;
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

impl Inner {
    fn add_up(&self, counted: &HashMap<u32, Reading>) -> Result<BTreeMap<VmId, Counters>, KernelError> {
        let mut totals = BTreeMap::new();
        for binding in self.registry.all() {
            let vm_id = &binding.vm.vm_id;
            let device = self.accounts().get(vm_id).and_then(|entry| entry.account.device());
            let known = device.and_then(|index| Some((index, *counted.get(&index)?)));
            totals.extend(match known {
                Some(_) => self.add(vm_id, known),
                // A device that has been made or replaced since.
                None => self.read_one(&binding)?,
            });
        }
        Ok(totals)
    }

    fn read_one(&self, binding: &Binding) -> Result<Option<(VmId, Counters)>, KernelError> {
        let counted = self.kernel.counters_of(&binding.vm.slot.host_device())?;
        Ok(self.add(&binding.vm.vm_id, counted))
    }

    /// The VM's total with what its device has counted; `None` when it is not counted any more.
    fn add(&self, vm_id: &VmId, counted: Option<(u32, Reading)>) -> Option<(VmId, Counters)> {
        let mut accounts = self.accounts();
        let Entry { account, changed } = accounts.get_mut(vm_id)?;
        if let Some((device, reading)) = counted {
            let before = account.clone();
            account.read(device, reading);
            *changed |= *account != before;
        }
        Some((vm_id.clone(), account.total().into()))
    }

    // A panic while it was held cannot leave an account half counted: adding does not fail.
    fn accounts(&self) -> MutexGuard<'_, HashMap<VmId, Entry>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

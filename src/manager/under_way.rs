//! VMs that no reader of the registry finds, because a call is about them: what somebody else changes of one is its own all the same.
//! In: calls as they begin and end, and looks for such changes. Out: whose something is; the slots that no look has been at.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::{Mac, RateLimit, Slot, Vm};

#[derive(Debug, Default)]
pub(super) struct UnderWay {
    /// Looks that have come to read the registry.
    looks: AtomicU64,
    state: Mutex<State>,
    /// Told when a slot is to be looked at.
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    making: HashMap<Slot, Making>,
    to_look_at: BTreeSet<Slot>,
}

#[derive(Debug)]
struct Making {
    mac: Mac,
    address: Ipv4Addr,
    /// Once it is set.
    limit: Option<Option<RateLimit>>,
}

/// How many looks had read the registry when a call began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(u64);

/// A VM that is being made, until this is dropped.
pub(super) struct BeingMade<'a> {
    under_way: &'a UnderWay,
    slot: Slot,
}

impl UnderWay {
    /// Before a look does so, after it has taken broken slots from those that are ready: a call that begins later gets none of them.
    pub(super) fn registry_is_read(&self) {
        self.looks.fetch_add(1, Ordering::SeqCst);
    }

    /// Before anything of a VM is done that a look could find broken.
    pub(super) fn since(&self) -> Since {
        Since(self.looks.load(Ordering::SeqCst))
    }

    /// The VM of a slot is in the registry: a look that has read that since may not have found it there.
    pub(super) fn is_live(&self, slot: Slot, since: Since) {
        if self.looks.load(Ordering::SeqCst) != since.0 {
            self.state().to_look_at.insert(slot);
            self.asked.notify_one();
        }
    }

    /// Waits for slots that are to be looked at.
    pub(super) async fn to_look_at(&self) -> BTreeSet<Slot> {
        loop {
            let slots = std::mem::take(&mut self.state().to_look_at);
            if !slots.is_empty() {
                return slots;
            }
            self.asked.notified().await;
        }
    }

    pub(super) fn making(&self, vm: &Vm) -> BeingMade<'_> {
        let Vm { slot, mac, address, .. } = *vm;
        self.state().making.insert(slot, Making { mac, address, limit: None });
        BeingMade { under_way: self, slot }
    }

    pub(super) fn slot_of_mac(&self, mac: Mac) -> Option<Slot> {
        let state = self.state();
        state.making.iter().find(|(_, making)| making.mac == mac).map(|(slot, _)| *slot)
    }

    pub(super) fn has_guest_at(&self, address: Ipv4Addr) -> bool {
        self.state().making.values().any(|making| making.address == address)
    }

    /// What a slot is limited to, if that is set.
    pub(super) fn limit_of(&self, slot: Slot) -> Option<Option<RateLimit>> {
        self.state().making.get(&slot)?.limit
    }

    // A panic while it was held cannot leave it half changed: each holder does one thing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BeingMade<'_> {
    pub(super) fn is_limited(&self, limit: Option<RateLimit>) {
        if let Some(making) = self.under_way.state().making.get_mut(&self.slot) {
            making.limit = Some(limit);
        }
    }
}

impl Drop for BeingMade<'_> {
    fn drop(&mut self) {
        self.under_way.state().making.remove(&self.slot);
    }
}

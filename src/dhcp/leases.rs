//! What the guests made of their reservations: written by the DHCP servers, read by the API. One record per MAC that has
//! a binding, so it is bounded by the API and not by what guests send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Decision, Outcome, Record};
use crate::model::{LeaseView, Mac};

/// The leases of every network. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Leases(Arc<Mutex<HashMap<Mac, Record>>>);

impl Leases {
    pub fn view(&self, mac: Mac, now: SystemTime) -> LeaseView {
        self.lock().get(&mac).map_or_else(LeaseView::default, |record| record.view(now))
    }

    /// Forgets a guest. Call it after its binding is gone: an exchange that runs at the same time then cannot bring the
    /// record back.
    pub fn forget(&self, mac: Mac) {
        self.lock().remove(&mac);
    }

    /// Runs one exchange: `decide` sees the guest's record and gives the one to keep. It looks the binding up itself,
    /// inside, which is what makes `forget` final.
    pub(super) fn exchange(&self, mac: Mac, decide: impl FnOnce(&Record) -> Decision) -> Outcome {
        let mut records = self.lock();
        let new = Record::default();
        let Decision { outcome, record } = decide(records.get(&mac).unwrap_or(&new));
        if let Some(record) = record {
            records.insert(mac, record);
        }
        outcome
    }

    // A panic while the lock was held cannot leave a record half written: each holder only inserts and removes.
    fn lock(&self) -> MutexGuard<'_, HashMap<Mac, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

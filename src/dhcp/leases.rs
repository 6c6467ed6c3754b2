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

#[cfg(test)]
mod tests {
    use super::super::fixture::{ADDRESS, Lab, broadcast, discover, guest_mac};
    use super::super::{L4Checksum, Request, Silence, decide};
    use super::*;
    use crate::model::LeaseState;

    fn discovered(leases: &Leases, lab: &Lab) -> Outcome {
        let request = Request::parse(&broadcast(&discover(&[])), L4Checksum::Complete).unwrap();
        leases.exchange(guest_mac(), |record| decide(&request, lab.binding.as_ref(), record, lab.now))
    }

    #[test]
    fn clones_see_the_same_leases() {
        let (leases, lab) = (Leases::default(), Lab::new());
        let reader = leases.clone();
        assert_eq!(reader.view(guest_mac(), lab.now), LeaseView::default());
        discovered(&leases, &lab);
        assert_eq!(reader.view(guest_mac(), lab.now).state, LeaseState::Offered);
        assert_eq!(reader.view(Mac::for_address([10, 9, 9, 9].into()), lab.now).state, LeaseState::Reserved);
    }

    #[test]
    fn a_deleted_vm_is_forgotten_and_stays_so() {
        let (leases, mut lab) = (Leases::default(), Lab::new());
        discovered(&leases, &lab);
        lab.binding = None;
        leases.forget(Mac::for_address(ADDRESS));
        assert_eq!(discovered(&leases, &lab), Outcome::Silent(Silence::UnknownMac));
        assert_eq!(leases.view(guest_mac(), lab.now), LeaseView::default());
        assert!(leases.lock().is_empty());
    }
}

//! A VM's network brought back into shape: what an earlier run left at a start, what somebody else has changed since. In: what
//! was observed. Out: it is as it should be again, or why not.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tracing::debug;

use super::error::failed;
use super::{Inner, ManagerError};
use crate::kernel::{For, LookInto};
use crate::model::Place;
use crate::plan::{self, Mend, Observed, Step};
use crate::registry::Binding;

/// What was put right.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Each VM of which something was missing, with what was made again.
    pub vms: Vec<(Arc<Binding>, String)>,
    pub errors: Vec<ManagerError>,
    /// Ready slots that were whole no more: others are built in their place.
    pub slots: usize,
}

impl Inner {
    /// `anew`: for something that was heard of since the last look. One for VMs that a look has missed is for what that one was, and a VM
    /// whose call has begun since is not hit by it.
    pub(super) async fn repair(&self, into: LookInto, anew: bool) -> Result<Repaired, ManagerError> {
        let indexes = self.store.index_range()?;
        let ready = self.pool.free();
        let observed = self.observe_beside_calls(indexes, into.clone()).await?;
        let mut repaired =
            Repaired { slots: self.pool.take_out_broken(&ready, &observed).await, ..Repaired::default() };
        if anew {
            self.under_way.registry_is_read();
        }
        let broken: Vec<_> =
            self.registry.live().into_iter().filter(|b| self.is_broken(b, &observed)).collect();
        if broken.is_empty() {
            return Ok(repaired);
        }
        // No call about any of them from here on; what they are like is looked at once more. Every other call has one turn at
        // a time, so nobody waits in a circle.
        let mut turns = Vec::with_capacity(broken.len());
        for binding in &broken {
            turns.push(self.turn(&binding.vm.vm_id).await);
        }
        // As they are now: meanwhile one may have been changed, deleted, or made again in another slot.
        let broken: Vec<_> = broken.iter().filter_map(|b| self.registry.by_vm(&b.vm.vm_id)).collect();
        let observed = self.observe_beside_calls(indexes, into).await?;
        self.close_accounts(&broken, &observed).await;
        for binding in broken {
            let Some(place) = self.pool.place(binding.vm.slot) else { continue };
            let what = missing(&binding, &place, &observed);
            match self.mend(&binding, &place, &observed).await {
                Ok(0) => {}
                Ok(_) => repaired.vms.push((binding, what)),
                Err(error) => repaired.errors.push(error),
            }
        }
        drop(turns);
        Ok(repaired)
    }

    async fn observe_beside_calls(
        &self,
        indexes: crate::model::IndexRange,
        into: LookInto,
    ) -> Result<Observed, ManagerError> {
        let observed = self.kernel.observe_beside_calls(indexes, into).await;
        observed.map_err(|error| ManagerError::Host(error.to_string()))
    }

    /// Whether a VM's guest has that address.
    pub(super) fn has_guest_at(&self, address: Ipv4Addr) -> bool {
        let networks = self.pool.networks().iter();
        networks.clone().any(|network| self.registry.by_address(&network.name, address).is_some())
    }

    fn is_broken(&self, binding: &Binding, observed: &Observed) -> bool {
        let place = self.pool.place(binding.vm.slot);
        place.is_some_and(|p| plan::mend(&binding.vm, &p, &binding.network, observed) != Mend::default())
    }

    /// Writes down what was counted on devices that are gone, all at once: `mend` makes others.
    pub(super) async fn close_accounts(&self, bindings: &[Arc<Binding>], observed: &Observed) {
        let gone = bindings.iter().filter(|binding| !observed.ports.contains_key(&binding.vm.slot));
        self.stats.devices_are_gone(gone.map(|binding| &binding.vm.vm_id)).await;
    }

    /// Makes what of a VM is missing; how many steps that took.
    pub(super) async fn mend(
        &self,
        binding: &Binding,
        place: &Place,
        observed: &Observed,
    ) -> Result<usize, ManagerError> {
        let Mend { undo, steps } = plan::mend(&binding.vm, place, &binding.network, observed);
        if undo.is_empty() && steps.is_empty() {
            return Ok(0);
        }
        debug!(?undo, ?steps, "mending");
        let vm_id = &binding.vm.vm_id;
        let anew = steps.iter().any(|step| matches!(step, Step::Veth { .. }));
        // A limit that is set begins its queue's counters again.
        let requeued = steps.iter().any(|step| matches!(step, Step::RateLimit { .. }));
        let closing = if anew || requeued { Some(self.stats.closing(vm_id).await) } else { None };
        let errors = self.take_back(undo).await;
        if !errors.is_empty() {
            return Err(failed(&binding.vm, &errors));
        }
        let closing = match closing {
            Some(closing) if anew => {
                closing.device_is_gone().await;
                None
            }
            other => other,
        };
        let count = steps.len();
        let applied = self.kernel.apply(For::Caller, steps).await;
        if let Some(closing) = closing {
            closing.queue_is_gone().await;
        }
        applied.map_err(|failure| failed(&binding.vm, &[failure.to_string()]))?;
        Ok(count)
    }
}

/// What a VM is to be given again, in words, the first thing first.
fn missing(binding: &Binding, place: &Place, observed: &Observed) -> String {
    let Mend { undo, steps } = plan::mend(&binding.vm, place, &binding.network, observed);
    match (steps.first(), undo.first()) {
        (Some(Step::Unplug { .. }), _) => format!("{} was off its bridge", binding.vm.slot.host_device()),
        (Some(step), _) => format!("made again, {step} first"),
        (None, Some(undo)) => format!("removed {undo}"),
        (None, None) => String::new(),
    }
}

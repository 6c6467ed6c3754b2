//! What is done in the background, one thing at a time: slots that VMs have left are wiped, others built or taken away.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::warn;

use super::{FORGET_AGAIN, Inner, Left, hand_over};
use crate::kernel::{Failed, For, KernelError, Limit, Wipe};
use crate::manager::stock::Need;
use crate::model::{Network, Place, Shard, Slot};
use crate::plan::{self, Step, Undo};

/// Slots wiped, or taken away, before something else gets a turn.
pub(super) const WIPED_AT_ONCE: usize = 64;
/// Slots wiped before who looks at the host gets a turn.
const WIPED_IN_A_ROW: usize = 8;

impl Inner {
    /// One thing that is needed; false when nothing is.
    pub(super) async fn do_next(self: &Arc<Self>) -> bool {
        self.forget_again().await;
        let left: Vec<Left> = {
            let mut state = self.state();
            let count = state.left.len().min(WIPED_AT_ONCE);
            state.left.drain(..count).collect()
        };
        if !left.is_empty() {
            self.wipe(left).await;
            return true;
        }
        let need = self.state().stock.need();
        match need {
            Some(Need::Build(network)) => self.build(&network).await,
            Some(Need::Clear(places)) => {
                let slots: Vec<Slot> = places.iter().map(|place| place.slot).collect();
                self.clear(&slots).await;
            }
            None => return false,
        }
        true
    }

    /// Asks the kernel once more, when it is time, to forget what it would not. Everything else goes on meanwhile.
    async fn forget_again(&self) {
        let is_due = {
            let state = self.state();
            !state.remembered.is_empty() && state.forget_at <= Instant::now()
        };
        if is_due && let Err(error) = self.forget().await {
            warn!(%error, "former guests' connections are not forgotten yet: their addresses wait");
        }
    }

    /// Asks the kernel to forget what it would not before.
    pub(super) async fn forget(&self) -> Result<(), KernelError> {
        let asked = self.state().remembered.clone();
        let forgotten =
            self.kernel.forget_connections(asked.iter().map(|(_, address)| *address).collect()).await;
        let mut state = self.state();
        if let Err(error) = forgotten {
            state.remember([]);
            return Err(error);
        }
        for key in asked {
            state.remembered.remove(&key);
            state.unclean.remove(&key);
        }
        state.forget_after = FORGET_AGAIN;
        Ok(())
    }

    /// Makes slots that VMs have left as good as new; one that is not whole any more is taken away.
    async fn wipe(self: &Arc<Self>, left: Vec<Left>) {
        let connected = left.iter().filter(|left| left.connected);
        let gone: HashSet<Ipv4Addr> = connected.clone().filter_map(|left| left.address).collect();
        if !gone.is_empty()
            && let Err(error) = self.kernel.forget_connections(gone).await
        {
            warn!(%error, "former guests' connections are not forgotten yet: their addresses wait");
            let of = connected.filter_map(|left| Some((left.network.name.clone(), left.address?)));
            self.state().remember(of);
            self.done.notify_waiters();
        }
        // Some in one go: whoever waits for a slot has it as soon as it is wiped, and whoever looks at the host is let in between.
        let (mut left, mut broken) = (left.into_iter().peekable(), Vec::new());
        while left.peek().is_some() {
            let some: Vec<Left> = left.by_ref().take(WIPED_IN_A_ROW).collect();
            broken.extend(self.wipe_some(some).await);
        }
        self.clear(&broken).await;
    }

    /// Those that are to be taken away.
    async fn wipe_some(self: &Arc<Self>, left: Vec<Left>) -> Vec<Slot> {
        let address =
            |left: &Left| (left.slot, left.address.map(|address| (left.network.name.clone(), address)));
        let open: Arc<Mutex<HashMap<Slot, _>>> = Arc::new(Mutex::new(left.iter().map(address).collect()));
        let (inner, still_open) = (self.clone(), open.clone());
        let wiped = self.kernel.wiping(move |wipe| inner.wipe_each(left, &still_open, wipe)).await;
        wiped.unwrap_or_else(|error| {
            warn!(%error, "slots could not be wiped: they are taken away");
            let open = std::mem::take(&mut *open.lock().unwrap_or_else(PoisonError::into_inner));
            let mut state = self.state();
            let done = open.into_iter().map(|(slot, address)| {
                if let Some((network, address)) = address {
                    state.is_wiped(&network, address);
                }
                slot
            });
            done.collect()
        })
    }

    /// Gives each to whom it is for, when it is wiped; those that are to be taken away. Who is neither yet is `open`.
    fn wipe_each<T>(
        &self,
        left: Vec<Left>,
        open: &Mutex<HashMap<Slot, T>>,
        wipe: &mut Wipe<'_>,
    ) -> Vec<Slot> {
        let (mut broken, mut surplus) = (Vec::new(), Vec::new());
        for left in left {
            // What would be taken away right after need not be wiped: nobody gets it.
            if self.state().stock.is_full(&left.network.name) {
                surplus.push(left);
                continue;
            }
            let Left { slot, network, address, own_limit, tap, .. } = left;
            let place = self.state().stock.place(slot).cloned();
            let limit = match own_limit {
                true => Limit::Set(network.rate_limit),
                false => Limit::Stands(network.rate_limit),
            };
            let whole = place.is_some_and(|place| {
                wipe(&place, limit, tap).unwrap_or_else(|error| {
                    warn!(%error, "a slot could not be wiped: it is taken away");
                    false
                })
            });
            let mut state = self.state();
            if let Some(address) = address {
                state.is_wiped(&network.name, address);
            }
            if whole {
                open.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
                state.stock.give(&network.name, slot, hand_over);
            } else {
                broken.push(slot);
            }
            drop(state);
            self.done.notify_waiters();
        }
        for Left { slot, network, address, tap, .. } in surplus {
            // Held until here, so that no VMM could take it.
            drop(tap);
            if let Some(address) = address {
                self.state().is_wiped(&network.name, address);
            }
            broken.push(slot);
        }
        broken
    }

    pub(super) async fn clear(&self, slots: &[Slot]) {
        if slots.is_empty() {
            return;
        }
        {
            let mut state = self.state();
            slots.iter().for_each(|slot| state.stock.leave(*slot));
        }
        let devices = slots.iter().map(|slot| (*slot, self.indexes.port(*slot))).collect();
        if let Err(error) = self.kernel.clear(devices).await {
            // `guestnet gc` and the next start find what is left. Until then these numbers are not used again.
            warn!(%error, "slots could not be taken away");
            let mut state = self.state();
            slots.iter().for_each(|slot| state.stock.lose(*slot));
            return;
        }
        let mut state = self.state();
        slots.iter().for_each(|slot| state.stock.remove(*slot));
    }

    async fn build(&self, network: &Arc<Network>) {
        let built = self.try_build(network, false).await;
        let mut state = self.state();
        match built {
            Ok(slot) => state.stock.give(&network.name, slot, hand_over),
            Err(error) => match state.stock.building_failed(&network.name) {
                // Who has gone away needs no word of it.
                Some(waiter) => _ = waiter.send(Err(error)),
                None => warn!(error, network = %network.name, "no guest network could be made ready"),
            },
        }
    }

    /// Builds a slot, or leaves nothing of it.
    pub(super) async fn try_build(&self, network: &Arc<Network>, multi_queue: bool) -> Result<Slot, String> {
        let shard = self.room(network).await.map_err(|error| error.to_string())?;
        let built = self.build_on(&shard, network, multi_queue).await;
        if built.is_err() {
            self.state().stock.unplug(shard.index);
        }
        built
    }

    async fn build_on(
        &self,
        shard: &Shard,
        network: &Arc<Network>,
        multi_queue: bool,
    ) -> Result<Slot, String> {
        loop {
            let slot = self.state().stock.number().ok_or("this host has as many slots as it can")?;
            let place = self.place_on(slot, shard);
            let Err(Failed { applied, error }) =
                self.kernel.apply(For::Background, plan::build_slot(&place, network, multi_queue)).await
            else {
                self.state().stock.add(place);
                return Ok(slot);
            };
            let undos: Vec<Undo> = applied.iter().rev().filter_map(Step::undo).collect();
            let mut errors = vec![error.to_string()];
            errors.extend(self.kernel.undo(For::Background, undos).await.iter().map(ToString::to_string));
            // Somebody else has that name: its number is left out for good.
            if error.is_taken() && errors.len() == 1 {
                warn!(%error, "a name that a slot would have is somebody else's: left out");
                continue;
            }
            let mut state = self.state();
            if errors.len() == 1 {
                state.stock.put_number_back(slot);
            } else {
                state.stock.lose(slot);
            }
            drop(state);
            return Err(errors.join("; then "));
        }
    }

    /// A bridge with room for one port more, which counts already: builds go on beside each other.
    pub(super) async fn room(&self, network: &Arc<Network>) -> Result<Shard, crate::bridges::BridgesError> {
        let ports = |shard: &Shard| self.state().stock.ports_on(shard.index);
        let plug = |shard: &Shard| self.state().stock.plug(shard.index);
        self.bridges.with_room(network, ports, plug).await
    }

    pub(super) fn place_on(&self, slot: Slot, shard: &Shard) -> Place {
        Place { slot, port: self.indexes.port(slot), shard: shard.clone() }
    }
}

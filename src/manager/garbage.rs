//! What is ours by record and belongs to nobody: found, and taken away if asked for, while calls go on. Two looks: what comes
//! and goes under the first one is not there, or has an owner, in the second, during which no VM comes or goes. That one is short: it
//! is into the slots alone of which the first has found something.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use tracing::{info, warn};

use super::{Inner, ManagerError};
use crate::kernel::For;
use crate::model::{NetworkName, Place, Slot, Vm};
use crate::plan::garbage::{Leftover, Owners, leftovers, remove};

/// A leftover, and what became of it.
#[derive(Debug)]
pub struct Collected {
    pub leftover: Leftover,
    pub removed: bool,
    /// Why it could not be removed.
    pub error: Option<String>,
}

impl Inner {
    pub(super) async fn collect(&self, apply: bool) -> Result<Vec<Collected>, ManagerError> {
        let indexes = self.store.index_range()?;
        let slot_of = |leftover: &Leftover| match leftover {
            Leftover::Device { index, .. } => indexes.slot_at(*index),
            Leftover::Namespace(slot) => Some(*slot),
            _ => None,
        };
        let suspected = self.leftovers(None).await?;
        if suspected.is_empty() {
            return Ok(Vec::new());
        }
        let _quiet = self.quiet.write().await;
        let mut found = self.leftovers(Some(suspected.iter().filter_map(slot_of).collect())).await?;
        found.retain(|leftover| suspected.contains(leftover));
        if !apply {
            let kept = |leftover| Collected { leftover, removed: false, error: None };
            return Ok(found.into_iter().map(kept).collect());
        }
        // No slot is built under these numbers from here on.
        let slots: BTreeSet<Slot> = found.iter().filter_map(slot_of).collect();
        let claimed: BTreeSet<Slot> = slots.into_iter().filter(|slot| self.pool.claim(*slot)).collect();
        let mut in_use = BTreeMap::new();
        for slot in &claimed {
            if let Err(error) = self.kernel.hold_tap(*slot).await {
                in_use.insert(*slot, format!("its TAP: {error}"));
            }
        }
        let mut collected = Vec::with_capacity(found.len());
        for leftover in found {
            let slot = slot_of(&leftover);
            if slot.is_some_and(|slot| !claimed.contains(&slot)) {
                continue;
            }
            let error = match slot.and_then(|slot| in_use.get(&slot)) {
                Some(error) => Some(error.clone()),
                None => {
                    let errors = self.kernel.undo(For::Caller, vec![remove(&leftover)]).await;
                    errors.first().map(ToString::to_string)
                }
            };
            let removed = error.is_none();
            info!(kind = leftover.kind(), what = %leftover, removed, "a leftover");
            collected.push(Collected { leftover, removed, error });
        }
        for slot in claimed {
            let whole = collected.iter().all(|of| of.removed || slot_of(&of.leftover) != Some(slot));
            self.pool.unclaim(slot, whole);
        }
        Ok(collected)
    }

    /// Forgets the connections of guests that are gone, for a run that was cut off may not have come to it; and addresses of networks
    /// that are no more. One that a live guest has, of a network of another name perhaps, is that one's.
    pub(super) async fn forget_former(&self) -> Result<(), ManagerError> {
        let freed = self.store.freed()?.into_iter().filter(|freed| !self.has_guest_at(freed.address));
        let freed: Vec<(NetworkName, Ipv4Addr)> = freed.map(|freed| (freed.network, freed.address)).collect();
        // Whose it can be now.
        let of = |address: Ipv4Addr| {
            let networks = self.pool.networks().iter();
            Some(networks.clone().find(|network| network.subnet.contains(address))?.name.clone())
        };
        let addresses: HashSet<Ipv4Addr> = freed.iter().map(|(_, address)| *address).collect();
        if !addresses.is_empty()
            && let Err(error) = self.kernel.forget_connections(addresses).await
        {
            warn!(%error, "connections of former guests are not forgotten yet: their addresses wait");
            let later = freed.into_iter().filter_map(|(_, address)| Some((of(address)?, address)));
            self.pool.forget_later(later.collect());
            return Ok(());
        }
        let former = self.store.freed()?.into_iter().map(|freed| (freed.network, freed.address));
        let former: Vec<_> =
            former.filter(|(network, address)| of(*address).as_ref() != Some(network)).collect();
        if !former.is_empty() {
            self.store.forget_freed(former).await?;
        }
        Ok(())
    }

    /// With a look into every slot, or into these.
    async fn leftovers(&self, slots: Option<BTreeSet<Slot>>) -> Result<Vec<Leftover>, ManagerError> {
        let indexes = self.store.index_range()?;
        let observed = self.kernel.observe_all(indexes, slots).await;
        let (observed, marked) = observed.map_err(|error| ManagerError::Host(error.to_string()))?;
        let bindings = self.registry.all();
        let placed = bindings.iter().filter_map(|b| Some((&b.vm, self.pool.place(b.vm.slot)?)));
        let vms: Vec<(&Vm, Place)> = placed.collect();
        let networks = self.pool.networks();
        let gateway =
            |name| networks.iter().find(|network| network.name == name).map(|network| network.gateway);
        let shards = self.pool.shards().await.into_iter();
        let bridges: Vec<_> = shards.filter_map(|(name, shard)| Some((shard, gateway(name)?))).collect();
        let subnets: Vec<_> = networks.iter().map(|network| network.subnet).collect();
        let owners = Owners {
            vms: &vms,
            bridges: &bridges,
            subnets: &subnets,
            kept: &|slot| self.pool.is_seen_to(slot),
            indexes,
        };
        Ok(leftovers(&owners, &observed, &marked))
    }
}

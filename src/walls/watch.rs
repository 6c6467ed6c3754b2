//! What the walls have dropped, by reason and by guest; and an event when a guest's frames are dropped at its port.

use std::collections::HashMap;
use std::time::Duration;

use tracing::{debug, warn};

use super::flows::blocking;
use super::nft::Key;
use super::ruleset::{BRIDGE, INET};
use super::{Walls, WallsError};
use crate::events::{EventKind, Events};
use crate::kernel::nft::Count;
use crate::model::VmId;

/// How often it is looked whether anything was dropped: one guest causes one event in this time.
const INTERVAL: Duration = Duration::from_secs(2);
/// Events of one look; how many more there were is logged.
const MOST_EVENTS: usize = 100;

/// What was dropped since the walls were raised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drops {
    /// At guests' ports, by reason.
    pub at_ports: Vec<(String, Count)>,
    /// On the way through the host, by reason.
    pub in_host: Vec<(String, Count)>,
    /// By guest: at its port, and of its packets on the way through the host.
    pub by_guest: Vec<(VmId, Count, Count)>,
}

impl Walls {
    pub async fn drops(&self) -> Result<Drops, WallsError> {
        let nft = self.0.nft.clone();
        let (at_ports, in_host, by_port, by_address) = blocking(move || {
            Ok((
                nft.counters(BRIDGE)?,
                nft.counters(INET)?,
                nft.element_counts(BRIDGE, "drops")?,
                nft.element_counts(INET, "drops")?,
            ))
        })
        .await?;
        let (by_port, by_address): (HashMap<_, _>, HashMap<_, _>) =
            (by_port.into_iter().collect(), by_address.into_iter().collect());
        let of = |counts: &HashMap<Vec<u8>, Count>, key: Key| counts.get(&key.0).copied().unwrap_or_default();
        let standing = self.standing();
        let by_guest = standing.book.guests().map(|guest| {
            let port = of(&by_port, Key::new().if_name(guest.port.as_str()));
            (guest.vm_id.clone(), port, of(&by_address, Key::new().address(guest.address)))
        });
        Ok(Drops { at_ports, in_host, by_guest: by_guest.collect() })
    }

    /// Tells of guests whose frames are dropped at their ports, for as long as the service runs.
    pub async fn watch(self, events: Events) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut total, mut seen) = (0, HashMap::new());
        loop {
            ticks.tick().await;
            if let Err(error) = self.look(&events, &mut total, &mut seen).await {
                debug!(%error, "the walls' counters could not be read");
            }
        }
    }

    /// The few counters by reason first: only if they have moved is it worth asking for every guest's.
    async fn look(
        &self,
        events: &Events,
        total: &mut u64,
        seen: &mut HashMap<VmId, u64>,
    ) -> Result<(), WallsError> {
        let nft = self.0.nft.clone();
        let counters = blocking(move || Ok(nft.counters(BRIDGE)?)).await?;
        let now = counters.iter().map(|(_, count)| count.packets).sum();
        if now == *total {
            return Ok(());
        }
        *total = now;
        let drops = self.drops().await?;
        let mut sent = 0;
        let mut latest = HashMap::new();
        for (vm_id, at_port, _) in drops.by_guest {
            // Below what was seen: another guest of the same name, counted anew.
            let before =
                seen.get(&vm_id).copied().filter(|before| *before <= at_port.packets).unwrap_or_default();
            let more = at_port.packets - before;
            if at_port.packets > 0 {
                latest.insert(vm_id.clone(), at_port.packets);
            }
            if more == 0 {
                continue;
            }
            sent += 1;
            if sent <= MOST_EVENTS {
                let network = self.standing().book.guest(&vm_id).map(|guest| guest.network.name.clone());
                let detail = format!("{more} frames dropped at its port, {} in all", at_port.packets);
                events.send(EventKind::SpoofDenied, Some(&vm_id), network.as_ref(), detail);
            }
        }
        if sent > MOST_EVENTS {
            warn!(guests = sent - MOST_EVENTS, "frames of further guests were dropped at their ports");
        }
        *seen = latest;
        Ok(())
    }
}

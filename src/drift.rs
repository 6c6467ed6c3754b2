//! What somebody else changes in the kernel is noticed, and put right, while the service runs: an admin deletes a veth, flushes
//! the firewall, removes a bridge. In: changes as the kernel tells of them. Out: all is as it was, with an event for each
//! thing that was not; what is not ours to put right is reported.
//!
//! Bounded whatever comes: changes of a moment are one look, a look is followed by a pause in proportion to what it took.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::bridges::Bridges;
use crate::events::{EventKind, Events};
use crate::host::Host;
use crate::kernel::nft::Nft;
use crate::kernel::{LookInto, Watch};
use crate::manager::Manager;
use crate::memory;
use crate::model::{NetworkName, VmId};
use crate::plan::drift::{Change, Closed, Looks, Ours, Suspicion, out_of_shape};
use crate::walls::ruleset::{BRIDGE, INET};

/// Events of one look; how many more there were is logged.
const MOST_EVENTS: usize = 100;
/// Ports that are asked for one by one; more are looked at with all others.
const MOST_ASKED: usize = 64;

/// Who puts what right.
pub struct Drift {
    pub host: Arc<Mutex<Host>>,
    pub bridges: Bridges,
    pub manager: Manager,
    pub events: Events,
}

impl Drift {
    /// Until it is dropped. A repair that is cut off is finished by the next start.
    pub async fn watch(self, mut watch: Watch) {
        let (mut looks, mut closed) = (Looks::new(Instant::now()), Closed::default());
        loop {
            let next = looks.next();
            let look = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changes = watch.next() => self.note(&changes, &mut watch, &mut looks, &mut closed).await,
                slots = self.manager.to_look_at() => looks.ask(slots, Instant::now()),
                () = look => {
                    let began = Instant::now();
                    let at = looks.begin(began);
                    let failed = self.repair(&at).await;
                    looks.end(began, Instant::now(), &failed);
                    debug!("the look for what somebody else has changed is over");
                }
            }
        }
    }

    async fn note(&self, changes: &[Change], watch: &mut Watch, looks: &mut Looks, closed: &mut Closed) {
        let (bridges, subnets) = self.host.lock().await.extent();
        let (external, external_gone) = self.bridges.external();
        let out_of_shape = self.out_of_shape(changes, watch);
        let ours = Ours {
            bridges: &bridges,
            subnets: &subnets,
            slot: &|port| self.manager.slot_of_port(port),
            out_of_shape: &out_of_shape,
            limit: &|slot| self.manager.limit_of(slot),
            guest_with: &|mac| self.manager.slot_of_mac(mac),
            guest_at: &|address| self.manager.has_guest_at(address),
            external: &external,
            external_gone,
        };
        for change in changes {
            if looks.note(change, &ours, Instant::now()) {
                debug!(?change, "somebody else has changed what may be ours");
            }
            if let Change::Rules(rules) = change
                && let Some(what) = closed.note(rules)
            {
                warn!(what, "somebody else closes the forward path");
                self.events.send(EventKind::DriftReported, None, None, what);
            }
        }
    }

    /// Ports that are not as we made them, of those that the changes say so of: while a slot is built the kernel tells of its port on its own
    /// account too, not on ours, and it may be whole by the time that this is heard.
    fn out_of_shape(&self, changes: &[Change], watch: &mut Watch) -> BTreeSet<u32> {
        let ports = out_of_shape(changes, |port| self.manager.slot_of_port(port));
        let all = ports.keys().copied().collect();
        if ports.is_empty() || ports.len() > MOST_ASKED {
            return all;
        }
        match watch.ports_in_shape(&ports) {
            Ok(in_shape) => &all - &in_shape,
            Err(error) => {
                debug!(%error, "ports could not be asked for");
                all
            }
        }
    }

    /// Looks and puts right; what of it could not be.
    async fn repair(&self, at: &Suspicion) -> Suspicion {
        debug!(?at, "looking for what somebody else has changed");
        let mut failed = Suspicion::default();
        let mut any_bridge = false;
        if at.bridges {
            let (mended, errors) = self.host.lock().await.mend().await;
            any_bridge = !mended.is_empty();
            for bridge in mended {
                if bridge.anew {
                    self.bridges.is_anew(&bridge.bridge);
                }
                self.repaired(None, Some(&bridge.network.name), bridge.what);
            }
            for error in errors {
                failed.bridges = self.not_mended(error);
            }
            for error in self.bridges.serve_unserved().await {
                failed.bridges = self.not_mended(error);
            }
            if let Err(error) = self.manager.walls().bridges_are_new() {
                failed.bridges = self.not_mended(error);
            }
        }
        if at.external {
            for (network, served) in self.bridges.serve_external() {
                match served {
                    Ok(()) => {
                        let what = format!(
                            "{} is another interface than before: DHCP is served on it again",
                            network.bridge
                        );
                        self.repaired(None, Some(&network.name), what);
                    }
                    Err(error) => {
                        failed.external |= !error.waits_for_its_device();
                        self.not_mended(error);
                    }
                }
            }
        }
        if at.walls || (at.walls_unseen && !self.walls_are_ours_alone()) {
            match self.manager.walls().mend() {
                Ok(()) => self.repaired(None, None, "the tables of nf_tables had been changed".into()),
                Err(error) => failed.walls = self.not_mended(error),
            }
        }
        if at.rules {
            match self.host.lock().await.mend_rules().await {
                Ok(0) => {}
                Ok(count) => {
                    self.repaired(None, None, format!("{count} rules or chains of iptables were gone"));
                }
                Err(error) => failed.rules = self.not_mended(error),
            }
        }
        let anew = at.guests || any_bridge;
        if anew || !at.missed.is_empty() {
            let into = match at.every_tap {
                true => LookInto::Every,
                false => LookInto::These(&at.taps | &at.missed, at.namespaces.clone()),
            };
            failed.guests = !self.repair_guests(into, anew).await;
            if failed.guests {
                (failed.taps, failed.every_tap) = (&at.taps | &at.missed, at.every_tap);
                failed.namespaces = at.namespaces.clone();
            }
            memory::give_back();
        }
        failed
    }

    /// Whether they stand and nobody else can have changed them.
    fn walls_are_ours_alone(&self) -> bool {
        let port = self.manager.walls().port();
        let owned = |table| Nft::open()?.owner(table);
        [BRIDGE, INET].into_iter().all(|table| owned(table).is_ok_and(|owner| owner == Some(port)))
    }

    async fn repair_guests(&self, into: LookInto, anew: bool) -> bool {
        let repaired = match self.manager.repair(into, anew).await {
            Ok(repaired) => repaired,
            Err(error) => return !self.not_mended(error),
        };
        if repaired.slots > 0 {
            self.repaired(
                None,
                None,
                format!("{} guest networks that were kept ready were broken", repaired.slots),
            );
        }
        let vms = repaired.vms.len();
        for (binding, what) in repaired.vms.into_iter().take(MOST_EVENTS) {
            self.repaired(Some(&binding.vm.vm_id), Some(&binding.network.name), what);
        }
        if vms > MOST_EVENTS {
            warn!(vms = vms - MOST_EVENTS, "the networks of further VMs were repaired");
        }
        let whole = repaired.errors.is_empty();
        for error in repaired.errors.into_iter().take(MOST_EVENTS) {
            self.not_mended(error);
        }
        whole
    }

    fn repaired(&self, vm_id: Option<&VmId>, network: Option<&NetworkName>, what: String) {
        info!(what, vm_id = vm_id.map(tracing::field::display), "repaired what somebody else had changed");
        self.events.send(EventKind::DriftRepaired, vm_id, network, what);
    }

    /// True: it failed.
    fn not_mended(&self, error: impl std::fmt::Display) -> bool {
        let what = format!("what somebody else has changed could not be repaired: {error}");
        warn!(what, "tried again later");
        self.events.send(EventKind::DriftReported, None, None, what);
        true
    }
}

//! What somebody else changes in the kernel is noticed, and put right, while the service runs: an admin deletes a veth, flushes
//! the firewall, removes a bridge. In: changes as the kernel tells of them. Out: all is as it was, with an event for each
//! thing that was not; what is not ours to put right is reported.
//!
//! Bounded whatever comes: changes of a moment are one look, a look is followed by a pause in proportion to what it took.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::bridges::Bridges;
use crate::events::{EventKind, Events};
use crate::host::Host;
use crate::kernel::Watch;
use crate::manager::Manager;
use crate::model::{NetworkName, VmId};
use crate::plan::drift::{Change, Closed, Ours, Suspicion};

/// From the first change to the look: what belongs together comes together.
const SETTLE: Duration = Duration::from_millis(50);
/// From one look to the next at least; more after one that took long.
const PAUSE: Duration = Duration::from_millis(200);
/// Pauses are so many times as long as looks: they take a fifth of a CPU at most.
const IDLE: u32 = 4;
/// After something that could not be put right, doubled each time.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Events of one look; how many more there were is logged.
const MOST_EVENTS: usize = 100;

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
        let (mut suspicion, mut closed) = (Suspicion::default(), Closed::default());
        let (mut not_before, mut failures) = (Instant::now(), 0_u32);
        let mut look_at = None;
        loop {
            let look = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changes = watch.next() => {
                    self.note(&changes, &mut suspicion, &mut closed).await;
                    if look_at.is_none() && !suspicion.is_empty() {
                        look_at = Some(not_before.max(Instant::now() + SETTLE));
                    }
                }
                () = look => {
                    let begun = Instant::now();
                    let at = std::mem::take(&mut suspicion);
                    look_at = None;
                    let done = self.repair(&at).await;
                    not_before = Instant::now() + PAUSE.max(begun.elapsed() * IDLE);
                    if done {
                        failures = 0;
                    } else {
                        let wait = RETRY * 2_u32.saturating_pow(failures.min(6));
                        failures += 1;
                        not_before += wait.min(LONGEST_RETRY);
                        suspicion = at;
                        look_at = Some(not_before);
                    }
                }
            }
        }
    }

    async fn note(&self, changes: &[Change], suspicion: &mut Suspicion, closed: &mut Closed) {
        let (bridges, subnets) = self.host.lock().await.extent();
        let ours = Ours {
            bridges: &bridges,
            subnets: &subnets,
            slot: &|port| self.manager.slot_of_port(port),
            guest_with: &|mac| self.manager.slot_of_mac(mac),
            guest_at: &|address| self.manager.has_guest_at(address),
        };
        for change in changes {
            let before = suspicion.clone();
            suspicion.note(change, &ours);
            if *suspicion != before {
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

    /// Looks and puts right; whether all of it could be.
    async fn repair(&self, at: &Suspicion) -> bool {
        debug!(?at, "looking for what somebody else has changed");
        let mut whole = true;
        let mut any_bridge = false;
        if at.bridges {
            let (mended, errors) = self.host.lock().await.mend().await;
            any_bridge = !mended.is_empty();
            for bridge in mended {
                if bridge.anew
                    && let Err(error) = self.bridges.serve_again(&bridge.network, &bridge.bridge)
                {
                    whole = self.not_mended(error);
                }
                self.repaired(None, Some(&bridge.network.name), bridge.what);
            }
            for error in errors {
                whole = self.not_mended(error);
            }
            if let Err(error) = self.manager.walls().bridges_are_new() {
                whole = self.not_mended(error);
            }
        }
        if at.walls {
            match self.manager.walls().mend() {
                Ok(()) => self.repaired(None, None, "the tables of nf_tables had been changed".into()),
                Err(error) => whole = self.not_mended(error),
            }
        }
        if at.rules {
            match self.host.lock().await.mend_rules().await {
                Ok(0) => {}
                Ok(count) => {
                    self.repaired(None, None, format!("{count} rules or chains of iptables were gone"));
                }
                Err(error) => whole = self.not_mended(error),
            }
        }
        if at.guests || any_bridge {
            whole &= self.repair_guests().await;
        }
        whole
    }

    async fn repair_guests(&self) -> bool {
        let repaired = match self.manager.repair().await {
            Ok(repaired) => repaired,
            Err(error) => return self.not_mended(error),
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

    /// False.
    fn not_mended(&self, error: impl std::fmt::Display) -> bool {
        let what = format!("what somebody else has changed could not be repaired: {error}");
        warn!(what, "tried again later");
        self.events.send(EventKind::DriftReported, None, None, what);
        false
    }
}

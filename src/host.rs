//! What guestnet changes on the host once, whatever the number of VMs: bridges, the unreachable rest of each subnet,
//! forwarding and the host-wide rules. Checked before anything is touched; a start that fails takes back what it made.

use std::sync::Arc;

use tracing::{info, warn};

use crate::kernel::{Kernel, KernelError};
use crate::model::{BridgeName, Network, NetworkName, Subnet};
use crate::plan::{self, HostRules, Step};
use crate::store::{ChangedSysctl, LinkKind, OwnedLink, Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "vm_subnet {subnet} of network {name} overlaps this host's route {route}: choose a subnet that no route of the \
         host touches"
    )]
    Overlap { name: NetworkName, subnet: Subnet, route: String },
    #[error(
        "bridge_name {bridge} of network {name}: a device of that name exists and was not made by guestnet; choose \
         another name or remove the device"
    )]
    ForeignBridge { name: NetworkName, bridge: BridgeName },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The host as guestnet has set it up.
pub struct Host {
    kernel: Kernel,
    store: Arc<Store>,
    networks: Vec<Arc<Network>>,
    /// What this start made, to be taken back if it fails: in the order it was made.
    made: Vec<Made>,
}

enum Made {
    Sysctl { key: String, before: String },
    Step(Step),
    Rules(HostRules),
}

impl Host {
    /// Looks whether the subnets fit this host's routes; changes nothing. A network that stands already is not cut off for a
    /// route that came later.
    pub async fn check_routes(kernel: &Kernel, networks: &[Arc<Network>]) -> Result<(), HostError> {
        for network in networks {
            let (name, subnet) = (network.name.clone(), network.subnet);
            let Some(route) = kernel.overlapping_route(subnet).await? else { continue };
            if kernel.device_index(network.bridge.as_str()).await?.is_none() {
                return Err(HostError::Overlap { name, subnet, route });
            }
            warn!(network = %name, "a route of this host overlaps the network's subnet: some of it cannot be reached");
        }
        Ok(())
    }

    /// Looks whether the bridges' names are free or ours; changes nothing.
    pub async fn check(
        kernel: Kernel,
        store: Arc<Store>,
        networks: &[Arc<Network>],
    ) -> Result<Self, HostError> {
        for network in networks {
            let (name, bridge) = (&network.name, &network.bridge);
            if let Some(index) = kernel.device_index(bridge.as_str()).await? {
                let links = store.links()?;
                if !links.iter().any(|link| link.ifindex == index && link.name == *bridge.as_if_name()) {
                    return Err(HostError::ForeignBridge { name: name.clone(), bridge: bridge.clone() });
                }
            }
        }
        Ok(Self { kernel, store, networks: networks.to_vec(), made: Vec::new() })
    }

    /// Makes bridges, routes and forwarding, or brings those of an earlier start into shape.
    pub async fn raise(&mut self) -> Result<(), HostError> {
        if self.networks.is_empty() {
            return Ok(());
        }
        // The kernel ORs `all`'s redirects with the bridge's.
        for (key, value) in [("ipv4/ip_forward", "1"), ("ipv4/conf/all/send_redirects", "0")] {
            let before = self.kernel.sysctl(key)?;
            if before != value {
                // Recorded first: what was changed can be put back, whatever ends us.
                let changed = ChangedSysctl { path: key.into(), old_value: before.clone() };
                self.store.record_sysctl(changed).await?;
                self.made.push(Made::Sysctl { key: key.into(), before });
                self.kernel.set_sysctl(key, value)?;
            }
        }
        for network in self.networks.clone() {
            let bridge = network.bridge.as_str();
            let stood = self.kernel.device_index(bridge).await?.is_some();
            for step in plan::network(&network) {
                if !stood {
                    self.made.push(Made::Step(step.clone()));
                }
                self.kernel.apply(&step).await?;
            }
            if let Some(index) = self.kernel.device_index(bridge).await? {
                self.store.record_link(bridge_link(index, &network)).await?;
            }
        }
        Ok(())
    }

    /// The host-wide rules, before any guest can send through them.
    pub fn open_for_guests(&mut self) -> Result<(), HostError> {
        if self.networks.is_empty() {
            return Ok(());
        }
        let rules = self.rules();
        if !self.kernel.has_host_rules()? {
            self.made.push(Made::Rules(rules.clone()));
        }
        self.kernel.apply_host_rules(&rules)?;
        for network in &self.networks {
            self.kernel.redirect_metadata(&network.bridge, network.metadata.is_some())?;
        }
        Ok(())
    }

    /// Takes back what this start made, in reverse; goes on past errors, logs each, and returns the first.
    pub async fn take_back(mut self) -> Result<(), HostError> {
        let mut result = Ok(());
        while let Some(made) = self.made.pop() {
            let done = match &made {
                Made::Sysctl { key, before } => self.restore(key, before).await,
                Made::Step(step) => self.undo(step).await,
                Made::Rules(rules) => self.close(rules),
            };
            if let Err(error) = done {
                warn!(%error, "could not take back what was made");
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Removes all that any start made: bridges, routes, rules, and the settings that were changed.
    pub async fn uninstall(mut self) -> Result<(), HostError> {
        let mut made: Vec<Made> = Vec::new();
        for ChangedSysctl { path, old_value } in self.store.sysctls()? {
            made.push(Made::Sysctl { key: path, before: old_value });
        }
        made.extend(self.networks.iter().flat_map(|network| plan::network(network)).map(Made::Step));
        made.push(Made::Rules(self.rules()));
        self.made = made;
        self.take_back().await?;
        info!("removed what guestnet had set up on this host");
        Ok(())
    }

    /// Goes on past an error; the first is returned.
    fn close(&self, rules: &HostRules) -> Result<(), HostError> {
        let mut done = self.kernel.remove_host_rules(rules);
        for network in &self.networks {
            done = done.and(self.kernel.redirect_metadata(&network.bridge, false));
        }
        Ok(done?)
    }

    fn rules(&self) -> HostRules {
        plan::host_rules(&self.networks.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    async fn restore(&self, key: &str, before: &str) -> Result<(), HostError> {
        self.kernel.set_sysctl(key, before)?;
        self.store.forget_sysctl(key).await?;
        Ok(())
    }

    async fn undo(&self, step: &Step) -> Result<(), HostError> {
        if let Step::Bridge { bridge, .. } = step
            && let Some(index) = self.kernel.device_index(bridge.as_str()).await?
        {
            self.store.forget_link(index).await?;
        }
        match step.undo() {
            Some(undo) => Ok(self.kernel.undo(&undo).await?),
            None => Ok(()),
        }
    }
}

fn bridge_link(ifindex: u32, network: &Network) -> OwnedLink {
    OwnedLink {
        ifindex,
        name: network.bridge.as_if_name().clone(),
        kind: LinkKind::Bridge,
        owner: network.name.to_string(),
    }
}

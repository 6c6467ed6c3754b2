//! What guestnet changes on the host once, whatever the number of VMs: bridges, the unreachable rest of each subnet,
//! forwarding and the host-wide rules. Checked before anything is touched; a start that fails takes back what it made.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{info, warn};

use crate::kernel::{Failed, For, Kernel, KernelError};
use crate::model::{BridgeName, IfName, IndexRange, Network, NetworkName, Plumbing, Shard, Subnet};
use crate::plan::{self, HostRules, Step, Undo};
use crate::store::{ChangedSysctl, LinkKind, OwnedLink, Store, StoreError};
use crate::walls::{Guest, Walls, WallsError};

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
    #[error(
        "mtu {mtu} of network {name}: {device} carries {carries}; set mtu = {carries}, or that of {device} and of all that is \
         plugged into its link"
    )]
    Mtu { name: NetworkName, mtu: u16, device: BridgeName, carries: u32 },
    #[error(
        "network {name} has as many bridges as its name leaves room for: make it shorter or add a network"
    )]
    NoMoreBridges { name: NetworkName },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Walls(#[from] WallsError),
}

impl From<Failed> for HostError {
    fn from(failed: Failed) -> Self {
        Self::Kernel(failed.error)
    }
}

/// The host as guestnet has set it up.
pub struct Host {
    kernel: Kernel,
    store: Arc<Store>,
    indexes: IndexRange,
    /// Each network with its bridges, the first of which is the one named in the configuration.
    networks: Vec<(Arc<Network>, Vec<Shard>)>,
    /// What this start made, to be taken back if it fails: in the order it was made.
    made: Vec<Made>,
    /// Once they are raised.
    walls: Option<Walls>,
}

/// What of a network's bridges or routes was put right.
#[derive(Debug, Clone)]
pub struct MendedBridge {
    pub network: Arc<Network>,
    pub bridge: IfName,
    /// In words: what was wrong.
    pub what: String,
    /// It is another device than before: sockets on it have to be opened anew.
    pub anew: bool,
}

enum Made {
    Sysctl { key: String, before: String },
    Step(Step),
    Rules(HostRules),
    Walls(Walls),
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

    /// Looks whether anything has the bridges' names on a host that guestnet has made nothing on yet; changes nothing, not even
    /// a state directory.
    pub async fn check_names(kernel: &Kernel, networks: &[Arc<Network>]) -> Result<(), HostError> {
        for network in networks {
            if kernel.device_index(network.bridge.as_str()).await?.is_some() {
                let (name, bridge) = (network.name.clone(), network.bridge.clone());
                return Err(HostError::ForeignBridge { name, bridge });
            }
        }
        Ok(())
    }

    /// Looks whether the uplink and others' interfaces carry what guests may send. Frames that the uplink does not carry are
    /// fragmented by the host, or their sender is told (RFC 1191): a warning. On somebody else's interface there is no host in
    /// between to do so: an error.
    pub async fn check_mtus(kernel: &Kernel, networks: &[Arc<Network>]) -> Result<(), HostError> {
        let uplink = kernel.uplink().await?;
        for network in networks {
            let (name, mtu) = (network.name.clone(), network.mtu);
            if network.plumbing == Plumbing::Managed {
                if let Some((uplink, carries)) =
                    uplink.as_ref().filter(|(_, carries)| u32::from(mtu) > *carries)
                {
                    warn!(
                        network = %name, mtu, uplink, uplink_mtu = carries,
                        "guests' frames are larger than the uplink's: what goes out is fragmented or refused"
                    );
                }
                continue;
            }
            let carries = kernel.device_mtu(network.bridge.as_str()).await?;
            if let Some(carries) = carries.filter(|carries| u32::from(mtu) > *carries) {
                return Err(HostError::Mtu { name, mtu, device: network.bridge.clone(), carries });
            }
        }
        Ok(())
    }

    /// Without networks yet.
    fn of(kernel: Kernel, store: Arc<Store>) -> Result<Self, HostError> {
        let indexes = store.index_range()?;
        Ok(Self { kernel, indexes, store, networks: Vec::new(), made: Vec::new(), walls: None })
    }

    /// Looks whether the bridges' names are free or ours; changes nothing.
    pub async fn check(
        kernel: Kernel,
        store: Arc<Store>,
        networks: &[Arc<Network>],
    ) -> Result<Self, HostError> {
        let mut host = Self::of(kernel, store)?;
        for network in networks {
            host.networks.push((network.clone(), Vec::new()));
            let recorded = host.store.links()?;
            for n in 0.. {
                // A record is made before its bridge: with it there may be one, without it there is none of ours.
                let name = network.bridge.shard(n);
                let is_recorded = recorded.iter().any(|link| Some(&link.name) == name.as_ref());
                if n > 0 && !is_recorded {
                    break;
                }
                let shard = host.next_shard(network)?;
                let standing = host.kernel.device_index(shard.bridge.as_str()).await?;
                if standing.is_some_and(|index| index != shard.index) {
                    let (name, bridge) = (network.name.clone(), network.bridge.clone());
                    return Err(HostError::ForeignBridge { name, bridge });
                }
                host.shards_mut(&network.name).push(shard);
            }
        }
        Ok(host)
    }

    /// A network's bridges.
    pub fn shards(&self, name: &NetworkName) -> &[Shard] {
        let found = self.networks.iter().find(|(network, _)| network.name == *name);
        found.map(|(_, shards)| shards.as_slice()).unwrap_or_default()
    }

    fn shards_mut(&mut self, name: &NetworkName) -> &mut Vec<Shard> {
        let found = self.networks.iter_mut().find(|(network, _)| network.name == *name);
        // Every caller's network is one of these.
        #[allow(clippy::expect_used)]
        found.map(|(_, shards)| shards).expect("one of the configured networks")
    }

    /// The bridge that comes after those a network has: as recorded, else with the next index that is free.
    fn next_shard(&self, network: &Network) -> Result<Shard, HostError> {
        let no_more = || HostError::NoMoreBridges { name: network.name.clone() };
        let bridge = network.bridge.shard(self.shards(&network.name).len()).ok_or_else(no_more)?;
        let recorded = self.store.links()?;
        if let Some(link) = recorded.iter().find(|link| link.name == bridge) {
            return Ok(Shard { bridge, index: link.ifindex });
        }
        let given = self.networks.iter().flat_map(|(_, shards)| shards).map(|shard| shard.index);
        let taken: BTreeSet<u32> = recorded.iter().map(|link| link.ifindex).chain(given).collect();
        let index =
            (0..IndexRange::SLOTS).map(|n| self.indexes.bridge(n)).find(|index| !taken.contains(index));
        Ok(Shard { bridge, index: index.ok_or_else(no_more)? })
    }

    /// Makes bridges, routes and forwarding, or brings those of an earlier start into shape; what an earlier configuration had
    /// and this one has not goes.
    pub async fn raise(&mut self) -> Result<(), HostError> {
        self.remove_former().await?;
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
        for (network, shards) in self.networks.clone() {
            self.store.record_subnet(network.subnet).await?;
            let mut is_new = false;
            for shard in shards {
                is_new |= self.make_bridge(&network, &shard).await?;
            }
            let unreachable = Step::UnreachableSubnet { subnet: network.subnet };
            if is_new {
                self.made.push(Made::Step(unreachable.clone()));
            }
            self.kernel.apply(For::Caller, vec![unreachable]).await?;
        }
        Ok(())
    }

    /// One more bridge for a network whose others are full, with the host-wide rules for it; or nothing of it.
    pub async fn open_shard(&mut self, network: &Network) -> Result<Shard, HostError> {
        let shard = self.next_shard(network)?;
        self.shards_mut(&network.name).push(shard.clone());
        if let Err(error) = self.try_shard(network, &shard).await {
            self.shards_mut(&network.name).pop();
            self.take_shard_back(network, &shard).await;
            return Err(error);
        }
        info!(network = %network.name, bridge = %shard.bridge, "the network has one more bridge");
        Ok(shard)
    }

    /// The host-wide rules last, which nobody's guest is put before.
    async fn try_shard(&mut self, network: &Network, shard: &Shard) -> Result<(), HostError> {
        self.make_bridge(network, shard).await?;
        if let Some(walls) = &self.walls {
            walls.open_bridge(&network.name, &shard.bridge)?;
        }
        self.mend_rules().await.map(drop)
    }

    /// Goes on past errors: what stays is found by its record, by the next who needs a port or the next start.
    async fn take_shard_back(&mut self, network: &Network, shard: &Shard) {
        let rules = self.mend_rules().await.map(drop);
        // Fails for what never was there.
        let _ = self.walls.as_ref().map(|walls| walls.close_bridge(&network.name, &shard.bridge));
        let step = plan::bridge(network, shard.clone());
        for done in [rules, self.lead_nowhere(&shard.bridge), self.undo_step(&step).await] {
            if let Err(error) = done {
                warn!(%error, bridge = %shard.bridge, "what was made of a bridge could not be taken back");
            }
        }
    }

    /// Puts right what somebody else has done to bridges, gateways' addresses and the rest of the subnets. Each thing that was
    /// mended, and what could not be.
    pub async fn mend(&self) -> (Vec<MendedBridge>, Vec<HostError>) {
        let (mut mended, mut errors) = (Vec::new(), Vec::new());
        for (network, shards) in &self.networks {
            for shard in shards {
                match self.mend_bridge(network, shard).await {
                    Ok(found) => mended.extend(found),
                    Err(error) => errors.push(error),
                }
            }
            match self.mend_unreachable(network).await {
                Ok(found) => mended.extend(found),
                Err(error) => errors.push(error),
            }
        }
        (mended, errors)
    }

    async fn mend_bridge(
        &self,
        network: &Arc<Network>,
        shard: &Shard,
    ) -> Result<Option<MendedBridge>, HostError> {
        let mended = |what: &str, anew| MendedBridge {
            network: network.clone(),
            bridge: shard.bridge.clone(),
            what: format!("bridge {} {what}", shard.bridge),
            anew,
        };
        let found = match self.kernel.device_index(shard.bridge.as_str()).await? {
            None => mended("was gone", true),
            Some(index) if index != shard.index => {
                let (name, bridge) = (network.name.clone(), network.bridge.clone());
                return Err(HostError::ForeignBridge { name, bridge });
            }
            Some(_) => {
                if self.kernel.bridge_stands(shard.clone(), network.gateway, network.subnet).await? {
                    return Ok(None);
                }
                mended("was down or had lost the gateway's address", false)
            }
        };
        self.kernel.apply(For::Background, vec![plan::bridge(network, shard.clone())]).await?;
        Ok(Some(found))
    }

    async fn mend_unreachable(&self, network: &Arc<Network>) -> Result<Option<MendedBridge>, HostError> {
        let subnet = network.subnet;
        if self.kernel.has_unreachable(subnet).await? {
            return Ok(None);
        }
        self.kernel.apply(For::Background, vec![Step::UnreachableSubnet { subnet }]).await?;
        let (bridge, what) =
            (network.bridge.as_if_name().clone(), format!("route unreachable {subnet} was gone"));
        Ok(Some(MendedBridge { network: network.clone(), bridge, what, anew: false }))
    }

    /// Puts the host-wide rules back that somebody has taken away; how many changes that took.
    pub async fn mend_rules(&self) -> Result<usize, HostError> {
        if self.networks.is_empty() {
            return Ok(0);
        }
        let (kernel, rules, led) = (self.kernel.clone(), self.rules(), self.led());
        // It runs iptables, a constant few times.
        let opening = tokio::task::spawn_blocking(move || open_for_guests(&kernel, &rules, &led));
        // It does not panic; if it did, the next start would make them.
        Ok(opening.await.unwrap_or(Ok(0))?)
    }

    /// Every bridge with its network.
    pub fn bridges(&self) -> impl Iterator<Item = (&Arc<Network>, &Shard)> {
        self.networks.iter().flat_map(|(network, shards)| shards.iter().map(move |shard| (network, shard)))
    }

    /// Every bridge's index, and every network's subnet.
    pub fn extent(&self) -> (BTreeSet<u32>, Vec<Subnet>) {
        let bridges = self.networks.iter().flat_map(|(_, shards)| shards).map(|shard| shard.index);
        (bridges.collect(), self.networks.iter().map(|(network, _)| network.subnet).collect())
    }

    /// Whether there was none.
    async fn make_bridge(&mut self, network: &Network, shard: &Shard) -> Result<bool, HostError> {
        let step = plan::bridge(network, shard.clone());
        let stood = self.kernel.device_index(shard.bridge.as_str()).await?.is_some();
        // Recorded first: a bridge of that index and name is ours from here on.
        self.store.record_link(bridge_link(shard, network)).await?;
        if !stood {
            self.made.push(Made::Step(step.clone()));
        }
        self.kernel.apply(For::Caller, vec![step]).await?;
        Ok(!stood)
    }

    /// What networks had that are in the configuration no more.
    async fn remove_former(&self) -> Result<(), HostError> {
        let wanted: BTreeSet<u32> =
            self.networks.iter().flat_map(|(_, shards)| shards).map(|shard| shard.index).collect();
        for link in self.store.links()?.into_iter().filter(|link| !wanted.contains(&link.ifindex)) {
            info!(bridge = %link.name, "removing the bridge of a former configuration");
            self.remove_link(&link).await?;
        }
        for subnet in self.store.subnets()? {
            if !self.networks.iter().any(|(network, _)| network.subnet == subnet) {
                self.remove_subnet(subnet).await?;
            }
        }
        Ok(())
    }

    /// A bridge of the records, and what its guests are led to. One of its name with another index is somebody else's.
    async fn remove_link(&self, link: &OwnedLink) -> Result<(), HostError> {
        self.lead_nowhere(&link.name)?;
        if self.kernel.device_index(link.name.as_str()).await? == Some(link.ifindex) {
            self.undo(Undo::Bridge { index: link.ifindex }).await?;
        }
        Ok(self.store.forget_link(link.ifindex).await.map(drop)?)
    }

    /// The unreachable rest and the NAT of a subnet of the records.
    async fn remove_subnet(&self, subnet: Subnet) -> Result<(), HostError> {
        self.undo(Undo::UnreachableSubnet { subnet }).await?;
        self.kernel.remove_nat_rule(&plan::nat_rule(subnet))?;
        Ok(self.store.forget_subnet(subnet).await?)
    }

    /// The walls around these guests, before anything lets them through.
    pub fn raise_walls(&mut self, walls: &Walls, guests: Vec<Guest>) -> Result<(), HostError> {
        if !walls.stand()? {
            self.made.push(Made::Walls(walls.clone()));
        }
        let of = |(network, shards): &(Arc<Network>, Vec<Shard>)| -> Vec<(NetworkName, IfName)> {
            shards.iter().map(|shard| (network.name.clone(), shard.bridge.clone())).collect()
        };
        walls.raise(&self.networks.iter().flat_map(of).collect::<Vec<_>>(), guests)?;
        self.walls = Some(walls.clone());
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
        open_for_guests(&self.kernel, &rules, &self.led())?;
        Ok(())
    }

    /// Takes back what this start made, in reverse; goes on past errors, logs each, and returns the first.
    pub async fn take_back(&mut self) -> Result<(), HostError> {
        let mut result = Ok(());
        while let Some(made) = self.made.pop() {
            let done = match &made {
                Made::Sysctl { key, before } => self.restore(key, before).await,
                Made::Step(step) => self.undo_step(step).await,
                Made::Rules(rules) => self.close(rules),
                Made::Walls(walls) => walls.remove().map_err(HostError::from),
            };
            if let Err(error) = done {
                warn!(%error, "could not take back what was made");
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Removes all that any start made, whatever its configuration was: the records say what that is. Goes on past errors, logs
    /// each, and returns the first.
    pub async fn uninstall(kernel: Kernel, store: Arc<Store>, walls: &Walls) -> Result<(), HostError> {
        let host = Self::of(kernel, store)?;
        let mut result = Ok(());
        let mut note = |done: Result<(), HostError>| {
            if let Err(error) = done {
                warn!(%error, "could not remove what was made");
                result = std::mem::replace(&mut result, Ok(())).and(Err(error));
            }
        };
        note(host.close(&HostRules::default()));
        for subnet in host.store.subnets()? {
            note(host.remove_subnet(subnet).await);
        }
        for link in host.store.links()? {
            note(host.remove_link(&link).await);
        }
        for ChangedSysctl { path, old_value } in host.store.sysctls()? {
            note(host.restore(&path, &old_value).await);
        }
        note(walls.remove().map_err(HostError::from));
        result.inspect(|()| info!("removed what guestnet had set up on this host"))
    }

    /// Goes on past an error; the first is returned.
    fn close(&self, rules: &HostRules) -> Result<(), HostError> {
        let done = self.kernel.remove_host_rules(rules).map_err(HostError::from);
        self.led().iter().fold(done, |done, led| done.and(self.lead_nowhere(&led.bridge)))
    }

    /// Guests of that bridge are not led to the gateway any more. Goes on past an error; the first is returned.
    fn lead_nowhere(&self, bridge: &IfName) -> Result<(), HostError> {
        let done = self.kernel.redirect_metadata(bridge, false);
        Ok(done.and(self.kernel.redirect_dns(bridge, false)).map(drop)?)
    }

    /// Every bridge, and what its guests are led to.
    fn led(&self) -> Vec<Led> {
        let of = |(network, shards): &(Arc<Network>, Vec<Shard>)| -> Vec<Led> {
            let (metadata, dns) = (network.metadata.is_some(), network.dns_only_resolver);
            shards.iter().map(|shard| Led { bridge: shard.bridge.clone(), metadata, dns }).collect()
        };
        self.networks.iter().flat_map(of).collect()
    }

    fn rules(&self) -> HostRules {
        let bridges = |shards: &'_ [Shard]| shards.iter().map(|shard| shard.bridge.clone()).collect();
        let bridges: Vec<Vec<IfName>> = self.networks.iter().map(|(_, shards)| bridges(shards)).collect();
        let networks = self.networks.iter().zip(&bridges);
        let networks: Vec<_> =
            networks.map(|((network, _), names)| (&**network, names.iter().collect())).collect();
        plan::host_rules(&networks)
    }

    async fn restore(&self, key: &str, before: &str) -> Result<(), HostError> {
        self.kernel.set_sysctl(key, before)?;
        self.store.forget_sysctl(key).await?;
        Ok(())
    }

    async fn undo_step(&self, step: &Step) -> Result<(), HostError> {
        if let Some(undo) = step.undo() {
            self.undo(undo).await?;
        }
        match step {
            Step::Bridge { shard, .. } => self.store.forget_link(shard.index).await.map(drop)?,
            Step::UnreachableSubnet { subnet } => self.store.forget_subnet(*subnet).await?,
            _ => {}
        }
        Ok(())
    }

    async fn undo(&self, undo: Undo) -> Result<(), HostError> {
        match self.kernel.undo(For::Caller, vec![undo]).await.into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// What guests of a bridge are led to on the gateway, wherever they send it.
#[derive(Debug, Clone)]
struct Led {
    bridge: IfName,
    metadata: bool,
    dns: bool,
}

/// How many changes that took.
fn open_for_guests(kernel: &Kernel, rules: &HostRules, led: &[Led]) -> Result<usize, KernelError> {
    let mut changes = kernel.apply_host_rules(rules)?;
    for Led { bridge, metadata, dns } in led {
        changes += kernel.redirect_metadata(bridge, *metadata)? + kernel.redirect_dns(bridge, *dns)?;
    }
    Ok(changes)
}

fn bridge_link(shard: &Shard, network: &Network) -> OwnedLink {
    OwnedLink {
        ifindex: shard.index,
        name: shard.bridge.clone(),
        kind: LinkKind::Bridge,
        owner: network.name.to_string(),
    }
}

//! The way of an API call (`calls`): request, admission, durable intent, plan, kernel, live binding; and back. In: what a caller
//! asks for. Out: the binding it has, or why it has none, with nothing half done left behind.

mod admission;
mod calls;
mod error;
mod garbage;
mod pool;
mod repair;
mod stock;
mod under_way;
mod user_data;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tracing::{Instrument, error, info, warn};

use crate::bridges::Bridges;
use crate::dhcp::Leases;
use crate::events::Events;
use crate::kernel::{Kernel, LookInto};
use crate::model::{
    DhcpOptions, Hostname, LeaseView, Mac, Network, NetworkName, Place, Plumbing, RateLimit, RateRequest,
    Slot, TapRequest, VmId, WorkspaceId,
};
use crate::plan;
use crate::registry::{Binding, Registry};
use crate::stats::Stats;
use crate::store::{Store, StoreError};
use crate::walls::Walls;
use admission::Admission;
use calls::microseconds_now;
pub use error::ManagerError;
pub use garbage::Collected;
use pool::Pool;
pub use repair::Repaired;
use under_way::UnderWay;

/// What a caller asks for; unset fields ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVm {
    pub vm_id: VmId,
    pub network: Option<NetworkName>,
    pub workspace: Option<WorkspaceId>,
    pub address: Option<Ipv4Addr>,
    pub mac: Option<Mac>,
    pub hostname: Option<Hostname>,
    pub rate_limit: RateRequest,
    pub tap: TapRequest,
    pub dhcp_options: Option<DhcpOptions>,
}

/// What a caller asks of a VM that runs; unset fields ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateVm {
    pub vm_id: VmId,
    pub hostname: Option<Hostname>,
    pub rate_limit: RateRequest,
}

/// A configured network and how full it is.
#[derive(Debug, Clone)]
pub struct NetworkStatus {
    pub network: Arc<Network>,
    pub vm_count: u32,
    pub free_addresses: u64,
}

/// Makes and removes VMs' networks. Clones share one state.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    with: Parts,
    admission: Mutex<Admission>,
    pool: Pool,
    /// Held by whoever makes, changes or removes a VM's network; alone by who must see none of that under way.
    quiet: tokio::sync::RwLock<()>,
    /// VMs looked after by a start so far.
    adopted: AtomicUsize,
    /// One call at a time for a VM: the lock of each VM that a call is about.
    in_hand: Mutex<HashMap<VmId, Arc<tokio::sync::Mutex<()>>>>,
    under_way: UnderWay,
}

/// What the manager works with.
pub struct Parts {
    pub kernel: Kernel,
    pub store: Arc<Store>,
    pub bridges: Bridges,
    pub registry: Registry,
    pub leases: Leases,
    pub stats: Stats,
    pub events: Events,
    pub walls: Walls,
}

impl std::ops::Deref for Inner {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.with
    }
}

impl Manager {
    pub fn new(networks: &[Arc<Network>], with: Parts) -> Result<Self, StoreError> {
        let admission = Mutex::new(Admission::new(networks));
        let managed = networks.iter().filter(|network| network.plumbing == Plumbing::Managed).cloned();
        let (kernel, bridges) = (with.kernel.clone(), with.bridges.clone());
        let pool = Pool::new(managed.collect(), kernel, bridges, with.store.index_range()?);
        Ok(Self(Arc::new(Inner {
            with,
            admission,
            pool,
            quiet: tokio::sync::RwLock::default(),
            adopted: AtomicUsize::new(0),
            in_hand: Mutex::default(),
            under_way: UnderWay::default(),
        })))
    }

    /// Takes over what an earlier run left: of the VMs that were readmitted what is missing in the kernel is made and what
    /// stands is left alone; what is no VM's goes.
    pub async fn adopt(&self) -> Result<(), ManagerError> {
        let indexes = self.0.store.index_range()?;
        let observed = self.0.kernel.observe(indexes).await;
        let observed = observed.map_err(|error| ManagerError::Host(error.to_string()))?;
        let bindings = self.0.registry.all();
        let slots = bindings.iter().map(|binding| (binding.vm.slot, binding.network.clone()));
        self.0.pool.adopt(&observed, slots).await?;
        let placed = |binding: &Arc<Binding>| Some((binding.clone(), self.0.pool.place(binding.vm.slot)?));
        let bindings: Vec<(Arc<Binding>, Place)> = bindings.iter().filter_map(placed).collect();

        let bridges = self.0.pool.shards().await.into_iter().map(|(_, shard)| shard.index).collect();
        let vms = bindings.iter().map(|(binding, place)| (&binding.vm, place));
        for error in self.0.take_back(plan::strays(vms, &bridges, indexes, &observed)).await {
            warn!(error, "what is no VM's could not be removed");
        }
        if let Err(error) = self.0.forget_former().await {
            warn!(%error, "addresses of networks that are no more are remembered still");
        }
        let placed: Vec<Arc<Binding>> = bindings.iter().map(|(binding, _)| binding.clone()).collect();
        self.0.close_accounts(&placed, &observed).await;
        let (mut mended, mut broken) = (0, 0);
        for (binding, place) in &bindings {
            self.0.adopted.fetch_add(1, Relaxed);
            match self.0.mend(binding, place, &observed).await {
                Ok(steps) => mended += usize::from(steps > 0),
                // One VM that cannot be mended is no reason to leave all others without DHCP and DNS.
                Err(error) => {
                    broken += 1;
                    error!(%error, "a VM's network could not be mended: delete and create it again");
                }
            }
        }
        info!(vms = bindings.len(), mended, broken, "took over the stored VMs");
        Ok(())
    }

    /// How many VMs a start has looked after so far.
    pub fn adopted(&self) -> usize {
        self.0.adopted.load(Relaxed)
    }

    /// Puts right what somebody else has taken from guests, while calls go on: one about a VM that is being mended waits. Slots that
    /// have their ports are looked into as said. `anew`: for more than VMs that an earlier look has missed.
    pub async fn repair(&self, into: LookInto, anew: bool) -> Result<Repaired, ManagerError> {
        self.0.repair(into, anew).await
    }

    /// What is ours by record and belongs to nobody; taken away if `apply`. Calls go on, but for a moment if there is any.
    pub async fn collect(&self, apply: bool) -> Result<Vec<Collected>, ManagerError> {
        let inner = self.0.clone();
        join(tokio::spawn(async move { inner.collect(apply).await }).await)
    }

    /// The slot whose host device has this index, with the index of its bridge, if it is whole and to stay.
    pub fn slot_of_port(&self, port: u32) -> Option<(Slot, u32)> {
        self.0.pool.kept(port)
    }

    /// What a slot is to be limited to: as its VM is, or as its network while it waits for one. `None` in between.
    pub fn limit_of(&self, slot: Slot) -> Option<Option<RateLimit>> {
        match self.0.registry.by_slot(slot) {
            Some(binding) => Some(binding.vm.rate_limit),
            None => {
                let of_free = || self.0.pool.free_of(slot).map(|network| network.rate_limit);
                self.0.under_way.limit_of(slot).or_else(of_free)
            }
        }
    }

    /// The slot of the guest with that MAC.
    pub fn slot_of_mac(&self, mac: Mac) -> Option<Slot> {
        let of = |network: &Arc<Network>| self.0.registry.by_mac(&network.name, mac)?.vm_id.clone();
        match self.0.pool.networks().iter().find_map(of) {
            Some(vm_id) => Some(self.0.registry.by_vm(&vm_id)?.vm.slot),
            None => self.0.under_way.slot_of_mac(mac),
        }
    }

    /// Whether a VM's guest has that address, or will.
    pub fn has_guest_at(&self, address: Ipv4Addr) -> bool {
        self.0.has_guest_at(address) || self.0.under_way.has_guest_at(address)
    }

    /// Waits for slots whose VMs were being made while somebody's changes were looked for: nobody has looked at them.
    pub async fn to_look_at(&self) -> BTreeSet<Slot> {
        self.0.under_way.to_look_at().await
    }

    /// Takes over what of the networks may change while guests run. No call about a VM is under way meanwhile.
    pub async fn adjust(&self, configured: &[Arc<Network>]) {
        let _alone = self.0.quiet.write().await;
        for network in self.admission().adjust(configured) {
            self.0.registry.relink(&network);
        }
        self.0.pool.keep_ready(configured);
    }

    /// Keeps slots ready in the background, until `stop`.
    pub async fn keep(&self) {
        self.0.pool.clone().keep().await;
    }

    /// Waits until the first slots are ready, but not for long.
    pub async fn ready(&self) {
        self.0.pool.filled().await;
    }

    /// Ends `keep`, when what it does is done.
    pub fn stop(&self) {
        self.0.pool.stop();
    }

    /// Binds the stored VMs to what they had, without a look at the kernel.
    pub fn readmit(&self) -> Result<(), ManagerError> {
        for vm in self.0.store.load()? {
            let network = self.admission().readmit(&vm).map_err(|error| ManagerError::Homeless {
                vm_id: vm.vm_id.clone(),
                why: error.to_string(),
            })?;
            self.0.registry.bind(Arc::new(Binding::new(vm, network)));
        }
        self.0.stats.load()?;
        let (now, now_us) = (Instant::now(), microseconds_now());
        for freed in self.0.store.freed()? {
            // By the wall clock, which may have been set back since.
            let age = Duration::from_micros(u64::try_from(now_us - freed.freed_at_us).unwrap_or_default());
            let freed_at = now.checked_sub(age).unwrap_or(now);
            self.admission().rest(&freed.network, freed.address, freed_at);
        }
        Ok(())
    }

    /// The VM's network, made if it has none. Goes on to its end when the caller does not wait for it.
    pub async fn create(&self, request: CreateVm) -> Result<Arc<Binding>, ManagerError> {
        let inner = self.0.clone();
        join(tokio::spawn(async move { inner.create(request).await }.in_current_span()).await)
    }

    /// Changes what can change while the VM runs.
    pub async fn update(&self, request: UpdateVm) -> Result<Arc<Binding>, ManagerError> {
        let inner = self.0.clone();
        join(tokio::spawn(async move { inner.update(request).await }.in_current_span()).await)
    }

    /// Removes the VM's network; a VM that has none is fine.
    pub async fn delete(&self, vm_id: &VmId) -> Result<(), ManagerError> {
        let (inner, vm_id) = (self.0.clone(), vm_id.clone());
        join(tokio::spawn(async move { inner.delete(&vm_id).await }.in_current_span()).await)
    }

    /// Policies and port forwards.
    pub fn walls(&self) -> &Walls {
        &self.0.walls
    }

    pub fn get(&self, vm_id: &VmId) -> Option<Arc<Binding>> {
        self.0.registry.by_vm(vm_id)
    }

    /// Every VM's binding, or those of one network, ordered by vm_id.
    pub fn list(&self, network: Option<&NetworkName>) -> Result<Vec<Arc<Binding>>, ManagerError> {
        if let Some(name) = network {
            self.admission().network(name)?;
        }
        let all = self.0.registry.all().into_iter();
        Ok(all.filter(|binding| network.is_none_or(|name| binding.vm.network == *name)).collect())
    }

    /// The same with what each guest has made of its reservation.
    pub fn leases(
        &self,
        network: Option<&NetworkName>,
    ) -> Result<Vec<(Arc<Binding>, LeaseView)>, ManagerError> {
        let now = SystemTime::now();
        let view = |binding: Arc<Binding>| {
            let lease = self.0.leases.view(&binding.network.name, &binding.guest, now);
            (binding, lease)
        };
        Ok(self.list(network)?.into_iter().map(view).collect())
    }

    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    pub fn networks(&self) -> Vec<NetworkStatus> {
        self.admission().status()
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.0.admission()
    }
}

fn join<T>(result: Result<Result<T, ManagerError>, tokio::task::JoinError>) -> Result<T, ManagerError> {
    result.unwrap_or_else(|error| {
        if error.is_panic() {
            error!(%error, "a call about a VM panicked: please report this");
        }
        Err(ManagerError::Stopping)
    })
}

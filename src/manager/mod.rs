//! The way of an API call: request, admission, durable intent, plan, kernel, live binding; and back. In: what a caller
//! asks for. Out: the binding it has, or why it has none, with nothing half done left behind.

mod admission;
mod garbage;
mod pool;
mod repair;
mod stock;
mod user_data;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use crate::bridges::{Bridges, BridgesError};
use crate::dhcp::Leases;
use crate::events::{EventKind, Events};
use crate::guestcfg::Refusal;
use crate::kernel::{Failed, For, HeldTap, Kernel};
use crate::model::{
    Account, DhcpOptions, Hostname, LeaseView, Mac, Network, NetworkName, Place, Plumbing, Rate, RateLimit,
    RateRequest, Slot, Subnet, TapRequest, Vm, VmId, WorkspaceId,
};
use crate::plan::{self, Step, Undo};
use crate::registry::{Binding, Registry};
use crate::stats::Stats;
use crate::store::{Store, StoreError};
use crate::walls::{Guest, Walls};
use admission::Admission;
pub use garbage::Collected;
use pool::Pool;
pub use repair::Repaired;

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

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("there is no network {name}: the configuration has {known}")]
    UnknownNetwork { name: NetworkName, known: String },
    #[error(
        "VM {vm_id} has a network already, with {field} {has}, not {asked}: delete it first or ask for the same"
    )]
    Differs { vm_id: VmId, field: &'static str, has: String, asked: String },
    #[error(
        "burst_kib {burst} limits nothing: without a limit there is no burst; ask for a rate_limit_mbps too"
    )]
    BurstWithoutRate { burst: u32 },
    #[error("mac_address {mac} is taken by VM {by}: choose another or leave it unset")]
    MacTaken { mac: Mac, by: VmId },
    #[error("ip_address {address} is taken by VM {by}: choose another or leave it unset")]
    AddressTaken { address: Ipv4Addr, by: VmId },
    #[error("ip_address {address} cannot be a guest's in {subnet}: {why}")]
    AddressUnusable { address: Ipv4Addr, subnet: Subnet, why: &'static str },
    #[error("network {network} has no free address in {subnet}: {detail}")]
    SubnetFull { network: NetworkName, subnet: Subnet, detail: String },
    #[error(
        "VM {vm_id}, made under another configuration, has no place in this one: {why}; start with the old one and delete \
         the VM first"
    )]
    Homeless { vm_id: VmId, why: String },
    #[error("VM {vm_id} has no network: create it first")]
    NoVm { vm_id: VmId },
    #[error("the user-data is {length} bytes long, {limit} fit")]
    UserDataTooLong { length: usize, limit: usize },
    #[error("user_data: {0}")]
    UserData(Refusal),
    #[error(
        "network {network} has external plumbing, so guestnet makes no devices there: use guestnet reservation add, or name \
         another network"
    )]
    External { network: NetworkName },
    #[error(
        "VM {vm_id} is still running: tap0 of its network is open; end the VM first, then delete its network"
    )]
    TapInUse { vm_id: VmId },
    #[error(transparent)]
    Bridges(BridgesError),
    #[error("guestnet is stopping: repeat the call when it is back")]
    Stopping,
    #[error("the state could not be saved: {0}")]
    Store(#[from] StoreError),
    #[error("looking for what an earlier run left: {0}")]
    Host(String),
    #[error("the network of VM {vm_id}: {what}")]
    Kernel { vm_id: VmId, what: String },
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
        // A run that was cut off may not have come to it.
        let freed: HashSet<Ipv4Addr> = self.0.store.freed()?.iter().map(|freed| freed.address).collect();
        if !freed.is_empty()
            && let Err(error) = self.0.kernel.forget_connections(freed).await
        {
            warn!(%error, "connections of former guests stay until they time out");
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

    /// Puts right what somebody else has taken from guests, while calls go on: one about a VM that is being mended waits.
    pub async fn repair(&self) -> Result<Repaired, ManagerError> {
        self.0.repair().await
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
            None => self.0.pool.free_of(slot).map(|network| network.rate_limit),
        }
    }

    /// The slot of the guest with that MAC.
    pub fn slot_of_mac(&self, mac: Mac) -> Option<Slot> {
        let of = |network: &Arc<Network>| self.0.registry.by_mac(&network.name, mac)?.vm_id.clone();
        let vm_id = self.0.pool.networks().iter().find_map(of)?;
        Some(self.0.registry.by_vm(&vm_id)?.vm.slot)
    }

    /// Whether a VM's guest has that address.
    pub fn has_guest_at(&self, address: Ipv4Addr) -> bool {
        let networks = self.0.pool.networks().iter();
        networks.clone().any(|network| self.0.registry.by_address(&network.name, address).is_some())
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
        join(tokio::spawn(async move { inner.create(request).await }).await)
    }

    /// Changes what can change while the VM runs.
    pub async fn update(&self, request: UpdateVm) -> Result<Arc<Binding>, ManagerError> {
        let inner = self.0.clone();
        join(tokio::spawn(async move { inner.update(request).await }).await)
    }

    /// Removes the VM's network; a VM that has none is fine.
    pub async fn delete(&self, vm_id: &VmId) -> Result<(), ManagerError> {
        let (inner, vm_id) = (self.0.clone(), vm_id.clone());
        join(tokio::spawn(async move { inner.delete(&vm_id).await }).await)
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

impl Inner {
    async fn create(&self, request: CreateVm) -> Result<Arc<Binding>, ManagerError> {
        let _under_way = self.quiet.read().await;
        let (_turn, _call) = (self.turn(&request.vm_id).await, self.pool.call());
        if let Some(binding) = self.registry.by_vm(&request.vm_id) {
            return same(&request, binding);
        }
        let admitted = self.admission().admit(request, Instant::now(), microseconds_now())?;
        let network = self.admission().network(admitted.network())?;
        let place = match self.pool.take(&network, admitted.multi_queue()).await {
            Ok(place) => place,
            Err(error) => {
                let vm = admitted.on(Slot(0));
                self.admission().release(&vm, Instant::now());
                return Err(failed(&vm, &[error]));
            }
        };
        let vm = admitted.on(place.slot);
        // What the kernel remembers of the address's last guest is about that one.
        let cleaned = self.pool.cleaned(&vm).await;
        let remembered = match cleaned {
            Ok(()) => self.remember(&vm).await,
            Err(error) => Err(error),
        };
        let account = match remembered {
            Ok(account) => account,
            Err(error) => {
                self.admission().release(&vm, Instant::now());
                if vm.tap.multi_queue {
                    self.pool.leave(&vm, network, None, false);
                } else {
                    self.pool.put_back(network, place.slot);
                }
                return Err(error);
            }
        };
        if let Err(mut errors) = self.bind(&vm, &place, &network).await {
            if let Err(error) = self.store.remove(vm.vm_id.clone()).await {
                errors.push(error.to_string());
            }
            self.admission().release(&vm, Instant::now());
            self.pool.leave(&vm, network, None, true);
            return Err(failed(&vm, &errors));
        }
        self.stats.begin(vm.vm_id.clone(), account);
        let binding = Arc::new(Binding::new(vm, network));
        self.registry.bind(binding.clone());
        self.tell(EventKind::Bound, &binding);
        Ok(binding)
    }

    /// Makes the VM durable, with what it begins to be counted from.
    async fn remember(&self, vm: &Vm) -> Result<Account, ManagerError> {
        let account = self.stats.open_account(&vm.slot.host_device());
        let account = account.map_err(|error| failed(vm, &[error.to_string()]))?;
        self.store.insert(vm.clone(), account.clone()).await?;
        Ok(account)
    }

    /// Binds the VM to its slot, or leaves nothing of it: a step that fails has left nothing, the earlier ones are taken back.
    async fn bind(&self, vm: &Vm, place: &Place, network: &Arc<Network>) -> Result<(), Vec<String>> {
        // The walls first: there is no moment in which the guest could speak without them.
        self.walls.bind(Guest::new(vm, network.clone())).map_err(|error| vec![error.to_string()])?;
        let bound = self.kernel.apply(For::Caller, plan::bind(vm, place, network)).await;
        let Err(Failed { applied, error }) = bound else { return Ok(()) };
        let mut errors = vec![error.to_string()];
        errors.extend(self.take_back(applied.iter().rev().filter_map(Step::undo).collect()).await);
        errors.extend(self.walls.unbind(&vm.vm_id).err().map(|error| error.to_string()));
        Err(errors)
    }

    /// Goes on past errors; all of them.
    async fn take_back(&self, undos: Vec<Undo>) -> Vec<String> {
        self.kernel.undo(For::Caller, undos).await.iter().map(ToString::to_string).collect()
    }

    async fn update(&self, request: UpdateVm) -> Result<Arc<Binding>, ManagerError> {
        let vm_id = request.vm_id;
        let _under_way = self.quiet.read().await;
        let _turn = self.turn(&vm_id).await;
        let Some(before) = self.registry.by_vm(&vm_id) else {
            return Err(ManagerError::NoVm { vm_id });
        };
        let rate_limit = request.rate_limit.over(before.vm.rate_limit);
        let rate_limit = rate_limit.map_err(|burst| ManagerError::BurstWithoutRate { burst: burst.kib() })?;
        let hostname = request.hostname.unwrap_or_else(|| before.vm.hostname.clone());
        let vm = Vm { hostname, rate_limit, ..before.vm.clone() };
        if vm == before.vm {
            return Ok(before);
        }
        self.store.update(vm.clone()).await?;
        if vm.rate_limit != before.vm.rate_limit
            && let Err(mut errors) = self.set_limit(&vm).await
        {
            errors.extend(self.set_limit(&before.vm).await.err().into_iter().flatten());
            errors.extend(self.store.update(before.vm.clone()).await.err().map(|error| error.to_string()));
            return Err(failed(&vm, &errors));
        }
        let binding = Arc::new(Binding::new(vm, before.network.clone()));
        self.registry.rebind(binding.clone());
        Ok(binding)
    }

    async fn set_limit(&self, vm: &Vm) -> Result<(), Vec<String>> {
        let place = self.pool.place(vm.slot).ok_or_else(|| vec!["its slot is gone".to_owned()])?;
        let set = self.kernel.apply(For::Caller, vec![plan::limit(vm, &place)]).await;
        set.map_err(|failure| vec![failure.to_string()])
    }

    async fn delete(&self, vm_id: &VmId) -> Result<(), ManagerError> {
        let _under_way = self.quiet.read().await;
        let (_turn, _call) = (self.turn(vm_id).await, self.pool.call());
        let Some(binding) = self.registry.by_vm(vm_id) else { return Ok(()) };
        let tap = self.end_of(&binding.vm).await?;
        // No more leases and names from here on.
        self.registry.unbind(vm_id);
        if let Err(error) = self.unbind(&binding).await {
            self.registry.bind(binding);
            return Err(error);
        }
        let connected = self.walls.forget(vm_id).unwrap_or_else(|error| {
            error!(%error, "a VM that is gone is still in the walls: restart guestnet");
            true
        });
        self.stats.end(vm_id);
        self.leases.forget(&binding.network.name, binding.vm.mac);
        self.pool.leave(&binding.vm, binding.network.clone(), tap, connected);
        self.admission().release(&binding.vm, Instant::now());
        self.tell(EventKind::Unbound, &binding);
        Ok(())
    }

    fn tell(&self, kind: EventKind, binding: &Binding) {
        let Vm { vm_id, network, address, mac, .. } = &binding.vm;
        self.events.send(kind, Some(vm_id), Some(network), format!("{address}, {mac}"));
    }

    /// Makes sure that no VMM uses the VM's TAP, or will: it is held by us until it is wiped. `None` when it is gone.
    async fn end_of(&self, vm: &Vm) -> Result<Option<HeldTap>, ManagerError> {
        self.kernel.hold_tap(vm.slot).await.map_err(|error| match error.is_busy() {
            true => ManagerError::TapInUse { vm_id: vm.vm_id.clone() },
            false => failed(vm, &[error.to_string()]),
        })
    }

    /// Unbinds the VM and forgets it, or leaves all as it was.
    async fn unbind(&self, binding: &Binding) -> Result<(), ManagerError> {
        let Binding { vm, network, .. } = binding;
        let place = self.pool.place(vm.slot);
        let undos = place.as_ref().map(|place| plan::unbind(vm, place, network)).unwrap_or_default();
        let errors = self.take_back(undos).await;
        let undone = if errors.is_empty() {
            self.store.remove(vm.vm_id.clone()).await.map(drop).map_err(ManagerError::from)
        } else {
            Err(failed(vm, &errors))
        };
        if let (Err(_), Some(place)) = (&undone, place)
            && let Err(Failed { error, .. }) =
                self.kernel.apply(For::Caller, plan::rebind(vm, &place, network)).await
        {
            error!(%error, "a VM that could not be deleted could not be bound again: delete it again");
        }
        undone
    }

    /// Waits until no other call is about this VM.
    async fn turn(&self, vm_id: &VmId) -> Turn<'_> {
        let lock = {
            let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
            in_hand.entry(vm_id.clone()).or_default().clone()
        };
        Turn { inner: self, vm_id: vm_id.clone(), _guard: lock.lock_owned().await }
    }

    // A panic while it was held cannot leave it half changed: what can fail comes before the first change.
    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while a call is about a VM; the last one to go takes the VM's lock out of the map.
struct Turn<'a> {
    inner: &'a Inner,
    vm_id: VmId,
    _guard: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut in_hand = self.inner.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        // One reference is the map's, one the guard's that goes right after this.
        if in_hand.get(&self.vm_id).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            in_hand.remove(&self.vm_id);
        }
    }
}

/// The binding a VM has, if the request asks for nothing else.
fn same(request: &CreateVm, binding: Arc<Binding>) -> Result<Arc<Binding>, ManagerError> {
    fn text(value: Option<&impl ToString>) -> Option<String> {
        value.map(ToString::to_string)
    }
    let vm = &binding.vm;
    let options = |options: Option<&DhcpOptions>| options.map(|options| format!("{options:?}"));
    let rate = |limit: Option<RateLimit>| limit.map_or(0, |limit| limit.rate.mbps()).to_string();
    let asked_rate = request.rate_limit.rate.map(|rate| match rate {
        Rate::Unlimited => "0".to_owned(),
        Rate::Limited(rate) => rate.mbps().to_string(),
    });
    let burst = vm.rate_limit.map(|limit| limit.burst().kib().to_string());
    let facts = [
        ("network_id", text(Some(&vm.network)), text(request.network.as_ref())),
        ("workspace_id", text(vm.workspace.as_ref()), text(request.workspace.as_ref())),
        ("ip_address", text(Some(&vm.address)), text(request.address.as_ref())),
        ("mac_address", text(Some(&vm.mac)), text(request.mac.as_ref())),
        ("hostname", text(Some(&vm.hostname)), text(request.hostname.as_ref())),
        ("rate_limit_mbps", Some(rate(vm.rate_limit)), asked_rate),
        ("burst_kib", burst, request.rate_limit.burst.map(|burst| burst.kib().to_string())),
        ("tap_uid", text(vm.tap.uid.as_ref()), text(request.tap.uid.as_ref())),
        ("tap_gid", text(vm.tap.gid.as_ref()), text(request.tap.gid.as_ref())),
        ("tap_multi_queue", text(Some(&vm.tap.multi_queue)), text(request.tap.multi_queue.as_ref())),
        ("tap_offload", text(Some(&vm.tap.offload)), text(request.tap.offload.as_ref())),
        ("dhcp_options", options(Some(&vm.dhcp_options)), options(request.dhcp_options.as_ref())),
    ];
    for (field, has, asked) in facts {
        if let Some(asked) = asked
            && has.as_ref() != Some(&asked)
        {
            let has = has.unwrap_or_else(|| "unset".into());
            return Err(ManagerError::Differs { vm_id: vm.vm_id.clone(), field, has, asked });
        }
    }
    Ok(binding)
}

fn failed(vm: &Vm, errors: &[String]) -> ManagerError {
    ManagerError::Kernel { vm_id: vm.vm_id.clone(), what: errors.join("; then ") }
}

fn join<T>(result: Result<Result<T, ManagerError>, tokio::task::JoinError>) -> Result<T, ManagerError> {
    result.unwrap_or_else(|error| {
        if error.is_panic() {
            error!(%error, "a call about a VM panicked: please report this");
        }
        Err(ManagerError::Stopping)
    })
}

fn microseconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

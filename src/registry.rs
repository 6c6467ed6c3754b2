//! What is bound right now: one cloneable view that the API writes and DHCP and DNS read. In: VMs and reservations as they
//! come and go. Out: a VM's binding by id; what a network has reserved, by MAC, by address or by host name. All of it is
//! live for every reader when the call that changed it returns.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::{
    DhcpOptions, GuestNet, Hostname, Mac, Network, NetworkName, Reservation, Slot, Vm, VmId, WorkspaceId,
};

/// A VM on its network, with what its guest is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub vm: Vm,
    pub network: Arc<Network>,
    pub guest: GuestNet,
}

impl Binding {
    pub fn new(vm: Vm, network: Arc<Network>) -> Self {
        let guest = GuestNet::new(&network, &vm);
        Self { vm, network, guest }
    }
}

/// An address that is reserved for a MAC, with all that its guest is told: what DHCP and DNS answer from, whether a VM
/// has it or a client on plumbing that is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub network: Arc<Network>,
    pub guest: GuestNet,
    /// The guest's own, beside its network's.
    pub options: DhcpOptions,
    /// The VM that has it; none on external plumbing.
    pub vm_id: Option<VmId>,
    /// The VM's tenant.
    pub workspace: Option<WorkspaceId>,
}

impl Reserved {
    pub fn of_vm(binding: &Binding) -> Self {
        Self {
            network: binding.network.clone(),
            guest: binding.guest.clone(),
            options: binding.vm.dhcp_options.clone(),
            vm_id: Some(binding.vm.vm_id.clone()),
            workspace: binding.vm.workspace.clone(),
        }
    }

    pub fn of_client(reservation: Reservation, network: Arc<Network>) -> Self {
        let Reservation { mac, address, hostname, options, .. } = reservation;
        let guest = GuestNet::of(&network, mac, address, hostname, &options);
        Self { network, guest, options, vm_id: None, workspace: None }
    }
}

#[derive(Debug, Default)]
struct Tables {
    by_vm: BTreeMap<VmId, Arc<Binding>>,
    by_slot: HashMap<Slot, Arc<Binding>>,
    networks: HashMap<NetworkName, Names>,
}

impl Tables {
    fn bind(&mut self, binding: Arc<Binding>) {
        let names = self.networks.entry(binding.vm.network.clone()).or_default();
        names.add(Arc::new(Reserved::of_vm(&binding)));
        self.by_slot.insert(binding.vm.slot, binding.clone());
        self.by_vm.insert(binding.vm.vm_id.clone(), binding);
    }

    fn unbind(&mut self, vm_id: &VmId) -> Option<Arc<Binding>> {
        let binding = self.by_vm.remove(vm_id)?;
        self.by_slot.remove(&binding.vm.slot);
        if let Some(names) = self.networks.get_mut(&binding.vm.network) {
            names.remove(binding.vm.mac);
        }
        Some(binding)
    }
}

/// What one network has reserved.
#[derive(Debug, Default)]
struct Names {
    by_mac: HashMap<Mac, Arc<Reserved>>,
    by_address: HashMap<Ipv4Addr, Arc<Reserved>>,
    by_hostname: HashMap<Hostname, Vec<Arc<Reserved>>>,
    /// By vm_id in lower case, as DNS compares names (RFC 4343): ids that differ in case only share an entry.
    by_vm_label: HashMap<String, Vec<Arc<Reserved>>>,
}

impl Names {
    fn add(&mut self, reserved: Arc<Reserved>) {
        let guest = &reserved.guest;
        self.by_mac.insert(guest.mac, reserved.clone());
        self.by_address.insert(guest.address, reserved.clone());
        self.by_hostname.entry(guest.hostname.clone()).or_default().push(reserved.clone());
        if let Some(label) = vm_label(&reserved) {
            self.by_vm_label.entry(label).or_default().push(reserved);
        }
    }

    fn remove(&mut self, mac: Mac) -> Option<Arc<Reserved>> {
        let reserved = self.by_mac.remove(&mac)?;
        self.by_address.remove(&reserved.guest.address);
        forget(&mut self.by_hostname, &reserved.guest.hostname, mac);
        if let Some(label) = vm_label(&reserved) {
            forget(&mut self.by_vm_label, &label, mac);
        }
        Some(reserved)
    }
}

/// The live bindings and reservations of every network. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    tables: RwLock<Tables>,
    generation: AtomicU64,
}

impl Registry {
    /// Puts `binding` in the place of its VM's present one: no reader finds none.
    pub fn rebind(&self, binding: Arc<Binding>) {
        let mut tables = self.write();
        tables.unbind(&binding.vm.vm_id);
        tables.bind(binding);
    }

    /// Gives `network` in the place of the one of its name to all that is bound or reserved there: no reader finds none.
    pub fn relink(&self, network: &Arc<Network>) {
        let mut tables = self.write();
        let vms: Vec<Vm> = tables.by_vm.values().map(|binding| binding.vm.clone()).collect();
        for vm in vms.into_iter().filter(|vm| vm.network == network.name) {
            tables.unbind(&vm.vm_id);
            tables.bind(Arc::new(Binding::new(vm, network.clone())));
        }
        let Some(names) = tables.networks.get_mut(&network.name) else { return };
        let clients = names.by_mac.values().filter(|reserved| reserved.vm_id.is_none());
        let clients: Vec<Arc<Reserved>> = clients.cloned().collect();
        for client in clients {
            names.remove(client.guest.mac);
            let GuestNet { mac, address, ref hostname, .. } = client.guest;
            let guest = GuestNet::of(network, mac, address, hostname.clone(), &client.options);
            names.add(Arc::new(Reserved { network: network.clone(), guest, ..(*client).clone() }));
        }
    }

    /// Makes `binding` visible. The caller has made sure that no other VM has its MAC or address; host names may repeat.
    pub fn bind(&self, binding: Arc<Binding>) {
        self.write().bind(binding);
    }

    /// Hides what DHCP and DNS know of a VM that is being unbound; who asks for it by its id finds it until it is `unbind`ed, or
    /// all of it when it is bound again.
    pub fn silence(&self, vm_id: &VmId) {
        let mut tables = self.write();
        if let Some(binding) = tables.unbind(vm_id) {
            tables.by_vm.insert(vm_id.clone(), binding);
        }
    }

    /// Hides a VM from every reader; what it was, if it was bound.
    pub fn unbind(&self, vm_id: &VmId) -> Option<Arc<Binding>> {
        self.write().unbind(vm_id)
    }

    /// Makes reservations visible, all at once. The caller has made sure that their MACs and addresses are free.
    pub fn reserve(&self, reservations: impl IntoIterator<Item = Arc<Reserved>>) {
        let mut tables = self.write();
        for reserved in reservations {
            tables.networks.entry(reserved.network.name.clone()).or_default().add(reserved);
        }
    }

    /// Hides what is reserved for `mac`; what it was.
    pub fn unreserve(&self, network: &NetworkName, mac: Mac) -> Option<Arc<Reserved>> {
        self.write().networks.get_mut(network)?.remove(mac)
    }

    /// Another number with every change, so that a reader who keeps a copy knows when to look again.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    pub fn by_vm(&self, vm_id: &VmId) -> Option<Arc<Binding>> {
        self.read().by_vm.get(vm_id).cloned()
    }

    /// The VM whose network is in a slot.
    pub fn by_slot(&self, slot: Slot) -> Option<Arc<Binding>> {
        self.read().by_slot.get(&slot).cloned()
    }

    /// What `network` has reserved for `mac`.
    pub fn by_mac(&self, network: &NetworkName, mac: Mac) -> Option<Arc<Reserved>> {
        self.read().networks.get(network)?.by_mac.get(&mac).cloned()
    }

    pub fn by_address(&self, network: &NetworkName, address: Ipv4Addr) -> Option<Arc<Reserved>> {
        self.read().networks.get(network)?.by_address.get(&address).cloned()
    }

    /// Those of that name, first reserved first.
    pub fn by_hostname(&self, network: &NetworkName, hostname: &Hostname) -> Vec<Arc<Reserved>> {
        let tables = self.read();
        let names = tables.networks.get(network);
        names.and_then(|names| names.by_hostname.get(hostname)).cloned().unwrap_or_default()
    }

    /// The VMs whose id is `label` in lower case, first bound first.
    pub fn by_vm_label(&self, network: &NetworkName, label: &str) -> Vec<Arc<Reserved>> {
        let tables = self.read();
        let names = tables.networks.get(network);
        names.and_then(|names| names.by_vm_label.get(label)).cloned().unwrap_or_default()
    }

    /// Every binding, ordered by vm_id.
    pub fn all(&self) -> Vec<Arc<Binding>> {
        self.read().by_vm.values().cloned().collect()
    }

    /// The same without those of VMs that are being unbound.
    pub fn live(&self) -> Vec<Arc<Binding>> {
        let tables = self.read();
        let is_live = |binding: &&Arc<Binding>| tables.by_slot.contains_key(&binding.vm.slot);
        tables.by_vm.values().filter(is_live).cloned().collect()
    }

    /// Everything that `network` has reserved, by address.
    pub fn reserved(&self, network: &NetworkName) -> Vec<Arc<Reserved>> {
        let tables = self.read();
        let names = tables.networks.get(network);
        let mut reserved: Vec<_> =
            names.map(|names| names.by_address.values().cloned().collect()).unwrap_or_default();
        reserved.sort_unstable_by_key(|reserved: &Arc<Reserved>| reserved.guest.address);
        reserved
    }

    // A panic while the lock was held cannot leave the tables half written: each holder only inserts and removes.
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        let tables = self.0.tables.write().unwrap_or_else(PoisonError::into_inner);
        // While the lock is held: who sees the new number waits for the change.
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        tables
    }
}

fn vm_label(reserved: &Reserved) -> Option<String> {
    reserved.vm_id.as_ref().map(|vm_id| vm_id.as_str().to_ascii_lowercase())
}

fn forget<K: Eq + Hash>(index: &mut HashMap<K, Vec<Arc<Reserved>>>, key: &K, mac: Mac) {
    if let Some(namesakes) = index.get_mut(key) {
        namesakes.retain(|other| other.guest.mac != mac);
        if namesakes.is_empty() {
            index.remove(key);
        }
    }
}

//! What is bound right now: one cloneable view that the API writes and DHCP and DNS read. In: VMs as they are bound and
//! unbound. Out: a binding by VM, by MAC, by address or by host name. A binding is live for every reader when `bind` returns.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::{GuestNet, Hostname, Mac, Network, NetworkName, Vm, VmId};

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

#[derive(Debug, Default)]
struct Tables {
    by_vm: BTreeMap<VmId, Arc<Binding>>,
    by_mac: HashMap<Mac, Arc<Binding>>,
    by_address: HashMap<(NetworkName, Ipv4Addr), Arc<Binding>>,
    by_hostname: HashMap<(NetworkName, Hostname), Vec<Arc<Binding>>>,
    /// By vm_id in lower case, as DNS compares names (RFC 4343): ids that differ in case only share an entry.
    by_vm_label: HashMap<(NetworkName, String), Vec<Arc<Binding>>>,
}

/// The live bindings of every network. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<RwLock<Tables>>);

impl Registry {
    /// Makes `binding` visible. The caller has made sure that no other VM has its MAC or address; host names may repeat.
    pub fn bind(&self, binding: Arc<Binding>) {
        let network = &binding.vm.network;
        let mut tables = self.write();
        tables.by_mac.insert(binding.vm.mac, binding.clone());
        tables.by_address.insert((network.clone(), binding.vm.address), binding.clone());
        let name = (network.clone(), binding.vm.hostname.clone());
        tables.by_hostname.entry(name).or_default().push(binding.clone());
        tables.by_vm_label.entry(vm_label(&binding)).or_default().push(binding.clone());
        tables.by_vm.insert(binding.vm.vm_id.clone(), binding.clone());
    }

    /// Hides a VM from every reader; what it was, if it was bound.
    pub fn unbind(&self, vm_id: &VmId) -> Option<Arc<Binding>> {
        let mut tables = self.write();
        let binding = tables.by_vm.remove(vm_id)?;
        let network = &binding.vm.network;
        tables.by_mac.remove(&binding.vm.mac);
        tables.by_address.remove(&(network.clone(), binding.vm.address));
        let name = (network.clone(), binding.vm.hostname.clone());
        forget(&mut tables.by_hostname, &name, vm_id);
        forget(&mut tables.by_vm_label, &vm_label(&binding), vm_id);
        Some(binding)
    }

    pub fn by_vm(&self, vm_id: &VmId) -> Option<Arc<Binding>> {
        self.read().by_vm.get(vm_id).cloned()
    }

    /// MACs are unique on the host, over all networks.
    pub fn by_mac(&self, mac: Mac) -> Option<Arc<Binding>> {
        self.read().by_mac.get(&mac).cloned()
    }

    pub fn by_address(&self, network: &NetworkName, address: Ipv4Addr) -> Option<Arc<Binding>> {
        self.read().by_address.get(&(network.clone(), address)).cloned()
    }

    /// The VMs of that name, first bound first.
    pub fn by_hostname(&self, network: &NetworkName, hostname: &Hostname) -> Vec<Arc<Binding>> {
        self.read().by_hostname.get(&(network.clone(), hostname.clone())).cloned().unwrap_or_default()
    }

    /// The VMs whose id is `label` in lower case, first bound first.
    pub fn by_vm_label(&self, network: &NetworkName, label: &str) -> Vec<Arc<Binding>> {
        self.read().by_vm_label.get(&(network.clone(), label.to_owned())).cloned().unwrap_or_default()
    }

    /// Every binding, ordered by vm_id.
    pub fn all(&self) -> Vec<Arc<Binding>> {
        self.read().by_vm.values().cloned().collect()
    }

    // A panic while the lock was held cannot leave the tables half written: each holder only inserts and removes.
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn vm_label(binding: &Binding) -> (NetworkName, String) {
    (binding.vm.network.clone(), binding.vm.vm_id.as_str().to_ascii_lowercase())
}

fn forget<K: Eq + Hash>(index: &mut HashMap<K, Vec<Arc<Binding>>>, key: &K, vm_id: &VmId) {
    if let Some(namesakes) = index.get_mut(key) {
        namesakes.retain(|other| other.vm.vm_id != *vm_id);
        if namesakes.is_empty() {
            index.remove(key);
        }
    }
}

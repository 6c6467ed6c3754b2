//! What the walls are to hold: guests, policies, port forwards; and what changes in nf_tables when one of them does. Pure:
//! a change in, the fewest kernel changes out, in the order that they have to be made in, to be carried out as one batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::compile::{Compiled, compile, egress_chain, ingress_chain};
use super::nft::{Chain, Element, Key, Table, TableName, Verdict};
use super::ruleset::{self, BRIDGE, INET};
use crate::model::{Action, HostSide, IfName, Mac, Network, NetworkName, PortForward, Vm, VmId, WorkspaceId};
use crate::policy::{Peer, Policy, Scope};

/// One change to our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Add(TableName, &'static str, Vec<Element>),
    Remove(TableName, &'static str, Vec<Element>),
    NewChain(TableName, Chain),
    RemoveChain(TableName, String),
}

impl Change {
    /// Whether it says which policy is a guest's.
    pub fn leads_guests(&self) -> bool {
        matches!(self, Self::Add(_, "policy_of", _) | Self::Remove(_, "policy_of", _))
    }
}

/// A VM as the walls see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub vm_id: VmId,
    pub port: IfName,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub network: Arc<Network>,
    pub workspace: Option<WorkspaceId>,
}

impl Guest {
    pub fn new(vm: &Vm, network: Arc<Network>) -> Self {
        Self {
            vm_id: vm.vm_id.clone(),
            port: vm.slot.host_device(),
            mac: vm.mac,
            address: vm.address,
            network,
            workspace: vm.workspace.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    policy: Arc<Policy>,
    compiled: Arc<Compiled>,
    id: u32,
}

#[derive(Debug, Default)]
pub struct Book {
    networks: Vec<Arc<Network>>,
    guests: BTreeMap<VmId, Guest>,
    by_address: HashMap<Ipv4Addr, VmId>,
    by_workspace: HashMap<WorkspaceId, BTreeSet<VmId>>,
    policies: BTreeMap<Scope, Held>,
    /// Numbers of the policies that have chains, with how many policies share them.
    chains: HashMap<Arc<Compiled>, (u32, usize)>,
    last_policy: u32,
    forwards: BTreeSet<PortForward>,
    workspaces: HashMap<WorkspaceId, u32>,
    /// Workspaces whose guests reach each other, by network.
    sharing: HashMap<(NetworkName, WorkspaceId), u32>,
}

fn number<K: std::hash::Hash + Eq + Clone>(numbers: &mut HashMap<K, u32>, key: &K) -> u32 {
    // Fewer than there are VMs and policies.
    let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    *numbers.entry(key.clone()).or_insert(next)
}

impl Book {
    pub fn new(networks: &[Arc<Network>]) -> Self {
        Self { networks: networks.to_vec(), ..Self::default() }
    }

    /// Another of the same networks with nothing in it.
    pub fn emptied(&self) -> Self {
        Self::new(&self.networks)
    }

    /// A bridge more of a network, which is one of those that there are.
    pub fn open_bridge(&self, network: &NetworkName, bridge: &IfName) -> Vec<Change> {
        let elements = self.of_bridge(network, bridge);
        elements.map(|(set, element)| Change::Add(INET, set, vec![element])).collect()
    }

    /// The same back.
    pub fn close_bridge(&self, network: &NetworkName, bridge: &IfName) -> Vec<Change> {
        let elements = self.of_bridge(network, bridge);
        elements.map(|(set, element)| Change::Remove(INET, set, vec![element])).collect()
    }

    fn of_bridge(
        &self,
        network: &NetworkName,
        bridge: &IfName,
    ) -> impl Iterator<Item = (&'static str, Element)> {
        let found = self.networks.iter().enumerate().find(|(_, known)| known.name == *network);
        found.map(|(at, network)| ruleset::inet::of_bridge(at, network, bridge)).into_iter().flatten()
    }

    /// The tables as they are without bridges, guests, policies and forwards.
    pub fn empty_tables(&self) -> [Table; 2] {
        let networks = || self.networks.iter().map(AsRef::as_ref);
        [ruleset::bridge::table(networks()), ruleset::inet::table(networks())]
    }

    pub fn guest(&self, vm_id: &VmId) -> Option<&Guest> {
        self.guests.get(vm_id)
    }

    pub fn guest_at(&self, address: Ipv4Addr) -> Option<&Guest> {
        self.guests.get(self.by_address.get(&address)?)
    }

    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    pub fn policy(&self, scope: &Scope) -> Option<&Arc<Policy>> {
        Some(&self.policies.get(scope)?.policy)
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().map(|held| &held.policy)
    }

    /// The number of the chains that a policy is in.
    pub fn policy_number(&self, scope: &Scope) -> Option<u32> {
        Some(self.policies.get(scope)?.id)
    }

    pub fn forwards(&self) -> impl Iterator<Item = &PortForward> {
        self.forwards.iter()
    }

    /// A guest as the pure verdict needs it.
    pub fn peer<'a>(&'a self, guest: &'a Guest) -> Peer<'a> {
        Peer {
            vm_id: &guest.vm_id,
            network: &guest.network,
            workspace: guest.workspace.as_ref(),
            policy: self.held(guest).map(|held| held.policy.as_ref()),
        }
    }

    /// The VM's own policy, else its workspace's.
    fn held(&self, guest: &Guest) -> Option<&Held> {
        let own = self.policies.get(&Scope::Vm(guest.vm_id.clone()));
        own.or_else(|| self.policies.get(&Scope::Workspace(guest.workspace.clone()?)))
    }

    /// Every guest that a policy of this scope decides for.
    pub fn governed(&self, scope: &Scope) -> Vec<&Guest> {
        let candidates: Vec<&Guest> = match scope {
            Scope::Vm(vm_id) => self.guests.get(vm_id).into_iter().collect(),
            Scope::Workspace(workspace) => {
                let ids = self.by_workspace.get(workspace).into_iter().flatten();
                ids.filter_map(|vm_id| self.guests.get(vm_id)).collect()
            }
        };
        let own = |guest: &&Guest| {
            matches!(scope, Scope::Vm(_)) || !self.policies.contains_key(&Scope::Vm(guest.vm_id.clone()))
        };
        candidates.into_iter().filter(own).collect()
    }

    /// Takes a guest in. The caller has made sure that no other has its port or address.
    pub fn bind(&mut self, guest: Guest) -> Vec<Change> {
        self.by_address.insert(guest.address, guest.vm_id.clone());
        if let Some(workspace) = &guest.workspace {
            self.by_workspace.entry(workspace.clone()).or_default().insert(guest.vm_id.clone());
        }
        let vm_id = guest.vm_id.clone();
        self.guests.insert(vm_id.clone(), guest);
        self.of_guest(&vm_id)
            .into_iter()
            .map(|(table, set, element)| Change::Add(table, set, vec![element]))
            .collect()
    }

    /// Lets a guest go; nothing for one that is not there.
    pub fn unbind(&mut self, vm_id: &VmId) -> Vec<Change> {
        let elements = self.of_guest(vm_id);
        let Some(guest) = self.guests.remove(vm_id) else { return Vec::new() };
        self.by_address.remove(&guest.address);
        if let Some(workspace) = &guest.workspace
            && let Some(others) = self.by_workspace.get_mut(workspace)
        {
            others.remove(vm_id);
            if others.is_empty() {
                self.by_workspace.remove(workspace);
            }
        }
        elements.into_iter().map(|(table, set, element)| Change::Remove(table, set, vec![element])).collect()
    }

    /// All that the tables hold for one guest.
    fn of_guest(&mut self, vm_id: &VmId) -> Vec<(TableName, &'static str, Element)> {
        let Some(guest) = self.guests.get(vm_id) else { return Vec::new() };
        let (port, address) = (Key::new().if_name(guest.port.as_str()), Key::new().address(guest.address));
        let mac = port.clone().mac(guest.mac);
        let network = self.networks.iter().position(|network| network.name == guest.network.name);
        let mut elements = vec![
            (BRIDGE, "bindings", Element::of(mac.clone().address(guest.address))),
            (BRIDGE, "macs", Element::to_data(mac, ruleset::id(network.unwrap_or_default()))),
            (BRIDGE, "drops", Element::of(port)),
            (INET, "drops", Element::of(address.clone())),
        ];
        if let Some(workspace) = &guest.workspace {
            let id = Key::new().id(number(&mut self.workspaces, workspace));
            elements.push((INET, "workspace_of", Element::to_data(address.clone(), id)));
            if guest.network.walls.intra_workspace == Action::Allow {
                let group = (guest.network.name.clone(), workspace.clone());
                let group = Key::new().id(number(&mut self.sharing, &group));
                elements.push((INET, "sharing", Element::to_data(address.clone(), group.clone())));
                elements.push((INET, "members", Element::of(group.address(guest.address))));
            }
        }
        elements.extend(self.held(guest).map(|held| policy_of(guest, held.id)));
        let forwards: Vec<&PortForward> = self.forwards.iter().filter(|f| f.vm_id == *vm_id).collect();
        if !forwards.is_empty() {
            elements.push(hairpin(guest));
        }
        elements.extend(forwards.into_iter().map(|forward| leads_to(forward, guest.address)));
        elements
    }

    /// Puts `policy` in the place of what its scope had; `None` takes that away.
    pub fn set_policy(&mut self, scope: &Scope, policy: Option<Arc<Policy>>) -> Vec<Change> {
        let before: Vec<(Guest, Option<u32>)> = self
            .reached(scope)
            .into_iter()
            .map(|guest| (guest.clone(), self.held(guest).map(|held| held.id)))
            .collect();
        let mut changes = Vec::new();
        let old = self.policies.remove(scope);
        if let Some(policy) = policy {
            let workspaces = &mut self.workspaces;
            let compiled = Arc::new(compile(&policy, |workspace| number(workspaces, workspace)));
            let (id, new) = self.share(&compiled);
            if new {
                changes.extend(compiled.chains(id).map(|chain| Change::NewChain(INET, chain)));
                changes.extend(jumps(id).map(|(map, element)| Change::Add(INET, map, vec![element])));
            }
            self.policies.insert(scope.clone(), Held { policy, compiled, id });
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (guest, had) in before {
            let has = self.held(&guest).map(|held| held.id);
            if had != has {
                gone.extend(had.map(|id| policy_of(&guest, id).2));
                come.extend(has.map(|id| policy_of(&guest, id).2));
            }
        }
        let changed = [(Change::Remove as fn(_, _, _) -> _, gone), (Change::Add as fn(_, _, _) -> _, come)];
        changes.extend(
            changed
                .into_iter()
                .filter(|(_, elements)| !elements.is_empty())
                .map(|(change, elements)| change(INET, "policy_of", elements)),
        );
        if let Some(old) = old
            && self.unshare(&old.compiled)
        {
            changes.extend(jumps(old.id).map(|(map, element)| Change::Remove(INET, map, vec![element])));
            let chains = [egress_chain(old.id), ingress_chain(old.id)];
            changes.extend(chains.map(|chain| Change::RemoveChain(INET, chain)));
        }
        changes
    }

    /// Every guest whose policy may change with this scope's.
    fn reached(&self, scope: &Scope) -> Vec<&Guest> {
        match scope {
            Scope::Vm(vm_id) => self.guests.get(vm_id).into_iter().collect(),
            Scope::Workspace(_) => self.governed(scope),
        }
    }

    /// The number of the chains with these rules, and whether they have to be made.
    fn share(&mut self, compiled: &Arc<Compiled>) -> (u32, bool) {
        if let Some((id, users)) = self.chains.get_mut(compiled) {
            *users += 1;
            return (*id, false);
        }
        // Numbers come back only after four thousand million policies.
        self.last_policy = self.last_policy.wrapping_add(1);
        self.chains.insert(compiled.clone(), (self.last_policy, 1));
        (self.last_policy, true)
    }

    /// Whether nobody needs the chains any more.
    fn unshare(&mut self, compiled: &Arc<Compiled>) -> bool {
        let Some((_, users)) = self.chains.get_mut(compiled) else { return false };
        *users -= 1;
        let last = *users == 0;
        if last {
            self.chains.remove(compiled);
        }
        last
    }

    /// Adds a forward. The caller has looked for clashes.
    pub fn add_forward(&mut self, forward: PortForward) -> Vec<Change> {
        let Some(guest) = self.guests.get(&forward.vm_id) else { return Vec::new() };
        let first = !self.forwards.iter().any(|other| other.vm_id == forward.vm_id);
        let mut elements = vec![leads_to(&forward, guest.address)];
        elements.extend(first.then(|| hairpin(guest)));
        self.forwards.insert(forward);
        elements.into_iter().map(|(table, set, element)| Change::Add(table, set, vec![element])).collect()
    }

    /// Takes a forward away; nothing for one that is not there.
    pub fn remove_forward(&mut self, forward: &PortForward) -> Vec<Change> {
        if !self.forwards.remove(forward) {
            return Vec::new();
        }
        let Some(guest) = self.guests.get(&forward.vm_id) else { return Vec::new() };
        let last = !self.forwards.iter().any(|other| other.vm_id == forward.vm_id);
        let mut elements = vec![leads_to(forward, guest.address)];
        elements.extend(last.then(|| hairpin(guest)));
        elements.into_iter().map(|(table, set, element)| Change::Remove(table, set, vec![element])).collect()
    }

    /// Forgets what belongs to a VM alone, when it is no more.
    pub fn forget(&mut self, vm_id: &VmId) -> Vec<Change> {
        let mut changes = self.unbind(vm_id);
        self.forwards.retain(|forward| forward.vm_id != *vm_id);
        changes.extend(self.set_policy(&Scope::Vm(vm_id.clone()), None));
        changes
    }
}

fn policy_of(guest: &Guest, id: u32) -> (TableName, &'static str, Element) {
    (INET, "policy_of", Element::to_data(Key::new().address(guest.address), Key::new().id(id)))
}

/// From a policy's number to its chains.
fn jumps(id: u32) -> [(&'static str, Element); 2] {
    let jump = |chain| Element::to_verdict(Key::new().id(id), Verdict::Jump(chain));
    [("egress", jump(egress_chain(id))), ("ingress", jump(ingress_chain(id)))]
}

fn hairpin(guest: &Guest) -> (TableName, &'static str, Element) {
    (INET, "hairpin", Element::of(Key::new().address(guest.address).address(guest.address)))
}

fn leads_to(forward: &PortForward, address: Ipv4Addr) -> (TableName, &'static str, Element) {
    let port = |key: Key| key.protocol(forward.protocol.number()).port(forward.host_port);
    let (map, key) = match &forward.at {
        HostSide::Everywhere => ("forwards", port(Key::new())),
        HostSide::Address(at) => ("forwards_at", port(Key::new().address(*at))),
        HostSide::Uplink(device) => ("forwards_by", port(Key::new().if_name(device.as_str()))),
    };
    (INET, map, Element::to_data(key, Key::new().address(address).port(forward.vm_port)))
}

/// The tables with `changes` made to them, for what is put in place whole.
pub fn carry_out(tables: &mut [Table; 2], changes: Vec<Change>) {
    let of =
        |tables: &mut [Table; 2], name: TableName| -> usize { usize::from(tables[0].family != name.family) };
    for change in changes {
        match change {
            Change::Add(table, set, elements) => {
                let at = of(tables, table);
                if let Some(set) = tables[at].sets.iter_mut().find(|other| other.name == set) {
                    set.elements.extend(elements);
                }
            }
            Change::Remove(table, set, elements) => {
                let at = of(tables, table);
                if let Some(set) = tables[at].sets.iter_mut().find(|other| other.name == set) {
                    set.elements.retain(|element| !elements.iter().any(|gone| gone.key == element.key));
                }
            }
            Change::NewChain(table, chain) => {
                let at = of(tables, table);
                tables[at].chains.push(chain);
            }
            Change::RemoveChain(table, name) => {
                let at = of(tables, table);
                tables[at].chains.retain(|chain| chain.name != name);
            }
        }
    }
}

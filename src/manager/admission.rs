//! Who gets what: a request becomes a VM with an address and a MAC of its own, or is refused by name. Pure: the
//! clocks are arguments.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use super::{CreateVm, ManagerError, NetworkStatus};
use crate::ipam::{Ipam, IpamError, QUARANTINE};
use crate::model::{Hostname, Mac, Network, NetworkName, Plumbing, RateLimit, Slot, Vm, VmId};

/// What is given out, over all networks of the host.
#[derive(Debug)]
pub(super) struct Admission {
    networks: Vec<Pool>,
    macs: HashMap<Mac, VmId>,
}

/// A VM that lacks nothing but its slot.
#[derive(Debug)]
pub(super) struct Admitted(Vm);

impl Admitted {
    pub(super) fn network(&self) -> &NetworkName {
        &self.0.network
    }

    pub(super) fn multi_queue(&self) -> bool {
        self.0.tap.multi_queue
    }

    pub(super) fn on(self, slot: Slot) -> Vm {
        Vm { slot, ..self.0 }
    }
}

#[derive(Debug)]
struct Pool {
    network: Arc<Network>,
    /// Of VMs to come that ask for none. Slots that wait have the network's own, as it was at the start.
    default_limit: Option<RateLimit>,
    addresses: Ipam,
    holders: HashMap<Ipv4Addr, VmId>,
}

impl Admission {
    /// `networks` in the order of the configuration: the first is the default.
    pub(super) fn new(networks: &[Arc<Network>]) -> Self {
        let pools = networks.iter().map(|network| Pool {
            network: network.clone(),
            default_limit: network.rate_limit,
            addresses: Ipam::new(network.subnet, network.gateway, &network.reserved, QUARANTINE),
            holders: HashMap::new(),
        });
        Self { networks: pools.collect(), macs: HashMap::new() }
    }

    /// Takes over what may change while guests run; the networks of which their guests are told something else from now on.
    pub(super) fn adjust(&mut self, configured: &[Arc<Network>]) -> Vec<Arc<Network>> {
        let mut changed = Vec::new();
        for pool in &mut self.networks {
            let Some(new) = configured.iter().find(|new| new.name == pool.network.name) else { continue };
            pool.default_limit = new.rate_limit;
            let adjusted = pool.network.with_live(new);
            if adjusted != *pool.network {
                pool.network = Arc::new(adjusted);
                changed.push(pool.network.clone());
            }
        }
        changed
    }

    pub(super) fn network(&self, name: &NetworkName) -> Result<Arc<Network>, ManagerError> {
        match self.networks.iter().find(|pool| pool.network.name == *name) {
            Some(pool) => Ok(pool.network.clone()),
            None => Err(self.unknown(name)),
        }
    }

    /// The VM that `request` asks for; what it got is taken until `release` or `put_back`. Of addresses that it does not name, those
    /// alone that `may_be_clean`.
    pub(super) fn admit(
        &mut self,
        request: CreateVm,
        now: Instant,
        created_at_us: i64,
        may_be_clean: impl Fn(&NetworkName, Ipv4Addr) -> bool,
    ) -> Result<Admitted, ManagerError> {
        let index = match &request.network {
            Some(name) => self.index(name)?,
            None => 0,
        };
        let pool = &mut self.networks[index];
        if pool.network.plumbing == Plumbing::External {
            return Err(ManagerError::External { network: pool.network.name.clone() });
        }
        let rate_limit = request.rate_limit.over(pool.default_limit);
        let rate_limit = rate_limit.map_err(|burst| ManagerError::BurstWithoutRate { burst: burst.kib() })?;
        if let Some(mac) = request.mac
            && let Some(by) = self.macs.get(&mac)
        {
            return Err(ManagerError::MacTaken { mac, by: by.clone() });
        }
        let name = pool.network.name.clone();
        let fits = |address| {
            let mac_is_free = request.mac.is_some() || !self.macs.contains_key(&Mac::for_address(address));
            mac_is_free && may_be_clean(&name, address)
        };
        let address = match request.address {
            Some(address) => pool.take(address)?,
            None => pool.next_whose(now, fits)?,
        };
        let mac = request.mac.unwrap_or_else(|| Mac::for_address(address));
        if let Some(by) = self.macs.get(&mac) {
            let by = by.clone();
            pool.addresses.put_back(address);
            return Err(ManagerError::MacTaken { mac, by });
        }
        let vm = Vm {
            hostname: request.hostname.unwrap_or_else(|| Hostname::for_vm(&request.vm_id)),
            vm_id: request.vm_id,
            network: pool.network.name.clone(),
            workspace: request.workspace,
            slot: Slot(0),
            mac,
            address,
            rate_limit,
            tap: request.tap.into(),
            created_at_us,
            dhcp_options: request.dhcp_options.unwrap_or_default(),
        };
        self.hold(index, &vm);
        Ok(Admitted(vm))
    }

    /// Takes what a stored VM has; it was admitted before.
    pub(super) fn readmit(&mut self, vm: &Vm) -> Result<Arc<Network>, ManagerError> {
        let index = self.index(&vm.network)?;
        let pool = &mut self.networks[index];
        // One that has been reserved since stays the VM's as long as that lasts.
        if !pool.network.is_reserved(vm.address) {
            pool.take(vm.address)?;
        }
        self.hold(index, vm);
        Ok(self.networks[index].network.clone())
    }

    /// Lets an address that a VM had before this start rest for what is left of its quarantine. One that is no guest's any
    /// more has nothing to rest for.
    pub(super) fn rest(&mut self, network: &NetworkName, address: Ipv4Addr, freed_at: Instant) {
        if let Some(pool) = self.networks.iter_mut().find(|pool| pool.network.name == *network)
            && pool.addresses.allocate(address).is_ok()
        {
            pool.addresses.free(address, freed_at);
        }
    }

    /// Gives back what no guest has had: its address is as it was before.
    pub(super) fn put_back(&mut self, vm: &Vm) {
        self.macs.remove(&vm.mac);
        if let Some(pool) = self.networks.iter_mut().find(|pool| pool.network.name == vm.network) {
            pool.holders.remove(&vm.address);
            pool.addresses.put_back(vm.address);
        }
    }

    /// Gives back what a VM had; its address rests in quarantine.
    pub(super) fn release(&mut self, vm: &Vm, now: Instant) {
        self.macs.remove(&vm.mac);
        if let Some(pool) = self.networks.iter_mut().find(|pool| pool.network.name == vm.network) {
            pool.holders.remove(&vm.address);
            pool.addresses.free(vm.address, now);
        }
    }

    pub(super) fn status(&self) -> Vec<NetworkStatus> {
        let status = |pool: &Pool| NetworkStatus {
            network: match pool.default_limit == pool.network.rate_limit {
                true => pool.network.clone(),
                false => Arc::new(Network { rate_limit: pool.default_limit, ..(*pool.network).clone() }),
            },
            vm_count: u32::try_from(pool.holders.len()).unwrap_or(u32::MAX),
            free_addresses: pool.addresses.free_count(),
        };
        self.networks.iter().map(status).collect()
    }

    fn hold(&mut self, index: usize, vm: &Vm) {
        self.macs.insert(vm.mac, vm.vm_id.clone());
        self.networks[index].holders.insert(vm.address, vm.vm_id.clone());
    }

    fn index(&self, name: &NetworkName) -> Result<usize, ManagerError> {
        let found = self.networks.iter().position(|pool| pool.network.name == *name);
        found.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &NetworkName) -> ManagerError {
        let known: Vec<&str> = self.networks.iter().map(|pool| pool.network.name.as_str()).collect();
        ManagerError::UnknownNetwork { name: name.clone(), known: known.join(", ") }
    }
}

impl Pool {
    fn next(&mut self, now: Instant) -> Result<Ipv4Addr, ManagerError> {
        self.addresses.allocate_next(now).map_err(|full| ManagerError::SubnetFull {
            network: self.network.name.clone(),
            subnet: self.network.subnet,
            detail: full.to_string(),
        })
    }

    /// The next address that fits; those it steps over are the next ones still.
    fn next_whose(
        &mut self,
        now: Instant,
        fits: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Ipv4Addr, ManagerError> {
        let mut stepped_over = Vec::new();
        let found = loop {
            match self.next(now) {
                Ok(address) if !fits(address) => stepped_over.push(address),
                found => break found,
            }
        };
        for address in stepped_over.into_iter().rev() {
            self.addresses.put_back(address);
        }
        found
    }

    fn take(&mut self, address: Ipv4Addr) -> Result<Ipv4Addr, ManagerError> {
        let subnet = self.network.subnet;
        if let Some(by) = self.holders.get(&address) {
            return Err(ManagerError::AddressTaken { address, by: by.clone() });
        }
        match self.addresses.allocate(address) {
            Ok(()) => Ok(address),
            Err(IpamError::NotForGuests { why, .. }) => {
                Err(ManagerError::AddressUnusable { address, subnet, why })
            }
            Err(_) => Err(ManagerError::AddressUnusable { address, subnet, why: "it is in use" }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test has a clock")]
mod tests {
    use super::*;
    use crate::model::{RateRequest, TapRequest, testing};

    fn request(id: &str) -> CreateVm {
        CreateVm {
            vm_id: id.parse().unwrap(),
            network: None,
            workspace: None,
            address: None,
            mac: None,
            hostname: None,
            rate_limit: RateRequest::default(),
            tap: TapRequest::default(),
            dhcp_options: None,
        }
    }

    fn all_clean(_: &NetworkName, _: Ipv4Addr) -> bool {
        true
    }

    fn admission() -> Admission {
        Admission::new(&[Arc::new(testing::network())])
    }

    #[test]
    fn vms_get_addresses_and_macs_of_their_own() {
        let (mut admission, now) = (admission(), Instant::now());
        let a = admission.admit(request("a"), now, 0, all_clean).unwrap().0;
        let b = admission.admit(request("b"), now, 0, all_clean).unwrap().0;
        assert_eq!((a.address, b.address), ([10, 100, 0, 2].into(), [10, 100, 0, 3].into()));
        assert_eq!(b.mac, Mac::for_address(b.address));
    }

    #[test]
    fn what_is_taken_is_refused_with_its_holder() {
        let (mut admission, now) = (admission(), Instant::now());
        let a = admission.admit(request("a"), now, 0, all_clean).unwrap().0;
        let refusal = |admission: &mut Admission, change: fn(&mut CreateVm, &Vm), vm: &Vm| {
            let mut request = request("b");
            change(&mut request, vm);
            admission.admit(request, now, 0, all_clean).unwrap_err().to_string()
        };
        let taken = refusal(&mut admission, |r, vm| r.mac = Some(vm.mac), &a);
        assert!(taken.contains("06:00:0a:64:00:02") && taken.contains("VM a"), "{taken}");
        let taken = refusal(&mut admission, |r, vm| r.address = Some(vm.address), &a);
        assert!(taken.contains("10.100.0.2") && taken.contains("VM a"), "{taken}");
        let unusable = refusal(&mut admission, |r, _| r.address = Some([10, 100, 0, 1].into()), &a);
        assert!(unusable.contains("gateway"), "{unusable}");
        let unusable = refusal(&mut admission, |r, _| r.address = Some([10, 101, 0, 9].into()), &a);
        assert!(unusable.contains("10.100.0.0/16"), "{unusable}");
        // None of the refusals took anything.
        assert_eq!(
            admission.admit(request("b"), now, 0, all_clean).unwrap().0.address,
            Ipv4Addr::from([10, 100, 0, 3])
        );
    }

    #[test]
    fn an_address_whose_mac_another_vm_has_is_stepped_over() {
        let (mut admission, now) = (admission(), Instant::now());
        let mut a = request("a");
        a.address = Some([10, 100, 0, 9].into());
        a.mac = Some(Mac::for_address([10, 100, 0, 2].into()));
        admission.admit(a, now, 0, all_clean).unwrap();
        assert_eq!(
            admission.admit(request("b"), now, 0, all_clean).unwrap().0.address,
            Ipv4Addr::from([10, 100, 0, 3])
        );
        let mut c = request("c");
        c.address = Some([10, 100, 0, 2].into());
        assert!(matches!(admission.admit(c.clone(), now, 0, all_clean), Err(ManagerError::MacTaken { .. })));
        c.mac = Some("02:00:00:00:00:01".parse().unwrap());
        assert_eq!(admission.admit(c, now, 0, all_clean).unwrap().0.address, Ipv4Addr::from([10, 100, 0, 2]));
    }

    #[test]
    fn a_reserved_address_is_nobodys_but_stays_who_has_it() {
        let now = Instant::now();
        let a = admission().admit(request("a"), now, 0, all_clean).unwrap().0;
        let reserved = a.address..=Ipv4Addr::from([10, 100, 0, 9]);
        let network = Network { reserved: vec![reserved], ..testing::network() };
        let mut admission = Admission::new(&[Arc::new(network)]);
        admission.readmit(&a).unwrap();
        assert_eq!(
            admission.admit(request("b"), now, 0, all_clean).unwrap().0.address,
            Ipv4Addr::from([10, 100, 0, 10])
        );
        let mut c = request("c");
        c.address = Some([10, 100, 0, 5].into());
        let refused = admission.admit(c, now, 0, all_clean).unwrap_err().to_string();
        assert!(refused.contains("10.100.0.5") && refused.contains("reserved"), "{refused}");
        admission.release(&a, now);
        assert!(
            admission
                .admit(CreateVm { address: Some(a.address), ..request("d") }, now, 0, all_clean)
                .is_err()
        );
    }

    #[test]
    fn what_no_guest_has_had_is_as_it_was_before() {
        let small = Network {
            subnet: "10.9.0.0/30".parse().unwrap(),
            gateway: [10, 9, 0, 1].into(),
            ..testing::network()
        };
        let (mut admission, now) = (Admission::new(&[Arc::new(small)]), Instant::now());
        let a = admission.admit(request("a"), now, 0, all_clean).unwrap().0;
        admission.put_back(&a);
        assert_eq!(admission.admit(request("b"), now, 0, all_clean).unwrap().0.address, a.address);
        // A guest has had it: it rests, whoever has asked for it by name meanwhile and got nothing.
        admission.release(&a, now);
        let named = CreateVm { address: Some(a.address), ..request("c") };
        let c = admission.admit(named, now, 0, all_clean).unwrap().0;
        admission.put_back(&c);
        assert!(matches!(
            admission.admit(request("d"), now, 0, all_clean),
            Err(ManagerError::SubnetFull { .. })
        ));
        assert_eq!(
            admission.admit(request("d"), now + QUARANTINE, 0, all_clean).unwrap().0.address,
            a.address
        );
    }

    #[test]
    fn a_mac_that_is_refused_takes_no_rest_from_an_address() {
        let (mut admission, now) = (admission(), Instant::now());
        let a = admission.admit(request("a"), now, 0, all_clean).unwrap().0;
        let named = |id: &str, mac: Option<Mac>| CreateVm {
            address: Some([10, 100, 0, 3].into()),
            mac,
            ..request(id)
        };
        let b = admission.admit(named("b", None), now, 0, all_clean).unwrap().0;
        admission.release(&b, now);
        // a's MAC is that of the address which c asks for.
        admission.macs.insert(b.mac, a.vm_id.clone());
        assert!(matches!(
            admission.admit(named("c", None), now, 0, all_clean),
            Err(ManagerError::MacTaken { .. })
        ));
        assert_eq!(
            admission.admit(request("d"), now, 0, all_clean).unwrap().0.address,
            Ipv4Addr::from([10, 100, 0, 4])
        );
    }

    #[test]
    fn an_address_that_is_not_clean_is_given_to_who_names_it_alone() {
        let (mut admission, now) = (admission(), Instant::now());
        let unclean = |_: &NetworkName, address: Ipv4Addr| address != Ipv4Addr::from([10, 100, 0, 2]);
        let a = admission.admit(request("a"), now, 0, unclean).unwrap().0;
        assert_eq!(a.address, Ipv4Addr::from([10, 100, 0, 3]));
        assert_eq!(
            admission.admit(request("b"), now, 0, all_clean).unwrap().0.address,
            Ipv4Addr::from([10, 100, 0, 2])
        );
    }

    #[test]
    fn a_restart_takes_the_same_again() {
        let (mut before, mut after, now) = (admission(), admission(), Instant::now());
        let a = before.admit(request("a"), now, 0, all_clean).unwrap().0;
        let b = before.admit(request("b"), now, 0, all_clean).unwrap().0;
        after.readmit(&b).unwrap();
        after.readmit(&a).unwrap();
        let c = after.admit(request("c"), now, 0, all_clean).unwrap().0;
        assert_eq!(c.address, Ipv4Addr::from([10, 100, 0, 4]));
    }
}

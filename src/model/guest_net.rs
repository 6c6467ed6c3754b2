use std::net::{IpAddr, Ipv4Addr};

use super::{DhcpOptions, Domain, Hostname, Mac, Network, StaticRoute, Subnet, Vm};

/// Every address fact a guest is told, made in one place: DHCP, `ip=`, cloud-init and the API all read this value, so
/// they cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNet {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub subnet: Subnet,
    /// Of the default route.
    pub gateway: Ipv4Addr,
    pub dns_servers: Vec<IpAddr>,
    pub hostname: Hostname,
    pub domain: Domain,
    pub mtu: u16,
    /// What it is told besides: its own options, and where they say nothing its network's.
    pub options: DhcpOptions,
}

impl GuestNet {
    pub fn new(network: &Network, vm: &Vm) -> Self {
        Self::of(network, vm.mac, vm.address, vm.hostname.clone(), &vm.dhcp_options)
    }

    pub fn of(network: &Network, mac: Mac, address: Ipv4Addr, hostname: Hostname, own: &DhcpOptions) -> Self {
        Self {
            mac,
            address,
            subnet: network.subnet,
            gateway: network.router,
            dns_servers: network.guest_dns(),
            hostname,
            domain: network.domain.clone(),
            mtu: network.mtu,
            options: own.over(&network.dhcp_options),
        }
    }

    /// The search list: the network's own domain comes first.
    pub fn search(&self) -> impl Iterator<Item = &Domain> {
        std::iter::once(&self.domain).chain(&self.options.domain_search)
    }

    /// Routes beside the default one. One whose gateway the guest itself is, is for the others.
    pub fn routes(&self) -> impl Iterator<Item = &StaticRoute> {
        self.options.static_routes.iter().filter(|route| route.via != self.address)
    }
}

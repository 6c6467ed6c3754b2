use std::net::{IpAddr, Ipv4Addr};

use super::{Domain, Hostname, Mac, Network, Subnet, Vm};

/// Every address fact a guest is told, made in one place: DHCP, `ip=`, cloud-init and the API all read this value, so
/// they cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNet {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub dns_servers: Vec<IpAddr>,
    pub hostname: Hostname,
    pub domain: Domain,
    pub mtu: u16,
}

impl GuestNet {
    pub fn new(network: &Network, vm: &Vm) -> Self {
        Self::of(network, vm.mac, vm.address, vm.hostname.clone())
    }

    pub fn of(network: &Network, mac: Mac, address: Ipv4Addr, hostname: Hostname) -> Self {
        Self {
            mac,
            address,
            subnet: network.subnet,
            gateway: network.gateway,
            dns_servers: network.guest_dns(),
            hostname,
            domain: network.domain.clone(),
            mtu: network.mtu,
        }
    }
}

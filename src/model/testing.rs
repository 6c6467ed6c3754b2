//! Values for unit tests: the default network and its first VMs.

use std::net::Ipv4Addr;

use super::*;

pub(crate) fn network() -> Network {
    Network {
        name: "default".parse().unwrap(),
        bridge: "br-vms".parse().unwrap(),
        subnet: "10.100.0.0/16".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 100, 0, 1),
        router: Ipv4Addr::new(10, 100, 0, 1),
        upstreams: vec!["8.8.8.8".parse().unwrap(), "8.8.4.4".parse().unwrap()],
        dns: DnsMode::On,
        dns_only_resolver: false,
        resolver: ResolverSettings::default(),
        domain: "vm.internal".parse().unwrap(),
        mtu: 1500,
        reserved: Vec::new(),
        rate_limit: Some(RateLimit { rate: 100.try_into().unwrap(), burst: None }),
        lease_seconds: 43_200,
        plumbing: Plumbing::Managed,
        relays: Relays::These(Vec::new()),
        dhcp_options: DhcpOptions::default(),
        metadata: None,
        pool_size: 32,
        walls: super::NetworkWalls::default(),
    }
}

/// The n-th VM, `vm<n>` at 10.100.0.(n+1).
pub(crate) fn vm(n: u8) -> Vm {
    let address = Ipv4Addr::new(10, 100, 0, n + 1);
    let vm_id: VmId = format!("vm{n}").parse().unwrap();
    Vm {
        hostname: Hostname::for_vm(&vm_id),
        vm_id,
        network: "default".parse().unwrap(),
        workspace: None,
        slot: Slot(u32::from(n)),
        mac: Mac::for_address(address),
        address,
        rate_limit: network().rate_limit,
        tap: TapOptions::default(),
        created_at_us: 1_700_000_000_000_000,
        dhcp_options: DhcpOptions::default(),
    }
}

/// The n-th VM's slot, on the network's first bridge.
pub(crate) fn place(n: u8) -> Place {
    let (range, slot) = (IndexRange::try_from(1 << 28).unwrap(), Slot(u32::from(n)));
    let shard = Shard { bridge: "br-vms".parse().unwrap(), index: range.bridge(0) };
    Place { slot, port: range.port(slot), shard }
}

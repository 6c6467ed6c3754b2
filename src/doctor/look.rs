//! Looks at the host: reads, asks, and changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::host::{Configuration, Device, Facts, Listener, Said, Service};
use super::network::NetworkFacts;
use super::probe;
use crate::config::Config;
use crate::kernel::nft::Nft;
use crate::kernel::sockets::{self, UdpSocket};
use crate::kernel::{Kernel, features};
use crate::model::{DnsMode, Plumbing, Upstream};
use crate::proto::guestnet::v1;

/// What the service says, if it answers.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Namespaces called as a VM's, before the VMs were asked for: one that comes later is that of a VM which is being made.
    pub namespaces: BTreeSet<String>,
    pub vm_ids: BTreeSet<String>,
    pub events: Vec<v1::Event>,
    pub port_forwards: usize,
}

/// The networks of the service's answer; where it does not answer, of the configuration, if that fits: else there is a finding.
pub fn networks_of(status: Option<&v1::GetStatusResponse>, config: Option<&Config>) -> Vec<NetworkFacts> {
    let Some(status) = status else {
        let networks = config.map(|config| config.networks.as_slice()).unwrap_or_default();
        let facts = networks.iter().map(|network| NetworkFacts {
            name: network.name.to_string(),
            bridge: network.bridge.to_string(),
            gateway: network.gateway.to_string(),
            subnet: network.subnet.to_string(),
            mtu: network.mtu.into(),
            managed: network.plumbing == Plumbing::Managed,
            upstreams: network.upstreams.iter().map(|upstream| (upstream.clone(), false)).collect(),
            resolver: (network.dns == DnsMode::On).then_some(false),
            ..Default::default()
        });
        return facts.collect();
    };
    let facts = status.networks.iter().filter_map(|of| {
        let network = of.network.as_option()?;
        Some(NetworkFacts {
            name: network.network_id.clone(),
            bridge: network.bridge_name.clone(),
            gateway: network.gateway.clone(),
            subnet: network.vm_subnet.clone(),
            mtu: network.mtu,
            managed: network.plumbing != Plumbing::External.as_str(),
            upstreams: network
                .dns_servers
                .iter()
                .filter_map(|text| Some((text.parse().ok()?, false)))
                .collect(),
            resolver: of.dns.is_set().then_some(false),
            free_addresses: Some(network.free_addresses),
            ..Default::default()
        })
    });
    facts.collect()
}

/// Everything that the checks want to know.
pub async fn look(
    service: Service,
    configuration: Configuration,
    networks: Vec<NetworkFacts>,
    seen: &Seen,
) -> Facts {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let events = |kind: &str| {
        let of_kind = seen.events.iter().filter(|event| event.kind == kind);
        let said = of_kind.map(|event| {
            let at = event.at.as_option().and_then(|at| u64::try_from(at.seconds).ok()).unwrap_or_default();
            Said { age: now.saturating_sub(at), detail: event.detail.clone() }
        });
        said.collect()
    };
    let missing = tokio::task::spawn_blocking(features::missing).await;
    let stale_namespaces = if service == Service::Answers { stale_namespaces(seen) } else { Vec::new() };
    let mut facts = Facts {
        service,
        configuration,
        ip_forward: sysctl("ipv4/ip_forward"),
        forward: rules("filter", "FORWARD"),
        input: rules("filter", "INPUT"),
        foreign: Nft::open().and_then(|nft| nft.foreign()).map_err(|error| error.to_string()),
        missing: missing
            .map_err(|error| error.to_string())
            .and_then(|missing| missing.map_err(|error| error.to_string())),
        postrouting: rules("nat", "POSTROUTING"),
        bridge_nf_call_iptables: sysctl("bridge/bridge-nf-call-iptables"),
        send_redirects_all: sysctl("ipv4/conf/all/send_redirects"),
        has_default_route: Some(uplink().is_some()),
        conntrack: number("netfilter/nf_conntrack_count").zip(number("netfilter/nf_conntrack_max")),
        clock_synchronised: clock_synchronised(),
        now,
        tun: device("/dev/net/tun", (10, 200)),
        kvm: device("/dev/kvm", (10, 232)),
        dhcp_sockets: udp_listeners(67),
        stale_namespaces,
        rogue_dhcp: events("rogue_dhcp_server"),
        spoofing: events("spoof_denied"),
        port_forwards: seen.port_forwards,
        uplink_mtu: uplink().and_then(|name| {
            Some((name.clone(), read(&format!("/sys/class/net/{name}/mtu"))?.parse().ok()?))
        }),
        networks: Vec::new(),
    };
    let kernel = Kernel::open().ok();
    let translated = rules("nat", "PREROUTING").unwrap_or_default();
    for mut network in networks {
        let enters = format!("-i {} ", network.bridge);
        network.metadata =
            translated.iter().any(|rule| rule.contains("guestnet:metadata") && rule.contains(&enters));
        network.bridges = bridges_of(&network.bridge);
        facts.networks.push(look_at_network(kernel.as_ref(), network).await);
    }
    facts
}

async fn look_at_network(kernel: Option<&Kernel>, network: NetworkFacts) -> NetworkFacts {
    let bridge = network.bridge.clone();
    let sys = Path::new("/sys/class/net").join(&bridge);
    let gateway: Option<Ipv4Addr> = network.gateway.parse().ok();
    // On plumbing of somebody else the route to its guests is somebody else's too.
    let overlap = match (kernel.filter(|_| network.managed), network.subnet.parse()) {
        (Some(kernel), Ok(subnet)) => kernel.overlapping_route(subnet).await.ok().flatten(),
        _ => None,
    };
    // The kernel takes the larger of the two (ip-sysctl).
    let rp_filter =
        ["all", &bridge].into_iter().filter_map(|of| sysctl(&format!("ipv4/conf/{of}/rp_filter"))).max();
    let ask = network.upstreams.iter().map(|(upstream, _)| upstream.clone()).collect::<Vec<_>>();
    let resolver = network.resolver.is_some().then_some(gateway).flatten();
    let (upstreams, resolver) = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            let asked: Vec<_> = ask
                .iter()
                .map(|upstream| scope.spawn(|| (upstream.clone(), probe::answers(upstream))))
                .collect();
            let resolver = resolver.map(|gateway| probe::answers(&Upstream::plain(IpAddr::V4(gateway))));
            let upstreams = asked.into_iter().filter_map(|thread| thread.join().ok()).collect();
            (upstreams, resolver)
        })
    })
    .await
    .unwrap_or_default();
    NetworkFacts {
        bridge_exists: sys.exists(),
        bridge_is_up: flags(&bridge).is_some_and(|flags| flags & 1 == 1),
        bridge_has_gateway: gateway.is_some_and(|gateway| has_address(&bridge, gateway)),
        rp_filter,
        overlap,
        upstreams,
        resolver,
        ..network
    }
}

/// The bridge and those of the same network beside it, as they are called (`bridges::Bridges`).
fn bridges_of(bridge: &str) -> Vec<String> {
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = devices.filter_map(|device| device.file_name().into_string().ok());
    let further = names.filter(|name| {
        let number = name.strip_prefix(bridge).and_then(|rest| rest.strip_prefix('-'));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
            && Path::new("/sys/class/net").join(name).join("bridge").exists()
    });
    let mut further: Vec<String> = further.collect();
    further.sort();
    further.insert(0, bridge.to_owned());
    further
}

pub(super) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn sysctl(key: &str) -> Option<String> {
    read(&format!("/proc/sys/net/{key}"))
}

fn number(key: &str) -> Option<u64> {
    sysctl(key)?.parse().ok()
}

/// IFF_UP is the lowest bit (netdevice(7)).
pub(super) fn flags(device: &str) -> Option<u32> {
    let text = read(&format!("/sys/class/net/{device}/flags"))?;
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn has_address(device: &str, address: Ipv4Addr) -> bool {
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
    addresses
        .filter(|entry| entry.interface_name == device)
        .filter_map(|entry| entry.address.and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip())))
        .any(|has| has == address)
}

fn rules(table: &str, chain: &str) -> Option<Vec<String>> {
    iptables::new(false).and_then(|tables| tables.list(table, chain)).ok()
}

/// The device of the default route: /proc/net/route has destination and mask in hex.
fn uplink() -> Option<String> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (device, destination) = (words.next()?, words.next()?);
        (destination == "00000000" && words.nth(5)? == "00000000").then(|| device.to_owned())
    })
}

/// UDP sockets on `port`. Where the kernel has no udp_diag, of what /proc/net/udp says, which is not whether they are a device's.
fn udp_listeners(port: u16) -> Vec<Listener> {
    let Ok(sockets) = sockets::udp_on(port) else { return udp_listeners_of_proc(port) };
    let named = |index| {
        let name = nix::net::if_::if_indextoname(index).ok()?;
        Some(name.to_string_lossy().into_owned())
    };
    let listener = |socket: UdpSocket| {
        let device = socket.device.map(|index| named(index).unwrap_or_else(|| format!("device {index}")));
        Listener { address: socket.address, device }
    };
    sockets.into_iter().map(listener).collect()
}

/// It has addresses in hex and in host order.
fn udp_listeners_of_proc(port: u16) -> Vec<Listener> {
    let sockets = fs::read_to_string("/proc/net/udp").unwrap_or_default();
    let local = |line: &str| {
        let (address, on) = line.split_whitespace().nth(1)?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes().into();
        (u16::from_str_radix(on, 16).ok()? == port).then_some(Listener { address, device: None })
    };
    sockets.lines().skip(1).filter_map(local).collect()
}

/// The character device of that major and minor number (Documentation/admin-guide/devices.txt).
fn device(path: &str, (major, minor): (u32, u32)) -> Device {
    let is_it = |metadata: &fs::Metadata| {
        metadata.file_type().is_char_device() && metadata.rdev() == libc::makedev(major, minor)
    };
    match fs::metadata(path) {
        Err(_) => Device::Missing,
        Ok(metadata) if !is_it(&metadata) => Device::Replaced,
        Ok(_) => match fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => Device::Usable,
            Err(error) => Device::Refused(error.to_string()),
        },
    }
}

/// Those of /run/netns that are called as a VM's.
pub fn vm_namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("vm-")).collect()
}

/// Those that were there before the VMs were asked for, are still there, and belong to none.
fn stale_namespaces(seen: &Seen) -> Vec<String> {
    let is_a_vms = |name: &&String| name.strip_prefix("vm-").is_some_and(|vm_id| seen.vm_ids.contains(vm_id));
    let still = vm_namespaces();
    seen.namespaces.iter().filter(|name| still.contains(*name) && !is_a_vms(name)).cloned().collect()
}

fn clock_synchronised() -> Option<bool> {
    // SAFETY: timex is plain numbers, all zero is valid and asks for nothing to be changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid and outlives the call; with modes 0 it is only written to.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

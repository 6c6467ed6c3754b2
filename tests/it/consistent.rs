//! What the service has, what it has written down and what is in the kernel agree: nothing is missing, and nothing is there that
//! has no record.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use guestnet::config::Config;
use guestnet::model::{IndexRange, Network, Plumbing, Slot};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::attributes::OfHost;
use crate::lab::daemon::Paths;
use crate::lab::{Daemon, Lab};
use crate::slots::eventually;

/// What is written down, read beside the service.
struct Recorded {
    indexes: IndexRange,
    /// Names and indexes of bridges.
    bridges: BTreeSet<(String, u32)>,
    subnets: BTreeSet<String>,
    vms: usize,
    accounts: usize,
}

impl Recorded {
    fn read(lab: &Lab) -> Self {
        let file = Paths::of(lab).state.join("guestnet.db");
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let number = |query: &str| database.query_row(query, [], |row| row.get::<_, u32>(0)).unwrap();
        let mut bridges = database.prepare("SELECT name, ifindex FROM link").unwrap();
        let bridges = bridges.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let mut subnets = database.prepare("SELECT subnet FROM subnet").unwrap();
        let subnets = subnets.query_map([], |row| row.get(0)).unwrap();
        Self {
            indexes: number("SELECT value FROM meta WHERE key = 'first_ifindex'").try_into().unwrap(),
            bridges: bridges.map(Result::unwrap).collect(),
            subnets: subnets.map(Result::unwrap).collect(),
            vms: number("SELECT count(*) FROM vm") as usize,
            accounts: number("SELECT count(*) FROM account") as usize,
        }
    }
}

/// Devices with an index of the range that only this service gives, with their indexes.
fn devices(lab: &Lab, indexes: IndexRange) -> Vec<(String, u32)> {
    let shown: Value = serde_json::from_str(&lab.on_host("ip", &["-j", "link", "show"])).unwrap();
    let of = |link: &Value| {
        let index = u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
        (link["ifname"].as_str().unwrap().to_owned(), index)
    };
    let devices = shown.as_array().unwrap().iter().map(of);
    devices.filter(|(_, index)| indexes.has(*index)).collect()
}

fn field(text: &str, at: usize) -> Vec<String> {
    let words = text.lines().filter_map(|line| line.split_whitespace().nth(at));
    let mut found: Vec<String> = words.map(ToOwned::to_owned).collect();
    found.sort();
    found
}

fn fields(vms: &[Value], name: &str) -> Vec<String> {
    let mut found: Vec<String> = vms.iter().map(|vm| vm[name].as_str().unwrap().to_owned()).collect();
    found.sort();
    found
}

/// The addresses that guests' ports may speak under, in order.
pub(crate) fn walled(lab: &Lab) -> Vec<String> {
    let elements = lab.tables().elements.into_iter();
    let bindings = elements.filter(|(place, _)| place == "bridge guestnet set bindings");
    let mut found: Vec<String> =
        bindings.map(|(_, element)| element.rsplit(" . ").next().unwrap().to_owned()).collect();
    found.sort();
    found
}

/// What is in the kernel for VMs is what the service has, no less and no more, and each slot is whole or not at all.
pub(crate) fn assert_consistent(lab: &Lab, daemon: &Daemon<'_>) {
    let vms = daemon.json(&["vm", "list"]);
    let vms = vms.as_array().unwrap();
    assert_bindings(lab, daemon, vms);
    assert_devices(lab, vms);
    let host = OfHost::read(lab);
    vms.iter().for_each(|vm| host.assert_as_said(lab, vm));
    // No address is anybody's who is not there.
    let networks = daemon.json(&["network", "list"]);
    let counted = networks.as_array().unwrap().iter().map(|network| network["vm_count"].as_u64().unwrap());
    assert_eq!(counted.sum::<u64>(), vms.len() as u64, "{networks}");
    for vm in vms {
        assert_eq!(&daemon.json(&["vm", "show", vm["vm_id"].as_str().unwrap()]), vm);
    }
    // As the service sees it itself.
    assert_eq!(daemon.json(&["gc", "--dry-run"]), serde_json::json!([]));
}

/// Routes, neighbours, forwarding entries, names and elements of nf_tables.
fn assert_bindings(lab: &Lab, daemon: &Daemon<'_>, vms: &[Value]) {
    let wanted = fields(vms, "ip_address");
    let routes = lab.on_host("ip", &["-4", "route", "show", "proto", "103", "type", "unicast"]);
    assert_eq!(field(&routes, 0), wanted, "routes to guests");
    let neighbours = lab.on_host("ip", &["-4", "neigh", "show", "nud", "permanent"]);
    assert_eq!(field(&neighbours, 0), wanted, "permanent neighbours");
    assert_eq!(field(&lab.forwarding(), 0), fields(vms, "mac_address"), "static forwarding entries");
    let names = field(&lab.on_host("ip", &["netns", "list"]), 0).into_iter();
    let names: Vec<String> = names.filter(|name| name.starts_with("vm-")).collect();
    assert_eq!(names, fields(vms, "namespace"), "names of namespaces");

    assert_eq!(walled(lab), wanted, "bindings");
    let elements = lab.tables().elements;
    let ports = fields(vms, "host_device");
    let guests = |word: &str| {
        let address: Option<Ipv4Addr> = word.parse().ok();
        address.filter(|address| networks(lab).iter().any(|network| network.subnet.has_host(*address)))
    };
    let gateways: Vec<Ipv4Addr> = networks(lab).iter().map(|network| network.gateway).collect();
    // What a guest is allowed at a time is kept for a minute after it.
    let passing = ["new_rate", "dns_rate", "live", "dhcp_rate", "arp_rate"];
    for (place, element) in &elements {
        if !place.contains(" guestnet ") || passing.iter().any(|set| place.ends_with(set)) {
            continue;
        }
        for word in element.split_whitespace() {
            let word = word.trim_matches('"');
            let guest = guests(word).filter(|address| !gateways.contains(address));
            assert!(
                guest.is_none() || wanted.contains(&word.to_owned()),
                "{place}: {element}: nobody's address"
            );
            let port = Slot::of_host_device(word).is_some();
            assert!(!port || ports.contains(&word.to_owned()), "{place}: {element}: nobody's port");
        }
    }
    let forwards = elements.iter().filter(|(place, _)| place.contains(" guestnet map forwards")).count();
    assert_eq!(forwards, daemon.json(&["forward", "list"]).as_array().unwrap().len(), "{elements:?}");
}

/// The networks that the service was started with, but for those whose plumbing is somebody else's.
fn networks(lab: &Lab) -> Vec<std::sync::Arc<Network>> {
    let text = std::fs::read_to_string(Paths::of(lab).config).unwrap();
    let networks = Config::from_parts(Some(&text), |_| None).unwrap().networks.into_iter();
    networks.filter(|network| network.plumbing == Plumbing::Managed).collect()
}

/// Bridges, ports and namespaces of slots: those that are recorded, taken, or kept ready.
fn assert_devices(lab: &Lab, vms: &[Value]) {
    let recorded = Recorded::read(lab);
    assert_eq!((recorded.vms, recorded.accounts), (vms.len(), vms.len()), "VMs and accounts written down");
    let networks = networks(lab);
    let unreachable = lab.on_host("ip", &["-4", "route", "show", "proto", "103", "type", "unreachable"]);
    let subnets: BTreeSet<String> = field(&unreachable, 1).into_iter().collect();
    let configured = networks.iter().map(|network| network.subnet.to_string()).collect();
    assert_eq!((&subnets, &recorded.subnets), (&configured, &configured), "unreachable rests of subnets");

    // Slots are built and taken away in the background.
    let kept: usize = networks.iter().map(|network| usize::from(network.pool_size)).map(|n| n + n / 4).sum();
    let ports = || -> BTreeSet<u32> {
        let (slots, others): (Vec<_>, Vec<_>) = devices(lab, recorded.indexes)
            .into_iter()
            .partition(|(name, index)| recorded.indexes.slot_of(*index, name).is_some());
        let others: BTreeSet<(String, u32)> = others.into_iter().collect();
        assert_eq!(others, recorded.bridges, "bridges, and devices that are neither bridge nor slot");
        slots.iter().filter_map(|(_, index)| recorded.indexes.slot_at(*index)).map(|slot| slot.0).collect()
    };
    let namespaces = || -> BTreeSet<u32> {
        let names = field(&lab.on_host("ip", &["netns", "list"]), 0);
        names.iter().filter_map(|name| Slot::of_namespace(name)).map(|slot| slot.0).collect()
    };
    let taken: BTreeSet<u32> = vms
        .iter()
        .filter_map(|vm| Slot::of_host_device(vm["host_device"].as_str().unwrap()))
        .map(|slot| slot.0)
        .collect();
    let mut seen = (BTreeSet::new(), BTreeSet::new());
    eventually("a namespace for each port, a slot for each VM, and no more than are kept ready", || {
        seen = (ports(), namespaces());
        let (ports, namespaces) = &seen;
        ports == namespaces && ports.is_superset(&taken) && ports.len() <= taken.len() + kept
    });

    // A bridge has the gateway's address and no other.
    let shown: Value = serde_json::from_str(&lab.on_host("ip", &["-j", "-4", "addr", "show"])).unwrap();
    for link in shown.as_array().unwrap() {
        let index = u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
        if !recorded.indexes.has(index) {
            continue;
        }
        let addresses = link["addr_info"].as_array().unwrap();
        let of = |address: &Value| address["local"].as_str().unwrap().parse::<Ipv4Addr>().unwrap();
        let is_gateway = |address: &Value| networks.iter().any(|network| network.gateway == of(address));
        assert!(addresses.len() == 1 && addresses.iter().all(is_gateway), "{link}");
    }
}

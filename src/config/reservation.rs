//! `[[network.reservation]]` tables → reservations, each MAC and address once. Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use toml::{Table, Value};

use super::network::{dhcp_options, text};
use super::section::Section;
use crate::model::{Hostname, Mac, NetworkName, Plumbing, Reservation, Subnet};

/// The tables, if this network may have some.
pub(super) fn take(section: &mut Section<'_>, plumbing: Option<Plumbing>) -> Vec<Table> {
    let tables = |value: &Value| {
        match value {
        Value::Array(items) if items.is_empty() => Ok(Vec::new()),
        Value::Array(_) if plumbing == Some(Plumbing::Managed) => {
            Err("for managed plumbing, where a VM's network has its reservation; plumbing = \"external\" would fit".into())
        }
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_table().cloned().ok_or_else(|| "a list of [[network.reservation]] tables".to_owned()))
            .collect(),
        _ => Err("a list of [[network.reservation]] tables".to_owned()),
    }
    };
    section.take("reservation", Value::Array(Vec::new()), tables).unwrap_or_default()
}

/// Checks them against their network and each other. `taken`: addresses, each with the key that has it.
pub(super) fn read(
    section: &mut Section<'_>,
    tables: Vec<Table>,
    network: Option<&NetworkName>,
    subnet: Option<Subnet>,
    taken: Option<&[(&str, RangeInclusive<Ipv4Addr>)]>,
) -> Vec<Reservation> {
    let (Some(network), Some(subnet), Some(taken)) = (network, subnet, taken) else { return Vec::new() };
    let mut reservations = Vec::with_capacity(tables.len());
    let (mut macs, mut addresses) = (HashMap::new(), HashMap::new());
    for (at, table) in tables.into_iter().enumerate() {
        let mut own = section.below(format!("reservation[{at}]"), table);
        let mac = own.take("mac", "", text::<Mac>);
        let address = own.take("ip_address", "", |value| {
            let address = value.as_str().and_then(|text| text.parse().ok());
            let address = address.filter(|address| subnet.has_host(*address));
            let address = address.ok_or_else(|| format!("a host address of {subnet}"))?;
            match taken.iter().find(|(_, range)| range.contains(&address)) {
                None => Ok(address),
                Some((key, _)) => Err(format!("a host address of {subnet} that is free: {key} has it")),
            }
        });
        let hostname = own.take("hostname", false, |value| {
            if *value == Value::Boolean(false) { Ok(None) } else { text(value).map(Some) }
        });
        let options = own.take("dhcp_options", Table::new(), dhcp_options);
        if let Some(earlier) = mac.and_then(|mac| macs.insert(mac, at)) {
            own.problem("mac", format!("reservation[{earlier}] has the same"));
        }
        if let Some(earlier) = address.and_then(|address| addresses.insert(address, at)) {
            own.problem("ip_address", format!("reservation[{earlier}] has the same"));
        }
        own.finish();
        if let (Some(mac), Some(address), Some(hostname), Some(options)) = (mac, address, hostname, options) {
            let hostname = hostname.unwrap_or_else(|| Hostname::for_address(address));
            reservations.push(Reservation { network: network.clone(), mac, address, hostname, options });
        }
    }
    reservations
}

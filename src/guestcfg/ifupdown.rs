//! /etc/network/interfaces for Debian's ifupdown and for Alpine (busybox ifupdown, ifupdown-ng), which read different
//! options. In: a guest and its card's name. Out: that file, and the ones that say the DNS servers and the host name.

use super::check::check;
use super::plain::add_route;
use super::resolv_conf::{hostname_file, resolv_conf_file};
use super::{Generated, GuestFile, Options, Refusal};
use crate::model::{Domain, GuestNet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    Debian,
    Alpine,
}

pub(super) fn ifupdown(guest: &GuestNet, flavour: Flavour, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let (resolv_conf, warnings) = resolv_conf_file(guest);
    let interfaces = GuestFile::text("etc/network/interfaces", interfaces(guest, flavour, options));
    Ok(Generated { files: vec![interfaces, resolv_conf, hostname_file(guest)], warnings })
}

fn interfaces(guest: &GuestNet, flavour: Flavour, options: &Options) -> String {
    let GuestNet { address, subnet, gateway, mtu, .. } = guest;
    let device = &options.device;
    let mut lines = vec![
        format!("address {address}"),
        format!("netmask {}", subnet.netmask()),
        format!("gateway {gateway}"),
        format!("mtu {mtu}"),
    ];
    // For resolvconf(8), which would overwrite our resolv.conf without them.
    if flavour == Flavour::Debian {
        let servers: Vec<String> = guest.dns_servers.iter().map(ToString::to_string).collect();
        if !servers.is_empty() {
            lines.push(format!("dns-nameservers {}", servers.join(" ")));
        }
        let search: Vec<&str> = guest.search().map(Domain::as_str).collect();
        lines.push(format!("dns-search {}", search.join(" ")));
    }
    lines.extend(guest.routes().map(|route| format!("up {}", add_route("add", route, device))));
    format!(
        "auto lo\niface lo inet loopback\n\nauto {device}\niface {device} inet static\n    {}\n",
        lines.join("\n    ")
    )
}

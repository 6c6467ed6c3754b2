//! NixOS. In: a guest and its card's name. Out: a module that declares them.

use super::check::check;
use super::{Generated, GuestFile, Options, Refusal};
use crate::model::{GuestNet, StaticRoute};

pub(super) fn nixos(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    Ok(Generated::one(GuestFile::text("guestnet.nix", module(guest, options)), Vec::new()))
}

/// No value has a quote, a backslash or `${` in it: their types do not allow it.
fn module(guest: &GuestNet, options: &Options) -> String {
    let GuestNet { mac, address, subnet, gateway, hostname, mtu, .. } = guest;
    let device = &options.device;
    let servers: String = guest.dns_servers.iter().map(|server| format!("\"{server}\" ")).collect();
    let prefix_len = subnet.prefix_len();
    let search: String = guest.search().map(|domain| format!("\"{domain}\" ")).collect();
    let times: String = guest.options.ntp_servers.iter().map(|server| format!("\"{server}\" ")).collect();
    let times = if times.is_empty() { String::new() } else { format!("    timeServers = [ {times}];\n") };
    let routes: String = guest.routes().map(route).collect();
    let routes =
        if routes.is_empty() { String::new() } else { format!("      ipv4.routes = [ {routes}];\n") };
    format!(
        r#"{{
  networking = {{
    hostName = "{hostname}";
    search = [ {search}];
    nameservers = [ {servers}];
{times}    useDHCP = false;
    defaultGateway = {{ address = "{gateway}"; interface = "{device}"; }};
    interfaces."{device}" = {{
      mtu = {mtu};
      ipv4.addresses = [ {{ address = "{address}"; prefixLength = {prefix_len}; }} ];
{routes}    }};
  }};
  systemd.network.links."10-guestnet" = {{
    matchConfig.PermanentMACAddress = "{mac}";
    linkConfig.Name = "{device}";
  }};
}}
"#
    )
}

/// Without a gateway it is on the link.
fn route(StaticRoute { destination, via }: &StaticRoute) -> String {
    let gateway = if via.is_unspecified() { String::new() } else { format!("via = \"{via}\"; ") };
    let (address, length) = (destination.network(), destination.prefix());
    format!("{{ address = \"{address}\"; prefixLength = {length}; {gateway}}} ")
}

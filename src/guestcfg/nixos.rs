//! NixOS. In: a guest and its card's name. Out: a module that declares them.

use super::check::check;
use super::{Generated, GuestFile, Options, Refusal};
use crate::model::GuestNet;

pub(super) fn nixos(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    Ok(Generated::one(GuestFile::text("guestnet.nix", module(guest, options)), Vec::new()))
}

/// No value has a quote, a backslash or `${` in it: their types do not allow it.
fn module(guest: &GuestNet, options: &Options) -> String {
    let GuestNet { mac, address, subnet, gateway, hostname, domain, mtu, .. } = guest;
    let device = &options.device;
    let servers: String = guest.dns_servers.iter().map(|server| format!("\"{server}\" ")).collect();
    let prefix_len = subnet.prefix_len();
    format!(
        r#"{{
  networking = {{
    hostName = "{hostname}";
    search = [ "{domain}" ];
    nameservers = [ {servers}];
    useDHCP = false;
    defaultGateway = {{ address = "{gateway}"; interface = "{device}"; }};
    interfaces."{device}" = {{
      mtu = {mtu};
      ipv4.addresses = [ {{ address = "{address}"; prefixLength = {prefix_len}; }} ];
    }};
  }};
  systemd.network.links."10-guestnet" = {{
    matchConfig.PermanentMACAddress = "{mac}";
    linkConfig.Name = "{device}";
  }};
}}
"#
    )
}

//! NetworkManager. In: a guest. Out: a keyfile (nm-settings-keyfile(5)) and /etc/hostname, or both inside an Ignition
//! document for images that start from one (Fedora CoreOS, Flatcar with NetworkManager).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::check::check;
use super::resolv_conf::hostname_file;
use super::{Fact, Generated, GuestFile, Refusal, Warning};
use crate::model::{GuestNet, StaticRoute};

pub(super) fn network_manager(guest: &GuestNet) -> Result<Generated, Refusal> {
    check(guest)?;
    let path = "etc/NetworkManager/system-connections/guestnet.nmconnection";
    // NetworkManager ignores a keyfile that others can read.
    let keyfile = GuestFile { mode: 0o600, ..GuestFile::text(path, keyfile(guest)) };
    let v6 = guest.dns_servers.iter().filter(|server| server.is_ipv6());
    let warnings = v6
        .map(|server| {
            Warning::new(Fact::Dns, server, "left out: the profile has no IPv6, where it would stand")
        })
        .collect();
    Ok(Generated { files: vec![keyfile, hostname_file(guest)], warnings })
}

/// Ignition 3.3 (coreos.github.io/ignition), data URLs of RFC 2397.
pub(super) fn ignition(guest: &GuestNet) -> Result<Generated, Refusal> {
    let Generated { files, warnings } = network_manager(guest)?;
    let files: Vec<Value> = files
        .iter()
        .map(|file| {
            json!({
                "path": format!("/{}", file.path),
                "mode": file.mode,
                "overwrite": true,
                "contents": {"source": format!("data:;base64,{}", BASE64.encode(&file.bytes))},
            })
        })
        .collect();
    let document = json!({"ignition": {"version": "3.3.0"}, "storage": {"files": files}});
    Ok(Generated::one(GuestFile::text("guestnet.ign", format!("{document:#}\n")), warnings))
}

fn keyfile(guest: &GuestNet) -> String {
    let GuestNet { mac, address, subnet, gateway, mtu, .. } = guest;
    let servers: String =
        guest.dns_servers.iter().filter(|s| s.is_ipv4()).map(|server| format!("{server};")).collect();
    let dns = if servers.is_empty() { String::new() } else { format!("dns={servers}\n") };
    let prefix_len = subnet.prefix_len();
    let search: String = guest.search().map(|domain| format!("{domain};")).collect();
    let routes: String = guest.routes().zip(1..).map(|(route, number)| route_line(route, number)).collect();
    format!(
        "[connection]\nid=guestnet\ntype=ethernet\nautoconnect=true\n\n[ethernet]\nmac-address={mac}\nmtu={mtu}\n\n\
         [ipv4]\nmethod=manual\naddress1={address}/{prefix_len},{gateway}\n{routes}{dns}dns-search={search}\nmay-fail=false\n\n\
         [ipv6]\nmethod=disabled\n"
    )
}

/// Without a gateway it is on the link.
fn route_line(route: &StaticRoute, number: u32) -> String {
    let via = if route.is_on_link() { String::new() } else { format!(",{}", route.via) };
    format!("route{number}={}{via}\n", route.destination)
}

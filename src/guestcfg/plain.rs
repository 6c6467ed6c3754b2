//! The facts alone, for programs of one's own. In: a guest, and its host side where known. Out: JSON with the API's field
//! names, lines of NAME=value, or a script that configures the card with `ip` (iproute2 or busybox).

use serde_json::{Map, Value, json};

use super::check::check;
use super::resolv_conf::resolv_conf_file;
use super::{DeviceName, Generated, GuestFile, HostSide, Options, Refusal};
use crate::model::{DhcpOptions, GuestNet, StaticRoute};

pub(super) fn json(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let text = format!("{:#}\n", Value::Object(facts(guest, options.host.as_ref())));
    Ok(Generated::one(GuestFile::text("guestnet.json", text), Vec::new()))
}

/// No value needs quotes in a shell, a systemd EnvironmentFile= or an env file of a container engine.
pub(super) fn env(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let line = |(name, value): (String, String)| format!("GUESTNET_{}={value}\n", name.to_ascii_uppercase());
    let text: String = texts(guest, options.host.as_ref()).map(line).collect();
    Ok(Generated::one(GuestFile::text("guestnet.env", text), Vec::new()))
}

pub(super) fn shell(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    check(guest)?;
    let GuestNet { address, subnet, gateway, hostname, mtu, .. } = guest;
    let device = &options.device;
    let (resolv_conf, warnings) = resolv_conf_file(guest);
    let resolv_conf = String::from_utf8_lossy(&resolv_conf.bytes).into_owned();
    let prefix_len = subnet.prefix_len();
    let routes: String = guest.routes().map(|route| add_route("replace", route, device) + "\n").collect();
    let text = format!(
        "#!/bin/sh\nset -e\nip link set dev {device} mtu {mtu}\nip link set dev {device} up\n\
         ip addr replace {address}/{prefix_len} broadcast {} dev {device}\n\
         ip route replace default via {gateway} dev {device}\n{routes}echo {hostname} > /proc/sys/kernel/hostname\n\
         cat > /etc/resolv.conf <<'END'\n{resolv_conf}END\n",
        subnet.broadcast()
    );
    let script = GuestFile { mode: 0o755, ..GuestFile::text("guestnet.sh", text) };
    Ok(Generated::one(script, warnings))
}

/// A command of iproute2 or busybox.
pub(super) fn add_route(verb: &str, route: &StaticRoute, device: &DeviceName) -> String {
    let via = if route.is_on_link() { String::new() } else { format!(" via {}", route.via) };
    format!("ip route {verb} {}{via} dev {device}", route.destination)
}

/// Under the names of the API's `VmNetwork`.
pub(super) fn facts(guest: &GuestNet, host: Option<&HostSide>) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut add = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    if let Some(HostSide { vm_id, tap_device }) = host {
        add("vm_id", json!(vm_id));
        add("namespace", json!(vm_id.namespace()));
        add("tap_device", json!(tap_device.as_str()));
    }
    add("ip_address", json!(guest.address));
    add("netmask", json!(guest.subnet.netmask()));
    add("prefix_len", json!(guest.subnet.prefix_len()));
    add("gateway", json!(guest.gateway));
    add("mac_address", json!(guest.mac));
    add("dns_servers", json!(guest.dns_servers));
    add("hostname", json!(guest.hostname));
    add("domain", json!(guest.domain));
    add("mtu", json!(guest.mtu));
    if guest.options != DhcpOptions::default() {
        add("dhcp_options", json!(guest.options));
    }
    facts
}

/// The same as texts: a list is joined by commas, a route is `destination:gateway`. Of the options those that the guest's
/// network is made of.
pub(super) fn texts(guest: &GuestNet, host: Option<&HostSide>) -> impl Iterator<Item = (String, String)> {
    fn text(value: Value) -> String {
        match value {
            Value::String(text) => text,
            Value::Array(list) => list.into_iter().map(text).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        }
    }
    let mut facts = facts(guest, host);
    facts.remove("dhcp_options");
    let DhcpOptions { ntp_servers, domain_search, .. } = &guest.options;
    let routes: Vec<String> =
        guest.routes().map(|route| format!("{}:{}", route.destination, route.via)).collect();
    let options = [
        ("domain_search", json!(domain_search)),
        ("ntp_servers", json!(ntp_servers)),
        ("static_routes", json!(routes)),
    ];
    let options =
        options.into_iter().filter(|(_, value)| value.as_array().is_some_and(|list| !list.is_empty()));
    let options = options.map(|(name, value)| (name.to_owned(), value));
    facts.into_iter().chain(options).map(|(name, value)| (name, text(value)))
}

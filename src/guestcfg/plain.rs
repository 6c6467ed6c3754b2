//! The facts alone, for programs of one's own. In: a guest, and its host side where known. Out: JSON with the API's field
//! names, lines of NAME=value, or a script that configures the card with `ip` (iproute2 or busybox).

use serde_json::{Map, Value, json};

use super::check::check;
use super::resolv_conf::resolv_conf_file;
use super::{Generated, GuestFile, HostSide, Options, Refusal};
use crate::model::GuestNet;

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
    let text = format!(
        "#!/bin/sh\nset -e\nip link set dev {device} mtu {mtu}\nip link set dev {device} up\n\
         ip addr replace {address}/{prefix_len} broadcast {} dev {device}\n\
         ip route replace default via {gateway} dev {device}\necho {hostname} > /proc/sys/kernel/hostname\n\
         cat > /etc/resolv.conf <<'END'\n{resolv_conf}END\n",
        subnet.broadcast()
    );
    let script = GuestFile { mode: 0o755, ..GuestFile::text("guestnet.sh", text) };
    Ok(Generated::one(script, warnings))
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
    facts
}

/// The same as texts; a list is joined by commas.
pub(super) fn texts(guest: &GuestNet, host: Option<&HostSide>) -> impl Iterator<Item = (String, String)> {
    fn text(value: Value) -> String {
        match value {
            Value::String(text) => text,
            Value::Array(list) => list.into_iter().map(text).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        }
    }
    facts(guest, host).into_iter().map(|(name, value)| (name, text(value)))
}

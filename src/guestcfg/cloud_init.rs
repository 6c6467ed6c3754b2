//! cloud-init. In: a guest, the version of network-config and the form it is delivered in. Out: the files of a NoCloud
//! seed, an image of them, kernel arguments, or a drop-in. Facts about renderers and versions: docs/guest-configuration.md.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::check::check;
use super::iso_image::iso_image;
use super::kernel_line::{Argument, arguments, join};
use super::mime::mime;
use super::seed_image::seed_image;
use super::yaml::yaml;
use super::{DeviceName, Fact, Generated, GuestFile, Options, Refusal, Warning};
use crate::model::{DhcpOptions, Domain, GuestNet, Invalid, StaticRoute};

/// Version of the network-config format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkConfigVersion {
    V1,
    #[default]
    V2,
}

impl NetworkConfigVersion {
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl FromStr for NetworkConfigVersion {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|version| version.as_str() == text);
        known.ok_or_else(|| Invalid::new(text, "a version of network-config: v1 or v2"))
    }
}

impl fmt::Display for NetworkConfigVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the configuration reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// meta-data, user-data, network-config and vendor-data, for a folder, an HTTP server or one's own image.
    #[default]
    NocloudDir,
    /// The same files in a FAT image labelled CIDATA, to attach as a drive.
    SeedImage,
    /// The same as a CD: ISO 9660.
    Iso,
    /// `ds=` and `network-config=` on the kernel command line: no disk is needed.
    BootArgs,
    /// A drop-in of /etc/cloud/cloud.cfg.d in the guest's image.
    CloudCfgD,
    /// A file of /etc/netplan in the guest's image; no cloud-init is needed.
    Netplan,
    /// user-data alone, where nothing else can be handed over: a MIME archive.
    Mime,
}

impl Form {
    pub const ALL: [Self; 7] = [
        Self::NocloudDir,
        Self::SeedImage,
        Self::Iso,
        Self::BootArgs,
        Self::CloudCfgD,
        Self::Netplan,
        Self::Mime,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NocloudDir => "nocloud-dir",
            Self::SeedImage => "seed-image",
            Self::Iso => "iso",
            Self::BootArgs => "boot-args",
            Self::CloudCfgD => "cloud.cfg.d",
            Self::Netplan => "netplan",
            Self::Mime => "mime",
        }
    }
}

impl FromStr for Form {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|form| form.as_str() == text);
        known.ok_or_else(|| {
            Invalid::new(
                text,
                "a form: nocloud-dir, seed-image, iso, boot-args, cloud.cfg.d, netplan or mime",
            )
        })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The guest's configuration for cloud-init, or for netplan alone.
pub fn cloud_init(
    guest: &GuestNet,
    form: Form,
    version: NetworkConfigVersion,
    options: &Options,
) -> Result<Generated, Refusal> {
    check(guest)?;
    let network_config = network_config(guest, &options.device, version);
    match form {
        Form::NocloudDir => nocloud_dir(guest, &network_config, options.user_data),
        Form::SeedImage => {
            let Generated { files, warnings } = nocloud_dir(guest, &network_config, options.user_data)?;
            let bytes = seed_image(&files)?;
            Ok(Generated::one(GuestFile { path: "seed.img".to_owned(), mode: 0o600, bytes }, warnings))
        }
        Form::Iso => {
            let Generated { files, warnings } = nocloud_dir(guest, &network_config, options.user_data)?;
            let bytes = iso_image(&files)?;
            Ok(Generated::one(GuestFile { path: "seed.iso".to_owned(), mode: 0o600, bytes }, warnings))
        }
        Form::BootArgs => boot_args(guest, &network_config, options.merge),
        Form::CloudCfgD => Ok(Generated::one(cloud_cfg_d(guest, &network_config), Vec::new())),
        Form::Netplan if version == NetworkConfigVersion::V1 => Err(Refusal::NetplanIsVersion2),
        Form::Netplan => Ok(Generated { files: netplan(guest, &network_config), warnings: Vec::new() }),
        Form::Mime => mime(guest, options),
    }
}

/// Changes with every fact of the assignment, so that cloud-init configures a guest that got another one anew; the same
/// assignment keeps its name, or every boot would be a first boot with new host keys.
pub fn instance_id(guest: &GuestNet) -> String {
    let servers = guest.dns_servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let GuestNet { mac, address, subnet, gateway, hostname, domain, mtu, .. } = guest;
    let mut facts = format!("{mac} {address} {subnet} {gateway} {servers} {hostname} {domain} {mtu}");
    // A guest without any keeps the name that it had before there were options.
    let DhcpOptions { ntp_servers, domain_search, static_routes, .. } = &guest.options;
    facts.extend(ntp_servers.iter().map(|server| format!(" ntp {server}")));
    facts.extend(domain_search.iter().map(|domain| format!(" search {domain}")));
    facts.extend(static_routes.iter().map(|route| format!(" {route}")));
    format!("iid-{:016x}", fnv1a(facts.as_bytes()))
}

/// FNV-1a of 64 bits: the same on every build and machine, which std's hasher does not promise.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// network-config without the `network` key around it: as the NoCloud file and the kernel argument have it.
fn network_config(guest: &GuestNet, device: &DeviceName, version: NetworkConfigVersion) -> Value {
    let GuestNet { mac, address, subnet, gateway, mtu, .. } = guest;
    let device = device.as_str();
    let mac = mac.to_string();
    let address = format!("{address}/{}", subnet.prefix_len());
    let gateway = gateway.to_string();
    let dns: Vec<String> = guest.dns_servers.iter().map(ToString::to_string).collect();
    let search: Vec<&str> = guest.search().map(Domain::as_str).collect();
    // cloud-init drops `on-link` in its networkd renderer, so a route without a gateway is warned of.
    let routes = guest.routes().filter(|route| !route.is_on_link());
    match version {
        NetworkConfigVersion::V1 => {
            let mut subnet = json!({
                "type": "static",
                "address": address,
                "gateway": gateway,
                "dns_nameservers": dns,
                "dns_search": search,
            });
            let routes: Vec<Value> = routes.map(route_of_version_1).collect();
            if !routes.is_empty() {
                subnet["routes"] = Value::from(routes);
            }
            json!({
                "version": 1,
                "config": [{
                    "type": "physical",
                    "name": device,
                    "mac_address": mac,
                    "mtu": mtu,
                    "subnets": [subnet],
                }],
            })
        }
        // `to: default` needs cloud-init 25.3 outside of netplan, and gateway4 is deprecated; 0.0.0.0/0 works everywhere.
        NetworkConfigVersion::V2 => {
            let default = json!({"to": "0.0.0.0/0", "via": gateway});
            let more = routes.map(|route| json!({"to": route.destination.to_string(), "via": route.via}));
            let routes: Vec<Value> = std::iter::once(default).chain(more).collect();
            json!({
                "version": 2,
                "ethernets": {
                    device: {
                        "match": {"macaddress": mac},
                        "set-name": device,
                        "dhcp4": false,
                        "mtu": mtu,
                        "addresses": [address],
                        "routes": routes,
                        "nameservers": {"addresses": dns, "search": search},
                    },
                },
            })
        }
    }
}

fn route_of_version_1(StaticRoute { destination, via }: &StaticRoute) -> Value {
    json!({"network": destination.network(), "netmask": destination.mask(), "gateway": via})
}

/// The guest's name and its time servers; vendor-data, so that the tenant's user-data may say otherwise. Without the
/// third key some distributions take the full name for the host name, which DHCP and `ip=` do not.
pub(super) fn system(guest: &GuestNet) -> Value {
    let fqdn = format!("{}.{}", guest.hostname, guest.domain);
    let mut config =
        json!({"hostname": guest.hostname.as_str(), "fqdn": fqdn, "prefer_fqdn_over_hostname": false});
    let servers = &guest.options.ntp_servers;
    if !servers.is_empty() {
        config["ntp"] = json!({"enabled": true, "servers": servers});
    }
    config
}

fn nocloud_dir(
    guest: &GuestNet,
    network_config: &Value,
    user_data: Option<&[u8]>,
) -> Result<Generated, Refusal> {
    let meta_data = json!({"instance-id": instance_id(guest), "local-hostname": guest.hostname.as_str()});
    let user_data = user_data.unwrap_or(b"#cloud-config\n{}\n");
    let warnings = check_user_data(user_data)?.into_iter().collect();
    let files = vec![
        GuestFile::text("meta-data", yaml(&meta_data)),
        // It often holds passwords and keys.
        GuestFile { path: "user-data".to_owned(), mode: 0o600, bytes: user_data.to_vec() },
        GuestFile::text("network-config", yaml(network_config)),
        GuestFile::text("vendor-data", format!("#cloud-config\n{}", yaml(&system(guest)))),
    ];
    Ok(Generated { files, warnings })
}

fn boot_args(guest: &GuestNet, network_config: &Value, merge: Option<&str>) -> Result<Generated, Refusal> {
    let mut warnings = Vec::new();
    for argument in arguments(merge.unwrap_or_default())? {
        warnings.extend(standing(&argument)?);
    }
    // JSON is YAML, and shorter.
    let encoded = BASE64.encode(network_config.to_string());
    let ours = format!("ds=nocloud;i={};h={} network-config={encoded}", instance_id(guest), guest.hostname);
    let (line, long) = join(merge, &ours)?;
    warnings.extend(long);
    Ok(Generated::one(GuestFile::text("boot-args", line + "\n"), warnings))
}

/// What an argument that stands on the line already means for ours.
fn standing(argument: &Argument) -> Result<Option<Warning>, Refusal> {
    let taken = |ours| Err(Refusal::Taken { found: argument.text.to_owned(), ours });
    let warn = |reason| Ok(Some(Warning::new(Fact::Argument, argument.text, reason)));
    match argument.name.as_str() {
        "ds" => taken("ds="),
        "network-config" => taken("network-config="),
        "ip" | "nfsaddrs" => {
            warn("the kernel or the initramfs configures the same card before cloud-init does")
        }
        "nameserver" => warn("is read by dracut and systemd besides what cloud-init is told"),
        "cloud-init" if argument.value == "disabled" => {
            warn("cloud-init does not run: nothing reads our arguments")
        }
        _ => Ok(None),
    }
}

fn cloud_cfg_d(guest: &GuestNet, network_config: &Value) -> GuestFile {
    let mut config = system(guest);
    config["network"] = network_config.clone();
    GuestFile::text("etc/cloud/cloud.cfg.d/99-guestnet.cfg", yaml(&config))
}

fn netplan(guest: &GuestNet, network_config: &Value) -> Vec<GuestFile> {
    let plan = yaml(&json!({"network": network_config}));
    vec![
        // netplan warns about a plan that others can read.
        GuestFile { mode: 0o600, ..GuestFile::text("etc/netplan/60-guestnet.yaml", plan) },
        GuestFile::text("etc/hostname", format!("{}\n", guest.hostname)),
    ]
}

/// Some clouds take 16 KiB; a seed has no limit of its own, but a mistaken file should not become a guest's disk.
const USER_DATA_LIMIT: usize = 1024 * 1024;

/// Whether cloud-init will understand user-data: gzip, MIME, or text that says in its first line what it is.
pub fn check_user_data(user_data: &[u8]) -> Result<Option<Warning>, Refusal> {
    const KINDS: [&str; 7] = [
        "#cloud-config",
        "#!",
        "#include",
        "#cloud-boothook",
        "#part-handler",
        "## template: jinja",
        "content-type:",
    ];
    let length = user_data.len();
    if length > USER_DATA_LIMIT {
        return Err(Refusal::UserDataTooLong { length, limit: USER_DATA_LIMIT });
    }
    if user_data.starts_with(&[0x1f, 0x8b]) {
        return Ok(None);
    }
    let text = std::str::from_utf8(user_data).map_err(|error| {
        let at = error.valid_up_to();
        Refusal::UserDataBinary { at, byte: user_data.get(at).copied().unwrap_or_default() }
    })?;
    if let Some(at) = user_data.iter().position(|byte| *byte == 0) {
        return Err(Refusal::UserDataBinary { at, byte: 0 });
    }
    let start: String = text.trim_start().chars().take(4096).collect::<String>().to_ascii_lowercase();
    let known =
        start.is_empty() || start.contains("mime-version:") || KINDS.iter().any(|k| start.starts_with(k));
    let shown: String = text.lines().next().unwrap_or_default().chars().take(40).collect();
    Ok((!known).then(|| {
        Warning::new(
            Fact::UserData,
            format!("{shown:?}"),
            "is no first line cloud-init knows, like #cloud-config or #!",
        )
    }))
}

#[cfg(test)]
mod tests;

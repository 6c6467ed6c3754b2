use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Generated, GuestFile, Refusal};
use crate::model::GuestNet;

/// NoCloud's files. The network-config file has no `network:` key of its own.
pub fn nocloud(net: &GuestNet) -> Result<Generated<Vec<GuestFile>>, Refusal> {
    let meta_data = format!("instance-id: \"{}\"\nlocal-hostname: \"{}\"\n", instance_id(net), net.hostname);
    let content = vec![
        GuestFile { name: "meta-data", content: meta_data },
        GuestFile { name: "user-data", content: "#cloud-config\n{}\n".into() },
        GuestFile { name: "network-config", content: network_config(net) },
    ];
    Ok(Generated { content, warnings: Vec::new() })
}

/// The same without a disk, for the kernel's command line. Without `ds=` cloud-init would not look at the rest.
pub fn boot_args(net: &GuestNet) -> Result<Generated<String>, Refusal> {
    let config = STANDARD.encode(network_config(net));
    let text = format!("ds=nocloud;i={};h={} network-config={config}", instance_id(net), net.hostname);
    Ok(Generated { content: super::within_limit(text)?, warnings: Vec::new() })
}

/// Network configuration version 2. `to: 0.0.0.0/0`, because `default` fails in most renderers before cloud-init 25.3; the
/// MAC quoted, because one of digits alone would be a number in YAML 1.1.
fn network_config(net: &GuestNet) -> String {
    let servers = net.dns_servers.iter().map(|server| format!("\"{server}\"")).collect::<Vec<_>>().join(", ");
    format!(
        r#"version: 2
ethernets:
  eth0:
    match:
      macaddress: "{mac}"
    set-name: eth0
    dhcp4: false
    dhcp6: false
    addresses:
      - "{address}/{prefix}"
    routes:
      - to: "0.0.0.0/0"
        via: "{gateway}"
    mtu: {mtu}
    nameservers:
      addresses: [{servers}]
      search: ["{domain}"]
"#,
        mac = net.mac,
        address = net.address,
        prefix = net.subnet.prefix_len(),
        gateway = net.gateway,
        mtu = net.mtu,
        domain = net.domain,
    )
}

/// Changes with anything the guest is told, so that cloud-init configures a changed assignment anew: FNV-1a of the facts.
fn instance_id(net: &GuestNet) -> String {
    let facts = format!("{}{}", network_config(net), net.hostname);
    let hash = facts.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("guestnet-{hash:016x}")
}

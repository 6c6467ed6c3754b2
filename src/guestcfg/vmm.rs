//! What a VM manager is told: Firecracker's documents, QEMU's and cloud-hypervisor's arguments. In: a guest and its TAP
//! and netns on the host. Out: the card (MAC, TAP, where the VMM has a place for it the MTU) and `ip=` for the kernel.

use serde_json::{Map, Value, json};

use super::plain::texts;
use super::{
    Dialect, Fact, Generated, GuestFile, HostSide, Options, Refusal, Target, Warning, cmdline, instance_id,
};
use crate::model::GuestNet;

/// How QEMU attaches the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bus {
    Pci,
    /// The microvm machine.
    Mmio,
}

fn host_side<'a>(options: &'a Options, target: Target) -> Result<&'a HostSide, Refusal> {
    options.host.as_ref().ok_or_else(|| Refusal::NoHostSide { target: target.to_string() })
}

/// `ip=` on the line so far, for the VMM to hand to the kernel.
fn kernel_line(guest: &GuestNet, options: &Options) -> Result<(String, Vec<Warning>), Refusal> {
    let generated = cmdline(guest, Dialect::Kernel, options)?;
    let line = generated.as_text().unwrap_or_default().trim_end().to_owned();
    Ok((line, generated.warnings))
}

/// `vm-config.json` has the keys of Firecracker's --config-file, each the body of the PUT of that name; `mmds.json` is
/// the body of PUT /mmds (EC2's layout, text only, as MMDS serves nothing else to a guest that does not ask for JSON).
pub(super) fn firecracker(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let host = host_side(options, Target::Firecracker)?;
    let (line, warnings) = kernel_line(guest, options)?;
    let device = options.device.as_str();
    let mac = guest.mac.to_string();
    let vm_config = json!({
        "boot-source": {"boot_args": line},
        "network-interfaces": [{"iface_id": device, "guest_mac": mac, "host_dev_name": host.tap_device.as_str()}],
        "mmds-config": {"version": "V2", "network_interfaces": [device], "ipv4_address": "169.254.169.254"},
    });
    let facts: Map<String, Value> =
        texts(guest, Some(host)).map(|(name, value)| (name, Value::from(value))).collect();
    let mmds = json!({
        "latest": {
            "meta-data": {
                "instance-id": instance_id(guest),
                "hostname": format!("{}.{}", guest.hostname, guest.domain),
                "local-hostname": guest.hostname.as_str(),
                "local-ipv4": guest.address.to_string(),
                "mac": mac,
            },
        },
        "guestnet": facts,
    });
    let files = vec![
        GuestFile::text("vm-config.json", format!("{vm_config:#}\n")),
        GuestFile::text("mmds.json", format!("{mmds:#}\n")),
        GuestFile::text("jailer-args", format!("--netns /run/netns/{}\n", host.vm_id.namespace())),
    ];
    Ok(Generated { files, warnings })
}

/// One option a line; to be run in the VM's netns, where the TAP is.
pub(super) fn qemu(guest: &GuestNet, bus: Bus, options: &Options) -> Result<Generated, Refusal> {
    let target = if bus == Bus::Pci { Target::Qemu } else { Target::QemuMicrovm };
    let host = host_side(options, target)?;
    let (line, warnings) = kernel_line(guest, options)?;
    let model = if bus == Bus::Pci { "virtio-net-pci" } else { "virtio-net-device" };
    let mtu = if guest.mtu == 1500 { String::new() } else { format!(",host_mtu={}", guest.mtu) };
    let text = format!(
        "-netdev tap,id=guestnet0,ifname={},script=no,downscript=no\n-device {model},netdev=guestnet0,mac={}{mtu}\n\
         -append {}\n",
        host.tap_device,
        guest.mac,
        quoted(&line)
    );
    Ok(Generated::one(GuestFile::text("qemu-args", text), without_mtu(warnings)))
}

/// As for QEMU. `ip=` and `mask=` of --net are left out: they would give the TAP an address on the host.
pub(super) fn cloud_hypervisor(guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let host = host_side(options, Target::CloudHypervisor)?;
    let (line, warnings) = kernel_line(guest, options)?;
    let mtu = if guest.mtu == 1500 { String::new() } else { format!(",mtu={}", guest.mtu) };
    let text = format!("--net tap={},mac={}{mtu}\n--cmdline {}\n", host.tap_device, guest.mac, quoted(&line));
    Ok(Generated::one(GuestFile::text("cloud-hypervisor-args", text), without_mtu(warnings)))
}

/// The virtio card itself carries it (VIRTIO_NET_F_MTU), so it does not matter that `ip=` cannot.
fn without_mtu(warnings: Vec<Warning>) -> Vec<Warning> {
    warnings.into_iter().filter(|warning| warning.fact != Fact::Mtu).collect()
}

/// One word for a POSIX shell and for xargs.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

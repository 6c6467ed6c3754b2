//! Guests of a whole distribution: Debian with systemd and cloud-init (vm-images), booted by QEMU from its disk image, which
//! is left as it is; and guests whose VMM is started by the arguments that `guestnet gen` wrote.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::guest::{Accelerator, Guest, image, qemu, virtio_net};
use super::{Lab, Namespace};

/// An emulated Debian takes a minute and a half on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

fn field<'v>(vm: &'v Value, name: &str) -> &'v str {
    vm[name].as_str().unwrap_or_else(|| panic!("no {name}: {vm}"))
}

/// The VM's netns, where its VMM runs.
pub fn netns_of(lab: &Lab, vm: &Value) -> Namespace {
    lab.host.enter(&Path::new("/run/netns").join(field(vm, "namespace")))
}

/// Boots Debian `release` as the VM, with a seed as its second drive.
pub fn boot(lab: &Lab, vm: &Value, release: &str, arguments: &str, seed: Option<&Path>) -> Guest {
    let file = |name: &str| image(&format!("debian-{release}/{name}"));
    let mut command = netns_of(lab, vm).command("qemu-system-x86_64");
    qemu(&mut command, "q35", Accelerator::best(), 512);
    virtio_net(&mut command, "virtio-net-pci", field(vm, "tap_device"), field(vm, "mac_address"));
    // The getty would read the console beside ours.
    let arguments = format!(
        "root=LABEL=root console=ttyS0 quiet loglevel=3 panic=-1 net.ifnames=0 systemd.show_status=false \
         systemd.mask=serial-getty@ttyS0.service guestnet.console {arguments}"
    );
    command.arg("-kernel").arg(file("vmlinuz")).arg("-initrd").arg(file("initrd.img"));
    command.arg("-append").arg(arguments);
    let disk = format!("file={},if=virtio,format=raw,snapshot=on", file("root.ext4").display());
    command.args(["-drive", &disk]).env("TMPDIR", lab.directory());
    if let Some(seed) = seed {
        let seed = format!("file={},if=virtio,format=raw,readonly=on", seed.display());
        command.args(["-drive", &seed]);
    }
    Guest::power_on(lab, field(vm, "vm_id"), command, BOOT_LIMIT)
}

/// Boots the small kernel by a file of `guestnet gen qemu-microvm`.
pub fn boot_microvm_by(lab: &Lab, vm: &Value, arguments: &Path) -> Guest {
    boot_by(lab, vm, arguments, "microvm,acpi=off", ["kernel/bzImage", "initramfs.cpio.gz"])
}

/// Boots Debian's cloud kernel by a file of `guestnet gen qemu`.
pub fn boot_cloud_by(lab: &Lab, vm: &Value, arguments: &Path) -> Guest {
    boot_by(lab, vm, arguments, "q35", ["cloud/vmlinuz", "cloud/initrd.gz"])
}

/// The machine's own arguments, then the file's, in words as a shell reads them.
fn boot_by(lab: &Lab, vm: &Value, arguments: &Path, machine: &str, [kernel, initrd]: [&str; 2]) -> Guest {
    let mut command = netns_of(lab, vm).command("sh");
    let start = r#"words=$(tr '\n' ' ' <"$0"); eval "set -- \"\$@\" $words"; exec qemu-system-x86_64 "$@""#;
    command.arg("-c").arg(start).arg(arguments);
    qemu(&mut command, machine, Accelerator::best(), 192);
    command.arg("-kernel").arg(image(kernel)).arg("-initrd").arg(image(initrd));
    Guest::power_on(lab, field(vm, "vm_id"), command, BOOT_LIMIT)
}

//! Guests of a whole distribution: Debian with systemd and cloud-init (vm-images), booted by QEMU from its disk image, which
//! is left as it is; and guests whose VMM is started by the arguments that `guestnet gen` wrote.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::guest::{Accelerator, Guest, image, qemu, virtio_net};
use super::{Lab, Namespace, succeed};

/// The start of a script of `sh` in namespaces of its own: into a root of its own, a layer at `$1` on the image `$0`, which is left as
/// it is.
pub(super) const SCRATCH_ROOT: &str = r#"set -e
mount -t tmpfs scratch "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$0,upperdir=$1/up,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc"#;

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
    boot_disk(lab, vm, release, arguments, &image(&format!("debian-{release}/root.ext4")), seed)
}

/// The same with a file of its own in the image, at `path` of its root.
pub fn boot_with_file(
    lab: &Lab,
    vm: &Value,
    release: &str,
    arguments: &str,
    file: &Path,
    path: &Path,
) -> Guest {
    let disk = lab.directory().join(format!("debian-{release}.ext4"));
    let image = image(&format!("debian-{release}/root.ext4"));
    succeed(Command::new("cp").arg("--sparse=always").args([&image, &disk]));
    let (folder, name) = (path.parent().expect("a folder"), path.file_name().expect("a name"));
    let commands = format!("cd {}\nwrite {} {}\n", folder.display(), file.display(), name.display());
    let script = lab.directory().join("debugfs");
    std::fs::write(&script, commands).expect("a file");
    succeed(Command::new("debugfs").args(["-w", "-f"]).args([&script, &disk]));
    boot_disk(lab, vm, release, arguments, &disk, None)
}

fn boot_disk(
    lab: &Lab,
    vm: &Value,
    release: &str,
    arguments: &str,
    disk: &Path,
    seed: Option<&Path>,
) -> Guest {
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
    let disk = format!("file={},if=virtio,format=raw,snapshot=on", disk.display());
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

/// Boots the small kernel with the shared initramfs and this command line, word for word.
pub fn boot_microvm_with(lab: &Lab, vm: &Value, line: &str) -> Guest {
    let mut command = netns_of(lab, vm).command("qemu-system-x86_64");
    qemu(&mut command, "microvm,acpi=off", Accelerator::best(), 192);
    virtio_net(&mut command, "virtio-net-device", field(vm, "tap_device"), field(vm, "mac_address"));
    command.arg("-kernel").arg(image("kernel/bzImage")).arg("-initrd").arg(image("initramfs.cpio.gz"));
    command.args(["-append", line]);
    Guest::power_on(lab, field(vm, "vm_id"), command, BOOT_LIMIT)
}

/// Debian's cloud kernel's initramfs, unpacked into a folder: a busybox image's root, to be changed.
pub fn unpack_initramfs(into: &Path) {
    let initrd = image("cloud/initrd.gz");
    let mut unpack = Command::new("sh");
    succeed(unpack.args(["-ec", "cd \"$1\"; zcat \"$0\" | cpio -idm --quiet"]).args([&initrd, into]));
}

/// Boots Debian's cloud kernel with that folder as its initramfs.
pub fn boot_initramfs(lab: &Lab, vm: &Value, root: &Path, arguments: &str) -> Guest {
    let initrd = lab.directory().join("initramfs.gz");
    let mut pack = Command::new("sh");
    let script = "cd \"$0\"; find . | cpio -o -H newc --owner=0:0 --quiet | gzip -1 >\"$1\"";
    succeed(pack.args(["-ec", script]).args([root, &initrd]));
    let mut command = netns_of(lab, vm).command("qemu-system-x86_64");
    qemu(&mut command, "q35", Accelerator::best(), 192);
    virtio_net(&mut command, "virtio-net-pci", field(vm, "tap_device"), field(vm, "mac_address"));
    command.arg("-kernel").arg(image("cloud/vmlinuz")).arg("-initrd").arg(&initrd);
    command.arg("-append").arg(format!("console=ttyS0 quiet loglevel=3 panic=-1 {arguments}"));
    Guest::power_on(lab, field(vm, "vm_id"), command, BOOT_LIMIT)
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

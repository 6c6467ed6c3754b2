# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# Debian's cloud kernel, downloaded but not installed, and the shared root file system with the virtio modules it
# needs to reach a network card on PCI. init loads them in the order of lib/modules/order.
provides=cloud
kernel=$(cloud_kernel_package)
packages=("${root_packages[@]}")
fetched=("$kernel")
inputs=("${root_inputs[@]}")
modules=(virtio_ring virtio virtio_mmio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net)

build() { # DIR
  local deb=$1/deb root=$1/root module
  unpack "$kernel" "$deb"
  guest_root "$root"
  install -d -m 755 "$root/lib/modules"
  for module in "${modules[@]}"; do
    find "$deb/lib/modules" -name "$module.ko" -exec install -m 644 {} "$root/lib/modules" \;
    [ -e "$root/lib/modules/$module.ko" ] || die "$kernel has no module $module"
  done
  printf '%s\n' "${modules[@]}" >"$root/lib/modules/order"
  chmod 644 "$root/lib/modules/order"
  install -d "$1/cloud"
  install -m 644 "$deb"/boot/vmlinuz-* "$1/cloud/vmlinuz"
  pack "$root" >"$1/cloud/initrd.gz"
  rm -r "$deb" "$root"
}

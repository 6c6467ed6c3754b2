# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# A Debian 13 root, not to be booted: the programs that read what guestnet generates, for tests to ask.
provides=validators
packages=("${debian_packages[@]}")
inputs=("$here/lib/debian.sh")
programs=(
  cloud-init netplan.io network-manager ifupdown systemd dbus dracut-core dracut-network klibc-utils busybox-static
  isc-dhcp-client dhcpcd-base iproute2 nix-bin ignition dosfstools libarchive-tools mtools kmod
)

build() { # DIR
  debootstrapped trixie "$1/$provides" "${programs[@]}"
}

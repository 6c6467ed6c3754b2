# shellcheck shell=bash disable=SC2034,SC2154  # read by the recipes; here is set in build.sh
# Debian with cloud-init as a disk image: SUITE's packages by mmdebstrap, its own kernel, and the files of debian/.
debian_packages=(mmdebstrap debian-archive-keyring e2fsprogs)
debian_inputs=("$here/lib/debian.sh" "$here"/debian/* "$here/console" "$here"/../guest/{95-guestnet-dhcp.network,guestnet-hostname.service,multi-user-guestnet.conf})

# What a guest needs to boot and to be configured in any of the three ways. cloud-init is Debian's own: Python 3 comes with it.
debian_guest=(
  systemd-sysv udev kmod dbus systemd-resolved
  cloud-init iproute2 ca-certificates
  linux-image-cloud-amd64 initramfs-tools klibc-utils busybox
)

# debian SUITE DIR PACKAGES...: DIR/vmlinuz, DIR/initrd.img, DIR/root.ext4
debian() {
  local suite=$1 out=$2 root=$2/root
  debootstrapped "$suite" "$root" "${debian_guest[@]}" "${@:3}" \
    --essential-hook="mkdir -p \"\$1/etc/initramfs-tools/conf.d\"" \
    --essential-hook="cp '$here/debian/initramfs.conf' \"\$1/etc/initramfs-tools/conf.d/guestnet.conf\"" \
    --essential-hook="cp '$here/debian/initramfs-modules' \"\$1/etc/initramfs-tools/modules\"" \
    --customize-hook="'$here/debian/customize' \"\$1\" '$here'"
  install -m 644 "$(readlink -f "$root/vmlinuz")" "$out/vmlinuz"
  install -m 644 "$(readlink -f "$root/initrd.img")" "$out/initrd.img"
  rm -rf "$root"/boot/* "$root/vmlinuz" "$root/initrd.img" "$root"/vmlinuz.old "$root"/initrd.img.old
  # 400 MB free; the blocks that nothing is in take no room
  local kib=$(($(du -sk "$root" | cut -f 1) + 400 * 1024))
  mke2fs -q -t ext4 -L root -E root_owner=0:0,lazy_itable_init=0 -d "$root" "$out/root.ext4" "${kib}k"
  rm -rf "$root"
}

# debootstrapped SUITE DIR PACKAGES... [--OPTION...]: a root file system, by mmdebstrap, which takes the options too
debootstrapped() {
  local word include='' options=()
  for word in "${@:3}"; do
    case $word in
      --*) options+=("$word") ;;
      *) include+=",$word" ;;
    esac
  done
  mmdebstrap --quiet --mode=root --variant=minbase --include="${include#,}" "${options[@]}" \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    "$1" "$2" >&2
}

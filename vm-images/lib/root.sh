# shellcheck shell=bash disable=SC2034,SC2154  # read by the recipes; here is set in build.sh
# The root file system that all guests share: busybox, init, and the udhcpc script that image builders use too.
root_packages=(busybox-static cpio klibc-utils)
root_inputs=("$here/lib/root.sh" "$here/lib/cpio.sh" "$here/init" "$here/console" "$here/udhcpc-report" "$here/../guest/udhcpc.script")

guest_root() { # DIR
  install -d -m 755 "$1"/{bin,dev,etc/guestnet,proc,run,sbin,sys,usr/bin,usr/sbin}
  install -d -m 1777 "$1/tmp"
  install -m 755 "$(dpkg -L busybox-static | grep -E '/bin/busybox$')" "$1/bin/busybox"
  install -m 755 "$here/init" "$1/init"
  install -m 755 "$here/udhcpc-report" "$here/../guest/udhcpc.script" "$1/etc/guestnet"
  install -m 644 "$here/console" "$1/etc/guestnet"
  # klibc's, as initramfs-tools has it: a client of DHCP and a reader of ip=; the library is its interpreter too
  install -m 755 /usr/lib/klibc/bin/ipconfig "$1/bin/ipconfig"
  install -D -m 755 -t "$1/lib" "$(dpkg -L libklibc | grep -E '/klibc-.*\.so$')"
}

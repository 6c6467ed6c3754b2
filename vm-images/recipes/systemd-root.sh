# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# A Debian 13 root whose systemd runs on the lab's host: for tests to install guestnet's package in.
provides=systemd-root
packages=("${debian_packages[@]}")
inputs=("$here/lib/debian.sh")

build() { # DIR
  debootstrapped trixie "$1/$provides" systemd-sysv dbus iptables iproute2 curl
}

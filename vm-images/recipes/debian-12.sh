# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# Debian 12 (systemd 252, cloud-init 22.4, configured by systemd-networkd).
provides=debian-12
packages=("${debian_packages[@]}")
inputs=("${debian_inputs[@]}")

build() { # DIR
  install -d "$1/$provides"
  debian bookworm "$1/$provides"
}

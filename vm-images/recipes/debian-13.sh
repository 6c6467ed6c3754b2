# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# Debian 13 (systemd 257, cloud-init 25.1, configured by netplan as Debian's own cloud images are).
provides=debian-13
packages=("${debian_packages[@]}")
inputs=("${debian_inputs[@]}")

build() { # DIR
  install -d "$1/$provides"
  debian trixie "$1/$provides" netplan.io
}

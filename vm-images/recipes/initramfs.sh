# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# The shared root file system alone, for kernels that need no modules.
provides=initramfs.cpio.gz
packages=("${root_packages[@]}")
inputs=("${root_inputs[@]}")

build() { # DIR
  guest_root "$1/root"
  pack "$1/root" >"$1/$provides"
  rm -r "$1/root"
}

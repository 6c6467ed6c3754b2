#!/usr/bin/env bash
# Builds the guests that tests, demo and benchmarks boot, from Debian packages only. See vm-images/README.md.
#
#   vm-images/build.sh TARGET...     targets: initramfs uml cloud-kernel kernel debian-12 debian-13 validators systemd-root all
#
# A target is rebuilt only when its recipe, its inputs or the versions of its packages change.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
. "$here/lib/packages.sh"
# shellcheck source-path=SCRIPTDIR source=lib/cache.sh
. "$here/lib/cache.sh"
# shellcheck source-path=SCRIPTDIR source=lib/cpio.sh
. "$here/lib/cpio.sh"
# shellcheck source-path=SCRIPTDIR source=lib/root.sh
. "$here/lib/root.sh"
# shellcheck source-path=SCRIPTDIR source=lib/debian.sh
. "$here/lib/debian.sh"

die() {
  echo "vm-images: $*" >&2
  exit 1
}

usage() {
  sed -n 's/^# \{0,3\}//; 2,4p' "${BASH_SOURCE[0]}"
}

main() {
  [ $# -gt 0 ] || { usage >&2; exit 2; }
  case $1 in -h | --help) usage; exit ;; esac
  [ "$(uname -m)" = x86_64 ] || die "the recipes are for x86_64; this machine is $(uname -m)"
  command -v dpkg-query apt-get >/dev/null || die 'the guests are made from Debian packages; this machine has no apt-get and dpkg-query'
  # `all` stands for what tests and image builders boot; `validators` and `systemd-root` are for the tests alone.
  [ "$1" != all ] || set -- initramfs uml cloud-kernel debian-12 debian-13 kernel "${@:2}"
  local target
  for target in "$@"; do
    [ -e "$here/recipes/$target.sh" ] || die "no target $target; there are initramfs, uml, cloud-kernel, kernel, debian-12, debian-13, validators, systemd-root and all"
  done
  for target in "$@"; do
    build_target "$target"
  done
}

main "$@"

# shellcheck shell=bash
# pack DIR: an initramfs of DIR on stdout, the same bytes for the same files
pack() (
  cd "$1" || exit
  find . -exec touch -h -d @0 {} +
  find . -mindepth 1 -print0 | LC_ALL=C sort -z |
    cpio --null --create --quiet --format=newc --owner=0:0 --reproducible | gzip -9n
)

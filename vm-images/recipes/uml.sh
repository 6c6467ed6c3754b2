# shellcheck shell=bash disable=SC2034  # its variables are read in lib/cache.sh
# User-Mode Linux as Debian ships it: a Linux kernel that is a program. Boots initramfs.cpio.gz as it is.
provides=uml
packages=(user-mode-linux)

build() { # DIR
  install -D -m 755 "$(dpkg -L user-mode-linux | grep -E '/bin/linux\.uml$')" "$1/uml/linux"
}

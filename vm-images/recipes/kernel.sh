# shellcheck shell=bash disable=SC2034,SC2154  # its variables are read in lib/cache.sh
# A small kernel with ip=, built from Debian's Linux source: tinyconfig and the options of kernel.config.
# Boots initramfs.cpio.gz as it is. Everything that could differ from build to build is fixed.
provides=kernel
packages=(gcc make flex bison bc libc6-dev libelf-dev xz-utils lz4)
fetched=(linux-source-6.1)
inputs=("$here/kernel.config")

build() { # DIR
  local deb=$1/deb source=$1/source
  unpack linux-source-6.1 "$deb"
  install -d "$source" "$1/kernel"
  tar -C "$source" --strip-components=1 -xf "$deb/usr/src/linux-source-6.1.tar.xz"
  rm -r "$deb"
  configure "$source"
  compile "$source" bzImage
  install -m 644 "$source/arch/x86/boot/bzImage" "$1/kernel/bzImage"
  objcopy --strip-all "$source/vmlinux" "$1/kernel/vmlinux"
  install -m 644 "$source/.config" "$1/kernel/config"
  rm -r "$source"
}

# compile SOURCE MAKE-ARGUMENTS...
compile() {
  # the directory is another each time: keep it out of the kernel
  nice -n 10 env KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=guestnet \
    KBUILD_BUILD_HOST=guestnet KBUILD_BUILD_VERSION=1 LC_ALL=C \
    make -s -C "$1" ARCH=x86_64 KCFLAGS="-ffile-prefix-map=$1=." -j "$(nproc)" "${@:2}" >&2
}

# configure SOURCE: tinyconfig and kernel.config; an option that the kernel does not take as asked is an error
configure() {
  compile "$1" tinyconfig
  (cd "$1" && ./scripts/kconfig/merge_config.sh -m .config "$here/kernel.config" >/dev/null)
  compile "$1" olddefconfig
  local line missing=()
  while read -r line; do
    case $line in
      CONFIG_*=*) grep -qxF "$line" "$1/.config" || missing+=("$line") ;;
      '# CONFIG_'*) ! grep -q "^$(cut -d ' ' -f 2 <<<"$line")=" "$1/.config" || missing+=("$line") ;;
    esac
  done <"$here/kernel.config"
  ((${#missing[@]} == 0)) || die "the kernel does not take: ${missing[*]}"
}

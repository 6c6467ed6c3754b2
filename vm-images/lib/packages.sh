# shellcheck shell=bash
# Debian packages: installed when missing, or only downloaded and unpacked.
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600)

installed() { # PACKAGE
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

candidate() { # PACKAGE
  LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: //p' | grep -vx '(none)'
}

# update_lists: one at a time among our own builders
update_lists() {
  [ "$(id -u)" = 0 ] || die "the package lists are missing or old; as root: apt-get update"
  # shellcheck disable=SC2154  # set in cache.sh
  flock "$images/.built/apt.lock" "${apt[@]}" update >&2
}

install_missing() { # PACKAGE...
  local package missing=()
  for package; do
    installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  [ "$(id -u)" = 0 ] || die "missing packages; as root: apt-get install --no-install-recommends ${missing[*]}"
  echo "vm-images: installing ${missing[*]}" >&2
  local install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
  "${install[@]}" >&2 || { update_lists && "${install[@]}" >&2; } || die "could not install ${missing[*]}"
}

# versions PACKAGE...: what is installed, or else what would be downloaded
versions() {
  local package
  for package; do
    if installed "$package"; then
      dpkg-query -W "$package"
    else
      candidate "$package" || { update_lists && candidate "$package"; } || die "there is no package $package here"
    fi
  done
}

# unpack PACKAGE DIR: downloads a package and unpacks it there; nothing is installed, no script of it runs
unpack() {
  local download=(env -C "$2" "${apt[@]}" -o APT::Sandbox::User=root download "$1")
  mkdir -p "$2"
  "${download[@]}" >&2 || { update_lists && "${download[@]}" >&2; } || die "could not download $1"
  dpkg-deb -x "$2/$1"_*.deb "$2"
  rm "$2/$1"_*.deb
}

# cloud_kernel_package: the package with the current cloud kernel in it; its name has the version
cloud_kernel_package() {
  candidate linux-image-cloud-amd64 >/dev/null || update_lists
  LC_ALL=C apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | grep . ||
    die 'there is no package linux-image-cloud-amd64 here'
}

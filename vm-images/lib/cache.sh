# shellcheck shell=bash
# shellcheck disable=SC2030,SC2031,SC2154  # build_target is a subshell on purpose: each recipe has its own variables
# Builds a target once for each content of its inputs.
#
# $images/.built/TARGET-KEY/PROVIDES is a finished build; $images/PROVIDES is a link to the current one. A build is made
# in a directory of its own and renamed when complete, under a lock for each target, so whatever interrupts it or runs
# beside it, a path under $images is never half an image.
images=${GUESTNET_IMAGES:-${XDG_CACHE_HOME:-${HOME:?is not set, and neither is GUESTNET_IMAGES}/.cache}/guestnet/images}
keep=3 # finished builds of a target, so that branches can alternate

# build_target TARGET: one line on stdout: target, path, size, time
# A recipe sets: provides (path below $images), packages (to install), fetched (to download only), inputs (files of
# this repository besides the recipe), and build DIR, which makes DIR/$provides.
build_target() (
  target=$1 start=$(date +%s%N) own_pid=$BASHPID ticking='' new=''
  provides='' packages=() fetched=() inputs=()
  # shellcheck source=/dev/null
  . "$here/recipes/$target.sh"
  mkdir -p "$images/.built"
  exec {lock}>"$images/.built/$target.lock"
  trap 'step_over; rm -rf "${new:-}"' EXIT
  step 'waiting for whoever builds it'
  flock "$lock"
  step 'looking for packages'
  install_missing "${packages[@]}"
  name=$target-$(key)
  took=cached
  if [ ! -e "$images/.built/$name" ]; then
    rm -rf "$images/.built/.new-$target".*
    new=$(mktemp -d "$images/.built/.new-$target.XXXXXX")
    chmod 755 "$new"
    step building
    build "$new" {lock}>&-
    mv -T "$new" "$images/.built/$name"
    took=$(seconds_since "$start")
  fi
  step_over
  publish "$name"
  echo "$target  $images/$provides  $(size "$images/$provides")  $took"
)

# step WHAT: on a terminal what is being done, with the seconds so far; nothing elsewhere
step() {
  step_over
  [ -t 2 ] || return 0
  # It ends with this shell, however that ends, and holds no lock of it.
  (while kill -0 "$own_pid" 2>/dev/null; do
    printf '\r\033[K%s: %s, %s' "$target" "$1" "$(seconds_since "$start")" >&2
    sleep 1
  done) {lock}>&- &
  ticking=$!
}

step_over() {
  [ -n "${ticking:-}" ] || return 0
  kill "$ticking" 2>/dev/null || true
  wait "$ticking" 2>/dev/null || true
  ticking=''
  printf '\r\033[K' >&2
}

# key: a digest of all that the result depends on
key() {
  {
    cat "$here/recipes/$target.sh" "${inputs[@]}"
    versions "${packages[@]}" "${fetched[@]}"
  } | sha256sum | cut -c 1-16
}

# publish NAME: makes that build the current one and drops the oldest
publish() {
  local link=$images/$provides old
  touch "$images/.built/$1" # the newest are kept
  if [ "$(readlink "$link")" != ".built/$1/$provides" ]; then
    ln -s ".built/$1/$provides" "$link.new.$$"
    mv -T "$link.new.$$" "$link"
  fi
  # shellcheck disable=SC2012  # the names are ours: a target and hexadecimal digits
  ls -dt "$images/.built/$target"-* | tail -n +$((keep + 1)) | while read -r old; do rm -rf "$old"; done
}

size() {
  du -Ds --block-size=1 "$1" | cut -f 1 | numfmt --to=iec
}

seconds_since() { # NANOSECONDS
  local ms=$((($(date +%s%N) - $1) / 1000000))
  printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

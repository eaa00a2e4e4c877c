# Shared by the scripts here; sourced, never run. The sourcing script sets `step`, the prefix of its messages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# A relative CARGO_TARGET_DIR is the caller's; cargo below runs in the repository.
case $target in /*) ;; *) target=$PWD/$target ;; esac
export CARGO_TARGET_DIR=$target

# Standard output belongs to results, so that `$(scripts/get-envoy)` and the ready line stay clean.
say() { printf '%s: %s\n' "$step" "$*" >&2; }
die() { say "error: $*"; exit 1; }

need() { # need COMMAND WHAT-TO-DO
    command -v "$1" >/dev/null 2>&1 || die "$1 not found. $2"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else return 1
    fi
}

# Installs Debian packages, refreshing the package lists only when they do not know them yet. Another installation under
# way (scripts/test has one in the background) is waited for.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    say "installing with apt: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends "$@" >&2 && return 0
    say "trying once more with fresh package lists"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends "$@" >&2
}

# Rust links with the C compiler, and the TLS library has C and assembler in it.
need_c_compiler() {
    command -v cc >/dev/null 2>&1 || apt_install gcc libc6-dev ||
        die "no C compiler, which Rust needs for linking: apt-get install gcc libc6-dev"
}

# shellcheck shell=bash
# What every script here shares. Sourced, from any directory: leaves the caller at the root of the repository, with cargo
# in the path where there is one.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Scripts and messages name what is built by its place below here, whatever place cargo is set up to build in.
export CARGO_TARGET_DIR="$PWD/target"

# A toolchain that rustup has installed, also for root under sudo, whose path and home are not those of the person.
for home in "$HOME" "$(getent passwd "${SUDO_USER:-}" 2>/dev/null | cut -d: -f6 || true)"; do
    if ! command -v cargo >/dev/null && [[ -n "$home" && -x "$home/.cargo/bin/cargo" ]]; then
        PATH="$home/.cargo/bin:$PATH"
        export PATH RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
    fi
done
unset home

is_root() {
    [[ "$(id -u)" -eq 0 ]]
}

say() {
    printf '%s\n' "$*"
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

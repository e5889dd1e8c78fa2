#!/usr/bin/env bash
# Installs what kiln needs to be built and tested: compilers, libav, PostgreSQL's programs, Node and Python
# for the suites that run the official clients. Debian and Ubuntu; elsewhere it names what is missing.
# Fast and silent when nothing is missing. Works as root, or through sudo. Further packages can be named as arguments:
# what only some commands need (`make browser`, `make bench-files`).
set -euo pipefail

build_packages=(
  build-essential pkg-config cmake clang libclang-dev libssl-dev
  libavcodec-dev libavformat-dev libavfilter-dev libavdevice-dev libavutil-dev
  libswscale-dev libswresample-dev libpostproc-dev
)
test_packages=(ffmpeg python3 python3-venv "$@")

have() { command -v "$1" >/dev/null 2>&1; }

postgres_bin() {
  # initdb and postgres are not on PATH on Debian: look where its packages put them.
  local dir
  for dir in "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do
    [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && { echo "$dir"; return; }
  done
  have initdb && have postgres && dirname "$(command -v initdb)"
}

node_major() { node --version 2>/dev/null | sed -E 's/^v([0-9]+).*/\1/'; }
node_ok() { have npm && [ "$(node_major || true)" != "" ] && [ "$(node_major)" -ge 18 ]; }
venv_ok() { python3 -c 'import venv, ensurepip' >/dev/null 2>&1; }

rust_ok() {
  have cargo && have rustc || return 1
  # The workspace's rust-version; `sort -V` puts the smaller version first.
  local want found
  want=$(sed -nE 's/^rust-version = "([0-9.]+)"/\1/p' "$(dirname "$0")/../Cargo.toml")
  found=$(rustc --version | sed -E 's/^rustc ([0-9.]+).*/\1/')
  [ "$(printf '%s\n%s\n' "$want" "$found" | sort -V | head -n 1)" = "$want" ]
}

missing=()
if have dpkg-query; then
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p')
  for package in "${build_packages[@]}" "${test_packages[@]}"; do
    grep -qxF "$package" <<<"$installed" || missing+=("$package")
  done
  [ -n "$(postgres_bin || true)" ] || missing+=(postgresql)
  if ! node_ok; then missing+=(nodejs npm); fi

  if [ ${#missing[@]} -gt 0 ]; then
    run=()
    if [ "$(id -u)" -ne 0 ]; then
      if have sudo; then run=(sudo); else
        echo "setup: missing packages: ${missing[*]}" >&2
        echo "setup: run as root, or install sudo, then: apt-get install ${missing[*]}" >&2
        exit 1
      fi
    fi
    echo "setup: installing ${missing[*]}"
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then
      # kiln starts a private cluster of its own; keep the package from starting another one.
      "${run[@]}" mkdir -p /etc/postgresql-common
      if ! grep -qs '^create_main_cluster *= *false' /etc/postgresql-common/createcluster.conf; then
        echo 'create_main_cluster = false' |
          "${run[@]}" tee -a /etc/postgresql-common/createcluster.conf >/dev/null
      fi
    fi
    "${run[@]}" apt-get update -q
    "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
  fi
fi

# What must be there now, however it came.
lacking=()
rust_ok || lacking+=("a Rust toolchain of at least the version in Cargo.toml (rust-version): https://rustup.rs")
for program in cc cmake clang pkg-config make; do have "$program" || lacking+=("$program"); done
[ -n "$(postgres_bin || true)" ] || lacking+=("PostgreSQL 14 or newer (the programs initdb and postgres)")
if have pkg-config; then
  for library in libavcodec libavformat libavfilter libavdevice libavutil libswscale libswresample; do
    pkg-config --exists "$library" || lacking+=("$library with its headers (FFmpeg's development files)")
  done
fi
have ffmpeg || lacking+=("ffmpeg (tests only)")
node_ok || lacking+=("Node.js 18 or newer with npm (tests of the JavaScript client only)")
venv_ok || lacking+=("Python 3 with venv (tests of the Python client only)")
if [ "$(id -u)" -eq 0 ] && ! id postgres >/dev/null 2>&1; then
  lacking+=("an unprivileged user 'postgres': PostgreSQL refuses to run as root")
fi

if [ ${#lacking[@]} -gt 0 ]; then
  echo "setup: this machine lacks:" >&2
  printf '  - %s\n' "${lacking[@]}" >&2
  have dpkg-query || echo "setup: packages are installed on Debian and Ubuntu only; please install these yourself." >&2
  exit 1
fi

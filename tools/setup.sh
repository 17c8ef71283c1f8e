#!/usr/bin/env bash
# Everything a build needs, once per machine: Debian packages, libtorch, the test runner, crates.
# Can be run again at any time; what is there is left alone, what is half there is fetched anew.
# DW_CUDA=1: libtorch with CUDA (4.7 GB) also where there is no NVIDIA driver, as on a cluster's login node; DW_CUDA=0: the
# CPU install (1.3 GB) also where there is one. A clone keeps the CUDA install until DW_CUDA=0.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.11.0
NEXTEST=0.9.143
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
say() { echo "setup: $*"; }
die() { echo "setup: error: $1" >&2; [ $# -lt 2 ] || echo "setup: hint: $2" >&2; exit 1; }

cuda=${DW_CUDA:-}
[[ $cuda =~ ^[01]?$ ]] || die "DW_CUDA=$cuda: expected 1 or 0" "1: libtorch with CUDA, 0: for the CPU only; without it this machine's NVIDIA driver decides"

command -v cargo >/dev/null || die "Rust is missing" "install it from https://rustup.rs"
command -v python3 >/dev/null || die "Python 3 is missing (it fetches libtorch; nothing runs on it)" "apt-get install python3 python3-pip"

# Debian packages: Open MPI and its headers, libclang for the bindings, cmake and nasm for libjpeg-turbo's SIMD code.
packages=()
for p in g++ openmpi-bin libopenmpi-dev libclang-dev cmake nasm procps; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || packages+=("$p")
done
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
if [ ${#packages[@]} -gt 0 ]; then
  line="apt-get install --no-install-recommends -y ${packages[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Debian packages: ${packages[*]} (about 1 minute)"
    log=$(mktemp)
    { apt-get update && DEBIAN_FRONTEND=noninteractive $line; } >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "Debian packages could not be installed" "$line"; }
    rm -f "$log"
  else
    die "these Debian packages are missing: ${packages[*]}" "sudo $line"
  fi
fi

# libtorch: the CUDA install where an NVIDIA driver is new enough for the CUDA 13 wheel, else the small CPU install; or what
# DW_CUDA says.
kind=cpu
if [ "$cuda" = 1 ]; then
  kind=cuda
elif [ "$cuda" = 0 ]; then
  :
elif [ -z "${LIBTORCH:-}" ] && grep -q '^LIBTORCH = ".*-cuda/torch"$' .cargo/config.toml 2>/dev/null; then
  # An earlier run chose it, by DW_CUDA=1 or by a driver: every `make` in this clone builds for the same libtorch.
  kind=cuda
elif command -v nvidia-smi >/dev/null && driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) && [ -n "$driver" ]; then
  if [ "${driver%%.*}" -ge 580 ] 2>/dev/null; then
    kind=cuda
  else
    say "NVIDIA driver $driver is older than 580, which libtorch $TORCH (CUDA 13) needs: building for the CPU only"
  fi
fi
if [ -n "${LIBTORCH:-}" ]; then
  say "libtorch: using LIBTORCH=$LIBTORCH"
  torch="$LIBTORCH"
  cuda=''
else
  root="$cache/libtorch-$TORCH-$kind"
  torch="$root/torch"
  mkdir -p "$cache"
  # One clone fetches, others wait for it.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -f "$root/.complete" ] && [ -f "$torch/lib/libtorch_cpu.so" ] && [ -f "$root/torch-$TORCH.dist-info/RECORD" ]; then touch "$root/.complete"; fi
  if [ ! -f "$root/.complete" ]; then
    [ $kind = cpu ] && size="1.3 GB, about half a minute" || size="4.7 GB, a few minutes"
    say "libtorch $TORCH ($kind, $size) into $root"
    rm -rf "$root" "$root.part"
    wheels=("torch==$TORCH")
    options=()
    if [ $kind = cpu ]; then
      wheels+=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
      options+=(--no-deps)
    fi
    log=$(mktemp)
    if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip install --disable-pip-version-check --no-cache-dir --retries 3 "${options[@]}" --target "$root.part" "${wheels[@]}" >"$log" 2>&1; then
      tail -n 15 "$log" >&2
      rm -rf "$root.part"
      die "libtorch could not be fetched from the Python package index" "check the network and run it again, or point LIBTORCH at the \`torch\` folder of an installed torch $TORCH"
    fi
    rm -f "$log"
    [ -f "$root.part/torch/lib/libtorch_cpu.so" ] || die "the fetched torch $TORCH holds no libtorch_cpu.so"
    touch "$root.part/.complete"
    mv "$root.part" "$root"
  fi
  flock -u 9
fi
[ -f "$torch/include/ATen/core/Tensor.h" ] || die "no libtorch headers below $torch" "remove that folder and run it again, or correct LIBTORCH"

# Plain `cargo build` finds the same libtorch, and clones share what does not change between them.
mkdir -p .cargo
config=$(printf '# Written by tools/setup.sh.\n[env]\nLIBTORCH = "%s"\n\n[build]\nbuild-dir = "%s/build"\n' "$torch" "$cache")
if [ -f .cargo/config.toml ] && [ "$(head -n 1 .cargo/config.toml)" != "# Written by tools/setup.sh." ]; then
  die ".cargo/config.toml is not ours to change" "move it away, or add to it: $config"
fi
[ -f .cargo/config.toml ] && [ "$(cat .cargo/config.toml)" = "$config" ] || printf '%s\n' "$config" >.cargo/config.toml

if [ "${1:-}" = tests ] && ! cargo nextest --version >/dev/null 2>&1 && [ ! -x "$cache/tools/bin/cargo-nextest" ]; then
  say "cargo-nextest $NEXTEST, the test runner (about 5 minutes)"
  cargo install --locked --quiet --root "$cache/tools" --version "$NEXTEST" cargo-nextest || die "cargo-nextest could not be installed" "cargo install --locked cargo-nextest"
fi
# NCCL and its header, for the tests of what a machine without a GPU can check; a CUDA install has them already.
nccl="$cache/nccl-2.28.9"
if [ "${1:-}" = tests ] && [ $kind = cpu ] && [ ! -f "$nccl/.complete" ]; then
  say "NCCL 2.28.9 for the tests (200 MB) into $nccl"
  rm -rf "$nccl"
  if PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --target "$nccl" nvidia-nccl-cu13==2.28.9; then
    touch "$nccl/.complete"
  else
    say "NCCL could not be fetched: its tests will check less"
  fi
fi
cargo fetch --locked --quiet 2>/dev/null || die "crates could not be fetched" "check the network; cargo fetch --locked tells more"
say "ready (libtorch $TORCH $kind${cuda:+, as DW_CUDA=$cuda says})"

#!/usr/bin/env bash
# Installs the build dependencies: Debian packages, libtorch, crates; with the argument `tests` also
# the test runner, NCCL, NVRTC and onnxruntime, with `deps` the tools that check dependencies and
# spelling. Safe to run again: complete installs are kept, partial ones replaced. Runs in other
# clones wait for each other.
#
#   tools/setup.sh [tests|deps]
#   tools/setup.sh venv FOLDER PACKAGE...     a virtual environment, for benchmarks
#
# PYTHON: the Python that downloads packages, 3.10 or later, 3.11 for `tests` and `venv` [python3].
# DW_CUDA=1 installs libtorch with CUDA (4.7 GB) even without an NVIDIA driver, for example on the
# login node of a cluster. DW_CUDA=0 forces the CPU install (1.3 GB). A clone keeps the CUDA install
# until DW_CUDA=0.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.11.0
NEXTEST=0.9.143
NCCL=2.28.9
NVRTC=13.0.88
# onnxruntime computes deformable convolutions on the CPU in recent releases only.
ONNX=1.23.2
ONNXRUNTIME=1.32.0
OPENCV=4.14.0.94
DENY=0.20.2
TYPOS=1.52.0
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
export PATH="$PATH:$cache/tools/bin"
say() { echo "setup: $*"; }
die() { # MESSAGE [HINT]
  echo "setup: error: $1" >&2
  [ $# -lt 2 ] || echo "setup: hint: $2" >&2
  exit 1
}
python=${PYTHON:-python3}
pip() { PIP_ROOT_USER_ACTION=ignore "$python" -m pip "$@"; }
need_python() { # MINOR: at least Python 3.MINOR
  command -v "$python" >/dev/null || die "Python 3 is missing (used only to download packages)" \
    "apt-get install python3 python3-pip, or set PYTHON"
  "$python" -c "import sys; sys.exit(sys.version_info < (3, $1))" ||
    die "$("$python" --version) is too old: expected 3.$1 or later" \
      "set PYTHON to a newer one, for example PYTHON=python3.12"
}
# A virtual environment without a pip of its own, which requires another package on Debian.
venv() { # FOLDER PACKAGE...
  local folder=$1
  shift
  [ "$(cat "$folder/.complete" 2>/dev/null)" != "$*" ] || return 0
  need_python 11
  pip --version | awk '{ split($2, v, "."); exit v[1] + v[2] / 100 < 22.03 }' ||
    die "pip is too old: expected 22.3 or later" "$python -m pip install --user --upgrade pip"
  say "installing into $folder: $*"
  rm -rf "$folder"
  "$python" -m venv --without-pip "$folder" || die "cannot create a virtual environment" \
    "$python -m venv --without-pip $folder"
  pip --python "$folder/bin/python" install --quiet --disable-pip-version-check --no-cache-dir \
    "$@" || die "cannot download $*" "check the network"
  echo "$*" >"$folder/.complete"
}

cuda=${DW_CUDA:-}
[[ $cuda =~ ^[01]?$ ]] || die "DW_CUDA=$cuda: expected 1 or 0" \
  "1: libtorch with CUDA, 0: CPU only; by default it depends on the NVIDIA driver of this machine"

command -v cargo >/dev/null || die "Rust is missing" "install it from https://rustup.rs"
# Runs in other clones wait. A file system without locks has no protection against them.
mkdir -p "$cache"
exec 9>"$cache/lock"
locked=0
flock -n 9 2>/dev/null || locked=$?
if [ $locked = 1 ]; then
  say "waiting for another tools/setup.sh"
  flock 9
fi

# libclang is for the MPI bindings, cmake and nasm for the SIMD code of libjpeg-turbo.
packages=()
# Whether a package is installed or a command succeeds. Clusters provide some of the programs as
# modules.
has() { # PACKAGE COMMAND...
  dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed' || "${@:2}"
}
has_command() { command -v "$1" >/dev/null; }
has_open_mpi() { mpirun --version 2>/dev/null | grep -q 'Open MPI'; }
has_mpicc() { has_open_mpi && has_command mpicc; }
has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib*/libclang.so*' >/dev/null ||
    compgen -G '/usr/lib*/llvm*/lib/libclang.so*' >/dev/null
}
has g++ has_command g++ || packages+=(g++)
has openmpi-bin has_open_mpi || packages+=(openmpi-bin)
has libopenmpi-dev has_mpicc || packages+=(libopenmpi-dev)
has libclang-dev has_libclang || packages+=(libclang-dev)
has cmake has_command cmake || packages+=(cmake)
has nasm has_command nasm || packages+=(nasm)
has procps has_command pgrep || packages+=(procps)
if [ -z "${PYTHON:-}" ]; then
  pip --version >/dev/null 2>&1 || packages+=(python3-pip)
else
  command -v "$python" >/dev/null || die "PYTHON=$PYTHON: no such program"
  pip --version >/dev/null 2>&1 || die "PYTHON=$PYTHON has no pip" "$PYTHON -m ensurepip --user"
fi
if [ ${#packages[@]} -gt 0 ]; then
  line="apt-get install --no-install-recommends -y ${packages[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian packages: ${packages[*]} (about 1 minute)"
    log=$(mktemp)
    # shellcheck disable=SC2086
    { apt-get update && DEBIAN_FRONTEND=noninteractive $line; } >"$log" 2>&1 || {
      tail -n 20 "$log" >&2
      die "cannot install Debian packages" "$line"
    }
    rm -f "$log"
  elif command -v apt-get >/dev/null; then
    die "missing Debian packages: ${packages[*]}" "sudo $line"
  else
    die "missing programs, by the names of their Debian packages: ${packages[*]}" \
      "install them or load them as modules; LIBCLANG_PATH names the folder of libclang.so"
  fi
fi

if [ "${1:-}" = venv ]; then
  venv "${@:2}"
  exit
fi
# Before anything is downloaded; `venv` would find out last.
[ "${1:-}" != tests ] || [ -f "$cache/onnx-$ONNX-onnxruntime-$ONNXRUNTIME/.complete" ] ||
  need_python 11

driver_version() {
  command -v nvidia-smi >/dev/null || return 0
  nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true
}

# DW_CUDA, else the previous choice of this clone, else CUDA if the driver supports CUDA 13.
kind=cpu
if [ "$cuda" = 1 ]; then
  kind=cuda
elif [ "$cuda" = 0 ]; then
  :
elif [ -z "${LIBTORCH:-}" ] &&
  grep -q '^LIBTORCH = ".*-cuda/torch"$' .cargo/config.toml 2>/dev/null; then
  kind=cuda
else
  driver=$(driver_version)
  if [ "${driver%%.*}" -ge 580 ] 2>/dev/null; then
    kind=cuda
  elif [ -n "$driver" ]; then
    say "NVIDIA driver $driver is too old: libtorch $TORCH with CUDA 13 requires 580"
    say "building for the CPU only"
  fi
fi

install_libtorch() { # into $root
  local size wheels=("torch==$TORCH") options=() log
  [ $kind = cpu ] && size="1.3 GB, about half a minute" || size="4.7 GB, a few minutes"
  say "installing libtorch $TORCH ($kind, $size) into $root"
  need_python 10
  rm -rf "$root" "$root.part"
  if [ $kind = cpu ]; then
    wheels+=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
    options+=(--no-deps)
  fi
  log=$(mktemp)
  if ! pip install --disable-pip-version-check --no-cache-dir --retries 3 "${options[@]}" \
    --target "$root.part" "${wheels[@]}" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    rm -rf "$root.part"
    die "cannot download libtorch from the Python package index" \
      "check the network and retry, or set LIBTORCH to the \`torch\` folder of torch $TORCH"
  fi
  rm -f "$log"
  [ -f "$root.part/torch/lib/libtorch_cpu.so" ] ||
    die "the torch $TORCH wheel has no libtorch_cpu.so"
  touch "$root.part/.complete"
  mv "$root.part" "$root"
}

if [ -n "${LIBTORCH:-}" ]; then
  say "using LIBTORCH=$LIBTORCH"
  torch="$LIBTORCH"
  cuda=''
else
  root="$cache/libtorch-$TORCH-$kind"
  torch="$root/torch"
  if [ ! -f "$root/.complete" ] && [ -f "$torch/lib/libtorch_cpu.so" ] &&
    [ -f "$root/torch-$TORCH.dist-info/RECORD" ]; then
    touch "$root/.complete"
  fi
  # Not `||`, which would disable `set -e` in the function.
  if [ ! -f "$root/.complete" ]; then install_libtorch; fi
fi
[ -f "$torch/include/ATen/core/Tensor.h" ] || die "no libtorch headers in $torch" \
  "remove that folder and run tools/setup.sh again, or correct LIBTORCH"

# Makes plain `cargo build` use the same libtorch, and lets clones share the compiled dependencies.
mkdir -p .cargo
config=$(printf '%s\n' "# Written by tools/setup.sh." "[env]" "LIBTORCH = \"$torch\"" "" \
  "[build]" "build-dir = \"$cache/build\"")
if [ -f .cargo/config.toml ] &&
  [ "$(head -n 1 .cargo/config.toml)" != "# Written by tools/setup.sh." ]; then
  die ".cargo/config.toml was not written by tools/setup.sh and is not overwritten" \
    "move it away, or add to it: $config"
fi
[ -f .cargo/config.toml ] && [ "$(cat .cargo/config.toml)" = "$config" ] ||
  printf '%s\n' "$config" >.cargo/config.toml

if [ "${1:-}" = tests ] && ! cargo nextest --version >/dev/null 2>&1 &&
  [ ! -x "$cache/tools/bin/cargo-nextest" ]; then
  say "installing the test runner cargo-nextest $NEXTEST (about 5 minutes)"
  cargo install --locked --quiet --root "$cache/tools" --version "$NEXTEST" cargo-nextest 9>&- ||
    die "cannot install cargo-nextest" "cargo install --locked cargo-nextest"
fi
# The CPU install of libtorch has neither NCCL nor NVRTC; their tests on machines without a GPU need
# them.
fetch() { # NAME PACKAGE VERSION SIZE
  local folder="$cache/$1-$3"
  [ ! -f "$folder/.complete" ] || return 0
  say "installing $1 $3 for the tests ($4) into $folder"
  rm -rf "$folder"
  if pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --target "$folder" "$2==$3"; then
    touch "$folder/.complete"
  else
    say "warning: cannot download $1; some of its tests are skipped"
  fi
}
if [ "${1:-}" = tests ] && [ $kind = cpu ]; then
  fetch nccl nvidia-nccl-cu13 "$NCCL" "200 MB"
  fetch nvrtc nvidia-cuda-nvrtc "$NVRTC" "90 MB"
fi
# The tests of dw-export run the exported models. Without these packages they fail.
if [ "${1:-}" = tests ]; then
  venv "$cache/onnx-$ONNX-onnxruntime-$ONNXRUNTIME" "onnx==$ONNX" "onnxruntime==$ONNXRUNTIME" \
    "opencv-python-headless==$OPENCV"
fi
# Tools of `make deps`.
if [ "${1:-}" = deps ]; then
  if ! cargo deny --version >/dev/null 2>&1; then
    say "installing cargo-deny $DENY (about 5 minutes)"
    cargo install --locked --quiet --root "$cache/tools" --version "$DENY" cargo-deny 9>&- ||
      die "cannot install cargo-deny" "cargo install --locked cargo-deny"
  fi
  cargo fetch --locked --quiet --manifest-path fuzz/Cargo.toml 2>/dev/null ||
    die "cannot download the crates of fuzz/" "check the network"
  if ! typos --version >/dev/null 2>&1; then
    say "installing the spell checker typos $TYPOS"
    rm -rf "$cache/typos-$TYPOS"
    pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
      --target "$cache/typos-$TYPOS" "typos==$TYPOS" || die "cannot install typos"
    mkdir -p "$cache/tools/bin"
    ln -sf "$cache/typos-$TYPOS/bin/typos" "$cache/tools/bin/typos"
  fi
fi
cargo fetch --locked --quiet 2>/dev/null ||
  die "cannot download crates" "check the network; \`cargo fetch --locked\` prints the error"
say "ready (libtorch $TORCH $kind${cuda:+, selected by DW_CUDA=$cuda})"

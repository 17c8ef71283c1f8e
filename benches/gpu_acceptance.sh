#!/usr/bin/env bash
# GPU acceptance on a machine with one GPU and python3 with torch 2.11.0 and torchvision 0.26.0:
#   benches/gpu_acceptance.sh [correctness|speed|all]
# Requires the output of `make gpu-kit` (DW_KIT). DEVICE=cpu runs everything on small shapes.
# Results are written to OUT. If a part fails or exceeds its time limit, the others still run. See
# docs/gpu-acceptance.md.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=${1:-all}
python=${PYTHON:-python3}
export DEVICE=${DEVICE:-cuda} OUT=${OUT:-gpu-acceptance-out}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
kit=${DW_KIT:-$here/../target/gpu-kit}
# This script may be part of the kit.
[ -n "${DW_KIT:-}" ] || [ ! -d "$here/bin" ] || kit=$here

record_failure() { # PART CHECK REASON
  "$python" "$rows" row "$1" "$2" false "$3" >>"$log"
}

die() { # MESSAGE HINT
  echo "gpu-acceptance: error: $1" >&2
  echo "gpu-acceptance: hint: $2" >&2
  [ -z "${rows:-}" ] || record_failure "0 set-up" "kit and libtorch" "$1"
  exit 2
}
case $mode in
  correctness | speed | all) ;;
  *) die "unknown part \`$mode\`" "expected correctness, speed or all" ;;
esac
case $DEVICE in cuda | cpu) ;; *) die "unknown device DEVICE=$DEVICE" "expected cuda or cpu" ;; esac
# Each half takes at most ten minutes: batch systems start short jobs sooner.
budget=${BUDGET:-$([ "$mode" = all ] && echo 1150 || echo 575)}

mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
log=$OUT/log.txt
WORK=$(mktemp -d) || exit 2
RUN=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export WORK RUN
child=

# Prints the table of the results so far; exits with 0 only if all required checks passed.
finish() {
  local code=$?
  trap - EXIT INT TERM
  [ -z "$child" ] || kill "$child" 2>/dev/null
  if "$python" "$rows" table >"$OUT/summary.txt" && [ "$code" = 0 ]; then code=0; else code=1; fi
  cat "$OUT/summary.txt"
  if [ "$(stat -c %s "$log")" -gt 15000000 ]; then
    { head -c 1000000 "$log"; echo; echo "... cut ..."; tail -c 13000000 "$log"; } >"$WORK/log"
    cp "$WORK/log" "$log"
  fi
  rm -rf "$WORK"
  exit "$code"
}

# Unpacks the archive to a temporary folder with Python, because tar and xz may be missing.
unpack() {
  local code="import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])"
  if [ -f "$kit/kit.tar.xz" ]; then
    mkdir -p "$WORK/kit"
    "$python" -c "$code" "$kit/kit.tar.xz" "$WORK/kit" 2>>"$log" ||
      die "$kit/kit.tar.xz cannot be unpacked" "run \`make gpu-kit\` again"
    kit=$WORK/kit
  fi
  [ -x "$kit/bin/dw-train" ] || die "no kit in $kit" "run \`make gpu-kit\` on a machine with Rust"
  DW_KIT=$(cd "$kit" && pwd)
  export DW_KIT DW_BIN=$DW_KIT/bin
}

# Adds the folders of libtorch and of the NVIDIA libraries to LD_LIBRARY_PATH: those of Python, else
# those of LIBTORCH. To Python the folder `torch` of this repository is a package without origin.
libtorch() {
  local torch lib config path=
  torch=$("$python" -c 'import importlib.util as u
spec = u.find_spec("torch")
print(spec.submodule_search_locations[0] if spec and spec.origin else "")' 2>/dev/null)
  config=$here/../.cargo/config.toml
  [ -n "$torch" ] || torch=${LIBTORCH:-}
  [ -n "$torch" ] || torch=$(sed -n 's/^LIBTORCH *= *"\(.*\)"/\1/p' "$config" 2>/dev/null)
  [ -f "$torch/lib/libtorch_cpu.so" ] ||
    die "no libtorch" "install torch 2.11.0 for $python, or set LIBTORCH"
  for lib in "$torch/lib" "$torch"/../nvidia/*/lib; do
    [ ! -d "$lib" ] || path+=${path:+:}$lib
  done
  export TORCH_LIB=$torch/lib LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# Runs a part with its own time limit, shortened to the remaining time of the whole run.
part() { # NAME SECONDS SCRIPT ARGUMENT...
  local name=$1 limit=$2 left=$((budget - SECONDS)) code
  shift 2
  if [ "$left" -lt 10 ]; then
    record_failure "$name" "ran" "no time left of $budget s"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "gpu-acceptance: $name (at most $limit s)"
  echo "===== $name, $SECONDS s after the start" >>"$log"
  PART_SECONDS=$limit timeout --kill-after=5 "$limit" "$python" "$@" >>"$log" 2>&1 &
  child=$!
  wait "$child"
  code=$?
  child=
  case $code in
    0) ;;
    124 | 137) record_failure "$name" "ended in time" "stopped after $limit s" ;;
    *) record_failure "$name" "ran" "code $code, see log.txt" ;;
  esac
}

correctness() {
  part "1 environment" 90 "$scripts/gpu_correctness.py" environment
  part "2 network and goldens" 240 "$scripts/gpu_correctness.py" network
  part "3 NCCL and streams" 150 "$scripts/gpu_correctness.py" nccl
  part "4 training" 330 "$scripts/gpu_correctness.py" training
}

speed() {
  part "5 step against torchvision" 330 "$scripts/gpu_peer.py" compare
  part "6 synchronisations and launches" 120 "$scripts/gpu_speed.py" launches
  part "7 memory and peaks" 60 "$scripts/gpu_peer.py" peaks
  part "8 loader" 120 "$scripts/gpu_speed.py" loader
  part "9 evaluation" 150 "$scripts/gpu_speed.py" evaluation
}

rows=$here/gpu_rows.py
: >>"$log"
trap finish EXIT
trap 'record_failure "the run" "ran to its end" "stopped by a signal"; exit 143' INT TERM
unpack
libtorch
# The Python scripts of the kit, because they must match its binaries.
scripts=$DW_KIT
[ "$mode" = speed ] || correctness
[ "$mode" = correctness ] || speed
true

#!/usr/bin/env bash
# GPU acceptance in one command, on a machine with one GPU and python3 with torch 2.11.0 and
# torchvision 0.26.0:
#   benches/gpu_acceptance.sh [correctness|speed|all]
# Needs what `make gpu-kit` collects (DW_KIT); DEVICE=cpu runs all of it on small shapes. Results
# (at most 8 files) go to OUT. A part that fails or runs out of time does not keep the others from
# running. See docs/gpu-acceptance.md.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=${1:-all}
python=${PYTHON:-python3}
export DEVICE=${DEVICE:-cuda} OUT=${OUT:-gpu-acceptance-out}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
kit=${DW_KIT:-$here/../target/gpu-kit}
# The script in the kit itself finds the kit around it.
[ -n "${DW_KIT:-}" ] || [ ! -d "$here/bin" ] || kit=$here

fails() { # PART CHECK WHY
  "$python" "$rows" row "$1" "$2" false "$3" >>"$log"
}

die() { # WHY HINT
  echo "gpu-acceptance: error: $1" >&2
  echo "gpu-acceptance: hint: $2" >&2
  [ -z "${rows:-}" ] || fails "0 set-up" "kit and libtorch" "$1"
  exit 2
}
case $mode in
  correctness | speed | all) ;;
  *) die "unknown part \`$mode\`" "correctness, speed or all" ;;
esac
case $DEVICE in cuda | cpu) ;; *) die "unknown device DEVICE=$DEVICE" "cuda or cpu" ;; esac
# A call of a batch system that ends after 10 minutes takes one of the two halves.
budget=${BUDGET:-$([ "$mode" = all ] && echo 1150 || echo 575)}

mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
log=$OUT/log.txt
WORK=$(mktemp -d) || exit 2
RUN=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export WORK RUN
child=

# Whatever has happened so far: the table, and 0 only if everything that had to run passed.
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

# A packed kit goes to scratch space. Python unpacks it: no other program need be there.
unpack() {
  local code="import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])"
  if [ -f "$kit/kit.tar.xz" ]; then
    mkdir -p "$WORK/kit"
    "$python" -c "$code" "$kit/kit.tar.xz" "$WORK/kit" 2>>"$log" ||
      die "$kit/kit.tar.xz cannot be unpacked" "make gpu-kit"
    kit=$WORK/kit
  fi
  [ -x "$kit/bin/dw-train" ] || die "no kit in $kit" "make gpu-kit, on a machine with Rust"
  DW_KIT=$(cd "$kit" && pwd)
  export DW_KIT DW_BIN=$DW_KIT/bin
}

# The folders of libtorch and of NVIDIA's libraries beside it: Python's, else LIBTORCH's.
libtorch() {
  local torch lib config path=
  torch=$("$python" -c 'import importlib.util as u
spec = u.find_spec("torch")
print(spec.submodule_search_locations[0] if spec else "")' 2>/dev/null)
  config=$here/../.cargo/config.toml
  [ -n "$torch" ] || torch=${LIBTORCH:-}
  [ -n "$torch" ] || torch=$(sed -n 's/^LIBTORCH *= *"\(.*\)"/\1/p' "$config" 2>/dev/null)
  [ -f "$torch/lib/libtorch_cpu.so" ] || die "no libtorch" "$python with torch 2.11.0, or LIBTORCH"
  for lib in "$torch/lib" "$torch"/../nvidia/*/lib; do
    [ ! -d "$lib" ] || path+=${path:+:}$lib
  done
  export TORCH_LIB=$torch/lib LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# part NAME SECONDS COMMAND...: with its own time limit, within what is left of the whole.
part() {
  local name=$1 limit=$2 left=$((budget - SECONDS)) code
  shift 2
  if [ "$left" -lt 10 ]; then
    fails "$name" "ran" "no time left of $budget s"
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
    124 | 137) fails "$name" "ended in time" "stopped after $limit s" ;;
    *) fails "$name" "ran" "code $code, see log.txt" ;;
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
trap 'fails "the run" "ran to its end" "stopped by a signal"; exit 143' INT TERM
unpack
libtorch
# The helpers that the kit was made with: binaries and their options belong together.
scripts=$DW_KIT
[ "$mode" = speed ] || correctness
[ "$mode" = correctness ] || speed
true

#!/usr/bin/env bash
# Long-running checks:
#   overfit   over-fits a small network to 16 real photos, which must reach AP50 0.60
#   bf16      300 steps of the demo with three seeds in bf16 and in f32, whose AP must agree
#   faults    every kind of rank failure, 20 times
#   kills     kills a run that writes checkpoints continuously at 50 random moments
#   backbone  torchvision's ResNet-50 computes the same with the backbone of a checkpoint; the first
#             run downloads torchvision and PyTorch (4.7 GB)
#   cluster   the batch scripts on a SLURM of several hosts; requires root
#   fuzz      readers of weight files, shards, annotations, images and results, ten minutes each
#
#   tools/soak.sh [CHECK...]     default: all
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
data=${DW_DATA:-../shared/data}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
export PATH="$PATH:$cache/tools/bin"
out=soak-out
die() { echo "soak: error: $*" >&2; exit 1; }

overfit() {
  [ -d "$data/coco128" ] || { echo "soak: error: no coco128 in $data" >&2; exit 2; }
  rm -rf "$out/shards" "$out/run"
  mkdir -p "$out"
  "$bin/dw-pack" "$data/coco128" --split train2017 -o "$out/shards"
  local mpirun=(mpirun -n 2 --oversubscribe --bind-to none) start seconds ap50
  start=$(date +%s)
  "${mpirun[@]}" "$bin/dw-train" overfit16 --data "$out/shards" --work-dir "$out/run" --device cpu
  seconds=$(($(date +%s) - start))
  "${mpirun[@]}" "$bin/dw-eval" "$out/run" --device cpu --json >"$out/eval.json"
  ap50=$(sed 's/.*"AP50":\([0-9.eE+-]*\).*/\1/' "$out/eval.json")
  echo "soak: overfit16: AP50 $ap50 after $seconds s (required: 0.60 within 900 s)"
  awk "BEGIN { exit !($ap50 >= 0.60 && $seconds <= 900) }" ||
    die "overfit16 did not reach the required AP50 in time"
}

bf16() {
  if ! grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
    echo "soak: bf16: not measured, this CPU has no bf16 instructions"
    return
  fi
  rm -rf "$out/bf16"
  mkdir -p "$out/bf16"
  "$bin/dw-pack" synth "$out/bf16/shapes" --images 600 --val 100 --seed 1 --classes 6 >/dev/null
  "$bin/dw-pack" "$out/bf16/shapes" >/dev/null
  local name seed precision
  for precision in f32 bf16; do
    for seed in 0 1 2; do
      name=$out/bf16/$precision-$seed
      "$bin/dw-train" demo --data "$out/bf16/shapes/shards" --work-dir "$name" --device cpu \
        --set train.max_steps=300 --set "train.precision=$precision" --set "train.seed=$seed" \
        --set train.images_per_rank=8 --set eval.every_epochs=0 2>"$name.log" ||
        { tail -n 20 "$name.log" >&2; die "bf16: $precision, seed $seed failed"; }
      "$bin/dw-eval" "$name" --device cpu --json 2>/dev/null >"$name.json"
      sed 's/.*"AP":\([0-9.eE+-]*\).*/\1/' "$name.json" >>"$out/bf16/$precision.ap"
    done
  done
  paste "$out/bf16/f32.ap" "$out/bf16/bf16.ap" | awk '
    { x[NR] = $1; y[NR] = $2; a += $1 / 3; b += $2 / 3 }
    END {
      for (i = 1; i <= 3; i++) v += (x[i] - a) ^ 2 / 6 + (y[i] - b) ^ 2 / 6
      error = sqrt(v)
      printf "soak: bf16: mean AP of three seeds %.3f in f32, %.3f in bf16, ", a, b
      printf "difference %.3f, its standard error %.3f\n", b - a, error
      exit !((b - a) ^ 2 <= (3 * error) ^ 2)
    }' || die "bf16: AP differs from that in f32 by more than three standard errors"
}

fuzz() {
  if ! command -v cargo-fuzz >/dev/null; then
    echo "soak: installing cargo-fuzz (about 3 minutes)"
    cargo install --locked --quiet --root "$cache/tools" --version 0.13.2 cargo-fuzz ||
      die "cannot install cargo-fuzz"
  fi
  local target log
  for target in ${FUZZ_TARGETS:-weights shards coco metric pictures voc yolo}; do
    log=$out/fuzz-$target.log
    # New inputs are written to the first folder, which is ignored by git.
    mkdir -p "$out/corpus/$target"
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "$out/corpus/$target" "fuzz/corpus/$target" -- \
      -max_total_time="${FUZZ_SECONDS:-600}" -max_len=16384 -rss_limit_mb=4096 -timeout=20 \
      -print_final_stats=1 >"$log" 2>&1 || {
      tail -n 30 "$log" >&2
      die "the fuzzer found an input that crashes $target"
    }
    echo "soak: fuzz $target: $(grep -h -E '^Done|peak_rss' "$log" | tr '\n' ' ')"
  done
}

# Runs a test of the suite; the caller sets the number of rounds in the environment.
rounds() { # TEST-BINARY TEST DESCRIPTION
  local start log=$out/$2.log
  start=$(date +%s)
  mkdir -p "$out"
  timeout 3600 cargo test --locked --release --test "$1" -- --exact "$2" --include-ignored \
    --nocapture >"$log" 2>&1 &&
    grep -q "1 passed" "$log" || { tail -n 30 "$log" >&2; die "failed: $3"; }
  echo "soak: $3: all passed, $(($(date +%s) - start)) s"
}
faults() {
  export DW_FAULT_ROUNDS=${DW_FAULT_ROUNDS:-20}
  rounds faults a_failing_rank_ends_the_job_and_loses_nothing \
    "six faults under mpirun and dw-launch, $DW_FAULT_ROUNDS times"
}
kills() {
  export DW_KILLS=${DW_KILLS:-50}
  rounds resume kills_at_any_moment_lose_nothing "$DW_KILLS kills at random moments"
}

backbone() {
  local venv="$cache/torchvision-0.26.0"
  tools/setup.sh venv "$venv" torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 safetensors==0.8.0
  export DW_TORCHVISION="$venv/bin/python"
  rounds weights torchvision_reads_the_backbone_of_a_checkpoint \
    "torchvision's ResNet-50 with the backbone of a checkpoint"
}

cluster() { BIN=$bin tools/cluster-tests.sh; }

for check in "${@:-overfit bf16 faults kills backbone cluster fuzz}"; do
  for name in $check; do "$name"; done
done

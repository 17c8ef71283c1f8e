#!/usr/bin/env bash
# Long checks. `overfit`: real photos over-fitted by a small network, AP50 >= 0.60 on 16 of them; `faults`: every way a rank
# can fail, 20 times; `kills`: 50 kills of a run that writes checkpoints all the time; `cluster`, which needs root: SLURM,
# several hosts; `fuzz`: the readers of weight files, shards, annotations and results on changed bytes, ten minutes each. Without names:
# all of them.
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
  rm -rf "$out/shards" "$out/run"; mkdir -p "$out"
  "$bin/dw-pack" "$data/coco128" --split train2017 -o "$out/shards"
  local start seconds ap50
  start=$(date +%s)
  mpirun -n 2 --oversubscribe --bind-to none "$bin/dw-train" overfit16 --data "$out/shards" --work-dir "$out/run" --device cpu
  seconds=$(($(date +%s) - start))
  mpirun -n 2 --oversubscribe --bind-to none "$bin/dw-eval" "$out/run" --device cpu --json >"$out/eval.json"
  ap50=$(sed 's/.*"AP50":\([0-9.eE+-]*\).*/\1/' "$out/eval.json")
  echo "soak: overfit16: AP50 $ap50 after $seconds s (goal 0.60 in 900 s)"
  awk "BEGIN { exit !($ap50 >= 0.60 && $seconds <= 900) }" || die "overfit16 missed its goal"
}

fuzz() {
  if ! command -v cargo-fuzz >/dev/null; then
    echo "soak: cargo-fuzz, once per machine (about 3 minutes)"
    cargo install --locked --quiet --root "$cache/tools" --version 0.13.2 cargo-fuzz || die "cargo-fuzz could not be installed"
  fi
  # The committed corpus is only read; what the fuzzer adds goes to a folder that git ignores.
  for target in ${FUZZ_TARGETS:-weights shards coco metric}; do
    mkdir -p "$out/corpus/$target"
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "$out/corpus/$target" "fuzz/corpus/$target" -- -max_total_time="${FUZZ_SECONDS:-600}" \
      -max_len=16384 -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 >"$out/fuzz-$target.log" 2>&1 \
      || { tail -n 30 "$out/fuzz-$target.log" >&2; die "the fuzzer found an input that crashes $target"; }
    echo "soak: fuzz $target: $(grep -h -E '^Done|peak_rss' "$out/fuzz-$target.log" | tr '\n' ' ')"
  done
}

# Tests of the suite with more rounds, stopped by nothing but themselves.
rounds() { # TEST-BINARY TEST WORDS
  local start; start=$(date +%s)
  cargo test --locked --release --test "$1" -- --exact "$2" --nocapture >"$out/$2.log" 2>&1 && grep -q "1 passed" "$out/$2.log" || { tail -n 30 "$out/$2.log" >&2; die "$3"; }
  echo "soak: $3: all passed, $(($(date +%s) - start)) s"
}
faults() { mkdir -p "$out"; DW_FAULT_ROUNDS=${DW_FAULT_ROUNDS:-20} rounds faults a_failing_rank_ends_the_job_and_loses_nothing "six faults under mpirun and dw-launch, ${DW_FAULT_ROUNDS:-20} times"; }
kills() { mkdir -p "$out"; DW_KILLS=${DW_KILLS:-50} rounds resume kills_at_any_moment_lose_nothing "${DW_KILLS:-50} kills at any moment"; }

cluster() { BIN=$bin tools/cluster-tests.sh; }

for name in "${@:-overfit faults kills cluster fuzz}"; do for step in $name; do "$step"; done; done

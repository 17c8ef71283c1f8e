#!/usr/bin/env bash
# Long checks: real photos are over-fitted by a small network (AP50 >= 0.60 on 16 of them).
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
data=${DW_DATA:-../shared/data}
out=soak-out
[ -d "$data/coco128" ] || { echo "soak: error: no coco128 in $data" >&2; exit 2; }
rm -rf "$out"; mkdir -p "$out"
"$bin/dw-pack" "$data/coco128" --split train2017 -o "$out/shards"
start=$(date +%s)
mpirun -n 2 --oversubscribe --bind-to none "$bin/dw-train" overfit16 --data "$out/shards" --work-dir "$out/run" --device cpu
seconds=$(($(date +%s) - start))
mpirun -n 2 --oversubscribe --bind-to none "$bin/dw-eval" "$out/run" --device cpu --json >"$out/eval.json"
ap50=$(sed 's/.*"AP50":\([0-9.eE+-]*\).*/\1/' "$out/eval.json")
echo "soak: overfit16: AP50 $ap50 after $seconds s (goal 0.60 in 900 s)"
awk "BEGIN { exit !($ap50 >= 0.60 && $seconds <= 900) }" || { echo "soak: FAILED" >&2; exit 1; }

#!/usr/bin/env bash
# Draws a data set, packs it, trains on two MPI ranks on the CPU, evaluates, draws pictures, writes summary.json.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
out=demo-out
rm -rf "$out"
mkdir -p "$out"
# Ranks share the machine's cores whatever there are; a container may not allow binding.
mpirun="mpirun -n 2 --oversubscribe --bind-to none"

stages=""
stage() { # NAME TEXT COMMAND...: runs it and remembers the seconds
  local name=$1 text=$2 start end
  shift 2
  echo "demo: $text"
  start=$(date +%s.%N)
  "$@"
  end=$(date +%s.%N)
  stages+="${stages:+,}\"$name\":$(awk "BEGIN { printf \"%.2f\", $end - $start }")"
}
evaluate() { $mpirun "$bin/dw-eval" "$out/run" --device cpu --json --dt-out "$out/results.json" --report "$out/report" >"$out/eval.json"; }

stage synth "drawing 600 + 100 pictures" "$bin/dw-pack" synth "$out/shapes" --images 600 --val 100 --seed 1 --classes 6
stage pack "packing" "$bin/dw-pack" "$out/shapes"
stage train "training on two ranks on the CPU, 3 to 5 minutes (settings and progress follow)" \
  $mpirun "$bin/dw-train" demo --data "$out/shapes/shards" --work-dir "$out/run" --device cpu
stage eval "evaluating on the validation split" evaluate
stage show "drawing pred.png and curves.png" "$bin/dw-show" pred "$out/run" -n 9 -o "$out/pred.png"
"$bin/dw-show" curves "$out/run" -o "$out/curves.png"

rate=$(awk -F'"images_per_s":' 'NF > 1 { sub(/[^0-9.eE+-].*/, "", $2); sum += 1 / $2; n++ } END { printf "%.2f", n / sum }' "$out/run/metrics.jsonl")
json=$(cat "$out/eval.json")
echo "${json%\}},\"seconds\":{$stages},\"images_per_s\":$rate}" >"$out/summary.json"
ap50=$(sed 's/.*"AP50":\([0-9.eE+-]*\).*/\1/' "$out/eval.json")
echo "demo: AP50 $ap50 on the validation split, $rate images/s in training, seconds: $stages"
echo "demo: look at $out/pred.png, $out/curves.png and the page $out/report/index.html; numbers are in $out/summary.json"

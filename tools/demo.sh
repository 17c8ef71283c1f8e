#!/usr/bin/env bash
# Generates a data set, packs it, trains with two MPI ranks on the CPU, evaluates, renders images
# and writes demo-out/summary.json.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
out=demo-out
rm -rf "$out"
mkdir -p "$out"
# Containers may not allow binding to cores. dw-launch also runs mpirun as root.
launch=("$bin/dw-launch" -n 2 --bind none --raw-stdout --)

stages=""
stage() { # NAME TEXT COMMAND...: runs a command and records its wall time in seconds
  local name=$1 text=$2 start end
  shift 2
  echo "demo: $text"
  start=$(date +%s.%N)
  "$@"
  end=$(date +%s.%N)
  stages+="${stages:+,}\"$name\":$(awk "BEGIN { printf \"%.2f\", $end - $start }")"
}
evaluate() {
  "${launch[@]}" "$bin/dw-eval" "$out/run" --device cpu --json --dt-out "$out/results.json" \
    --report "$out/report" >"$out/eval.json"
}

stage synth "generating 600 training and 100 validation images" \
  "$bin/dw-pack" synth "$out/shapes" --images 600 --val 100 --seed 1 --classes 6
stage pack "packing" "$bin/dw-pack" "$out/shapes"
stage train "training with two ranks on the CPU (3 to 5 minutes)" \
  "${launch[@]}" "$bin/dw-train" demo --data "$out/shapes/shards" --work-dir "$out/run" \
  --device cpu
stage eval "evaluating on the validation split" evaluate
stage show "rendering pred.png and curves.png" \
  "$bin/dw-show" pred "$out/run" -n 9 -o "$out/pred.png"
"$bin/dw-show" curves "$out/run" -o "$out/curves.png"
find "$out/shapes/val2017" -name '*.jpg' | sort | head -n 4 >"$out/pictures.txt"
"$bin/dw-detect" "$out/run" - -o "$out/detected" --device cpu <"$out/pictures.txt"

# Harmonic mean of images_per_s over all steps.
rate=$(awk -F'"images_per_s":' '
  NF > 1 { sub(/[^0-9.eE+-].*/, "", $2); sum += 1 / $2; n++ }
  END { printf "%.2f", n / sum }' "$out/run/metrics.jsonl")
json=$(cat "$out/eval.json")
echo "${json%\}},\"seconds\":{$stages},\"images_per_s\":$rate}" >"$out/summary.json"
ap50=$(sed 's/.*"AP50":\([0-9.eE+-]*\).*/\1/' "$out/eval.json")
echo "demo: AP50 $ap50 on the validation split, training at $rate images/s, seconds: $stages"
echo "demo: images: $out/pred.png, $out/curves.png, $out/detected"
echo "demo: report: $out/report/index.html"
echo "demo: metrics: $out/summary.json"

#!/usr/bin/env bash
# Two ranks on the CPU of this machine, medians over rounds in which the programs take turns:
# - a training step with all-reduce, against two processes without communication and torchvision's
#   FCOS with DistributedDataParallel (gloo)
# - the share of communication hidden behind backward, and a plain all-reduce
# - the cost of checkpoints for the training loop
# PRECISION=bf16 measures the first two in bf16; STEP_ONLY=1 leaves out the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
peer=${DW_PEERS:-../shared/peers}/torchvision_fcos.py
rounds=${ROUNDS:-3} steps=${STEPS:-8} precision=${PRECISION:-f32}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
out=bench-out/ranks
rm -rf "$out"
mkdir -p "$out"
failed() {
  echo "ranks.sh: failed; the end of $out/log:" >&2
  tail -n 20 "$out/log" >&2
}
trap '[ $? = 0 ] || failed' EXIT
cargo bench --locked --no-run --bench step >"$out/log" 2>&1
step=$(sed -n 's/.*Executable.*(\(.*\))/\1/p' "$out/log")
size=(--batch 2 --height 320 --width 416 --steps "$steps" --threads 1)
two() { mpirun -n 2 --bind-to none --oversubscribe "$@" 2>>"$out/log"; }
for _ in $(seq "$rounds"); do
  two "$step" --bench "${size[@]}" --precision "$precision" >>"$out/together.jsonl"
  two "$step" --bench "${size[@]}" --precision "$precision" --apart >>"$out/apart.jsonl"
  [ ! -f "$peer" ] || [ ! -x "$cache/peers/bin/torchrun" ] ||
    "$cache/peers/bin/torchrun" --nproc-per-node 2 "$peer" --ddp --channels-last \
      --dtype "$precision" "${size[@]}" 2>>"$out/log" >>"$out/ddp.jsonl"
done

field() { sed "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/"; } # KEY: its number in each JSON line
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
range() { sort -g | awk '{ v[NR] = $1 } END { printf "%.2f..%.2f", v[1], v[NR] }'; }
row() { printf '%-58s %12s  %s\n' "$1" "$2" "$3"; } # NAME VALUE DETAILS
value() { field "$2" <"$out/$1.jsonl" | median; } # FILE KEY
runs() { echo "runs $(field step_s_median <"$out/$1.jsonl" | range) s"; } # FILE
ratio() { awk "BEGIN { printf \"%.$3f\", $1 / $2 }"; } # NUMERATOR DENOMINATOR DIGITS
seconds() { printf '%.3f s' "$1"; }

together=$(value together step_s_median) apart=$(value apart step_s_median)
row "2 ranks, R-50, 2 x 320 x 416 each, $precision" "$(seconds "$together")" "$(runs together)"
row "2 processes without communication" "$(seconds "$apart")" \
  "$(runs apart); 2 ranks / this = $(ratio "$together" "$apart" 3)"
if [ -s "$out/ddp.jsonl" ]; then
  ddp=$(value ddp step_s_median)
  row "torchvision FCOS, DDP over gloo, 2 ranks" "$(seconds "$ddp")" \
    "$(runs ddp); theirs / ours = $(ratio "$ddp" "$together" 2)"
fi
exposed=$(value together comm_exposed_s) alone=$(value together comm_alone_s)
bare=$(value together bare_all_reduce_s) mib=$(value together gradient_mib)
hidden=$(ratio "100 * ($alone - $exposed)" "$alone" 0)
row "communication not hidden behind backward" "$(seconds "$exposed")" \
  "$hidden % hidden of the $(seconds "$alone") that the buckets take alone"
row "plain MPI_Allreduce of the same ${mib%%.*} MiB" "$(seconds "$bare")" \
  "bandwidth of the buckets / this = $(ratio "$bare" "$alone" 2)"

[ -z "${STEP_ONLY:-}" ] || exit 0
# The same run with a checkpoint every ten steps and without checkpoints.
"$bin/dw-pack" synth "$out/coco" --images 16 --val 4 --side 256 --classes 3 >/dev/null
"$bin/dw-pack" "$out/coco" >/dev/null 2>&1
train() { # STEPS-BETWEEN-CHECKPOINTS
  local work=$out/work-$1
  rm -rf "$work"
  two "$bin/dw-train" dw_r50_fpn_1x --init random --device cpu --data "$PWD/$out/coco/shards" \
    --work-dir "$work" --set data.short_side=128 --set data.long_side=192 \
    --set train.max_steps=41 --set eval.every_epochs=0 --set checkpoint.every_steps="$1"
  # Without the first step (warm-up). Both runs write a checkpoint after the last.
  sed -n '2,41p' "$work/metrics.jsonl" | field step_s | awk '{ s += $1 } END { print s / NR }' \
    >>"$out/checkpoint-$1"
}
for _ in $(seq "$rounds"); do
  for every in 1000000 10; do train $every; done
done
none=$(median <"$out/checkpoint-1000000") ten=$(median <"$out/checkpoint-10")
cost=$(awk "BEGIN { printf \"%.1f\", 1000 * ($ten - $none) * 10 }")
row "mean step, no checkpoints" "$(printf %.4f "$none") s" \
  "runs $(range <"$out/checkpoint-1000000") s"
row "mean step, a checkpoint every 10 steps (256 MB)" "$(printf %.4f "$ten") s" \
  "runs $(range <"$out/checkpoint-10") s; $cost ms per checkpoint"
du -sm "$out/work-10/checkpoints" | cut -f1 | sed 's/$/ MB of checkpoints on disk/'

# Measures the network and compares the ring model with it.
for n in 2 3 4; do
  "$bin/dw-launch" --raw-stdout -n $n -- dw-launch measure 2>/dev/null >>"$out/link.jsonl"
done
"$bin/dw-launch" plan --measured "$out/link.jsonl" --gpus 2,3,4 --gpus-per-node 4 \
  --step-ms "$(ratio "1000 * $apart" 1 0)" --gradient-mib "$mib" --scatter 0.02 \
  --backward-share "$(ratio "$(value apart backward_s)" "$apart" 2)"

#!/usr/bin/env bash
# Two ranks on this machine's CPU: a step with its all-reduce against two processes side by side that do not talk, and against
# torchvision's FCOS under DistributedDataParallel (gloo); the share of communication that backward hides; the bare all-reduce;
# what checkpoints cost the step loop. Turn by turn, medians.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
peer=${DW_PEERS:-../shared/peers}/torchvision_fcos.py
python="$cache/peers/bin/python"
rounds=${ROUNDS:-3} steps=${STEPS:-8}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
out=bench-out/ranks; rm -rf "$out"; mkdir -p "$out"
step=$(cargo bench --locked --no-run --bench step 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
size=(--batch 2 --height 320 --width 416 --steps "$steps" --threads 1)
two() { mpirun -n 2 --bind-to none --oversubscribe "$@" 2>/dev/null; }
for _ in $(seq "$rounds"); do
  two "$step" --bench "${size[@]}" >>"$out/together.jsonl"
  two "$step" --bench "${size[@]}" --apart >>"$out/apart.jsonl"
  [ ! -f "$peer" ] || "$cache/peers/bin/torchrun" --nproc-per-node 2 "$peer" --ddp "${size[@]}" 2>/dev/null >>"$out/ddp.jsonl"
done

field() { sed "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
spread() { sort -g | awk '{ v[NR] = $1 } END { printf "%.2f..%.2f", v[1], v[NR] }'; }
row() { printf '%-58s %12s  %s\n' "$1" "$2" "$3"; }
value() { field "$2" <"$out/$1.jsonl" | median; }
over() { awk "BEGIN { printf \"%.$3f\", $1 / $2 }"; }
together=$(value together step_s_median) apart=$(value apart step_s_median)
row "2 ranks, R-50, 2 x 320 x 416 each" "$(printf %.3f "$together") s" "runs $(field step_s_median <"$out/together.jsonl" | spread) s"
row "2 processes side by side, no communication" "$(printf %.3f "$apart") s" "runs $(field step_s_median <"$out/apart.jsonl" | spread) s; 2 ranks / this = $(over "$together" "$apart" 3)"
if [ -s "$out/ddp.jsonl" ]; then
  ddp=$(value ddp step_s_median)
  row "torchvision FCOS, DDP over gloo, 2 ranks" "$(printf %.3f "$ddp") s" "runs $(field step_s_median <"$out/ddp.jsonl" | spread) s; theirs / ours = $(over "$ddp" "$together" 2)"
fi
exposed=$(value together comm_exposed_s) alone=$(value together comm_alone_s) bare=$(value together bare_all_reduce_s)
row "communication the step waits for" "$(printf %.3f "$exposed") s" "$(over "100 * ($alone - $exposed)" "$alone" 0) % hidden of $(printf %.3f "$alone") s that the buckets take with nothing beside them"
row "bare MPI_Allreduce of the same $(value together gradient_mib | cut -d. -f1) MiB" "$(printf %.3f "$bare") s" "bandwidth of the buckets / bare = $(over "$bare" "$alone" 2)"

[ -z "${STEP_ONLY:-}" ] || exit 0
# Checkpoints: a run that writes one every tenth step against one that writes none, every other setting equal.
"$bin/dw-pack" synth "$out/coco" --images 16 --val 4 --side 256 --classes 3 >/dev/null
"$bin/dw-pack" "$out/coco" >/dev/null 2>&1
for _ in $(seq "$rounds"); do for every in 1000000 10; do
  rm -rf "$out/work-$every"
  two "$bin/dw-train" dw_r50_fpn_1x --init random --device cpu --data "$PWD/$out/coco/shards" --work-dir "$out/work-$every" \
    --set data.short_side=128 --set data.long_side=192 --set train.max_steps=41 --set eval.every_epochs=0 --set checkpoint.every_steps="$every"
  # The first step warms up; the last checkpoint is written in both.
  sed -n '2,41p' "$out/work-$every/metrics.jsonl" | field step_s | awk '{ s += $1 } END { print s / NR }' >>"$out/checkpoint-$every"
done; done
none=$(median <"$out/checkpoint-1000000") ten=$(median <"$out/checkpoint-10")
row "mean step, no checkpoints" "$(printf %.4f "$none") s" "runs $(spread <"$out/checkpoint-1000000") s"
row "mean step, a checkpoint every 10 steps (256 MB)" "$(printf %.4f "$ten") s" "runs $(spread <"$out/checkpoint-10") s; $(awk "BEGIN { printf \"%.1f\", 1000 * ($ten - $none) * 10 }") ms a checkpoint"
du -sm "$out/work-10/checkpoints" | cut -f1 | sed 's/$/ MB of checkpoints were kept/'

# The link's own numbers, and how well a ring explains them.
for n in 2 3 4; do "$bin/dw-launch" --raw-stdout -n $n -- dw-launch measure 2>/dev/null >>"$out/link.jsonl"; done
"$bin/dw-launch" plan --measured "$out/link.jsonl" --gpus 2,3,4 --gpus-per-node 4 --step-ms "$(over "1000 * $apart" 1 0)" \
  --backward-share "$(over "$(value apart backward_s)" "$apart" 2)" --gradient-mib "$(value together gradient_mib)" --scatter 0.02

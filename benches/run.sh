#!/usr/bin/env bash
# Measures speed and memory of dw and of other programs in the same run on this machine, and prints
# one table. The first run downloads the Python packages of the other programs (4.7 GB) into the
# cache.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
peers=${DW_PEERS:-../shared/peers}
peer=$peers/torchvision_fcos.py
data_peer=$peers/data_peers.py
photos=${DW_DATA:-../shared/data}/coco128
threads=$(nproc)
out=bench-out
rm -rf "$out"
mkdir -p "$out"
failed() {
  echo "run.sh: failed; the end of $out/log:" >&2
  tail -n 20 "$out/log" >&2
}
trap '[ $? = 0 ] || failed' EXIT

python="$cache/peers/bin/python"
[ ! -f "$peer" ] || tools/setup.sh venv "$cache/peers" torch==2.11.0 torchvision==0.26.0 numpy \
  webdataset==1.0.2 pillow psutil simplejpeg msgspec
cargo bench --locked --no-run --bench step --bench loss --bench loader --bench nms 2>>"$out/log"

field() { sed "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/"; } # KEY: its number in each JSON line
row() { printf '%-58s %12s  %s\n' "$1" "$2" "$3"; } # NAME VALUE DETAILS
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
value() { field "$2" <"$out/$1" | cut -c1-5; } # FILE KEY: five characters are precise enough
bench() { cargo bench --locked --bench "$@" 2>>"$out/log"; }
load() { cut -d' ' -f1 /proc/loadavg; }
# Runs a command; writes its wall time (s) and peak memory (MiB) to $out/NAME.cost.
measured() { # NAME COMMAND...
  local name=$1
  shift
  python3 - "$out/$name.cost" "$@" <<'PY'
import resource, subprocess, sys, time

start = time.perf_counter()
code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - start
mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
with open(sys.argv[1], "w") as f:
    f.write(f"{seconds:.3f} {mib}\n")
sys.exit(code)
PY
}

cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)
revision=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || revision+=" with changes"
echo "bench: $revision, $(date +%F), $threads cores, $cpu, load $(load) before"

pack_and_read() { # CODEC
  local codec=$1 n seconds
  for _ in 1 2 3; do
    measured "pack-$codec" "$bin/dw-pack" "$source" --split train2017 --split val2017 \
      -o "$out/shards-$codec" --pixels "$codec"
    cat "$out/pack-$codec.cost" >>"$out/pack-$codec.all"
  done
  seconds=$(cut -d' ' -f1 "$out/pack-$codec.all" | median)
  row "pack --pixels $codec ($what)" \
    "$(awk "BEGIN { printf \"%.0f\", $images / $seconds }") images/s" \
    "peak $(cut -d' ' -f2 "$out/pack-$codec.cost") MiB"
  "$bin/dw-pack" bench "$out/shards-$codec" --json >"$out/decode.all"
  head -n 1 "$out/decode.all" >"$out/decode.json"
  row "decode, one core, $codec" \
    "$(field images_per_s_per_core <"$out/decode.json" | cut -d. -f1) images/s" \
    "$(field bytes_per_image <"$out/decode.json") bytes per image"
  for n in 1 "$threads"; do
    bench loader -- --data "$PWD/$out/shards-$codec" --threads "$n" | grep '"dw loader"' \
      >"$out/loader.json"
    row "read and transform to 800 x 1333, $n threads, $codec" \
      "$(value loader.json images_per_s) images/s" \
      "$(value loader.json images_per_cpu_s) images per CPU second, first batch \
$(value loader.json first_batch_s) s"
  done
}

data_peers() {
  local p mode
  "$python" "$data_peer" mkset --src "$source" --out "$out/set" --n 512 >/dev/null 2>&1
  "$python" "$data_peer" pack --peer wds_tv --coco "$out/set" --out "$out/wds" 2>/dev/null |
    tail -n 1 >"$out/wds.json"
  row "webdataset: pack, JPEG bytes, no validation" \
    "$(field img_per_s <"$out/wds.json") images/s" ""
  for p in torch_tv wds_tv; do
    for mode in rgb det; do
      "$python" "$data_peer" read --peer $p --coco "$out/set" --packed "$out/wds" \
        --workers "$threads" --mode $mode --n 128 2>/dev/null | tail -n 1 >"$out/read.json" ||
        continue
      row "$p: read, $mode, $threads workers" "$(field img_per_s <"$out/read.json") images/s" \
        "$(field img_per_cpu_s <"$out/read.json") images per CPU second, first batch \
$(field first_batch_s <"$out/read.json") s"
    done
  done
}

if [ -d "$photos" ]; then
  source=$photos images=256 what="real COCO photos"
else
  source="$out/coco" images=320 what="generated images"
  "$bin/dw-pack" synth "$source" --images 256 --val 64 --side 640 >/dev/null
fi
for codec in zstd jpeg; do pack_and_read $codec; done
if [ -f "$data_peer" ] && [ -d "$photos" ] && "$python" -c 'import webdataset' 2>/dev/null; then
  data_peers
fi
opened=$(cargo bench --locked -p dw-shards --bench open 2>/dev/null | grep "dw open" || true)
row "open 100 GB of shards, 270,000 images" "$(field seconds_median <<<"$opened" | cut -c1-6) s" ""
if [ -f "$data_peer" ] && [ -n "${DW_BENCH_JSON:-}" ]; then
  [ -f "$DW_BENCH_JSON" ] || "$python" "$data_peer" json --gen "$DW_BENCH_JSON" >/dev/null
  for _ in 1 2 3; do
    cargo bench --locked -p dw-shards --bench json -- \
      --annotations "$(realpath "$DW_BENCH_JSON")" 2>/dev/null | grep '"dw json' \
      >>"$out/json.jsonl"
  done
  row "annotations of 472 MB" "$(field seconds <"$out/json.jsonl" | median | cut -c1-5) s" \
    "peak $(field peak_mib <"$out/json.jsonl" | head -n 1) MiB"
fi

# torchvision's program in three forms: as it is, channels-last, and channels-last with the fused
# optimiser, as ours has.
[ ! -f "$peer" ] || {
  grep -q 'foreach=True' "$peer" || { echo "run.sh: $peer has no \`foreach=True\`" >&2; exit 1; }
  sed 's/foreach=True/fused=True/' "$peer" >"$out/fused.py"
}
size=(--batch 2 --height 320 --width 416 --steps 5 --threads "$threads")
peer_step() { # FORM PRECISION
  case $1 in
    default) "$python" "$peer" "${size[@]}" --dtype "$2" ;;
    channels-last) "$python" "$peer" "${size[@]}" --dtype "$2" --channels-last ;;
    fused) "$python" "$out/fused.py" "${size[@]}" --dtype "$2" --channels-last ;;
  esac 2>>"$out/log"
}
if [ -f "$peer" ]; then
  row "torch and torchvision, imported" "$("$python" -c 'import resource, torch, torchvision
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)' 2>>"$out/log") MiB" \
    "part of the peaks of torchvision below"
fi

# The programs take turns, so that changes in machine speed affect all of them.
steps() { # PRECISION ROUNDS: the step of both sides
  local precision=$1 n form ours range theirs
  local files="$out/$precision"
  for n in $(seq "$2"); do
    bench step -- --steps 5 --threads "$threads" --precision "$precision" | grep '"dw step' \
      >>"$files-step.jsonl"
    [ -f "$peer" ] || continue
    for form in default channels-last fused; do
      peer_step $form "$precision" >>"$files-$form.jsonl"
    done
  done
  ours=$(field step_s_median <"$files-step.jsonl" | median)
  range=$(field step_s_median <"$files-step.jsonl" | sort -g |
    awk '{ v[NR] = $1 } END { printf "%.3f..%.3f s", v[1], v[NR] }')
  row "training step, R-50, 2 x 320 x 416, refinement, $precision" "$(printf %.3f "$ours") s" \
    "runs $range, peak $(field peak_mib <"$files-step.jsonl" | head -n 1) MiB, \
$(field start_mib <"$files-step.jsonl" | head -n 1) of them at the start"
  for form in default channels-last fused; do
    [ -f "$files-$form.jsonl" ] || continue
    theirs=$(field step_s_median <"$files-$form.jsonl" | median)
    row "torchvision FCOS R-50, the same size, $precision, $form" "$(printf %.3f "$theirs") s" \
      "peak $(field peak_mib <"$files-$form.jsonl" | head -n 1) MiB; theirs / ours = \
$(awk "BEGIN { printf \"%.2f\", $theirs / $ours }")"
  done
}
steps f32 3
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
  steps bf16 3
else
  row "training step, bf16" "not measured" "this CPU has no bf16 instructions"
fi

shapes=()
[ ! -d "$photos" ] ||
  shapes=(--annotations "$(realpath "$photos")/annotations/instances_train2017.json")
for _ in 1 2 3; do
  bench loss -- --threads "$threads" "${shapes[@]}" | grep '"dw loss' >>"$out/loss.jsonl"
done
for boxes in 7 40 300; do
  grep "\"boxes\":$boxes," "$out/loss.jsonl" >"$out/loss-$boxes.jsonl"
  row "loss alone, 2 x 800 x 1333, $boxes boxes per image" \
    "$(field step_s_median <"$out/loss-$boxes.jsonl" | median | cut -c1-5) s" \
    "peak $(field peak_mib <"$out/loss-$boxes.jsonl" | sort -n | tail -n 1) MiB above its inputs"
done

# The loss of every strategy on the outputs of its head, compared with DW in the same run.
strategies=dw_r50_fpn_worefine_1x,fcos_r50_fpn_1x,atss_r50_fpn_1x,gfl_r50_fpn_1x,vfl_r50_fpn_1x
strategies+=,tal_r50_fpn_1x,autoassign_r50_fpn_1x,paa_r50_fpn_1x,ota_r50_fpn_1x,simota_r50_fpn_1x
strategies+=,vfnet_r50_fpn_1x,tood_r50_fpn_1x,dw_tood_r50_fpn_1x
for _ in 1 2 3; do
  bench loss -- --threads "$threads" --boxes 7,60 --steps 3 --configs "$strategies" "${shapes[@]}" |
    grep '"dw loss' >>"$out/strategies.jsonl"
done
for boxes in 7 60; do
  dw=
  for name in ${strategies//,/ }; do
    grep "\"boxes\":$boxes,.*\"config\":\"$name\"" "$out/strategies.jsonl" >"$out/strategy.jsonl"
    s=$(field step_s_median <"$out/strategy.jsonl" | median)
    dw=${dw:-$s}
    row "loss of $name, $boxes boxes per image" "$(printf %.3f "$s") s" \
      "$(awk "BEGIN { printf \"%.2f\", $s / $dw }") of DW"
  done
done

measured train "$bin/dw-train" smoke --device cpu --data "$PWD/$out/shards-zstd" \
  --work-dir "$out/run" --set train.max_steps=2 --set eval.every_epochs=0 \
  --set checkpoint.every_steps=2 2>>"$out/log"
for _ in 1 2 3; do
  measured eval "$bin/dw-eval" "$out/run" --device cpu --json 2>>"$out/log"
  cat "$out/eval.cost" >>"$out/eval.all"
done
row "dw-eval, the validation split, small network" \
  "$(cut -d' ' -f1 "$out/eval.all" | median) s" \
  "peak $(cut -d' ' -f2 "$out/eval.cost") MiB"
# The same network, image size and number of images in both programs; NMS included.
onnx=$(ls -d "$cache"/onnx-*-onnxruntime-*/bin/python 2>/dev/null | tail -n 1 || true)
if [ -n "$onnx" ]; then
  "$bin/dw-pack" synth "$out/416" --images 16 --val 1 --side 416 >/dev/null
  "$bin/dw-pack" "$out/416" >/dev/null 2>&1
  "$bin/dw-train" dw_r50_fpn_1x --init random --device cpu --data "$out/416/shards" \
    --work-dir "$out/r50" --set train.max_steps=1 --set train.images_per_rank=1 \
    --set eval.every_epochs=0 --set data.short_side=416 --set data.long_side=416 \
    --set train.precision=f32 2>/dev/null
  "$bin/dw-export" "$out/r50" "$out/r50.onnx" --size 416 416 --nms 2>/dev/null
  for _ in 1 2 3; do
    "$bin/dw-detect" "$out/r50" "$out/416/train2017" --device cpu --batch 1 \
      --json 2>&1 >/dev/null | sed -n 's/.* pictures in \([0-9.]*\) s .*/\1/p' >>"$out/detect.all"
    "$onnx" - "$out/r50.onnx" "$threads" 2>/dev/null >>"$out/onnx.all" <<'PY'
import sys, time

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options)
images = np.random.default_rng(0).integers(0, 256, (16, 1, 3, 416, 416), np.uint8)
session.run(None, {"images": images[0]})
start = time.perf_counter()
for image in images:
    session.run(None, {"images": image})
print(f"{time.perf_counter() - start:.3f}")
PY
  done
  ours=$(median <"$out/detect.all") theirs=$(median <"$out/onnx.all")
  row "dw-detect, R-50, 16 images of 416 x 416" "$ours s" "decoding and the first call included"
  row "the network exported by dw-export in onnxruntime" "$theirs s" \
    "theirs / ours = $(awk "BEGIN { printf \"%.2f\", $theirs / $ours }")"
else
  row "the network exported by dw-export in onnxruntime" "not measured" "run tools/setup.sh tests"
fi
bench nms | grep '"dw nms' >"$out/nms.jsonl"
for classes in 80 1; do
  ms=$(grep "\"classes\":$classes," "$out/nms.jsonl" | field ms_median | cut -c1-5)
  row "NMS, 5,000 candidates, $classes classes" "$ms ms" "one thread, one image"
done
benches/ranks.sh
benches/coco.sh
echo "bench: load $(load) after"

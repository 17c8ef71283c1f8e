#!/usr/bin/env bash
# One table of speed and memory on this machine, the peer measured in the same run. Needs the network once, for the
# peer's Python packages (4.7 GB, in the machine's cache); nothing of them is used elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
peer=${DW_PEERS:-../shared/peers}/torchvision_fcos.py
data_peer=${DW_PEERS:-../shared/peers}/data_peers.py
threads=$(nproc)
out=bench-out
rm -rf "$out"; mkdir -p "$out"

python="$cache/peers/bin/python"
if [ -f "$peer" ] && [ ! -f "$cache/peers/.complete-2" ]; then
  echo "bench: the peer's Python packages into $cache/peers (a few minutes, once)"
  rm -rf "$cache/peers"
  python3 -m venv "$cache/peers"
  "$cache/peers/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 torchvision==0.26.0 numpy webdataset==1.0.2 pillow psutil simplejpeg msgspec
  touch "$cache/peers/.complete-2"
fi
cargo bench --locked --no-run --bench step --bench loss --bench loader --bench nms 2>/dev/null

field() { sed "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/"; }
row() { printf '%-58s %12s  %s\n' "$1" "$2" "$3"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# Runs a command; leaves its wall seconds and peak memory (MiB) in $out/NAME.cost.
measured() { local name=$1; shift; python3 - "$out/$name.cost" "$@" <<'PY'
import resource, subprocess, sys, time
t = time.perf_counter(); code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode; t = time.perf_counter() - t
open(sys.argv[1], "w").write(f"{t:.3f} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024}\n"); sys.exit(code)
PY
}

echo "bench: $(git rev-parse --short HEAD), $(date +%F), $threads cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), load $(cut -d' ' -f1 /proc/loadavg) before"
data="$out/coco"
if [ -d "${DW_DATA:-../shared/data}/coco128" ]; then
  source="${DW_DATA:-../shared/data}/coco128"; images=256; what="real COCO photos"
else
  "$bin/dw-pack" synth "$data" --images 256 --val 64 --side 640 >/dev/null
  source=$data; images=320; what="drawn pictures"
fi
for codec in zstd jpeg; do
  for i in 1 2 3; do
    measured "pack-$codec" "$bin/dw-pack" "$source" --split train2017 --split val2017 -o "$out/shards-$codec" --pixels $codec
    cat "$out/pack-$codec.cost" >>"$out/pack-$codec.all"
  done
  seconds=$(cut -d' ' -f1 "$out/pack-$codec.all" | median)
  row "pack --pixels $codec ($what)" "$(awk "BEGIN { printf \"%.0f\", $images / $seconds }") images/s" "peak $(cut -d' ' -f2 "$out/pack-$codec.cost") MiB"
  "$bin/dw-pack" bench "$out/shards-$codec" --json >"$out/decode.all"
  head -n 1 "$out/decode.all" >"$out/decode.json"
  row "decode, one core, $codec" "$(field images_per_s_per_core <"$out/decode.json" | cut -d. -f1) images/s" "$(field bytes_per_image <"$out/decode.json") bytes an image"
  for n in 1 "$threads"; do
    cargo bench --locked --bench loader -- --data "$PWD/$out/shards-$codec" --threads "$n" 2>/dev/null | grep '"dw loader"' >"$out/loader.json"
    row "read + transform to 800 x 1333, $n threads, $codec" "$(field images_per_s <"$out/loader.json" | cut -c1-5) images/s" "$(field images_per_cpu_s <"$out/loader.json" | cut -c1-5) images per CPU second, first batch $(field first_batch_s <"$out/loader.json" | cut -c1-5) s"
  done
done
if [ -f "$data_peer" ] && [ -d "${DW_DATA:-../shared/data}/coco128" ] && "$python" -c 'import webdataset' 2>/dev/null; then
  "$python" "$data_peer" mkset --src "$source" --out "$out/set" --n 512 >/dev/null 2>&1
  "$python" "$data_peer" pack --peer wds_tv --coco "$out/set" --out "$out/wds" 2>/dev/null | tail -n 1 >"$out/wds.json"
  row "webdataset: pack, JPEG bytes, not checked" "$(field img_per_s <"$out/wds.json") images/s" ""
  for p in torch_tv wds_tv; do for mode in rgb det; do
    "$python" "$data_peer" read --peer $p --coco "$out/set" --packed "$out/wds" --workers "$threads" --mode $mode --n 128 2>/dev/null | tail -n 1 >"$out/read.json" || continue
    row "$p: read, $mode, $threads workers" "$(field img_per_s <"$out/read.json") images/s" "$(field img_per_cpu_s <"$out/read.json") images per CPU second, first batch $(field first_batch_s <"$out/read.json") s"
  done; done
fi
row "open 100 GB of shards, 270,000 images" "$(cargo bench --locked -p dw-shards --bench open 2>/dev/null | grep "dw open" | field seconds_median | cut -c1-6) s" ""
if [ -f "$data_peer" ] && [ -n "${DW_BENCH_JSON:-}" ]; then
  [ -f "$DW_BENCH_JSON" ] || "$python" "$data_peer" json --gen "$DW_BENCH_JSON" >/dev/null
  for i in 1 2 3; do cargo bench --locked -p dw-shards --bench json -- --annotations "$(realpath "$DW_BENCH_JSON")" 2>/dev/null | grep '"dw json' >>"$out/json.jsonl"; done
  row "annotations of 472 MB" "$(field seconds <"$out/json.jsonl" | median | cut -c1-5) s" "peak $(field peak_mib <"$out/json.jsonl" | head -n 1) MiB"
fi

# Turn by turn, so that a change of the machine's speed meets both.
for i in 1 2 3; do
  cargo bench --locked --bench step -- --steps 5 --threads "$threads" 2>/dev/null | grep '"dw step' >>"$out/step.jsonl"
  [ ! -f "$peer" ] || "$python" "$peer" --batch 2 --height 320 --width 416 --steps 5 --threads "$threads" 2>/dev/null >>"$out/peer.jsonl"
  [ ! -f "$peer" ] || "$python" "$peer" --batch 2 --height 320 --width 416 --steps 5 --threads "$threads" --channels-last 2>/dev/null >>"$out/peer-cl.jsonl"
done
ours=$(field step_s_median <"$out/step.jsonl" | median)
spread=$(field step_s_median <"$out/step.jsonl" | sort -g | awk '{ v[NR] = $1 } END { printf "%.3f..%.3f s", v[1], v[NR] }')
row "training step, R-50, 2 x 320 x 416, refinement" "$(printf %.3f "$ours") s" "runs $spread, peak $(field peak_mib <"$out/step.jsonl" | head -n 1) MiB"
for p in peer peer-cl; do
  [ -f "$out/$p.jsonl" ] || continue
  theirs=$(field step_s_median <"$out/$p.jsonl" | median)
  name="torchvision FCOS R-50, the same size"; [ $p = peer ] || name+=", channels-last"
  row "$name" "$(printf %.3f "$theirs") s" "peak $(field peak_mib <"$out/$p.jsonl" | head -n 1) MiB; theirs / ours = $(awk "BEGIN { printf \"%.2f\", $theirs / $ours }")"
done

shapes=()
[ ! -d "${DW_DATA:-../shared/data}/coco128" ] || shapes=(--annotations "$(realpath "${DW_DATA:-../shared/data}")/coco128/annotations/instances_train2017.json")
for i in 1 2 3; do
  cargo bench --locked --bench loss -- --threads "$threads" "${shapes[@]}" 2>/dev/null | grep '"dw loss' >>"$out/loss.jsonl"
done
for boxes in 7 40 300; do
  grep "\"boxes\":$boxes," "$out/loss.jsonl" >"$out/loss-$boxes.jsonl"
  row "loss alone, 2 x 800 x 1333, $boxes boxes an image" "$(field step_s_median <"$out/loss-$boxes.jsonl" | median | cut -c1-5) s" "peak $(field peak_mib <"$out/loss-$boxes.jsonl" | sort -n | tail -n 1) MiB more than its inputs"
done

measured train "$bin/dw-train" smoke --device cpu --data "$PWD/$out/shards-zstd" --work-dir "$out/run" --set train.max_steps=2 --set eval.every_epochs=0 --set checkpoint.every_steps=2 2>/dev/null
for i in 1 2 3; do
  measured eval "$bin/dw-eval" "$out/run" --device cpu --json 2>/dev/null
  cat "$out/eval.cost" >>"$out/eval.all"
done
row "dw-eval, the validation split, small network" "$(cut -d' ' -f1 "$out/eval.all" | median) s" "peak $(cut -d' ' -f2 "$out/eval.cost") MiB"
cargo bench --locked --bench nms 2>/dev/null | grep '"dw nms' >"$out/nms.jsonl"
for classes in 80 1; do
  row "NMS, 5,000 candidates, $classes classes" "$(grep "\"classes\":$classes," "$out/nms.jsonl" | field ms_median | cut -c1-5) ms" "one thread, one image"
done
benches/ranks.sh
benches/coco.sh
echo "bench: load $(cut -d' ' -f1 /proc/loadavg) after"

#!/usr/bin/env bash
# Compares the COCO metric with other implementations on this machine: wall time, CPU time and peak
# memory, medians over rounds in which the programs take turns. The first run downloads their Python
# packages. Times exclude the imports of the Python programs, but include the whole dw process.
#
#   benches/coco.sh [GT.json DT.json]     default: generated files of the size of val2017
#   RUNS=5 DW_PEERS=../shared/peers PEERS="hotcoco ultrafast" benches/coco.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release}
scripts=${DW_PEERS:-../shared/peers}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
venv="$cache/peers-coco"
runs=${RUNS:-3}
peers=${PEERS:-pycocotools faster_coco_eval vernier hotcoco ultrafast}

[ -f "$scripts/coco_bench.py" ] || {
  echo "coco.sh: skipped: no $scripts/coco_bench.py (DW_PEERS names the folder that has it)" >&2
  exit 0
}
tools/setup.sh venv "$venv" numpy==2.4.6 pycocotools==2.0.11 faster-coco-eval==1.8.0 \
  vernier==0.5.4 hotcoco==1.3.0 ultrafast-pycocotools==0.1.14 >&2
python="$venv/bin/python"
if [ $# -ge 2 ]; then
  gt=$1 dt=$2
else
  data="$cache/coco-bench/val2017-4242"
  if [ ! -f "$data/.complete" ]; then
    "$python" "$scripts/coco_gen.py" "$data" --seed 4242 --size val2017 >&2
    touch "$data/.complete"
  fi
  gt="$data/gt.json" dt="$data/dt.json"
fi
cargo build --locked --quiet --release -p dw-metric --bins --example metric
example="${CARGO_TARGET_DIR:-target}/release/examples/metric"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Runs a dw program; appends wall time, CPU time, peak memory and the 12 metrics to $out/NAME.
measure() { # NAME COMMAND...
  local name=$1
  shift
  "$python" - "$name" "$@" >>"$out/$name" <<'PY'
import json, os, resource, subprocess, sys, time

PARTS = ("truth", "results", "evaluate", "summarize")

start = time.perf_counter()
p = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, check=True)
wall = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
got = json.loads(p.stdout)
# ru_maxrss includes the forked copy of this script (about 12 MB) before exec, so the program's own
# figure is preferred.
row = {
    "tool": sys.argv[1],
    "total": wall,
    "cpu": usage.ru_utime + usage.ru_stime,
    "peak_rss_mb": got.get("peak_rss_mb", usage.ru_maxrss / 1024),
    "load1": os.getloadavg()[0],
    "stats": got.get("stats") or [v for k, v in got.items() if k != "per_class"],
}
row |= {k: got[k] for part in PARTS for k in (part, part + "_cpu") if k in got}
print(json.dumps(row))
PY
}
for _ in $(seq "$runs"); do
  for peer in $peers; do
    "$python" "$scripts/coco_bench.py" "$peer" "$gt" "$dt" >>"$out/$peer" 2>/dev/null
  done
  measure dw-metric "$example" "$gt" "$dt"
  measure dw-eval "$bin/dw-eval" coco --gt "$gt" --dt "$dt" --json
done

cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)
echo "COCO metric: $(git rev-parse --short HEAD), $(date +%F), $(nproc) cores, $cpu"
echo "$gt $dt: $(du -Lcm "$gt" "$dt" | tail -n 1 | cut -f1) MB, median of $runs"
# shellcheck disable=SC2086
"$python" - "$out" $peers <<'PY'
import json, pathlib, statistics, sys

out, peers = pathlib.Path(sys.argv[1]), sys.argv[2:]
rows = {p.name: [json.loads(s) for s in p.read_text().splitlines()] for p in sorted(out.iterdir())}

def median(name, key):
    return statistics.median(r[key] for r in rows[name])

ours = [n for n in ("dw-metric", "dw-eval") if n in rows]
print(
    f"{'':<18}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}   "
    "wall s of each run, maximum load; largest difference of the 12 metrics"
)
for name in peers + ours:
    diff = max(abs(a - b) for a, b in zip(rows[name][0]["stats"], rows[ours[0]][0]["stats"]))
    walls = " ".join(f"{r['total']:.2f}" for r in rows[name])
    load = max(r["load1"] for r in rows[name])
    wall, cpu, peak = (median(name, k) for k in ("total", "cpu", "peak_rss_mb"))
    print(f"{name:<18}{wall:>9.3f}{cpu:>9.3f}{peak:>9.0f}   {walls}, load {load:.1f}; {diff:.0e}")
for name in ours:
    for key, what in (("total", "wall"), ("cpu", "CPU"), ("peak_rss_mb", "memory")):
        best = min(peers, key=lambda p: median(p, key))
        ratio = median(name, key) / median(best, key)
        print(f"{name}: {what} {ratio:.2f} of the best other implementation ({best})")
times = [
    f"{p} {median('dw-metric', p):.3f} ({median('dw-metric', p + '_cpu'):.3f})"
    for p in ("truth", "results", "evaluate", "summarize")
]
print("dw-metric by stage, wall (CPU) s: " + ", ".join(times))
PY

#!/usr/bin/env bash
# The COCO metric against its peers, all on this machine in one run: rounds in which each has its turn, medians of them.
# Needs the network once, for the peers' Python packages. Peers' imports are not counted; ours is the whole process.
#
#   benches/coco.sh [GT.json DT.json]     default: a drawn set of val2017's size
#   RUNS=5 DW_PEERS=../shared/peers PEERS="hotcoco ultrafast" benches/coco.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release}
scripts=${DW_PEERS:-../shared/peers}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/dw"
venv="$cache/peers-coco"
runs=${RUNS:-3}
peers=${PEERS:-pycocotools faster_coco_eval vernier hotcoco ultrafast}

[ -f "$scripts/coco_bench.py" ] || { echo "coco.sh: no $scripts/coco_bench.py; DW_PEERS names the folder that has it" >&2; exit 2; }
if [ ! -f "$venv/.complete-1" ]; then
  echo "coco.sh: the peers' Python packages into $venv (once)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 faster-coco-eval==1.8.0 \
    vernier==0.5.4 hotcoco==1.3.0 ultrafast-pycocotools==0.1.14
  touch "$venv/.complete-1"
fi
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
# Runs ours as a process; adds a line with wall, CPU and memory of all of it, and the 12 numbers.
whole() { local name=$1; shift; "$python" - "$name" "$@" >>"$out/$name" <<'PY'
import json, os, resource, subprocess, sys, time
t = time.perf_counter()
p = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, check=True)
wall = time.perf_counter() - t
u = resource.getrusage(resource.RUSAGE_CHILDREN)
got = json.loads(p.stdout)
# Before it becomes itself a child may count as large as this script (about 12 MB); its own figure is better where it prints one.
rss = got.get("peak_rss_mb", u.ru_maxrss / 1024)
stats = got.get("stats") or [v for k, v in got.items() if k != "per_class"]
split = {k: got[k] for k in ("truth", "results", "evaluate", "summarize", "truth_cpu", "results_cpu", "evaluate_cpu", "summarize_cpu") if k in got}
print(json.dumps(dict(tool=sys.argv[1], total=wall, cpu=u.ru_utime + u.ru_stime, peak_rss_mb=rss, load1=os.getloadavg()[0], stats=stats, **split)))
PY
}
for _ in $(seq "$runs"); do
  for peer in $peers; do "$python" "$scripts/coco_bench.py" "$peer" "$gt" "$dt" >>"$out/$peer" 2>/dev/null; done
  whole dw-metric "$example" "$gt" "$dt"
  whole dw-eval "$bin/dw-eval" coco --gt "$gt" --dt "$dt" --json
done

echo "COCO metric: $(git rev-parse --short HEAD), $(date +%F), $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
echo "$gt $dt: $(du -Lcm "$gt" "$dt" | tail -n 1 | cut -f1) MB, median of $runs"
"$python" - "$out" $peers <<'PY'
import json, pathlib, statistics, sys
out, peers = pathlib.Path(sys.argv[1]), sys.argv[2:]
rows = {p.name: [json.loads(line) for line in p.read_text().splitlines()] for p in sorted(out.iterdir())}
mid = lambda name, key: statistics.median(r[key] for r in rows[name])
ours = [n for n in ("dw-metric", "dw-eval") if n in rows]
print(f"{'':<18}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}   walls of the runs, load; largest difference of the 12 numbers")
for name in peers + ours:
    diff = max(abs(a - b) for a, b in zip(rows[name][0]["stats"], rows[ours[0]][0]["stats"]))
    walls = " ".join(f"{r['total']:.2f}" for r in rows[name])
    load = max(r["load1"] for r in rows[name])
    print(f"{name:<18}{mid(name, 'total'):>9.3f}{mid(name, 'cpu'):>9.3f}{mid(name, 'peak_rss_mb'):>9.0f}   {walls}, load {load:.1f}; {diff:.0e}")
for name in ours:
    for key, what in (("total", "wall"), ("cpu", "CPU"), ("peak_rss_mb", "memory")):
        best = min(peers, key=lambda p: mid(p, key))
        print(f"{name}: {what} {mid(name, key) / mid(best, key):.2f} of the best peer's ({best})")
parts = ("truth", "results", "evaluate", "summarize")
print("dw-metric's parts, wall (CPU) s: " + ", ".join(f"{p} {mid('dw-metric', p):.3f} ({mid('dw-metric', p + '_cpu'):.3f})" for p in parts))
PY

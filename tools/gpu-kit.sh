#!/usr/bin/env bash
# Collects in target/gpu-kit what benches/gpu_acceptance.sh needs on a machine with one GPU that has
# no Rust and no MPI: stripped binaries, 48 pictures, golden cases, and the losses of a short run on
# this machine's CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
kit=${DW_KIT:-target/gpu-kit}
data=${DW_DATA:-../shared/data}/coco128
goldens=${DW_GOLDENS:-../shared/goldens}
# What travels to the other machine, this tree included, has to stay below 64 MiB.
limit_mib=48

say() { echo "gpu-kit: $*"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -rf "$kit"
mkdir -p "$kit/bin" "$kit/goldens"

# The features are those of the tests without MPI in .ci/run, so nothing is compiled twice there.
say "compiling without MPI"
cargo build --locked --release --workspace --no-default-features --target-dir target/no-mpi --bins \
  --test golden --test gpu --bench step --bench loader \
  --message-format=json-render-diagnostics >"$scratch/cargo.json"
python3 tools/gpu_kit.py programs "$scratch/cargo.json" "$kit/bin"

if [ -d "$data" ]; then
  photos="32 + 16 photos of coco128"
  python3 tools/gpu_kit.py photos "$data" "$scratch/coco"
else
  photos="32 + 16 drawn pictures"
  "$kit/bin/dw-pack" synth "$scratch/coco" --images 32 --val 16 --side 640 >/dev/null
fi
say "$photos"
"$kit/bin/dw-pack" "$scratch/coco" -o "$kit/photos" --pixels jpeg >/dev/null

cases=tests/golden/data
which="those of the repository"
if [ -d "$goldens" ]; then
  cases=$goldens
  which=all
fi
for kind in loss paper head detector detect; do
  [ ! -d "$cases/$kind" ] || cp -r "$cases/$kind" "$kit/goldens/"
done

# Losses are comparable from device to device while the rate is low. On a CPU, one thread and two
# are 3 % apart within 30 steps with the rate and warm-up of `smoke`, 1e-6 with these; a rate
# that is off by a factor of two is 8 % away.
cat >"$kit/train.toml" <<'TOML'
base = "smoke"

[data]
short_side = 192
long_side = 256

[train]
lr = 0.008
warmup_steps = 100
max_steps = 30
epochs = 1000
precision = "f32"

[eval]
every_epochs = 0
TOML
say "30 steps on the CPU"
"$kit/bin/dw-train" "$kit/train.toml" --device cpu --data "$kit/photos" --work-dir "$scratch/run" \
  >"$scratch/train.log" 2>&1 || { cat "$scratch/train.log" >&2; exit 1; }
cp "$scratch/run/metrics.jsonl" "$kit/cpu-losses.jsonl"

cp benches/gpu_acceptance.sh benches/gpu_*.py "$kit/"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision+=" with changes"
printf '{"revision": "%s", "photos": "%s", "goldens": "%s"}\n' "$revision" "$photos" "$which" \
  >"$kit/kit.json"
# What travels to the other machine has to be small; the script unpacks it there.
size=$(du -sm "$kit" | cut -f1)
python3 tools/gpu_kit.py compress "$kit" "$scratch/kit.tar.xz"
rm -rf "$kit"
mkdir -p "$kit"
mv "$scratch/kit.tar.xz" "$kit/"
packed=$(du -m "$kit/kit.tar.xz" | cut -f1)
say "$kit, $packed MiB ($size MiB unpacked), revision $revision"
[ "$packed" -le "$limit_mib" ] || { say "error: more than $limit_mib MiB" >&2; exit 1; }

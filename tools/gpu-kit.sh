#!/usr/bin/env bash
# Packs the files that benches/gpu_acceptance.sh needs on a machine with one GPU but without Rust
# and MPI into target/gpu-kit: stripped binaries, 48 images, golden cases, and the losses of a short
# CPU run on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
kit=${DW_KIT:-target/gpu-kit}
data=${DW_DATA:-../shared/data}/coco128
goldens=${DW_GOLDENS:-../shared/goldens}
# Small enough to copy over a slow connection.
limit_mib=48

say() { echo "gpu-kit: $*"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Earlier versions left only the archive.
[ -z "$(ls -A "$kit" 2>/dev/null)" ] || [ -f "$kit/.dw-gpu-kit" ] ||
  [ "$(ls -A "$kit")" = kit.tar.xz ] || {
  say "error: $kit is not empty and was not made by this script" >&2
  exit 2
}
rm -rf "$kit"
mkdir -p "$kit/bin" "$kit/goldens"
# Marks the folder as created by this script, which removes no other folder.
touch "$kit/.dw-gpu-kit"

# The same features as the tests without MPI in .ci/run, so that nothing is compiled twice.
say "compiling without MPI"
cargo build --locked --release --workspace --no-default-features --target-dir target/no-mpi --bins \
  --test golden --test gpu --bench step --bench loader \
  --message-format=json-render-diagnostics >"$scratch/cargo.json"
python3 tools/gpu_kit.py programs "$scratch/cargo.json" "$kit/bin"

if [ -d "$data" ]; then
  photos="32 + 16 photos of coco128"
  python3 tools/gpu_kit.py photos "$data" "$scratch/coco"
else
  photos="32 + 16 generated images"
  "$kit/bin/dw-pack" synth "$scratch/coco" --images 32 --val 16 --side 640 >/dev/null
fi
say "$photos"
"$kit/bin/dw-pack" "$scratch/coco" -o "$kit/photos" --pixels jpeg >/dev/null

cases=tests/golden/data
which="those in the repository"
if [ -d "$goldens" ]; then
  cases=$goldens
  which=all
fi
for kind in loss paper head detector detect; do
  [ ! -d "$cases/$kind" ] || cp -r "$cases/$kind" "$kit/goldens/"
done

# The learning rate is low enough to compare losses between devices. Within 30 steps on a CPU, one
# and two threads differ by 3 % with the learning rate and warm-up of `smoke`, but by 1e-6 with
# these settings. A learning rate that is wrong by a factor of two changes the losses by 8 %.
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
# A single archive, which gpu_acceptance.sh unpacks.
size=$(du -sm "$kit" | cut -f1)
python3 tools/gpu_kit.py compress "$kit" "$scratch/kit.tar.xz"
rm -rf "$kit"
mkdir -p "$kit"
touch "$kit/.dw-gpu-kit"
mv "$scratch/kit.tar.xz" "$kit/"
packed=$(du -m "$kit/kit.tar.xz" | cut -f1)
say "$kit, $packed MiB ($size MiB unpacked), revision $revision"
[ "$packed" -le "$limit_mib" ] || { say "error: more than $limit_mib MiB" >&2; exit 1; }

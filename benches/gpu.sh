#!/usr/bin/env bash
# Training step on one GPU against torchvision's FCOS on the same GPU, turn by turn: batch 2 and 16 at 800 x 1344, f32.
set -euo pipefail
cd "$(dirname "$0")/.."
peer=${DW_PEERS:-../shared/peers}/torchvision_fcos.py
python=${PYTHON:-python3}
# A measured binary may be given where there is no Rust: the path that `cargo bench --no-run --bench step` prints.
step=${DW_STEP_BENCH:-}
if [ -z "$step" ]; then
  step=$(cargo bench --locked --no-run --bench step 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
fi
echo "gpu-bench: $(git rev-parse --short HEAD 2>/dev/null || echo 'unknown commit'), $(date +%F), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)"
for batch in 2 16; do
  for round in 1 2 3; do
    "$step" --bench --device cuda --batch "$batch" --height 800 --width 1344 --steps 20 --threads 4
    for dtype in f32 tf32 bf16; do
      [ ! -f "$peer" ] || "$python" "$peer" --device cuda --dtype "$dtype" --channels-last --batch "$batch" --height 800 --width 1344 --steps 20
    done
  done
done

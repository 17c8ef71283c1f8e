#!/usr/bin/env bash
# Checks that two commits compute identical results: builds both and compares the losses and final
# weights of the same short training runs bit for bit.
set -euo pipefail
export LC_ALL=C
usage() {
  cat <<'EOF'
Usage: tools/same-losses.sh [--quick] OLD NEW

Builds the commits OLD and NEW and compares the same short CPU training runs bit for bit: step,
epoch, all loss terms, gradient norm and learning rate of every row of metrics.jsonl, the AP of an
evaluation, and model.safetensors, momentum.safetensors and the step of state.json in the last
checkpoint. A run that fails in either commit counts as a difference.

  --quick   only six runs (f32 and f64, 1 and 2 ranks, a small network and an R-50)

Prints one line per run. Exit codes: 0 all equal, 1 a difference, 2 usage error or failed build.
Uncommitted changes are ignored.

The newest six builds are kept in ~/.cache/dw/same-losses (or $XDG_CACHE_HOME/dw/same-losses). The
first build also compiles the dependencies, which takes 4 to 10 minutes.

Examples:
  tools/same-losses.sh --quick main HEAD
  tools/same-losses.sh HEAD~3 HEAD
  tools/same-losses.sh HEAD HEAD          checks that the runs are deterministic
EOF
}
say() { echo "same-losses: $*"; }
die() {
  echo "same-losses: error: $1" >&2
  [ $# -lt 2 ] || echo "same-losses: hint: $2" >&2
  exit 2
}

quick=''
commits=()
for arg in "$@"; do
  case $arg in
    -h | --help) usage; exit 0 ;;
    --quick) quick=1 ;;
    -*) die "unknown option $arg" "tools/same-losses.sh --help" ;;
    *) commits+=("$arg") ;;
  esac
done
[ ${#commits[@]} = 2 ] ||
  die "expected two commits, found ${#commits[@]}" "tools/same-losses.sh [--quick] OLD NEW"

cd "$(dirname "$0")/.."
commit_id() {
  git rev-parse --verify --quiet "$1^{commit}" ||
    die "$1 is not a commit of this repository" "list commits with git log --oneline"
}
old_id=$(commit_id "${commits[0]}")
new_id=$(commit_id "${commits[1]}")
command -v mpirun >/dev/null || die "mpirun is missing" "run \`make setup\`"
command -v python3 >/dev/null || die "python3 is missing" "run \`make setup\`"
config=.cargo/config.toml
[ -f $config ] || [ -n "${LIBTORCH:-}" ] ||
  die "$config is missing: libtorch is not installed" "run \`make setup\`"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/dw/same-losses
mkdir -p "$cache/bin"
temp=$(mktemp -d "${TMPDIR:-/tmp}/same-losses.XXXXXX")
worker=''
checkout=''
cleanup() {
  [ -z "$worker" ] || kill "$worker" 2>/dev/null || true
  [ -z "$checkout" ] || git worktree remove --force "$checkout" 2>/dev/null || true
  rm -rf "$temp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A build also depends on these settings.
settings=$({ cat $config 2>/dev/null || true; echo "${LIBTORCH:-} ${RUSTFLAGS:-}"; } | sha256sum)
binaries() { echo "$cache/bin/${1:0:12}-${settings:0:8}"; }

build() { # COMMIT: writes dw-train and dw-pack to `binaries COMMIT`
  local id=$1 bin began=$SECONDS
  bin=$(binaries "$id")
  if [ -x "$bin/dw-train" ]; then
    touch "$bin"
    return
  fi
  say "building ${id:0:10}"
  # Always the same folder, so that both binaries contain the same paths.
  rm -rf "$cache/src"
  git worktree prune
  checkout=$cache/src
  git worktree add --quiet --force --detach "$cache/src" "$id" || die "cannot check out $id"
  mkdir -p "$cache/src/.cargo"
  [ ! -f $config ] || cp $config "$cache/src/.cargo/config.toml"
  # Cargo uses the same crate names for all checkouts and detects changes by time stamps. In a build
  # folder shared with other checkouts it may reuse their artifacts; in this one, every checkout is
  # newer than all previous builds.
  (cd "$cache/src" && CARGO_BUILD_BUILD_DIR="$cache/build" CARGO_TARGET_DIR="$cache/target" \
    cargo build --locked --release --workspace --bin dw-train --bin dw-pack) >"$temp/log" 2>&1 || {
    tail -n 30 "$temp/log" >&2
    die "cannot build ${id:0:10}"
  }
  [[ "$("$cache/target/release/dw-train" --version 2>/dev/null)" == *"(${id:0:10}"* ]] ||
    die "the dw-train that was built reports another commit than ${id:0:10}" "rm -rf $cache"
  mkdir -p "$bin.part"
  cp "$cache/target/release/dw-train" "$cache/target/release/dw-pack" "$bin.part"
  mv "$bin.part" "$bin"
  git worktree remove --force "$cache/src"
  checkout=''
  say "built ${id:0:10} in $((SECONDS - began)) s"
}
exec 9>"$cache/lock"
flock 9
build "$old_id"
build "$new_id"
ls -dt "$cache"/bin/* | tail -n +7 | xargs -r -d '\n' rm -rf
exec 9>&-
old_bin=$(binaries "$old_id")
new_bin=$(binaries "$new_id")

# The images are generated once, so that both commits get the same data. Each commit packs them into
# its own shard format; a change of pixels or boxes affects the losses.
data_set=("$temp/shapes" --images 32 --val 8 --seed 11 --classes 6)
"$old_bin/dw-pack" synth "${data_set[@]}" >"$temp/log" 2>&1 ||
  die "${commits[0]} cannot generate a data set: $(tail -n 1 "$temp/log")"
for side in old new; do
  bin=${side}_bin
  "${!bin}/dw-pack" "$temp/shapes" -o "$temp/shards-$side" >"$temp/log" 2>&1 ||
    die "$side commit cannot pack the data set: $(tail -n 1 "$temp/log")"
done

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Both commits start from the same random weights. The number of threads affects the order of sums.
# The scores of untrained networks are low, so all are kept; otherwise AP would always be 0.
common=(--device cpu --set model.init=random --set train.threads=1 --set data.workers=1
  --set eval.score_threshold=0.0 --set eval.every_epochs=0)
# Eight steps with warm-up and gradient clipping.
demo=(demo --set train.epochs=1 --set train.lr_steps=[] --set train.warmup_steps=4)
r50=(dw_r50_fpn_1x --set data.short_side=128 --set data.long_side=192 --set train.max_steps=3
  --set train.warmup_steps=2 --set train.base_batch=2)

command_line() { # SIDE FOLDER RANKS ARGUMENTS...: sets `line`
  local side=$1 folder=$2 ranks=$3 bin=${1}_bin
  shift 3
  line=()
  [ "$ranks" = 1 ] || line=(mpirun -n "$ranks" --oversubscribe --bind-to none)
  line+=("${!bin}/dw-train" "$@" --data "$temp/shards-$side" --work-dir "$temp/$side-$folder")
}
train() { # SIDE FOLDER RANKS ARGUMENTS...: runs dw-train and returns its exit code
  command_line "$@"
  "${line[@]}" >"$temp/$1-$2.log" 2>&1 </dev/null
}
failure() { # SIDE FOLDER CODE: prints why a run failed, in one line
  local why
  why=$(grep -m 1 'error: ' "$temp/$1-$2.log" || tail -n 1 "$temp/$1-$2.log")
  echo "$1 commit failed with exit code $3: $why"
}

runs=0
different=0
report() { # NAME FOLDERS DIFFERENCE: compares FOLDERS unless DIFFERENCE is not empty
  local name=$1 folders=$2 difference=$3 facts=''
  runs=$((runs + 1))
  if [ -z "$difference" ]; then
    if facts=$(cd "$temp" && compare $folders 2>&1); then
      say "$name: equal ($facts)"
    else
      difference=$facts
    fi
  fi
  if [ -n "$difference" ]; then
    different=$((different + 1))
    say "$name: DIFFERENT: $difference"
  fi
  rm -rf "$temp"/old-* "$temp"/new-*
}

compare() { # FOLDER...: prints a summary, or the first difference from the first folder (exit 1)
  python3 - "$@" <<'EOF'
import glob, hashlib, json, struct, sys

FIELDS = ("step", "epoch", "lr", "grad_norm", "no_positive")

label = ""

def fail(text):
    print(label + text)
    sys.exit(1)

def rows(folder):
    """Returns the compared fields of every row of metrics.jsonl."""
    with open(f"{folder}/metrics.jsonl") as f:
        found = [json.loads(line) for line in f]
    wanted = lambda k: k in FIELDS or k.startswith(("loss", "AP", "AR"))
    return [{k: v for k, v in row.items() if wanted(k)} for row in found]

def bits(v):
    return struct.pack(">d", v) if isinstance(v, float) else v

def checkpoint(folder):
    found = sorted(glob.glob(f"{folder}/checkpoints/step-*"))
    if not found:
        fail(f"{folder} has no checkpoint")
    return found[-1]

def tensors(data):
    """Returns type, shape and data of every tensor of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    at = lambda t: body[slice(*t["data_offsets"])]
    return {name: (t["dtype"], t["shape"], at(t)) for name, t in header.items()}

def same_file(old, new, name):
    a, b = (open(f"{folder}/{name}", "rb").read() for folder in (old, new))
    if a == b:
        return hashlib.sha256(a).hexdigest()[:8]
    a, b = tensors(a), tensors(b)
    off = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    if not off:
        return fail(f"{name}: same tensors, different header")
    first, many = off[0], f"{len(off)} of {len(a)} tensors"
    if first in a and first in b:
        return fail(f"{name}: {many} differ, first {first}")
    fail(f"{name}: {many} differ, {first} only in the {'old' if first in a else 'new'}")

def same_rows(old, new):
    a, b = rows(old), rows(new)
    if len(a) != len(b):
        fail(f"{len(a)} rows of metrics.jsonl -> {len(b)}")
    off = []
    for n, (x, y) in enumerate(zip(a, b), 1):
        for k in list(x) + [k for k in y if k not in x]:
            if k not in x or k not in y or bits(x[k]) != bits(y[k]):
                off.append((n, f"row {n} {k} {x.get(k, 'missing')} -> {y.get(k, 'missing')}"))
    if off:
        count = len({n for n, _ in off})
        fail(f"{off[0][1]} ({len(off)} numbers in {count} of {len(a)} rows)")
    if not a or not any("loss" in row for row in a):
        fail("no row with a loss")
    return len(a), sum("AP" in row for row in a)

def same(old, new):
    """Compares two runs; returns a summary if they are equal."""
    count, evaluations = same_rows(old, new)
    a, b = checkpoint(old), checkpoint(new)
    steps = [json.load(open(f"{c}/state.json"))["step"] for c in (a, b)]
    if steps[0] != steps[1]:
        fail(f"step {steps[0]} -> {steps[1]} in state.json")
    weights = same_file(a, b, "model.safetensors")
    same_file(a, b, "momentum.safetensors")
    return f"{count} rows{', AP compared' if evaluations else ''}, weights {weights}"

for folder in sys.argv[2:]:
    side, part = folder.split("-")
    label = f"{side} commit, stopped and resumed: " if part == "parts" else ""
    try:
        facts = same(sys.argv[1], folder)
    except (OSError, ValueError, KeyError, struct.error) as e:
        fail(f"cannot compare: {e}")
print(facts)
EOF
}

run() { # NAME RANKS ARGUMENTS...: one uninterrupted run of each commit
  local name=$1 ranks=$2 side code trouble=''
  shift 2
  for side in old new; do
    code=0
    train $side whole "$ranks" "${common[@]}" "$@" || code=$?
    [ $code = 0 ] || trouble+="${trouble:+; }$(failure $side whole $code)"
  done
  report "$name" "old-whole new-whole" "$trouble"
}

stop_by_signal() { # SIDE ARGUMENTS...: sends USR1 after a few steps
  local side=$1 rows=0 code=0 n
  shift
  command_line "$side" parts 1 "$@"
  "${line[@]}" >"$temp/$side-parts.log" 2>&1 </dev/null &
  worker=$!
  for ((n = 0; n < 1200 && rows < 3; n++)); do
    sleep 0.05
    rows=$({ wc -l <"$temp/$side-parts/metrics.jsonl"; } 2>/dev/null || echo 0)
    kill -0 $worker 2>/dev/null || break
  done
  kill -USR1 $worker 2>/dev/null || true
  wait $worker || code=$?
  worker=''
  [ $code = 75 ] || echo "$side commit: expected exit code 75 after USR1, found $code"
}

stop_by_limit() { # SIDE RANKS ARGUMENTS...: stops after the fourth step
  local side=$1 ranks=$2 code=0
  shift 2
  train "$side" parts "$ranks" "$@" --set train.max_steps=4 || code=$?
  [ $code = 0 ] || failure "$side" parts $code
}

resumed() { # NAME signal|limit RANKS ARGUMENTS...: a stopped and resumed run, and a whole one
  local name=$1 how=$2 ranks=$3 side code trouble='' why
  shift 3
  local arguments=("${common[@]}" "$@")
  for side in old new; do
    code=0
    train $side whole "$ranks" "${arguments[@]}" || code=$?
    [ $code = 0 ] || trouble+="${trouble:+; }$(failure $side whole $code)"
    if [ "$how" = signal ]; then
      stop_by_signal $side "${arguments[@]}" >"$temp/why"
    else
      stop_by_limit $side "$ranks" "${arguments[@]}" >"$temp/why"
    fi
    why=$(cat "$temp/why")
    [ -z "$why" ] || trouble+="${trouble:+; }$why"
    code=0
    train $side parts "$ranks" "${arguments[@]}" || code=$?
    [ $code = 0 ] || trouble+="${trouble:+; }$(failure $side parts $code)"
  done
  report "$name" "old-whole new-whole old-parts new-parts" "$trouble"
}

began=$SECONDS
f32=(--set train.precision=f32)
f64=(--set train.precision=f64)
two=(--set train.images_per_rank=2)
run "demo f32 1 rank" 1 "${demo[@]}" "${f32[@]}" --set eval.every_epochs=1
run "demo f32 2 ranks" 2 "${demo[@]}" "${f32[@]}" "${two[@]}"
run "demo f64 1 rank" 1 "${demo[@]}" "${f64[@]}"
run "R-50 f32 1 rank" 1 "${r50[@]}" "${f32[@]}"
run "R-50 f32 2 ranks" 2 "${r50[@]}" "${f32[@]}" --set train.images_per_rank=1
run "R-50 f64 1 rank" 1 "${r50[@]}" "${f64[@]}"
if [ -z "$quick" ]; then
  paper=(--set assign.formula=paper)
  plain=(--set model.refine=false)
  run "demo f32 paper" 1 "${demo[@]}" "${f32[@]}" "${paper[@]}"
  run "demo f32 no refinement" 1 "${demo[@]}" "${f32[@]}" "${plain[@]}"
  run "demo f32 paper, no refinement" 1 "${demo[@]}" "${f32[@]}" "${paper[@]}" "${plain[@]}"
  run "demo f32 frozen_bn" 1 "${demo[@]}" "${f32[@]}" --set model.norm=frozen_bn
  run "demo f32 bn" 1 "${demo[@]}" "${f32[@]}" --set model.norm=bn
  # Stages are frozen only if a run starts from existing weights.
  if train old start 1 "${common[@]}" "${r50[@]}" "${f32[@]}"; then
    cp "$temp"/old-start/checkpoints/step-*/model.safetensors "$temp/r50.safetensors"
  fi
  run "R-50 f32 frozen stages" 1 "${r50[@]}" "${f32[@]}" --set "model.init=$temp/r50.safetensors"
  run "R-50 f32 gn" 1 "${r50[@]}" "${f32[@]}" --set model.norm=gn
  run "R-50 f32 DCN" 1 "${r50[@]}" "${f32[@]}" --set model.dcn_stages=[5] \
    --set model.dcn_last_conv=true
  run "demo f32 2 ranks, bf16 gradients" 2 "${demo[@]}" "${f32[@]}" "${two[@]}" \
    --set train.grad_compression=bf16
  resumed "demo f32 1 rank, USR1 and resume" signal 1 "${demo[@]}" "${f32[@]}"
  resumed "demo f32 2 ranks, stop and resume" limit 2 "${demo[@]}" "${f32[@]}" "${two[@]}"
fi

took="$((SECONDS - began)) s, ${old_id:0:10} and ${new_id:0:10}"
if [ $different = 0 ]; then
  say "all $runs runs equal ($took)"
else
  say "$different of $runs runs DIFFERENT ($took)"
  exit 1
fi

#!/usr/bin/env bash
# The batch scripts and dw-launch on a real SLURM of two hosts (tools/slurm.sh), as root, with the built binaries: about
# five minutes. Without names: all steps. The last line of each says how long it took; a failure shows the job's log.
#   tools/cluster-tests.sh [STEP...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release}")
dir=${TMPDIR:-/tmp}/dw-cluster
all=(checked one_node written warning early cancel requeue array two_nodes two_nodes_mpirun killed cut cut_hosts pack mistake node_lost)
steps=80
log=''
mkdir -p "$dir"
exec 9>"$dir.lock"
flock -n 9 || { echo "cluster: error: another run is under way (it holds $dir.lock)" >&2; exit 2; }
for name in dw-train dw-launch dw-pack; do
  [ -x "$bin/$name" ] || { echo "cluster: error: no $bin/$name" >&2; echo "cluster: hint: make build, or BIN=FOLDER" >&2; exit 2; }
done
export PATH="$bin:$PATH"

trap 'code=$?; trap - EXIT; tools/slurm.sh down "$dir/slurm" 9>&- || true; [ $code -ne 0 ] || rm -rf "$dir"; exit $code' EXIT
trap 'exit 130' INT TERM HUP

fail() {
  echo "cluster: $current FAILED: $*" >&2
  [ ! -f "$log" ] || { echo "--- the end of $log" >&2; tail -n 40 "$log" >&2; }
  [ -z "${job:-}" ] || scontrol show job "$job" 2>/dev/null | grep -E 'JobState|ExitCode|Restarts|Command' >&2
  exit 1
}

# until SECONDS WHAT COMMAND...
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "waited in vain for $what"
    sleep 0.1
  done
}

# --- data and runs

prepare() {
  rm -rf "$dir"
  mkdir -p "$dir"
  dw-pack synth "$dir/coco" --images 40 --val 4 --seed 3 --classes 3 --side 128 >/dev/null 2>&1
  dw-pack "$dir/coco" >/dev/null 2>&1
  tools/slurm.sh up "$dir/slurm" 9>&-
  # shellcheck source=/dev/null
  . "$dir/slurm/env"
  arguments plain
  mpirun -n 2 --oversubscribe --bind-to none dw-train "${arguments[@]}" >"$dir/plain.log" 2>&1 || { log=$dir/plain.log; fail "the undisturbed run"; }
}

# Sets `arguments`: those of a run into the work directory of this name. One thread: sums do not depend on the node's cores.
arguments() {
  arguments=(smoke --device cpu --data "$dir/coco/shards" --work-dir "$dir/$1")
  local s
  for s in eval.every_epochs=0 train.max_steps=$steps train.threads=1 checkpoint.every_steps=10 "${@:2}"; do arguments+=(--set "$s"); done
}

# Losses by step; of a repeated step the later.
losses() {
  sed -n 's/^{"step":\([0-9]*\),"epoch":[0-9]*,"loss":\([^,]*\),.*/\1 \2/p' "$dir/$1/metrics.jsonl" | awk '{ l[$1] = $2 } END { for (s in l) print s, l[s] }' | sort -n
}

# A run ended with the losses and weights of the undisturbed one.
same() {
  local last
  last=checkpoints/step-$(printf %08d $steps)/model.safetensors
  [ "$(losses plain | wc -l)" = $steps ] || fail "the undisturbed run has not $steps losses"
  diff <(losses plain) <(losses "$1") >/dev/null || fail "$1: its losses are not those of the undisturbed run: $(diff <(losses plain) <(losses "$1") | head -n 4)"
  cmp -s "$dir/plain/$last" "$dir/$1/$last" || fail "$1: its weights are not those of the undisturbed run"
}

newest() { find "$dir/$1/checkpoints" -maxdepth 2 -name DONE -size +0 2>/dev/null | sed -n 's|.*/step-0*\([0-9]*\)/DONE|\1|p' | sort -n | tail -n 1; }
saved() { [ "$(newest "$1" || true)" != "" ]; }

# --- jobs

# Sets `job` and `log`: submit SCRIPT SBATCH-OPTIONS... -- ARGUMENTS...; no GPUs, one core a rank.
submit() {
  local script=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  job=$(sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 --time=00:10:00 --output="$dir/$current-%j.log" "${options[@]}" "slurm/$script.sbatch" "$@")
  log=$dir/$current-$job.log
}

field() { scontrol show job -o "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
ended() { [[ "$(field "$1" JobState)" == @(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY) ]]; }

# Waits for the job's end in this state, with this exit code and number of restarts.
end() {
  until_true 120 "the end of job $1" ended "$1"
  [ "$(field "$1" JobState)" = "$2" ] || fail "job $1 ended as $(field "$1" JobState), not $2"
  [ "$(field "$1" ExitCode)" = "$3" ] || fail "job $1 ended with code $(field "$1" ExitCode), not $3"
  [ "$(field "$1" Restarts)" = "$4" ] || fail "job $1 was started again $(field "$1" Restarts) times, not $4"
}

said() { grep -qE -- "$1" "$log" 2>/dev/null; }
says() { local w; for w in "$@"; do said "$w" || fail "expected in the log: $w"; done; }

# Processes PROGRAM that have this word in their command line, and NAME=VALUE in their environment if it is given.
processes() {
  local pid
  for pid in $(pgrep -x "$1" || true); do
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$2" || continue
    [ -z "${3:-}" ] || tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qxF -- "$3" || continue
    echo "$pid"
  done
}
running() { [ -n "$(processes "$@")" ]; }
gone() { ! running "$@"; }
# signal SIGNAL PROGRAM WORD [NAME=VALUE]
signal() { local name=$1 pid; shift; for pid in $(processes "$@"); do kill "-$name" "$pid" 2>/dev/null || true; done; }

# --- steps

checked() {
  if ! command -v shellcheck >/dev/null; then echo "cluster: shellcheck is missing: apt-get install shellcheck"; return; fi
  shellcheck slurm/* tools/slurm.sh tools/cluster-tests.sh || fail "shellcheck"
}

# Two ranks of a node under srun.
one_node() {
  arguments one
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  says '^\[0\] .* INFO step ' 'start 0: exit code 0'
  same one
}

# dw-launch writes the script and submits it, from a folder that is not dw's.
written() {
  arguments written
  (cd "$dir" && dw-launch --slurm -n 2 --nodes 1 --gpus-per-node 0 --time 00:10:00 --job-name written -- dw-train "${arguments[@]}") >"$dir/written.txt"
  job=$(sed -n 's/^Submitted batch job //p' "$dir/written.txt")
  log=$dir/written-$job.log
  end "$job" COMPLETED 0:0 0
  same written
}

# The time limit comes near: all ranks save, the job queues itself again and goes on.
warning() {
  arguments warning
  submit train_1node --ntasks-per-node=2 --time=00:01:00 --signal=B:USR1@20 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved warning
  # However fast this machine is, the run is not over before the warning comes.
  signal STOP dw-train "$dir/warning"
  until_true 60 "SLURM's warning" said 'asked for a checkpoint \(USR1\)'
  signal CONT dw-train "$dir/warning"
  end "$job" COMPLETED 0:0 1
  says 'stopped by a signal; checkpoint of step' 'start 0: exit code 75' 'going on from ' 'start 1: exit code 0'
  same warning
}

# A warning that comes while the ranks start up.
early() {
  arguments early
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "its ranks" running dw-train "$dir/early"
  scancel --signal=USR1 --batch "$job"
  end "$job" COMPLETED 0:0 1
  says 'start 0: exit code 75' 'start 1: exit code 0'
  same early
}

# scancel: a checkpoint within KillWait, and the job stays where it was sent.
cancel() {
  arguments cancel
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved cancel
  scancel "$job"
  until_true 60 "the end of job $job" ended "$job"
  # A requeue, if there were one, would be here by now.
  sleep 2
  [ "$(field "$job" JobState)" = CANCELLED ] || fail "a cancelled job is $(field "$job" JobState)"
  says 'stopped by a signal; checkpoint of step'
  local step
  step=$(sed -n 's/.*stopped by a signal; checkpoint of step \([0-9]*\) .*/\1/p' "$log" | head -n 1)
  [ "$(newest cancel)" = "$step" ] || fail "the newest whole checkpoint is of step $(newest cancel), not $step"
  gone dw-train "$dir/cancel" || fail "ranks are left"
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  says "going on from .*step-0*$step "
  same cancel
}

# SLURM itself, or an administrator, sends the job back.
requeue() {
  arguments requeue
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved requeue
  scontrol requeue "$job"
  end "$job" COMPLETED 0:0 1
  says 'stopped by a signal; checkpoint of step' 'going on from '
  same requeue
}

# Of two array tasks one is warned: only it is started again.
array() {
  arguments array-%a
  submit train_1node --ntasks-per-node=2 --array=0-1 -- "${arguments[@]}"
  local array=$job
  until_true 60 "checkpoints" saved array-0
  scancel --signal=USR1 --batch "${array}_0"
  job=${array}_1 log=$dir/array-$(field "${array}_1" JobId).log
  end "$job" COMPLETED 0:0 0
  same array-1
  job=${array}_0 log=$dir/array-$(field "${array}_0" JobId).log
  end "$job" COMPLETED 0:0 1
  says 'start 0: exit code 75' 'start 1: exit code 0'
  same array-0
}

# A rank on each of two hosts, by srun and by mpirun; the board is heard of from the other host.
two_nodes() {
  arguments two_nodes
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  ! said 'cannot reach the supervisor' || fail "the board cannot be reached"
  same two_nodes
}

two_nodes_mpirun() {
  arguments by_mpirun
  (cd "$dir" && dw-launch --slurm --starter mpirun -n 2 --nodes 2 --gpus-per-node 0 --time 00:10:00 --job-name mpirun -- dw-train "${arguments[@]}") >"$dir/written.txt"
  job=$(sed -n 's/^Submitted batch job //p' "$dir/written.txt")
  log=$dir/mpirun-$job.log
  until_true 60 "ranks of mpirun" running dw-train "$dir/by_mpirun"
  until_true 60 "a checkpoint" saved by_mpirun
  scancel --signal=USR1 --batch "$job"
  end "$job" COMPLETED 0:0 1
  ! said 'cannot reach the supervisor' || fail "the board cannot be reached"
  says 'start 0: exit code 75' 'start 1: exit code 0'
  same by_mpirun
}

# A rank dies on the other host.
killed() {
  arguments killed
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved killed
  signal KILL dw-train "$dir/killed" SLURM_PROCID=1
  until_true 15 "word of the lost rank" said 'rank 1 on dwn2 \(process [0-9]+, step [0-9]+\) was lost'
  end "$job" COMPLETED 0:0 0
  says 'starting again from the newest checkpoint \(1 of 2\)' 'going on from '
  same killed
}

link() { ip -n dwn2 link set eth0 "$1"; }

# The network between the hosts goes away for a while.
cut() {
  arguments cut train.step_deadline_s=8
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved cut
  link down
  until_true 40 "the watchdog" said 'rank 0 on dwn1 .*gave up: waited '
  link up
  says 'behind: rank 1 on dwn2 ' 'starting again from the newest checkpoint \(1 of 2\)'
  end "$job" COMPLETED 0:0 0
  same cut
}

# A host stays away until SLURM gives it up and sends the job back into the queue. When it is there again it still has the
# old step's daemon, on which SLURM's next step may wait: that is not ours, and not looked at here.
node_lost() {
  arguments node_lost train.step_deadline_s=8
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved node_lost
  link down
  until_true 120 "a requeue" requeued "$job"
  says 'rank 0 on dwn1 .*gave up: waited ' 'DUE TO NODE FAILURE'
  gone dw-train "$dir/node_lost" || fail "ranks are left"
  link up
  scancel "$job"
  until_true 60 "the end of job $job" ended "$job"
}
requeued() { [ "$(field "$1" Restarts)" = 1 ]; }

no_daemon() { ! pgrep -x orted --ns "$(cat "$dir/slurm/run/dwn2.pid")" --nslist net >/dev/null; }

# The same without SLURM, and for good.
cut_hosts() {
  arguments hosts train.step_deadline_s=8
  log=$dir/hosts.log job=''
  local code=0 pid began
  # mpirun reaches the other host by what it takes for ssh.
  OMPI_MCA_plm_rsh_agent=$dir/slurm/on "$dir/slurm/on" dwn1 exec dw-launch --hosts dwn1:1,dwn2:1 -- dw-train "${arguments[@]}" >"$log" 2>&1 &
  pid=$!
  until_true 60 "a checkpoint" saved hosts
  link down
  began=$SECONDS
  wait $pid || code=$?
  [ $code -eq 4 ] || { link up; fail "exit code $code, not 4"; }
  echo "cluster: cut_hosts: code 4 after $((SECONDS - began)) s"
  until_true 30 "the end of all ranks" gone dw-train "$dir/hosts"
  link up
  until_true 60 "the end of mpirun's daemon on the other host" no_daemon
  says 'rank 0 on dwn1 .*gave up: waited ' 'behind: rank 1 on dwn2 '
}

filled() { [ -n "$(find "$1" -type f -size +0 2>/dev/null)" ]; }

# Packing, warned in the middle: it goes on with the shards that are whole.
pack() {
  local options=(--shard-size 1MiB --level 15)
  dw-pack synth "$dir/many" --images 300 --val 0 --seed 1 --classes 3 --side 256 >/dev/null 2>&1
  dw-pack "$dir/many" -o "$dir/expected" "${options[@]}" --jobs 1 >/dev/null 2>&1
  submit pack -- "$dir/many" -o "$dir/packed" "${options[@]}"
  until_true 60 "dw-pack" running dw-pack "$dir/packed"
  until_true 60 "a shard" filled "$dir/packed"
  signal STOP dw-pack "$dir/packed"
  running dw-pack "$dir/packed" || fail "dw-pack was done before it could be warned"
  scancel --signal=USR1 --batch "$job"
  until_true 20 "the warning" said 'asked for a checkpoint'
  signal CONT dw-pack "$dir/packed"
  end "$job" COMPLETED 0:0 1
  says 'start 0: exit code 138' 'start 1: exit code 0'
  diff -r "$dir/expected" "$dir/packed" >/dev/null || fail "the shards are not those of an undisturbed run"
  dw-pack verify "$dir/packed" >/dev/null 2>&1 || fail "dw-pack verify"
}

# A mistake ends the job at once with its own code; nothing is tried again.
mistake() {
  arguments mistake train.epoch=3
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" FAILED 2:0 0
  says 'train.epoch' 'start 0: exit code 2'
  ! said 'starting again' || fail "a mistake was tried again"
}

current=prepare
began=$SECONDS
prepare
echo "cluster: $current ok ($((SECONDS - began)) s)"
[ $# -gt 0 ] || set -- "${all[@]}"
for current in "$@"; do
  [[ " ${all[*]} " = *" $current "* ]] || fail "no such step; there are: ${all[*]}"
  began=$SECONDS job='' log=''
  "$current"
  echo "cluster: $current ok ($((SECONDS - began)) s)"
done

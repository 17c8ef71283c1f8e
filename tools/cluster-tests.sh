#!/usr/bin/env bash
# Tests the batch scripts and dw-launch with the built binaries on a private SLURM of two hosts
# (tools/slurm.sh). Requires root and takes about five minutes. A failure prints the log of the job.
#
#   tools/cluster-tests.sh [STEP...]     default: all steps
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release}")
dir=${TMPDIR:-/tmp}/dw-cluster
all=(checked one_node written warning early cancel requeue array two_nodes two_nodes_mpirun killed
  cut cut_hosts pack mistake nested node_lost)
steps=80
log=''
# Log messages of dw-train and dw-launch, as extended regular expressions.
resumed='(going on|resuming|resumed) from '
restarting='restarting from the newest checkpoint'
preempted='stopped by a signal; checkpoint of step'
timed_out='rank 0 on dwn1 .*aborted: '
lagging='lagging: rank 1 on dwn2 '
unreachable='cannot reach the supervisor'
# Messages of slurm/env.sh.
requested='checkpoint requested \(USR1\)'
mkdir -p "$dir"
exec 9>"$dir.lock"
flock -n 9 || {
  echo "cluster: error: another instance is running (it holds $dir.lock)" >&2
  exit 2
}
for name in dw-train dw-launch dw-pack; do
  [ -x "$bin/$name" ] || {
    echo "cluster: error: no $bin/$name" >&2
    echo "cluster: hint: run \`make build\`, or set BIN to the folder of the binaries" >&2
    exit 2
  }
done
export PATH="$bin:$PATH"

finish() {
  local code=$?
  trap - EXIT
  tools/slurm.sh down "$dir/slurm" 9>&- || true
  [ $code -ne 0 ] || rm -rf "$dir"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

fail() {
  echo "cluster: $current FAILED: $*" >&2
  [ ! -f "$log" ] || { echo "--- last lines of $log" >&2; tail -n 40 "$log" >&2; }
  [ -z "${job:-}" ] || scontrol show job "$job" 2>/dev/null |
    grep -E 'JobState|ExitCode|Restarts|Command' >&2
  exit 1
}

# Polls a command until it succeeds; fails after a timeout.
until_true() { # SECONDS DESCRIPTION COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "timed out waiting for $what"
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
  mpirun -n 2 --oversubscribe --bind-to none dw-train "${arguments[@]}" >"$dir/plain.log" 2>&1 ||
    { log=$dir/plain.log; fail "the reference run"; }
}

# Sets `arguments` for a run with the given work directory. One thread, so that sums do not depend
# on the number of cores.
arguments() { # NAME [SETTING...]
  arguments=(smoke --device cpu --data "$dir/coco/shards" --work-dir "$dir/$1")
  local s
  for s in eval.every_epochs=0 train.max_steps=$steps train.threads=1 checkpoint.every_steps=10 \
    "${@:2}"; do
    arguments+=(--set "$s")
  done
}

# Prints step and loss. For a repeated step, prints the later loss.
losses() { # NAME
  sed -n 's/^{"step":\([0-9]*\),"epoch":[0-9]*,"loss":\([^,]*\),.*/\1 \2/p' \
    "$dir/$1/metrics.jsonl" | awk '{ l[$1] = $2 } END { for (s in l) print s, l[s] }' | sort -n
}

# Checks that the losses and final weights of a run equal those of the reference run.
same() { # NAME
  local last
  last=checkpoints/step-$(printf %08d $steps)/model.safetensors
  [ "$(losses plain | wc -l)" = $steps ] || fail "the reference run does not have $steps losses"
  diff <(losses plain) <(losses "$1") >/dev/null ||
    fail "$1: losses differ from the reference: $(diff <(losses plain) <(losses "$1") | head -n 4)"
  cmp -s "$dir/plain/$last" "$dir/$1/$last" || fail "$1: weights differ from the reference"
}

# Prints the step of the newest complete checkpoint of a run.
newest() { # NAME
  find "$dir/$1/checkpoints" -maxdepth 2 -name DONE -size +0 2>/dev/null |
    sed -n 's|.*/step-0*\([0-9]*\)/DONE|\1|p' | sort -n | tail -n 1
}
saved() { [ "$(newest "$1" || true)" != "" ]; }

# --- jobs

# Submits a job without GPUs and with one core per rank; sets `job` and `log`.
submit() { # SCRIPT SBATCH-OPTION... -- ARGUMENT...
  local script=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  job=$(sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 --time=00:10:00 \
    --output="$dir/$current-%j.log" "${options[@]}" "slurm/$script.sbatch" "$@")
  log=$dir/$current-$job.log
}

# Writes a batch script with dw-launch from another folder and submits it; sets `job` and `log`.
submit_written() { # JOB-NAME DW-LAUNCH-OPTION...
  local name=$1
  shift
  (cd "$dir" && dw-launch --slurm -n 2 --gpus-per-node 0 --time 00:10:00 --job-name "$name" "$@" \
    -- dw-train "${arguments[@]}") >"$dir/written.txt"
  job=$(sed -n 's/^Submitted batch job //p' "$dir/written.txt")
  log=$dir/$name-$job.log
}

field() { scontrol show job -o "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; } # JOB NAME
expect_field() { # JOB NAME VALUE
  local found
  found=$(field "$1" "$2")
  [ "$found" = "$3" ] || fail "job $1: expected $2 $3, found $found"
}
ended() { # JOB
  local state
  state=$(field "$1" JobState)
  [[ "$state" == @(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY) ]]
}

# Waits for the end of a job and checks its state.
end() { # JOB STATE EXIT-CODE RESTARTS
  until_true 120 "the end of job $1" ended "$1"
  expect_field "$1" JobState "$2"
  expect_field "$1" ExitCode "$3"
  expect_field "$1" Restarts "$4"
}

logged() { grep -qE -- "$1" "$log" 2>/dev/null; } # PATTERN
expect_logged() { # PATTERN...
  local pattern
  for pattern in "$@"; do logged "$pattern" || fail "not in the log: $pattern"; done
}

# Prints the ids of the processes of a program with this argument and environment variable.
processes() { # PROGRAM ARGUMENT [NAME=VALUE]
  local pid
  for pid in $(pgrep -x "$1" || true); do
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$2" || continue
    [ -z "${3:-}" ] || tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qxF -- "$3" ||
      continue
    echo "$pid"
  done
}
running() { [ -n "$(processes "$@")" ]; }
gone() { ! running "$@"; }
signal() { # SIGNAL PROGRAM ARGUMENT [NAME=VALUE]
  local name=$1 pid
  shift
  for pid in $(processes "$@"); do kill "-$name" "$pid" 2>/dev/null || true; done
}

# --- steps

checked() {
  if ! command -v shellcheck >/dev/null; then
    echo "cluster: skipped, shellcheck is missing: apt-get install shellcheck"
    return
  fi
  shellcheck slurm/* tools/slurm.sh tools/cluster-tests.sh || fail "shellcheck"
}

# Two ranks on one node, started with srun.
one_node() {
  arguments one
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  expect_logged '^\[0\] .* INFO step ' 'start 0: exit code 0'
  same one
}

# A script that dw-launch writes and submits from outside the repository.
written() {
  arguments written
  submit_written written --nodes 1
  end "$job" COMPLETED 0:0 0
  same written
}

# Early warning before the time limit: all ranks save, and the job is requeued and resumes.
warning() {
  arguments warning
  submit train_1node --ntasks-per-node=2 --time=00:01:00 --signal=B:USR1@20 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved warning
  # Stopped until the warning, so that the run cannot finish before it.
  signal STOP dw-train "$dir/warning"
  until_true 60 "the early warning of SLURM" logged "$requested"
  signal CONT dw-train "$dir/warning"
  end "$job" COMPLETED 0:0 1
  expect_logged "$preempted" 'start 0: exit code 75' "$resumed" 'start 1: exit code 0'
  same warning
}

# Early warning while the ranks are starting.
early() {
  arguments early
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "the ranks" running dw-train "$dir/early"
  scancel --signal=USR1 --batch "$job"
  end "$job" COMPLETED 0:0 1
  expect_logged 'start 0: exit code 75' 'start 1: exit code 0'
  same early
}

# scancel: a checkpoint within KillWait, and no requeue.
cancel() {
  arguments cancel
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved cancel
  scancel "$job"
  until_true 60 "the end of job $job" ended "$job"
  # Long enough for a requeue.
  sleep 2
  expect_field "$job" JobState CANCELLED
  expect_logged "$preempted"
  local step
  step=$(sed -n "s/.*$preempted \([0-9]*\) .*/\1/p" "$log" | head -n 1)
  [ "$(newest cancel)" = "$step" ] ||
    fail "expected step $step in the newest checkpoint, found $(newest cancel)"
  gone dw-train "$dir/cancel" || fail "ranks are still running"
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  expect_logged "$resumed.*step-0*$step "
  same cancel
}

# A requeue by SLURM or an administrator.
requeue() {
  arguments requeue
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved requeue
  scontrol requeue "$job"
  end "$job" COMPLETED 0:0 1
  expect_logged "$preempted" "$resumed"
  same requeue
}

# Early warning of one of two array tasks: only that task is requeued.
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
  expect_logged 'start 0: exit code 75' 'start 1: exit code 0'
  same array-0
}

# One rank on each of two hosts, with srun and with mpirun. Both reach the supervisor.
two_nodes() {
  arguments two_nodes
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  end "$job" COMPLETED 0:0 0
  ! logged "$unreachable" || fail "a rank cannot reach the supervisor"
  same two_nodes
}

two_nodes_mpirun() {
  arguments by_mpirun
  submit_written mpirun --starter mpirun --nodes 2
  until_true 60 "ranks of mpirun" running dw-train "$dir/by_mpirun"
  until_true 60 "a checkpoint" saved by_mpirun
  scancel --signal=USR1 --batch "$job"
  end "$job" COMPLETED 0:0 1
  ! logged "$unreachable" || fail "a rank cannot reach the supervisor"
  expect_logged 'start 0: exit code 75' 'start 1: exit code 0'
  same by_mpirun
}

# A rank on the other host is killed.
killed() {
  arguments killed
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved killed
  signal KILL dw-train "$dir/killed" SLURM_PROCID=1
  until_true 15 "a report of the lost rank" \
    logged 'rank 1 on dwn2 \(process [0-9]+, step [0-9]+\) was lost'
  end "$job" COMPLETED 0:0 0
  expect_logged "$restarting \(1 of 2\)" "$resumed"
  same killed
}

link() { ip -n dwn2 link set eth0 "$1"; }

# The network between the hosts fails temporarily.
cut() {
  arguments cut train.step_deadline_s=8
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved cut
  link down
  until_true 40 "the watchdog" logged "$timed_out"
  link up
  expect_logged "$lagging" "$restarting \(1 of 2\)"
  end "$job" COMPLETED 0:0 0
  same cut
}

# The network of a host fails until SLURM declares the node lost and requeues the job. The job is
# then cancelled: after the network returns, the old step daemon on that host may block its next
# step.
node_lost() {
  arguments node_lost train.step_deadline_s=8
  submit train_multinode --ntasks-per-node=1 -- "${arguments[@]}"
  until_true 60 "a checkpoint" saved node_lost
  link down
  until_true 120 "a requeue" requeued "$job"
  expect_logged "$timed_out" 'DUE TO NODE FAILURE'
  gone dw-train "$dir/node_lost" || fail "ranks are still running"
  link up
  scancel "$job"
  until_true 60 "the end of job $job" ended "$job"
}
requeued() { [ "$(field "$1" Restarts)" = 1 ]; }

# Whether a child process has ended; it may still be a zombie.
finished() { ! [[ "$(cat "/proc/$1/stat" 2>/dev/null)" == *") "[!Z]* ]]; } # PID
no_daemon() { ! pgrep -x orted --ns "$(cat "$dir/slurm/run/dwn2.pid")" --nslist net >/dev/null; }

# The network between the hosts fails permanently, without SLURM.
cut_hosts() {
  arguments hosts train.step_deadline_s=8
  log=$dir/hosts.log job=''
  local code=0 pid began
  # mpirun uses this program instead of ssh.
  OMPI_MCA_plm_rsh_agent=$dir/slurm/on "$dir/slurm/on" dwn1 exec dw-launch \
    --hosts dwn1:1,dwn2:1 -- dw-train "${arguments[@]}" >"$log" 2>&1 &
  pid=$!
  until_true 60 "a checkpoint" saved hosts
  link down
  began=$SECONDS
  until_true 60 "the end of dw-launch" finished $pid
  wait $pid || code=$?
  [ $code -eq 4 ] || { link up; fail "expected exit code 4, found $code"; }
  echo "cluster: cut_hosts: exit code 4 after $((SECONDS - began)) s"
  until_true 30 "the end of all ranks" gone dw-train "$dir/hosts"
  link up
  until_true 60 "the end of the mpirun daemon on the other host" no_daemon
  expect_logged "$timed_out" "$lagging"
}

filled() { [ -n "$(find "$1" -type f -size +0 2>/dev/null)" ]; }

# Early warning while packing: the complete shards are kept.
pack() {
  local options=(--shard-size 1MiB --level 15)
  dw-pack synth "$dir/many" --images 300 --val 0 --seed 1 --classes 3 --side 256 >/dev/null 2>&1
  dw-pack "$dir/many" -o "$dir/expected" "${options[@]}" --jobs 1 >/dev/null 2>&1
  submit pack -- "$dir/many" -o "$dir/packed" "${options[@]}"
  until_true 60 "dw-pack" running dw-pack "$dir/packed"
  until_true 60 "a shard" filled "$dir/packed"
  signal STOP dw-pack "$dir/packed"
  running dw-pack "$dir/packed" || fail "dw-pack finished before the warning"
  scancel --signal=USR1 --batch "$job"
  until_true 20 "the early warning" logged "$requested"
  signal CONT dw-pack "$dir/packed"
  end "$job" COMPLETED 0:0 1
  expect_logged 'start 0: exit code 138' 'start 1: exit code 0'
  diff -r "$dir/expected" "$dir/packed" >/dev/null ||
    fail "the shards differ from an uninterrupted run"
  dw-pack verify "$dir/packed" >/dev/null 2>&1 || fail "dw-pack verify failed"
}

# A usage error ends the job with exit code 2 without a restart.
mistake() {
  arguments mistake train.epoch=3
  submit train_1node --ntasks-per-node=2 -- "${arguments[@]}"
  end "$job" FAILED 2:0 0
  expect_logged 'train.epoch' 'start 0: exit code 2'
  ! logged "$restarting" || fail "restarted after a usage error"
}

# In a step that holds all cores of its allocation, as `srun --pty bash` does.
nested() {
  local starter nodes found command
  for starter in srun mpirun; do
    for nodes in 1 2; do
      command="dw-launch --starter $starter -n 2 --raw-stdout -- hostname"
      command="[ \$SLURM_PROCID -gt 0 ] || $command"
      found=$(timeout 60 srun -N$nodes -n$nodes -c4 bash -c "$command") ||
        fail "dw-launch --starter $starter in a step on $nodes nodes: exit code $?"
      [ "$(sort -u <<<"$found" | wc -l)" = "$nodes" ] && [ "$(wc -l <<<"$found")" = 2 ] ||
        fail "expected the names of $nodes hosts, found: $found"
    done
  done
}

current=prepare
began=$SECONDS
prepare
echo "cluster: $current ok ($((SECONDS - began)) s)"
[ $# -gt 0 ] || set -- "${all[@]}"
for current in "$@"; do
  [[ " ${all[*]} " = *" $current "* ]] || fail "unknown step; expected one of: ${all[*]}"
  began=$SECONDS job='' log=''
  "$current"
  echo "cluster: $current ok ($((SECONDS - began)) s)"
done

#!/usr/bin/env bash
# Shared by the batch scripts: settings of the cluster (to be edited), and the function `run`, which
# forwards SLURM's signals to a job and requeues it.

# Binaries of dw, unless they are on PATH already: export PATH=/path/to/dw/target/release:$PATH
# Modules of the cluster, for example: module load openmpi
# Network: Open MPI and NCCL choose the first interface by name, which is wrong on some nodes. To
# list the interfaces:
#   srun -N1 ip -br addr
# export OMPI_MCA_btl_tcp_if_include=10.0.0.0/16 OMPI_MCA_oob_tcp_if_include=10.0.0.0/16
# export NCCL_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# Prints a message with the time and the job's id.
log() { echo "$(date '+%F %T') job ${SLURM_JOB_ID:-none}$*"; }

# Runs a command in the background, so that the shell can handle signals: SLURM's warning before the
# time limit (USR1, see --signal) and its TERM are forwarded as a checkpoint request. If the command
# exits with code 75 (checkpoint written, run not finished) after a warning, the job is requeued
# under the same id; of a job array only this task. A TERM without a warning comes from scancel or
# from SLURM's own requeue: the job is not requeued here.
# `%a` in an argument is replaced by the id of the array task, for example:
#   sbatch --array=0-4 ... --set train.seed=%a --work-dir work/seed%a
run() {
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
  local pid='' code caught warned=''
  trap 'caught=yes warned=yes
    log ": asked for a checkpoint (USR1)"
    kill -USR1 $pid 2>/dev/null' USR1
  trap 'caught=yes
    log ": asked to end (TERM)"
    kill -USR1 $pid 2>/dev/null' TERM
  "$@" &
  pid=$!
  while :; do
    caught=''
    # A wait that a signal interrupts returns 128 + signal while the command is still running.
    wait "$pid" && code=0 || code=$?
    [ -n "$caught" ] || break
  done
  trap - USR1 TERM
  log ", start ${SLURM_RESTART_COUNT:-0}: exit code $code"
  # 138: SIGUSR1 ended a command that does not handle it, or had not installed its handler yet.
  if [ -n "$warned" ] && [ -n "${SLURM_JOB_ID:-}" ] && [[ $code = 75 || $code = 138 ]]; then
    local id=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    # Requeueing kills this script. Without the pause it might exit before that, and the job would
    # count as completed.
    scontrol requeue "$id" && sleep 60
  fi
  exit "$code"
}

#!/usr/bin/env bash
# Shared by the batch scripts: cluster settings, and `run`, which checkpoints before the time limit.
# Adapt the settings to your cluster.

# Add the binaries to PATH if necessary: export PATH=/path/to/dw/target/release:$PATH
# Load modules if necessary: module load openmpi
# Open MPI and NCCL select the network interface by name order, which is wrong on some nodes. List
# the interfaces with `srun -N1 ip -br addr`, then set:
# export OMPI_MCA_btl_tcp_if_include=10.0.0.0/16 OMPI_MCA_oob_tcp_if_include=10.0.0.0/16
# export NCCL_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

log_job() { echo "$(date '+%F %T') job ${SLURM_JOB_ID:-none}$1"; }

# Runs a command in the background, so that the shell can handle signals. The early warning of SLURM
# (USR1, see --signal) and the termination signal (TERM) are forwarded as checkpoint requests.
#
# If the command exits with code 75 (preempted after a checkpoint) after an early warning, the job
# is requeued and resumes under the same job id. Array tasks requeue only themselves. TERM without
# an early warning means scancel or a requeue by SLURM: the job is not requeued here.
#
# %a in an argument is replaced by the array task id, for example:
#   sbatch --array=0-4 ... --set train.seed=%a --work-dir work/seed%a
run() {
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
  local pid='' code caught warned=''
  trap 'caught=yes warned=yes
    log_job ": checkpoint requested (USR1)"; kill -USR1 $pid 2>/dev/null' USR1
  trap 'caught=yes
    log_job ": termination requested (TERM)"; kill -USR1 $pid 2>/dev/null' TERM
  "$@" &
  pid=$!
  while :; do
    caught=''
    # A signal interrupts `wait`, which then returns 128 + signal while the command still runs.
    wait "$pid" && code=0 || code=$?
    [ -n "$caught" ] || break
  done
  trap - USR1 TERM
  log_job ", start ${SLURM_RESTART_COUNT:-0}: exit code $code"
  # 138: USR1 killed the command because it has no handler, or had not installed it yet.
  if [ -n "$warned" ] && [ -n "${SLURM_JOB_ID:-}" ] && [[ $code = 75 || $code = 138 ]]; then
    local id=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    # SLURM kills this script when it requeues the job. Without the pause the script could exit
    # first, and the job would count as completed.
    scontrol requeue "$id" && sleep 60
  fi
  exit "$code"
}

#!/usr/bin/env bash
# What the batch scripts share: variables of the cluster, and a run that survives the end of its time. Edit the first part.

# Where dw's binaries are, unless they are on PATH already: export PATH=/path/to/dw/target/release:$PATH
# Modules of the cluster, as: module load openmpi
# Network: Open MPI and NCCL guess the interface by name order, which is wrong on some nodes. The list shows what there is:
#   srun -N1 ip -br addr
# export OMPI_MCA_btl_tcp_if_include=10.0.0.0/16 OMPI_MCA_oob_tcp_if_include=10.0.0.0/16 NCCL_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# Runs a command in the background so that the shell can take signals: SLURM's early warning (USR1, see --signal) and its
# end (TERM) go on to it as a request for a checkpoint. After a warning, exit code 75 means that there is one and more to do:
# the job goes back into the queue and is started again under the same number. Array tasks queue themselves only. A TERM
# alone is scancel, which is meant, or SLURM's own requeue: neither needs ours.
# %a in an argument becomes the array task's number: sbatch --array=0-4 ... --set train.seed=%a --work-dir work/seed%a
run() {
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
  local pid='' code caught warned=''
  trap 'caught=yes warned=yes; echo "$(date "+%F %T") job ${SLURM_JOB_ID:-none}: asked for a checkpoint (USR1)"; kill -USR1 $pid 2>/dev/null' USR1
  trap 'caught=yes; echo "$(date "+%F %T") job ${SLURM_JOB_ID:-none}: asked to end (TERM)"; kill -USR1 $pid 2>/dev/null' TERM
  "$@" &
  pid=$!
  while :; do
    caught=''
    # A wait that a signal cut short says 128 + signal while the command lives on.
    wait "$pid" && code=0 || code=$?
    [ -n "$caught" ] || break
  done
  trap - USR1 TERM
  echo "$(date '+%F %T') job ${SLURM_JOB_ID:-none}, start ${SLURM_RESTART_COUNT:-0}: exit code $code"
  # 138: a command that does not know the signal, or not yet, was ended by it.
  if [ -n "$warned" ] && [ -n "${SLURM_JOB_ID:-}" ] && [[ $code = 75 || $code = 138 ]]; then
    local id=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    # Requeueing ends this script from outside; without the pause it might end by itself first and count as done.
    scontrol requeue "$id" && sleep 60
  fi
  exit "$code"
}

#!/usr/bin/env bash
# What the batch scripts share: variables of the cluster, and a run that survives the end of its time. Edit the first part.

# Where dw's binaries are, unless they are on PATH already: export PATH=/path/to/dw/target/release:$PATH
# Modules of the cluster, as: module load openmpi
# Network: Open MPI and NCCL guess the interface by name order, which is wrong on some nodes. The list shows what there is:
#   srun -N1 ip -br addr
# export OMPI_MCA_btl_tcp_if_include=10.0.0.0/16 OMPI_MCA_oob_tcp_if_include=10.0.0.0/16 NCCL_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# Runs a command in the background so that the shell can take signals: SLURM's early warning (USR1, see --signal) and its
# end (TERM) go on to it as a request for a checkpoint. Exit code 75 means that there is one and more to do: the job goes
# back into the queue and is started again under the same number. Array tasks queue themselves only.
run() {
  "$@" &
  local pid=$! code
  trap 'kill -USR1 $pid 2>/dev/null' USR1 TERM
  while :; do
    wait "$pid"; code=$?
    # A wait that a signal interrupted says 128 + signal while the command lives on.
    kill -0 "$pid" 2>/dev/null || break
  done
  trap - USR1 TERM
  echo "$(date '+%F %T') job ${SLURM_JOB_ID:-none}, start ${SLURM_RESTART_COUNT:-0}: exit code $code"
  if [ "$code" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    local id=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    # Requeueing ends this script from outside; without the pause it might end by itself first and count as done.
    scontrol requeue "$id" && sleep 60
  fi
  exit "$code"
}

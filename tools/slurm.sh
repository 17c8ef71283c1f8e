#!/usr/bin/env bash
# A private SLURM on this machine, for tests: munged, slurmctld and one slurmd per node. Each node
# has its own network, host name and /etc/hosts (namespaces connected by a bridge), so that jobs
# span several hosts. All files are in DIR; an existing SLURM installation is not affected. Missing
# Debian packages are installed.
#
#   tools/slurm.sh up [DIR]      then: . DIR/env; sinfo; sbatch ...
#                                DIR/on dwn1 COMMAND runs a command on a node
#   tools/slurm.sh down [DIR]
#
# Environment: NODES=2, CPUS=4 (per node; may exceed the cores of the machine), NET=198.18.77,
# PORT=17600.
set -euo pipefail
verb=${1:-}
dir=$(realpath -m -- "${2:-${TMPDIR:-/tmp}/dw-slurm}")
nodes=${NODES:-2} cpus=${CPUS:-4} net=${NET:-198.18.77} port=${PORT:-17600}
node=dwn bridge=dwbr
die() { # MESSAGE [HINT [EXIT-CODE]]
  echo "slurm: error: $1" >&2
  [ $# -lt 2 ] || echo "slurm: hint: $2" >&2
  exit "${3:-1}"
}

# Prints the process id in a pid file if that process is alive and has the given name.
alive() { # PID-FILE NAME
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] &&
    [[ "$(cat "/proc/$pid/stat" 2>/dev/null)" == "$pid ($2) "[!Z]* ]] && echo "$pid"
}

stop() { # PID-FILE NAME
  local pid
  pid=$(alive "$1" "$2") || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 60); do alive "$1" "$2" >/dev/null || return 0; sleep 0.05; done
  kill -9 "$pid" 2>/dev/null || true
}

down() {
  local name link pid
  [ -z "$(ls -A "$dir" 2>/dev/null)" ] || [ -f "$dir/dw-slurm" ] ||
    die "$dir is not a folder of this script" "name an empty folder, or one that does not exist" 2
  # Nodes first, with all their processes, so that no job reports its end to the controller.
  for name in $(ip netns list | awk -v n="$node" '$1 ~ "^" n "[0-9]+$" { print $1 }'); do
    for _ in 1 2 3; do
      for pid in $(ip netns pids "$name"); do kill -9 "$pid" 2>/dev/null || true; done
      [ -n "$(ip netns pids "$name")" ] || break
      sleep 0.1
    done
    ip netns delete "$name"
  done
  stop "$dir/run/slurmctld.pid" slurmctld
  stop "$dir/run/munged.pid" munged
  # Daemons that have not written their pid file yet.
  for name in slurmctld munged; do
    for pid in $(pgrep -x "$name" || true); do
      if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$dir/"; then
        kill -9 "$pid" 2>/dev/null || true
      fi
    done
  done
  local links="^(dwv[0-9]+|$bridge)$"
  for link in $(ip -o link show | awk -F'[ :@]+' -v v="$links" '$2 ~ v { print $2 }'); do
    ip link delete "$link" 2>/dev/null || true
  done
  rm -rf "$dir"
}

check() {
  [ "$(id -u)" = 0 ] || die "network namespaces require root" \
    "run as root, in a container or virtual machine" 2
  local packages=() pair line
  for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2 \
    nsenter:util-linux mpirun:openmpi-bin pgrep:procps; do
    command -v "${pair%:*}" >/dev/null || packages+=("${pair#*:}")
  done
  [ ${#packages[@]} -gt 0 ] || return 0
  line="apt-get install --no-install-recommends -y ${packages[*]}"
  command -v apt-get >/dev/null || die "missing Debian packages: ${packages[*]}" "$line" 2
  echo "slurm: installing Debian packages: ${packages[*]} (about 1 minute)"
  local log
  log=$(mktemp)
  # shellcheck disable=SC2086
  { apt-get update && DEBIAN_FRONTEND=noninteractive $line; } >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "cannot install Debian packages" "$line"
  }
  rm -f "$log"
}

configuration() {
  cat <<END
ClusterName=dwtest
SlurmctldHost=$(hostname)($net.254)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the delay before a requeued job starts again (120 s by default).
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/%n.pid
SlurmdSpoolDir=$dir/spool.%n
SlurmdLogFile=$dir/log/%n.log
# PMIx creates folders here with the same names on all nodes.
TmpFS=$dir/tmp.%n
MpiDefault=none
# No cgroups: the nodes would share those of the machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=12
MinJobAge=900
SlurmdTimeout=40
NodeName=${node}[1-$nodes] NodeAddr=$net.[1-$nodes] Port=$((port + 1)) CPUs=$cpus \
RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 State=UP
END
}

up() {
  check
  down
  mkdir -p "$dir"/{munge,run,log,state}
  # `down` removes only folders with this file.
  touch "$dir/dw-slurm"
  chmod 755 "$dir"
  chmod 700 "$dir/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
  # --force: munged rejects folders in /tmp otherwise.
  munged --force --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" \
    --socket="$dir/run/munge.sock" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/log/munged.log" 2>"$dir/log/munged.err" ||
    { cat "$dir/log/munged.err" >&2; die "cannot start munged"; }
  configuration >"$dir/slurm.conf"
  {
    echo "export SLURM_CONF=$dir/slurm.conf"
    echo "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    # Jobs inherit these. Without them Open MPI may use the wrong interface.
    echo "export OMPI_MCA_btl_tcp_if_include=$net.0/24 OMPI_MCA_oob_tcp_if_include=$net.0/24"
  } >"$dir/env"
  # shellcheck source=/dev/null
  . "$dir/env"
  local i name
  {
    echo "127.0.0.1 localhost"
    echo "$net.254 $(hostname)"
    for i in $(seq "$nodes"); do echo "$net.$i $node$i"; done
  } >"$dir/hosts"
  # Takes the arguments with which mpirun calls ssh: options, host, command line.
  cat >"$dir/on" <<END
#!/usr/bin/env bash
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1; shift
exec nsenter --target="\$(cat $dir/run/\$host.pid)" --net --uts --mount --wdns="\$PWD" sh -c "\$*"
END
  chmod +x "$dir/on"
  ip link add "$bridge" type bridge
  ip address add "$net.254/24" dev "$bridge"
  ip link set "$bridge" up
  slurmctld -c -f "$dir/slurm.conf" >"$dir/log/slurmctld.out" 2>&1 ||
    { cat "$dir/log/slurmctld.out" >&2; die "cannot start slurmctld"; }
  for i in $(seq "$nodes"); do start_node "$i"; done
  for _ in $(seq 100); do
    if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = "$nodes" ] &&
      [ "$(cat "$dir"/run/"$node"*.pid 2>/dev/null | wc -l)" = "$nodes" ]; then
      echo "slurm: $nodes nodes up; . $dir/env"
      return
    fi
    sleep 0.2
  done
  tail -n 5 "$dir"/log/* >&2
  die "the nodes did not become idle within 20 s"
}

start_node() { # NUMBER
  local i=$1 name=$node$1
  mkdir -p "$dir/tmp.$name" "$dir/spool.$name"
  ip netns add "$name"
  ip link add "dwv$i" type veth peer name eth0 netns "$name"
  ip link set "dwv$i" master "$bridge" up
  ip -n "$name" address add "$net.$i/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  # Not `ip netns exec`: it mounts a new /sys without cgroups, with which slurmd exits.
  nsenter --net="/run/netns/$name" unshare --uts --mount sh -c "
    hostname $name
    mount --bind $dir/hosts /etc/hosts
    exec slurmd -N $name -f $dir/slurm.conf" >"$dir/log/$name.out" 2>&1 ||
    { cat "$dir/log/$name.out" >&2; die "cannot start slurmd on $name"; }
}

case $verb in
  up | down) "$verb" ;;
  *) die "usage: tools/slurm.sh up|down [DIR]" "the default of DIR is ${TMPDIR:-/tmp}/dw-slurm" 2 ;;
esac

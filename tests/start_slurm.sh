#!/usr/bin/env bash
# Starts a Slurm of one node on this machine, for the tests marked `slurm`; as root, on Debian, with
# the packages slurm-wlm and munge. Does nothing where a Slurm answers already. It stops with
# `scontrol shutdown`.
set -euo pipefail
sinfo -h >/dev/null 2>&1 && exit 0
config=/etc/slurm/slurm.conf
if [ -e "$config" ] && ! grep -q '^ClusterName=pivots-tests$' "$config"; then
  echo "$config is of another Slurm, which does not answer: start that one" >&2
  exit 1
fi

state=/var/lib/semantic-pivots-slurm
node=$(hostname -s)
mkdir -p "$state/controller" "$state/node" "$state/munge" /etc/slurm
# A munge of its own, as root: containers may lack what the packaged one's user needs.
munge=$state/munge
[ -s "$munge/key" ] || (umask 077 && head -c 1024 /dev/urandom > "$munge/key")
# A small MaxArraySize, so that tests meet it; cred_expire is also how long a requeued job waits;
# nothing that a container lacks.
cat > "$config" <<CONF
ClusterName=pivots-tests
SlurmctldHost=$node(127.0.0.1)
AuthInfo=socket=$munge/socket,cred_expire=10
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MaxArraySize=5
KillWait=5
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,bf_interval=1
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1100)}' /proc/meminfo)
PartitionName=tests Nodes=ALL Default=YES
CONF
munge -n -S "$munge/socket" >/dev/null 2>&1 ||
  munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
    --log-file="$munge/log" --seed-file="$munge/seed"
slurmctld
slurmd
for _ in $(seq 60); do
  sleep 0.5
  sinfo -h -o %T 2>/dev/null | grep -qx idle && exit 0
done
echo "Slurm does not become ready: $(tail -n 3 "$state"/*.log)" >&2
exit 1

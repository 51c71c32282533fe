#!/usr/bin/env bash
# Proves slurm-array.sbatch with a real Slurm of one node, as root on a machine that has none:
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#   deploy/slurm-one-node.sh DICOM LABELS      (ct-ingest on the PATH)
# One of three parts fails for a folder in its way, the retry list names it, its retry and the merge
# give the bytes of one run. Ends the daemons it started.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export DICOM=$1 LABELS=$2 COUNT=3
work="$(mktemp -d)"
export PARTS="$work/parts" SLURM_CONF="$work/slurm.conf"
mkdir -p "$work/state" "$work/spool" "$PARTS" /run/munge
chown munge /run/munge
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4096 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
started=()
cleanup() {
    kill "${started[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$work"
}
trap cleanup EXIT
runuser -u munge -- munged --foreground >"$work/munged.log" 2>&1 &
started+=($!)
slurmctld -D >"$work/slurmctld.log" 2>&1 &
started+=($!)
slurmd -D >"$work/slurmd.log" 2>&1 &
started+=($!)
for _ in $(seq 60); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo --noheader --format='slurm: partition %P, %D node, %c CPUs, %T' || { cat "$work"/*.log >&2; exit 1; }

array() {
    echo "\$ sbatch --array=$1 slurm-array.sbatch"
    sbatch --wait --array="$1" --cpus-per-task=1 --mem=512 --export=ALL --output="$work/log-%a" \
        "$here/slurm-array.sbatch" --select all --size 64 || true
}
mkdir -p "$PARTS/part-1/in-the-way"
array 0-2
tail -n 2 "$work/log-1"
failed="$("$here/failed-parts.sh" "$PARTS" "$COUNT")"
echo "failed parts: $failed"
rm -r "$PARTS/part-1"
array "$failed"
echo "failed parts: $("$here/failed-parts.sh" "$PARTS" "$COUNT")"
ct-ingest merge "$PARTS"/part-* --out "$work/merged" | tail -n +2
ct-ingest dicom "$DICOM" --labels "$LABELS" --select all --size 64 --out "$work/whole" >/dev/null 2>&1
cmp "$work/merged/SHA256SUMS" "$work/whole/SHA256SUMS" && echo "the merged shards have the bytes of one run"

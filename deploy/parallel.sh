#!/usr/bin/env bash
# Ingest in N parts with GNU parallel, then join them.
#   deploy/parallel.sh DICOM LABELS SHARDS N [ct-ingest flags]
# Parts and the log of jobs lie in SHARDS.parts; run again after a failure, only what failed is repeated.
set -euo pipefail
dicom=$1 labels=$2 shards=$3 count=$4
shift 4
parts="$shards.parts"
failed_parts="$(dirname "$0")/failed-parts.sh"
mkdir -p "$parts"
one_part() {
    local index=$1 count=$2 parts=$3
    shift 3
    local code=0
    ct-ingest dicom "$@" --out "$parts/part-$index" --partition "$index/$count" || code=$?
    # 3: done, but something was set aside; the part is whole.
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ]
}
export -f one_part
if ! "$failed_parts" "$parts" "$count" | tr , '\n' | parallel --no-run-if-empty --retries 3 \
    --joblog "$parts/jobs.log" --halt never one_part {} "$count" "$parts" "$dicom" --labels "$labels" "$@"; then
    echo "these parts failed; run again to repeat them: $("$failed_parts" "$parts" "$count")" >&2
    exit 1
fi
ct-ingest merge "$parts"/part-* --out "$shards"

#!/usr/bin/env bash
# The retry list: which of N parts are not whole, as `sbatch --array` takes it.
#   deploy/failed-parts.sh PARTS N        prints 3,7; nothing when all are there
set -euo pipefail
parts=$1 count=$2
failed=()
for index in $(seq 0 $((count - 1))); do
    # A part appears whole or not at all.
    [ -e "$parts/part-$index/part.json" ] || failed+=("$index")
done
(IFS=,; echo "${failed[*]}")

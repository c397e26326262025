#!/usr/bin/env bash
# gpu.sh FOLDER [STEP ...]: what a GPU is asked that is there for a quarter of an hour, into a folder of logs and results.
# Every step has a process of its own, since a kernel that touches a wrong address ends its process's use of the GPU,
# and a time limit; what it measured until then is in FOLDER/STEP.json or .partial. What has never been timed comes
# first, and what compiles longest last.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
folder=${1:?usage: benchmarks/gpu.sh FOLDER [STEP ...]}
shift
[ $# -gt 0 ] || set -- tests step layer roofline blocks throughput compiled
mkdir -p "$folder" || exit 1
export PYTHONPATH=. PYTHONUNBUFFERED=1

# An interrupted pytest still shows what failed.
limited() { # SIGNAL SECONDS ARGUMENT ...
  timeout --signal "$1" --kill-after 10 "$2" "${PYTHON:-python3}" -m "${@:3}" 2>&1 | tee "$folder/$step.log"
}

part() { # SECONDS TITLE
  limited TERM "$1" benchmarks kernels --only "$2" --out "$folder/$step.json"
}

failed=()
for step in "$@"; do
  echo "== $step"
  case $step in
    tests) limited INT 120 pytest -v -p no:cacheprovider --continue-on-collection-errors -k "triton-cuda or cuda_graph" ;;
    step) part 60 "GPU step" ;;
    layer) part 100 "GPU layer" ;;
    roofline) part 140 roofline ;;
    blocks) limited TERM 120 benchmarks.kernels.blocks --seconds 100 --out "$folder/$step.json" ;;
    throughput) limited TERM 120 benchmarks arc throughput --preset gpu --device cuda --seconds 20 \
      --arms plain sinkhorn cayley --out "$folder/$step.json" ;;
    compiled) part 120 "GPU compiled" ;;
    *) echo "unknown step" ; false ;;
  esac || failed+=("$step")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed or out of time: ${failed[*]}; see $folder"; exit 1; }

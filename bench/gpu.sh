#!/usr/bin/env bash
# Builds, checks and measures segfuse on a machine with an NVIDIA GPU, in under ten minutes, without touching its
# installation; no network is needed where scikit-build-core, pybind11 and pytest are installed.
#
#     bench/gpu.sh [--dry-run]
#
# Wanted: nvcc, g++, python3 with torch; what is missing of the rest is taken from WHEELS, a folder of wheels.
# Steps: environment build tests sanitize bench scaling ncu. Each has a time limit and leaves OUT/STEP.log; a step that
# fails does not stop those after it, but the exit status is 1. OUT/README.md comes last (and pictures, if there is
# matplotlib).
#
#   OUT      folder of the results            (bench/results/DEVICE)
#   WORK     folder of the build              (build/gpu)
#   STEPS    the steps to do                  (all of them)
#   TOTAL    seconds for everything           (570)
#   LIMIT_ENVIRONMENT, LIMIT_BUILD ...        seconds for a step (see `limit_of`)
#   PYTHON, WHEELS, CUDAARCHS, TEST_WORKERS   python3, none, the device's, 4
#   TESTS                                     the files of the tests (see `gpu_tests`)
#   DEVICE                                    cuda
#   BENCH_ARGS, SCALING_ARGS                  more arguments of run.py, for the cases and for the rest
#   EXPERIMENT_ARGS, SANITIZE_ARGS            of experiments.py, sanitize.py
set -uo pipefail
self=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/.." || exit 2

export PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} DRY_RUN=${DRY_RUN:-}
export SEGFUSE_STRICT=1 PYTHONUNBUFFERED=1 # plain PyTorch under segfuse's name is an error
WORK=${WORK:-build/gpu}
case $WORK in /*) ;; *) WORK=$PWD/$WORK ;; esac
export WORK
gpu_tests="tests/test_cuda.py tests/test_values.py tests/test_layout.py"
all_steps="environment build tests sanitize bench scaling ncu"

limit_of() {
  case $1 in
    environment) echo "${LIMIT_ENVIRONMENT:-40}" ;; # importing torch for the first time may take half of it
    build) echo "${LIMIT_BUILD:-240}" ;;
    tests) echo "${LIMIT_TESTS:-120}" ;;
    sanitize) echo "${LIMIT_SANITIZE:-60}" ;;
    bench) echo "$((${LIMIT_BENCH:-150} + 60))" ;; # of run.py, and what its last row and experiments.py take
    scaling) echo "${LIMIT_SCALING:-60}" ;;
    ncu) echo "${LIMIT_NCU:-40}" ;;
  esac
}

say() { printf '%s\n' "$*"; }

# Show a command, and do it unless only the steps are asked for.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [ -n "$DRY_RUN" ] || "$@"
}

has_module() { "$PYTHON" -c "import $1" 2>/dev/null; }

# The path of a CUDA tool, on PATH or where toolkits put it.
tool() {
  local place
  for place in "$(command -v "$1")" "${CUDA_HOME:-/usr/local/cuda}/bin/$1" "/usr/local/cuda/compute-sanitizer/$1"; do
    [ -n "$place" ] && [ -x "$place" ] && { say "$place"; return 0; }
  done
  return 1
}

# A step without its tool is skipped; only when the steps are listed it is shown all the same.
absent() {
  say "there is no $1: skipped"
  [ -n "$DRY_RUN" ]
}

# Install distributions for this run only: from WHEELS if given, else from the index, if there is a network.
carry() {
  local from=(--timeout 5 --retries 0)
  [ -z "${WHEELS:-}" ] || from=(--no-index --find-links "$WHEELS")
  run "$PYTHON" -m pip install --disable-pip-version-check --quiet --upgrade --target "$WORK/tools" "${from[@]}" "$@" &&
    return 0
  say "Not installed here and not to be had: $*. Where there is a network and the same Python and platform, run"
  say "    python3 -m pip download --dest wheels $*"
  say "carry the folder here, and set WHEELS to it."
  return 1
}

architectures() {
  if [ -n "${CUDAARCHS:-}" ]; then
    say "$CUDAARCHS"
  else
    "$PYTHON" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())' 2>/dev/null
  fi
}

step_environment() {
  local status=0
  run nvidia-smi || status=1
  run "$(tool nvcc || echo nvcc)" --version || status=1
  run "${CXX:-g++}" --version || status=1
  run "$PYTHON" bench/machine.py --device "$DEVICE" || status=1 # versions, attributes, copy and read rates
  return "$status"
}

step_build() {
  local missing=() archs
  has_module scikit_build_core || missing+=(scikit-build-core)
  has_module pybind11 || missing+=("pybind11>=3.0,<4")
  command -v cmake >/dev/null || has_module cmake || missing+=(cmake)
  command -v ninja >/dev/null || command -v make >/dev/null || has_module ninja || missing+=(ninja)
  [ "${#missing[@]}" -eq 0 ] || carry "${missing[@]}" || return 1
  archs=$(architectures)
  [ -n "$archs" ] || archs=${DRY_RUN:+DEVICE}
  [ -n "$archs" ] || { say "torch sees no GPU: set CUDAARCHS (for example 90-real) to build all the same"; return 1; }
  CUDACXX=$(tool nvcc) || [ -n "$DRY_RUN" ] || { say "no nvcc on PATH or in \$CUDA_HOME/bin"; return 1; }
  export CUDACXX CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}"
  run rm -rf "$WORK/wheels" "$WORK/site"
  run "$PYTHON" -m pip wheel . --disable-pip-version-check --no-deps --no-index --no-build-isolation \
    --wheel-dir "$WORK/wheels" "--config-settings=build-dir=$WORK/cmake" \
    --config-settings=cmake.define.SEGFUSE_CUDA=ON \
    "--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$archs" || return 1
  run "$PYTHON" -m pip install --disable-pip-version-check --no-deps --no-index \
    --target "$WORK/site" "$WORK"/wheels/segfuse-*.whl || return 1
  run "$PYTHON" -m segfuse
}

step_tests() {
  local workers=()
  has_module pytest || carry pytest || return 1
  has_module expecttest || carry expecttest || say "torch's operator checks may want expecttest"
  # A file stays in one process: the last test of test_cuda.py looks back at those before it.
  if [ "${TEST_WORKERS:-4}" -gt 0 ] && has_module xdist; then workers=(-n "${TEST_WORKERS:-4}" --dist loadfile); fi
  # shellcheck disable=SC2086
  run env SEGFUSE_TEST_DEVICE="$DEVICE" "$PYTHON" -m pytest ${TESTS:-$gpu_tests} -q -p no:cacheprovider \
    --maxfail=40 ${workers[@]+"${workers[@]}"}
}

# One tool of compute-sanitizer over every family of kernels.
watch() {
  # shellcheck disable=SC2086
  run timeout -k 2 "$((${STEP_LIMIT:-60} - 5))" "$1" --tool "$2" --target-processes all --error-exitcode 9 \
    "$PYTHON" bench/sanitize.py --device "$DEVICE" ${SANITIZE_ARGS:-} 2>&1
}

# The three tools beside each other: most of their time is the start of Python.
step_sanitize() {
  local sanitizer name status=0
  local -A pids
  sanitizer=$(tool compute-sanitizer) || absent compute-sanitizer || return 77
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # else a neighbour's memory would hide what lies outside
  [ -n "$DRY_RUN" ] || mkdir -p "$WORK"
  for name in memcheck racecheck synccheck; do
    if [ -n "$DRY_RUN" ]; then
      watch "${sanitizer:-compute-sanitizer}" "$name"
    else
      watch "$sanitizer" "$name" >"$WORK/$name.log" &
      pids[$name]=$!
    fi
  done
  [ -z "$DRY_RUN" ] || return 0
  for name in memcheck racecheck synccheck; do
    if wait "${pids[$name]}"; then say "$name: passed"; else say "$name: failed, status $?"; status=1; fi
    tail -n 60 "$WORK/$name.log"
  done
  return "$status"
}

step_bench() {
  local status=0 budget=$((${STEP_LIMIT:-210} - 30)) left
  [ "$budget" -lt "${LIMIT_BENCH:-150}" ] || budget=${LIMIT_BENCH:-150}
  # shellcheck disable=SC2086
  run "$PYTHON" bench/run.py --device "$DEVICE" --what cases --seconds "$budget" --out "$OUT" ${BENCH_ARGS:-} || status=1
  left=$((${STEP_LIMIT:-210} - SECONDS))
  if [ "$left" -lt 20 ]; then
    say "no time left for bench/experiments.py"
  else
    # shellcheck disable=SC2086
    run "$PYTHON" bench/experiments.py --device "$DEVICE" --seconds $((left - 15)) --out "$OUT" \
      ${EXPERIMENT_ARGS:-} || status=1
  fi
  return "$status"
}

step_scaling() {
  # shellcheck disable=SC2086
  run "$PYTHON" bench/run.py --device "$DEVICE" --what scaling end_to_end --quick \
    --seconds "$((${STEP_LIMIT:-60} - 25))" --out "$OUT" ${SCALING_ARGS:-}
}

step_ncu() {
  local ncu
  ncu=$(tool ncu) || absent ncu || return 77
  run "${ncu:-ncu}" --clock-control none --cache-control none --profile-from-start off --target-processes all \
    --csv --print-units base --print-kernel-base function \
    --metrics dram__bytes_read.sum,dram__bytes_write.sum,lts__t_sector_hit_rate.pct,gpu__time_duration.sum \
    "$PYTHON" bench/run.py --device "$DEVICE" --once \
    --cases 'B/(dice_)?ce/float32/int64|D/(dice|bce)/float32/float32|A/dice_bce/bfloat16/uint8'
}

device_name() {
  local name
  name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
  say "${name:-no-gpu}" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-'
}

main() {
  local step limit left status begin failed=0 rows=()
  OUT=${OUT:-bench/results/$(device_name)}
  case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac
  export OUT
  export PATH="$WORK/tools/bin:$PATH" PYTHONPATH="$WORK/site:$WORK/tools${PYTHONPATH:+:$PYTHONPATH}"
  [ -n "$DRY_RUN" ] || mkdir -p "$OUT" || exit 2
  for step in ${STEPS:-$all_steps}; do
    if ! declare -F "step_$step" >/dev/null; then
      say "there is no step $step; the steps are: $all_steps" >&2
      exit 2
    fi
    limit=$(limit_of "$step")
    left=$((${TOTAL:-570} - SECONDS - 10))
    [ "$limit" -le "$left" ] || limit=$left
    say "== $step (at most $limit s)"
    if [ -n "$DRY_RUN" ]; then
      STEP_LIMIT=$limit "step_$step"
      continue
    fi
    begin=$SECONDS
    if [ "$limit" -lt 5 ]; then
      status=124
    else
      STEP_LIMIT=$limit timeout -k 5 "$limit" "$BASH" "$self" --step "$step" 2>&1 | tee "$OUT/$step.log"
      status=${PIPESTATUS[0]}
    fi
    case $status in
      0) rows+=("| $step | passed | $((SECONDS - begin)) |") ;;
      77) rows+=("| $step | skipped | $((SECONDS - begin)) |") ;;
      124 | 137) rows+=("| $step | out of time | $((SECONDS - begin)) |") failed=1 ;;
      *) rows+=("| $step | failed, status $status | $((SECONDS - begin)) |") failed=1 ;;
    esac
  done
  [ -z "$DRY_RUN" ] || return 0
  printf '%s\n' "| step | | seconds |" "| --- | --- | --- |" ${rows[@]+"${rows[@]}"} | tee "$OUT/steps.md"
  "$PYTHON" bench/report.py "$OUT" && cat "$OUT/README.md"
  return "$failed"
}

case ${1:-} in
  --dry-run)
    DRY_RUN=1
    main
    ;;
  --step) "step_$2" ;;
  "") main ;;
  *)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$self"
    [ "$1" = "-h" ] || [ "$1" = "--help" ]
    ;;
esac

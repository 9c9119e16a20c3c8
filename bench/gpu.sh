#!/usr/bin/env bash
# Checks and measures segfuse on a machine with an NVIDIA GPU. It does so in two short runs, because such machines are
# lent by the minute. It installs nothing there and needs no network.
#
#     bench/gpu.sh first     at most 240 s: does segfuse import, is every kernel right, how long do the headlines take
#     bench/gpu.sh second    at most 420 s: repeats what failed, then the table, a scaled loss, scaling, a training step
#
# It needs python3 with torch and pytest, and a wheel for that python3 (bench/build_wheels.py). If no wheel imports, it
# builds segfuse for this GPU alone, in at most 300 s more. It uses compute-sanitizer and ncu if they are installed.
#
# Each part is a process with a time limit. If it hangs or dies, the other parts still run. Results are written to OUT
# at once: log.txt (output of the parts), DEVICE.json (numbers, after each row), steps.md (result of each part), ncu.csv,
# failed.json (tests). The end writes inductor.tar.gz (code that torch.compile made, for the second run) and README.md
# (bench/report.py). The output ends with a digest of 12,000 characters.
#
# Variables of the environment, with defaults:
#   OUT        folder of the results                    (runs/gpu/first, runs/gpu/second)
#   PREVIOUS   OUT of the first run, for the second     (runs/gpu/first)
#   WHEEL      the wheel                                (the one in dist/)
#   WORK       folder of temporary files                (build/gpu)
#   PYTHON     the interpreter                          (python3)
#   PARTS      the parts to do                          (those of the run)
#   TOTAL, LIMIT_TESTS ...                              seconds for all parts, for one part (see `limit_of`)
#   DEVICE     cuda; or cpu to rehearse, with SEGFUSE_SHIM (tests/support/environment.py) on the CUDA sources
#   TESTS, WARM_PROCESSES                               files of tests; processes that fill torch.compile's cache (4)
#   TEST_ARGS, CASE_ARGS, WARM_ARGS, ENGINE_ARGS, EXPERIMENT_ARGS    more arguments for the programs of the parts
set -uo pipefail
self=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/.." || exit 2

absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac; }
say() { printf '%s\n' "$*"; }

PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} WORK=$(absolute "${WORK:-build/gpu}")
export PYTHON DEVICE WORK
export SEGFUSE_STRICT=1 PYTHONUNBUFFERED=1 # an error if plain PyTorch runs in place of the kernels
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
module=${SEGFUSE_SHIM:+--module $SEGFUSE_SHIM}
headlines='(?i)^[abcd]/dice_(bce|ce)/(float32/(float32|int64)|bfloat16/uint8)$'
table="$headlines|^(b/(ce|focal)|d/bce)/float32/(float32|int64)\$"
sanitizers="memcheck racecheck synccheck initcheck"
gpu_tests="tests/cuda/test_device.py tests/cuda/test_schemes.py tests/cuda/test_many_rows.py tests/cuda/test_rows_half.py"
gpu_tests+=" tests/cuda/test_maps_half.py tests/cuda/test_labels.py tests/cuda/test_alignment.py tests/torch/test_transfer.py"
gpu_tests+=" tests/cuda/test_kernels.py tests/losses/test_values.py tests/cpu/test_layout.py"
can_fail="engines tests $sanitizers ncu" # the second run repeats these if they failed
# ncu measures these: bytes, time, the share of busy issue slots, waits for instructions.
metrics=dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum
metrics+=,smsp__issue_active.avg.pct_of_peak_sustained_active
metrics+=,smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio

limit_of() {
  local name=LIMIT_${1^^}
  case $1 in
    install) say "${!name:-20}" ;;
    build) say "${!name:-300}" ;;
    engines) say "${!name:-45}" ;; # the first import of torch may take half of it
    headlines) say "${!name:-40}" ;;
    tests | warm) say "${!name:-70}" ;;
    table) say "${!name:-230}" ;;
    scaling | training) say "${!name:-55}" ;;
    *) say "${!name:-45}" ;;
  esac
}

run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

# The path of a CUDA tool: on PATH, or where toolkits put it.
tool() {
  local place
  for place in "$(command -v "$1")" "${CUDA_HOME:-/usr/local/cuda}/bin/$1" "/usr/local/cuda/compute-sanitizer/$1"; do
    if [ -x "$place" ]; then say "$place" && return; fi
  done
  say "there is no $1" >&2
  return 1
}

# ---------------------------------------------------------------------------------------------------- the parts
# Status 77: this machine cannot do it. STEP_LIMIT: seconds of a part.

part_install() {
  local name tag wheel=${WHEEL:-}
  for name in nvidia-smi "nvcc --version" "g++ --version"; do
    # shellcheck disable=SC2086
    if tool "${name%% *}" >/dev/null; then run $name; fi
  done
  if [ -z "$wheel" ]; then
    tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    wheel=$(find dist -name "segfuse-*-$tag-*.whl" 2>/dev/null | sort | tail -n 1)
  fi
  [ -n "$wheel" ] || { say "there is no wheel in dist/ for $tag"; return 1; }
  run "$PYTHON" -m zipfile -e "$wheel" "$WORK/site" && usable
}

# Loads the native modules without torch, which takes ten seconds to start.
usable() {
  run "$PYTHON" -c '
import sys
sys.path.insert(0, "bench")
from replay import installed, load
load(installed("_C"))
try:
    cuda = load(installed("_cuda"))
except FileNotFoundError as error:
    sys.exit(str(error) if sys.argv[1] == "cuda" else 0)
print("CUDA kernels for", cuda.architectures)
sys.exit(sys.argv[1] == "cuda" and cuda.unusable() or 0)' "$DEVICE"
}

part_build() {
  local archs
  CUDACXX=$(tool nvcc) || return 1
  export CUDACXX CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}"
  archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ -n "$archs" ] || { say "nvidia-smi names no GPU to build for"; return 1; }
  rm -rf "$WORK/wheels" "$WORK/site"
  run "$PYTHON" -m pip wheel . --disable-pip-version-check --no-deps --no-index --no-build-isolation \
    --wheel-dir "$WORK/wheels" "--config-settings=build-dir=$WORK/cmake" \
    --config-settings=cmake.define.SEGFUSE_CUDA=ON \
    "--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$archs-real" || return 1
  run "$PYTHON" -m zipfile -e "$WORK"/wheels/segfuse-*.whl "$WORK/site" && usable
}

part_engines() {
  local record=()
  rm -f "$WORK/calls.pickle"
  if [ "$DEVICE" = cuda ] || [ -n "$module" ]; then record=(--record "$WORK/calls.pickle"); fi
  # shellcheck disable=SC2086
  run "$PYTHON" bench/engines.py --device "$DEVICE" $module ${record[@]+"${record[@]}"} ${ENGINE_ARGS:-}
}

cases() {
  # shellcheck disable=SC2086
  run "$PYTHON" bench/run.py --device "$DEVICE" --out "$OUT" --seconds "$((STEP_LIMIT - 15))" "$@" ${CASE_ARGS:-}
}

part_headlines() { cases --what cases --quick --cases "$headlines" --peers '^eager$'; }
part_table() { cases --what cases --cases "$table" --peers '^(eager|compile|monai|nnunet)$'; }
part_scaling() { cases --what scaling --quick; }
part_training() { cases --what end_to_end --quick; }

# shellcheck disable=SC2086
part_scaled() { cases --what experiments --only '^scaled_loss$' ${EXPERIMENT_ARGS:-}; }

# If a test hangs, its stacks are printed. The interrupt at the end of the time keeps the results of all other tests.
part_tests() {
  local again=() workers=() status cache=$WORK/pytest/v/cache
  "$PYTHON" -c 'import pytest' || return 77
  # All tests of a file run in one process: in some files the last test checks what the others did.
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n 3 --dist loadfile); fi
  mkdir -p "$cache"
  rm -f "$cache/lastfailed"
  if [ -s "${FAILED:-}" ]; then
    cp "$FAILED" "$cache/lastfailed"
    again=(--lf)
  fi
  # shellcheck disable=SC2086
  run env SEGFUSE_TEST_DEVICE="$DEVICE" "$PYTHON" -m pytest \
    ${TESTS:-$gpu_tests} -q --maxfail=40 -o "cache_dir=$WORK/pytest" \
    -o "faulthandler_timeout=$((STEP_LIMIT / 3))" ${workers[@]+"${workers[@]}"} ${again[@]+"${again[@]}"} ${TEST_ARGS:-}
  status=$?
  if [ -s "$cache/lastfailed" ]; then cp "$cache/lastfailed" "$OUT/failed.json"; fi
  return "$status"
}

# Fills the cache of torch.compile for the table of the second run. It runs beside the tests.
part_warm() {
  local share status=0 pids=()
  export TORCHINDUCTOR_COMPILE_THREADS=4 # for each process; the default is one per core
  for share in $(seq "${WARM_PROCESSES:-4}"); do
    # shellcheck disable=SC2086
    run "$PYTHON" bench/warm.py --device "$DEVICE" --cases "$table" --share "$share/${WARM_PROCESSES:-4}" \
      ${WARM_ARGS:-} &
    pids+=($!)
  done
  for share in "${pids[@]}"; do wait "$share" || status=$?; done
  return "$status"
}

# A sanitizer on the calls that the part engines recorded. The process has no torch, so it watches only our kernels.
watch() {
  local sanitizer padding=() status
  sanitizer=$(tool compute-sanitizer) || return 77
  [ -s "$WORK/calls.pickle" ] || { say "the part engines has recorded no calls"; return 77; }
  if [ "$1" = memcheck ]; then padding=(--padding 4096); fi
  # shellcheck disable=SC2086
  run "$sanitizer" --tool "$1" --kernel-name kernel_substring=segfuse --error-exitcode 9 \
    ${padding[@]+"${padding[@]}"} "$PYTHON" bench/replay.py "$WORK/calls.pickle" \
    --seconds "$((STEP_LIMIT - 15))" $module | tee "$WORK/$1.txt"
  status=${PIPESTATUS[0]}
  grep -q '^replaying on' "$WORK/$1.txt" || { say "compute-sanitizer does not work on this machine"; return 77; }
  return "$status"
}

# All our kernels are called `kernel`, so the names must have the template arguments.
part_ncu() {
  local ncu status
  ncu=$(tool ncu) || return 77
  rm -f "$WORK/ncu.csv"
  # shellcheck disable=SC2086
  run "$ncu" --clock-control none --cache-control none --profile-from-start off --target-processes all \
    --kernel-name-base mangled --kernel-name regex:segfuse --print-kernel-base demangled \
    --csv --print-units base --log-file "$WORK/ncu.csv" --metrics "$metrics" \
    "$PYTHON" bench/run.py --device "$DEVICE" --once --seconds "$((STEP_LIMIT - 20))" \
    --cases '(?i)^([bd]/dice_(bce|ce)/(float32/(float32|int64)|bfloat16/uint8)|(b/ce|d/bce)/float32/(float32|int64))$' \
    ${CASE_ARGS:-}
  status=$?
  [ -s "$WORK/ncu.csv" ] || { say "ncu has written nothing"; return "$((status ? status : 1))"; }
  grep '^==ERROR==' "$WORK/ncu.csv"
  if grep -q ERR_NVGPUCTRPERM "$WORK/ncu.csv"; then return 77; fi
  grep '^"' "$WORK/ncu.csv" >"$OUT/ncu.csv" || { rm -f "$OUT/ncu.csv"; return "$((status ? status : 1))"; }
  return "$status"
}

# ---------------------------------------------------------------------------------------------------- how they are run

declare -A began limits pid
built=0 # seconds of a build; TOTAL does not count them
left() { say "$((TOTAL + built - SECONDS - 16))"; } # keeps 16: 8 to interrupt a part, and some for the end

start() {
  local limit=$(($2 < 1 ? 1 : $2))
  began[$1]=$SECONDS limits[$1]=$limit
  STEP_LIMIT=$limit timeout -s INT -k 8 "$limit" "$BASH" "$self" --part "$1" >"$WORK/$1.log" 2>&1 </dev/null &
  pid[$1]=$!
}

# Writes the line of a part in steps.md, and its output in log.txt.
note() {
  local verdict seconds=$((SECONDS - began[$1])) last
  case $2 in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    124) verdict="out of time" ;;
    137) if [ "$seconds" -ge "${limits[$1]}" ]; then verdict="out of time"; else verdict=killed; fi ;;
    143) verdict=interrupted ;;
    *) verdict="failed, status $2" ;;
  esac
  last=$(grep -v '^[[:space:]]*$' "$WORK/$1.log" | tail -n 1 | tr '|' '/' | cut -c 1-140)
  say "| $1 | $verdict | $seconds | $last |" >>"$OUT/steps.md"
  { say "== $1: $verdict, $seconds s"; cat "$WORK/$1.log"; } | tail -c 1000000 >>"$OUT/log.txt"
  say "== $1: $verdict, $seconds s: $last"
  unset "began[$1]" "pid[$1]"
  case $verdict in passed | skipped) ;; *) failed=1 ;; esac
}

# Runs those of the parts that are in PARTS, at the same time.
together() {
  local part limit status ended
  for part in "$@"; do
    [[ " $PARTS " == *" $part "* ]] || continue
    limit=$(limit_of "$part")
    start "$part" "$((limit < $(left) ? limit : $(left)))"
  done
  while [ "${#pid[@]}" -gt 0 ]; do
    ended=""
    wait -n -p ended "${pid[@]}"
    status=$?
    for part in "${!pid[@]}"; do
      if [ -z "$ended" ]; then # all ended while bash worked on another part
        wait "${pid[$part]}"
        note "$part" "$?"
      elif [ "${pid[$part]}" = "$ended" ]; then
        note "$part" "$status"
      fi
    done
  done
}

# Runs at every end of the run, also after a signal.
finish() {
  local part
  trap - EXIT
  for part in "${!pid[@]}"; do
    kill -- "-${pid[$part]}" 2>/dev/null
    note "$part" 143
  done
  if [ "$mode" = first ] && [ -n "$(ls -A "$WORK/inductor" 2>/dev/null)" ]; then
    tar -czf "$OUT/inductor.tar.gz" -C "$WORK" inductor
    if [ "$(wc -c <"$OUT/inductor.tar.gz")" -gt 16000000 ]; then
      rm "$OUT/inductor.tar.gz"
      say "what torch.compile made is larger than 16 MB: not kept" | tee -a "$OUT/log.txt"
    fi
  fi
  timeout 20 "$PYTHON" bench/report.py --tables "$OUT" >/dev/null
  timeout 20 "$PYTHON" bench/digest.py "$OUT"
  exit "$failed"
}

# The parts of the first run to repeat: those that failed. A sanitizer also needs the part engines, for its calls.
to_repeat() {
  local part
  for part in $can_fail; do
    grep -qE "^\| $part \| (failed|killed|out of time|interrupted)" "$PREVIOUS/steps.md" 2>/dev/null || continue
    say "$part"
    if [[ " $sanitizers " == *" $part "* ]]; then say engines; fi
  done
}

main() {
  set -m # each part is a process group, so an interrupt reaches all its processes
  mode=$1 failed=0
  OUT=$(absolute "${OUT:-runs/gpu/$mode}") PREVIOUS=$(absolute "${PREVIOUS:-runs/gpu/first}")
  export OUT PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
  rm -rf "$WORK/site" "$WORK/inductor"
  mkdir -p "$OUT" "$WORK" || exit 2
  rm -f "$OUT"/{log.txt,"$DEVICE.json",README.md,ncu.csv,failed.json,inductor.tar.gz}
  printf '%s\n' "| $mode run | | seconds | |" "| --- | --- | --- | --- |" >"$OUT/steps.md"
  trap finish EXIT
  trap 'exit 143' INT TERM HUP
  if [ "$mode" = first ]; then
    TOTAL=${TOTAL:-240} PARTS=${PARTS:-$can_fail headlines warm}
  else
    TOTAL=${TOTAL:-420} PARTS=${PARTS:-$(to_repeat | tr '\n' ' ') table scaled scaling training}
    if [ -s "$PREVIOUS/failed.json" ]; then export FAILED=$PREVIOUS/failed.json; fi
    [ ! -s "$PREVIOUS/inductor.tar.gz" ] || tar -xzf "$PREVIOUS/inductor.tar.gz" -C "$WORK"
    [ -s "$PREVIOUS/steps.md" ] || say "$PREVIOUS has no first run: nothing is done again" | tee -a "$OUT/log.txt"
  fi
  PARTS+=" install"
  together install
  if [ "$failed" = 1 ]; then
    PARTS+=" build" failed=0 built=-$SECONDS TOTAL=$((TOTAL + 300))
    together build
    TOTAL=$((TOTAL - 300)) built=$((built + SECONDS))
    [ "$failed" = 0 ] || exit 1
  fi
  together engines
  together headlines
  together tests warm
  # shellcheck disable=SC2086
  together $sanitizers
  together ncu
  together table
  together scaled
  together scaling
  together training
}

case ${1:-} in
  first | second) main "$1" ;;
  --part) if [[ " $sanitizers " == *" $2 "* ]]; then watch "$2"; else "part_$2"; fi ;;
  *)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$self"
    [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]
    ;;
esac

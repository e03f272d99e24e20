#!/usr/bin/env bash
# Fuzzes every target in turn, or the one named: run.sh [seconds per target] [target]
# The coverage pass is switched on by LLVM flags of the stable compiler; no sanitizer comes with it.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-30}
only=${2:-}
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
# With --target, the flags reach the targets only, not build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
CARGO_ENCODED_RUSTFLAGS=$(printf '%s' "$flags" | tr ' ' '\037') cargo build --quiet --bins --target "$host"
for source in fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  [ -z "$only" ] || [ "$only" = "$target" ] || continue
  mkdir -p "corpus/$target" "artifacts/$target"
  # Real logs make good seeds where they are at hand.
  seeds=()
  logs=${LAB_CORPUS:-../../../shared/corpus}
  if [ "$target" = boot_log ] && [ -d "$logs/uefi" ]; then seeds=("$logs/uefi" "$logs/windows"); fi
  echo "fuzzing $target for $seconds s"
  "$CARGO_TARGET_DIR/$host/debug/$target" "corpus/$target" "${seeds[@]}" \
    -max_total_time="$seconds" -max_len=65536 -timeout=10 -artifact_prefix="artifacts/$target/" -print_final_stats=1
done

#!/bin/sh
# What this machine's GPU is asked; README.md beside this file says what must be there.
# Usage: ./run.sh [laws|digits|sanitize|bench|all]        PYTHON: a Python with torch for bench [default: python3]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=$here/vkd-device
results=$here/results
part=${1:-all}
python=${PYTHON:-python3}
mkdir -p "$results"

# CUDA's libraries as Python packages have them, where they are.
own=$("$python" -c '
import glob, os, sys
print(":".join(lib for path in sys.path for lib in sorted(glob.glob(os.path.join(path, "nvidia", "*", "lib")))))
' 2>/dev/null || true)
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$own
export LD_LIBRARY_PATH
missing=$(ldd "$program" | sed -n 's/^[[:space:]]*\(.*\) => not found.*/\1/p' | tr '\n' ' ')
case $missing in
*libcuda.so.1*)
    echo "error: expected NVIDIA's driver (libcuda.so.1), 580 or later, got none" >&2
    exit 1
    ;;
?*)
    echo "error: expected CUDA 13's libraries, got none of: $missing" >&2
    echo "python3 -m pip install 'nvidia-cublas==13.*' 'nvidia-cuda-runtime==13.*' nvidia-curand brings them" >&2
    exit 1
    ;;
esac

VKD_BENCH_COMMIT=$(cat "$here/commit")
VKD_BENCH_PEERS=$here/peers
export VKD_BENCH_COMMIT VKD_BENCH_PEERS
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    VKD_BENCH_PEER_PYTHON=$(command -v "$python")
    VKD_BENCH_PEER_LIBRARY=torch
    export VKD_BENCH_PEER_PYTHON VKD_BENCH_PEER_LIBRARY
else
    echo "SKIPPED: peers: $python has no torch that sees a GPU"
fi

sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "SKIPPED: compute-sanitizer is not on the PATH"
        return
    fi
    for tool in memcheck racecheck; do
        echo "==> $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$program" laws --device cuda --small >"$results/$tool.log" 2>&1 ||
            { tail -n 40 "$results/$tool.log"; exit 1; }
        tail -n 3 "$results/$tool.log"
    done
}

logged() {
    echo "==> $1"
    # Without a pipe, whose end would hide how the program ended.
    if "$program" "$@" >"$results/$1.log" 2>&1; then cat "$results/$1.log"; else
        cat "$results/$1.log"
        exit 1
    fi
}

case $part in
laws | digits) logged "$part" --device cuda ;;
sanitize) sanitize ;;
bench) logged bench --device cuda --json "$results/device.json" ;;
all)
    logged laws --device cuda
    logged digits --device cuda
    sanitize
    logged bench --device cuda --json "$results/device.json"
    ;;
*)
    echo "error: expected laws, digits, sanitize, bench or all, got $part" >&2
    exit 1
    ;;
esac

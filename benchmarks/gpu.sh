#!/usr/bin/env bash
# Correctness, compilation and speed of the kernels on a GPU, and how long a training step of ViT-S/16 waits for data, in
# under 8 minutes; no network, nothing installed.
#
#   benchmarks/gpu.sh [OUT] [--budget SECONDS] [--data FOLDER] [--quick]
#
# OUT takes every step's log and the measurements (default benchmarks/results/<GPU>-<date>). FOLDER holds photos to
# train on; without it JPEGs of noise are made that are as costly to decode. A step that fails does not stop
# the next; the exit code says at the end whether one did. PYTHON names the Python to use.
set -uo pipefail
cd "$(dirname "$0")/.."

out="" budget=460 data="" quick=()
while [ $# -gt 0 ]; do
    case "$1" in
        --budget) budget="${2:?--budget wants seconds}"; shift 2 ;;
        --data) data="${2:?--data wants a folder}"; shift 2 ;;
        --quick) quick=(--quick); shift ;;
        -h | --help) sed -n '2,9p' "$0"; exit 0 ;;
        -*) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
        *) out="$1"; shift ;;
    esac
done

python="${PYTHON:-}"
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python="$(command -v python3 || command -v python)"; fi
fi
python="$(command -v "$python")" || { echo "gpu.sh: no Python found; set PYTHON" >&2; exit 2; }

# The package may not be installed here: kernels/ is imported as vpt_kernels through a link.
links="$(mktemp -d)"
trap 'rm -rf "$links"' EXIT
ln -s "$PWD/kernels" "$links/vpt_kernels"
ln -s "$PWD/vpt_vision" "$links/vpt_vision"
export PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET
export PYTHONUNBUFFERED=1

started=$SECONDS
left() { echo $((budget - (SECONDS - started))); }

gpu="$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')" || exit 2
if [ -z "$gpu" ]; then
    echo "gpu.sh: THERE IS NO GPU HERE. The steps run on the CPU (the tests under Triton's interpreter) to try the"
    echo "        script itself; nothing below is a figure of a GPU."
fi
name="$(echo "${gpu:-cpu}" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-')"
out="${out:-benchmarks/results/$name-$(date +%F)}"
mkdir -p "$out"
{
    date -u +%FT%TZ
    git rev-parse HEAD 2>/dev/null
    "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
    nvidia-smi 2>/dev/null
} > "$out/machine.txt"

failed=()
step() { # step NAME SECONDS COMMAND...: run, log, go on
    local step="$1" limit="$2"
    shift 2
    echo "== $step (at most $limit s): $*"
    timeout --kill-after=10 "$limit" "$@" > "$out/$step.log" 2>&1
    local code=$?
    tail -n "${lines:-3}" "$out/$step.log"
    if [ $code -eq 124 ] || [ $code -eq 137 ]; then echo "$step: stopped after $limit s"; fi
    if [ $code -ne 0 ]; then failed+=("$step (exit $code)"); fi
}

# What matters is measured whatever the tests take: they get at most a third of the time.
if missing="$("$python" -c 'import hypothesis, pytest, torchvision' 2>&1)"; then
    workers=()
    cores="$(nproc)"
    if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n $((cores < 8 ? cores : 8))); fi
    if "$python" -c 'import pytest_timeout' 2>/dev/null; then plain=(); else plain=(-o addopts=--import-mode=importlib); fi
    if [ -n "$gpu" ] || [ ${#quick[@]} -eq 0 ]; then
        lines=15 step tests $((budget / 3)) "$python" -m pytest tests/kernels -q "${plain[@]}" "${workers[@]}"
    else
        step tests $((budget / 3)) "$python" -m pytest tests/kernels/test_random.py -q "${plain[@]}"
    fi
else
    echo "== tests: left out, for they cannot be imported here: ${missing##*$'\n'}"
    failed+=("tests (${missing##*$'\n'})")
fi
only=()
if [ ${#quick[@]} -gt 0 ]; then only=(--only sinkhorn_potentials); fi
lines=4 step compile_report 90 "$python" benchmarks/compile_report.py --target sm_90 "${only[@]}"
# The trainer needs more packages than the kernels do; without them its step is named and left out.
cores="$(nproc)"
if missing="$("$python" -c 'import vpt_vision.training.trainer' 2>&1)"; then
    size=()
    if [ -z "$gpu" ]; then
        size=(batch_size=2 precision=fp32 learner.head.prototypes=1024 --steps 2 --warm-up 1)
    fi
    if [ -z "$data" ]; then
        data="$links/photos"
        "$python" benchmarks/photos.py "$data" --count $([ -n "$gpu" ] && echo 512 || echo 8) || data=""
    fi
    lines=2 step data_wait 90 "$python" benchmarks/step.py benchmarks/vit_s16.yaml \
        "data.train.path=$data" "data.workers=$cores" "${size[@]}"
else
    echo "== data_wait: left out, the trainer cannot be imported here: $(echo "$missing" | tail -n 1)"
    failed+=("data_wait (the trainer cannot be imported)")
fi
if [ -z "$missing" ] && [ -n "$gpu" ] && [ ${#quick[@]} -eq 0 ]; then  # ViT-S/16 on synthetic scenes, random weights
    lines=6 step value 120 "$python" benchmarks/value.py --json --steps 10 --estimators "as configured" \
        --set precision=bf16 --set batch_size=64 --set recipe.crops.global_size=224 \
        --set recipe.crops.local_size=96 --set recipe.crops.local_views=8 --set data.train.size=256 \
        --set data.train.count=256 --set feedback.source.size=256 --set 'feedback.batch=64' \
        --set 'learner.backbone={name: vit_small_patch16_224, weights: none}' --set evaluation=null
fi
budget_left=$(left)
lines=24 step kernels $((budget_left > 30 ? budget_left : 30)) \
    "$python" benchmarks/kernels.py --out "$out" --budget $((budget_left > 60 ? budget_left - 45 : 15)) "${quick[@]}"

echo "== $((SECONDS - started)) s; logs, rows.csv, table.md and plots in $out"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "All steps passed."

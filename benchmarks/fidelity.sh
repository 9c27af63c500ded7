#!/usr/bin/env bash
# Value fidelity on the demo, with three goals on its scenes: benchmarks/fidelity.sh [RUN]
#
# Trains the demo (its own settings, learned designer) for 100 steps, then takes 64 real steps from there, each on a batch
# and under a task of its own, at the run's learning rate. Writes table, JSON and picture to benchmarks/results/fidelity.
set -eu
run=${1:-runs/fidelity} out=benchmarks/results/fidelity
scenes='{kind: fashion_scenes, split: feedback, size: 48, count: 20000, garments: [2, 3], salient_area: [0.2, 0.4], other_area: [0.1, 0.3], texture: 0.2}'
sizes="source: $scenes, head_size: 1024, meta_size: 1024, heldout_size: 1024, l2: 0.3"  # the demo's l2
mkdir -p "$out"
vpt train configs/demo.yaml output="$run" steps=100 \
    "feedback={tasks: {classes: {$sizes}, segmentation: {kind: segmentation, $sizes}, depth: {kind: depth, $sizes}}}"
COLUMNS=110 vpt value probe "$run" --tasks 64 --permutations 8 --picture "$out/fidelity.png" --json >"$out/printed.txt"
tail -n 1 "$out/printed.txt" >"$out/fidelity.json"
sed '$d' "$out/printed.txt" >"$out/table.txt" && rm "$out/printed.txt"
cat "$out/table.txt"

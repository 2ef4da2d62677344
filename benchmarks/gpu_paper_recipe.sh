#!/bin/sh
# Grouped fold 0 of CVC-ClinicDB with the paper's recipe, for a machine with a GPU:
#
#   sh benchmarks/gpu_paper_recipe.sh CVC_FOLDER OUTPUT [EPOCHS]
#
# CVC_FOLDER holds images/, masks/ and sequences.csv. Leaves metrics.csv, progress.png, summary.json and the scores in
# OUTPUT, with the command's log. Run it again to go on after an interruption.
set -eu
data=$1
output=$2
epochs=${3:-500}
mkdir -p "$output"
export IAUNET_WORKSPACE="$output/workspace"
iaunet_plan_and_preprocess "$data" --groups "$data/sequences.csv" --planner paper --dataset_name CVC | tee "$output/plan.log"
iaunet_train CVC 0 --split grouped --epochs "$epochs" | tee "$output/train.log"
fold="$IAUNET_WORKSPACE/CVC/runs/iaunet-paper-grouped/fold_0"
cp "$fold/metrics.csv" "$fold/progress.png" "$fold/summary.json" "$fold/validation/scores.csv" "$output"

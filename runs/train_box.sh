#!/bin/sh
# Rebuild the model in the box from nothing: sh runs/train_box.sh [FOLDER]
#
# Two jobs of one thread each, on two cores: MoVQ beside CLIP and the prior; the U-Net; then the two that grow from it beside
# each other; MoVQ's decoder last, which moves no latents. Hours. Stopped, it goes on where it was when it is started again.
# The result replaces src/kandinsky22/weights only when all of it is there.
set -eu

folder=${1:-runs/box}
weights=src/kandinsky22/weights
train() { kandinsky22 train "$@" --folder "$folder"; }

train movq &
movq=$!
trap 'kill "$movq" 2>/dev/null' EXIT INT TERM # a job in the background does not hear Ctrl-C by itself
train clip
train prior
wait "$movq"
train decoder --threads 2
train inpaint &
inpaint=$!
trap 'kill "$inpaint" 2>/dev/null' EXIT INT TERM
train controlnet
wait "$inpaint"
train movq-decoder --threads 2

python runs/score_box.py --model "$folder/model" --sheet "$folder/sheet.png" --output "$folder/scores.md"
python runs/score_tasks.py --model "$folder/model" --output "$folder/task-scores.md"
rm -rf "$weights.new"
cp -R "$folder/model" "$weights.new"
rm -rf "$weights"
mv "$weights.new" "$weights"
echo "$weights now holds the model of $folder; its scores are in $folder/scores.md"

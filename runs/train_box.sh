#!/bin/sh
# Train the model in the box from scratch: sh runs/train_box.sh [FOLDER]
#
# Two jobs of one thread each, on two cores: MoVQ in parallel with CLIP and the prior; the U-Net; then in parallel the two that
# start from it; MoVQ's decoder last, which does not change latents. Hours. An interrupted run continues where it stopped.
# The result replaces src/kandinsky22/weights only when it is complete.
set -eu

folder=${1:-runs/box}
weights=src/kandinsky22/weights
train() { kandinsky22 train "$@" --folder "$folder"; }

[ -f "$folder/things/things.json" ] || python runs/fetch_things.py "$folder/things" # needs npm
python runs/render_world.py "$folder"
train movq &
movq=$!
trap 'kill "$movq" 2>/dev/null' EXIT INT TERM # Ctrl-C does not reach background jobs by itself
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
echo "$weights is now the model of $folder; its scores are in $folder/scores.md"

#!/bin/sh
# The main change of Kandinsky 2.2 at small scale: another CLIP, a prior retrained for it, and 2,000 more decoder iterations.
# sh runs/clip_switch.sh [FOLDER] [CAPTIONS]; the oracle's scores before and after are in FOLDER/before.md and after.md. Hours.
#
# The new CLIP starts from the box's, and every embedding changes. The prior starts from the box's too, with the mean and deviation
# of the new embeddings; for a CLIP unrelated to the previous one, use --from-scratch. Prior and decoder do not wait for each other.
# An interrupted run continues where it stopped.
set -eu

folder=${1:-runs/switch}
captions=${2:-500}
train() { kandinsky22 train "$@" --folder "$folder" --start-from box --seed 22; }

[ -f "$folder/before.md" ] || python runs/score_box.py --captions "$captions" --wide 0 --output "$folder/before.md"
train clip --steps 800
python runs/compare_clips.py box "$folder/model" --output "$folder/clips.md"
train prior --steps 400 &
prior=$!
trap 'kill "$prior" 2>/dev/null' EXIT INT TERM # Ctrl-C does not reach background jobs by itself
train decoder --steps 2000 --batch 32 --learning-rate 3e-4
wait "$prior"
python runs/score_box.py --captions "$captions" --wide 0 --model "$folder/model" --output "$folder/after.md"

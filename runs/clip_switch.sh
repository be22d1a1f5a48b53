#!/bin/sh
# The change of Kandinsky 2.2, in small: another CLIP, a prior trained again for it, and 2,000 more iterations of the decoder.
# sh runs/clip_switch.sh [FOLDER] [CAPTIONS]; what the oracle reads before and after is in FOLDER/before.md and after.md. Hours.
#
# The new CLIP goes on from the box's, and every embedding changes. The prior goes on from the box's, too, with the new
# embeddings' mean and deviation; for a CLIP that has nothing to do with the one before, say --from-scratch. Prior and decoder do not wait for
# each other. Stopped, it goes on where it was.
set -eu

folder=${1:-runs/switch}
captions=${2:-500}
train() { kandinsky22 train "$@" --folder "$folder" --start-from box --seed 22; }

[ -f "$folder/before.md" ] || python runs/score_box.py --captions "$captions" --wide 0 --output "$folder/before.md"
train clip --steps 800
python runs/compare_clips.py box "$folder/model" --output "$folder/clips.md"
train prior --steps 400 &
prior=$!
trap 'kill "$prior" 2>/dev/null' EXIT INT TERM # a job in the background does not hear Ctrl-C by itself
train decoder --steps 2000 --batch 32 --learning-rate 3e-4
wait "$prior"
python runs/score_box.py --captions "$captions" --wide 0 --model "$folder/model" --output "$folder/after.md"

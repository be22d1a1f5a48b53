#!/bin/sh
# The change of Kandinsky 2.2, in small: another CLIP, a prior trained anew for it, and 2,000 more iterations of the decoder.
# sh runs/clip_switch.sh [FOLDER] [CAPTIONS]; what the oracle reads before and after is in FOLDER/before.md and after.md. Hours.
#
# The new CLIP goes on from the box's with as many steps again; every embedding changes. Stopped, it goes on where it was.
set -eu

folder=${1:-runs/switch}
captions=${2:-500}
train() { kandinsky22 train "$@" --folder "$folder" --start-from box; }

[ -f "$folder/before.md" ] || python runs/score_box.py --captions "$captions" --output "$folder/before.md"
train clip --seed 22
train prior --anew --steps 1400 --seed 22
train decoder --steps 2000 --learning-rate 3e-4 --seed 22
python runs/score_box.py --captions "$captions" --model "$folder/model" --output "$folder/after.md"

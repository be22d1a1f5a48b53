"""Generation in a process that a test can kill.

python -m tests.evaluation.generate_program MODEL CAPTIONS RUN SHARD
"""

import sys
from pathlib import Path

from kandinsky22 import text2img
from kandinsky22.backends.pool import Pool
from kandinsky22.backends.run_folder import Shard
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import captions
from kandinsky22.evaluation.generate import generate, open_run

BATCH = 3
REQUEST = text2img("", negative_prompt="a star", guidance_scale=3.0, prior_seed=5)

if __name__ == "__main__":
    model, captions_file, folder, shard = sys.argv[1:]
    with Pool.of(model, processes=1, threads=1) as pool:
        painter = UnitPainter(pool, BATCH)
        run = open_run(painter, Path(folder), captions.read(Path(captions_file)), REQUEST)
        for progress in generate(painter, run, shard=Shard.parse(shard)):
            print(progress, flush=True)

"""What a person starts, in a process that can be killed: python -m tests.evaluation.generate_program MODEL CAPTIONS RUN SHARD"""

import sys
from pathlib import Path

from kandinsky22 import text2img
from kandinsky22.backends.pool import Pool
from kandinsky22.evaluation import captions
from kandinsky22.evaluation.generate import begin, generate
from kandinsky22.evaluation.manifest import Shard

BATCH = 3
REQUEST = text2img("", negative_prompt="a star", guidance_scale=3.0, prior_seed=5)

if __name__ == "__main__":
    model, said, folder, shard = sys.argv[1:]
    with Pool.of(model, processes=1, batch=BATCH, threads=1) as pool:
        run = begin(pool, Path(folder), captions.read(Path(said)), REQUEST)
        for standing in generate(pool, run, shard=Shard.parsed(shard)):
            print(standing, flush=True)

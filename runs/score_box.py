"""How well the model in the box paints what it is told: fresh captions, read back from the pixels by the oracle.

    python runs/score_box.py [--model FOLDER] [--captions 300] [--sheet SHEET.png] [--output SCORES.md]

Three rows of rates, one for each stage that may be to blame: the true picture through MoVQ; the true picture's own CLIP
embedding, painted; the caption, painted. A fourth is of captions with a colour and a shape that training never showed
together. The control is judged against another caption: what is painted when the embeddings are shuffled. Scenes come from
a seed that no training uses.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from kandinsky22 import Kandinsky, Request, text2img, variations
from kandinsky22.checkpoints import catalog
from kandinsky22.compositions import Scene, caption, judge, read, render, sample, wilson
from kandinsky22.events import Result
from kandinsky22.stages import to_image, to_pixels

FRESH_SEED = 22  # training draws from 0, and looks at 1
BATCH = 25
ATTRIBUTES = ("ground", "present", "colors", "shape", "count", "relation", "style", "whole")
MEANING = {
    "ground": "ground", "present": "asked colours present", "colors": "exactly the asked colours", "shape": "shape",
    "count": "count", "relation": "relation", "style": "style", "whole": "whole caption",
}  # fmt: skip


def batches(n: int) -> list[range]:
    """Indices, a batch at a time."""
    return [range(i, min(i + BATCH, n)) for i in range(0, n, BATCH)]


def reconstructed(kandinsky: Kandinsky, scenes: Sequence[Scene], side: int) -> list[Image.Image]:
    """The true pictures, through MoVQ and back."""
    decoder = kandinsky.decoder(catalog.DECODER)
    images = []
    for scene in track(scenes, "through MoVQ"):
        pixels = to_pixels(render(scene, side).astype(np.float32) / 255)
        with torch.inference_mode():
            images.append(to_image(decoder.decode(decoder.encode(pixels))[0]))
    return images


def painted(kandinsky: Kandinsky, requests: Sequence[Request], name: str) -> list[Image.Image]:
    """The first painting of each request."""
    pictures: dict[int, Image.Image] = {}
    for part in track(batches(len(requests)), name):
        for i, event in kandinsky.stream_many({i: requests[i] for i in part}):
            if isinstance(event, Result):
                pictures[i] = event.pictures[0].image
    return [pictures[i] for i in range(len(requests))]


def captioned(scenes: Sequence[Scene]) -> list[Request]:
    """A request for each scene's plain caption."""
    return [text2img(caption(scene, whole=True), seed=i) for i, scene in enumerate(scenes)]


def row(name: str, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> str:
    """A table row: each attribute's rate with its 95% interval."""
    verdicts = [judge(read(np.asarray(picture)), scene) for picture, scene in zip(pictures, scenes, strict=True)]
    cells = []
    for attribute in ATTRIBUTES:
        told = [verdict[attribute] for verdict in verdicts if attribute in verdict]
        low, high = wilson(sum(told), len(told))
        cells.append(f"{100 * sum(told) / len(told):.0f} ({100 * low:.0f}-{100 * high:.0f})")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the model in the box with the oracle.")
    parser.add_argument("--model", default="box")
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=FRESH_SEED)
    parser.add_argument("--sheet", type=Path, help="write the first paintings, eight to a row, enlarged")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    chosen = parser.parse_args()

    kandinsky = Kandinsky.load(chosen.model, device="cpu", dtype="float32")
    side = kandinsky.defaults.height
    scenes = [sample(np.random.default_rng([chosen.seed, i])) for i in range(chosen.captions)]
    unseen = [sample(np.random.default_rng([chosen.seed, 1, i]), held_out=True) for i in range(chosen.captions)]
    shown = [variations(image=render(scene, side), seed=i) for i, scene in enumerate(scenes)]
    paintings = painted(kandinsky, captioned(scenes), "from captions")
    others = [*scenes[1:], scenes[0]]
    table = [
        f"| % right of {len(scenes)} (95% interval) | " + " | ".join(MEANING.values()) + " |",
        "|---" * (len(ATTRIBUTES) + 1) + "|",
        row("true picture, through MoVQ", reconstructed(kandinsky, scenes, side), scenes),
        row("true embedding, painted", painted(kandinsky, shown, "from true embeddings"), scenes),
        row("**caption, painted**", paintings, scenes),
        row("caption of a pair never seen together", painted(kandinsky, captioned(unseen), "unseen pairs"), unseen),
        row("control: shuffled embeddings", paintings, others),
    ]
    weights = ", ".join(f"{name} {digest}" for name, digest in kandinsky.stored.fingerprints(catalog.DECODER).items())
    stages = [f"{name}: {s.sampler}, {s.steps} steps, guidance {s.guidance_scale:g}"
              for name, s in (("prior", kandinsky.defaults.prior), ("decoder", kandinsky.defaults.decoder))]  # fmt: skip
    text = "\n".join([*table, "", f"{side} px; {'; '.join(stages)}; scene seed {chosen.seed}; weights {weights}.", ""])
    print(text)
    if chosen.output:
        chosen.output.write_text(text)
    if chosen.sheet:
        tiles = [np.asarray(picture.resize((128, 128), Image.Resampling.BICUBIC)) for picture in paintings[:64]]
        rows = [np.concatenate(tiles[i : i + 8], axis=1) for i in range(0, len(tiles), 8)]
        Image.fromarray(np.concatenate([r for r in rows if r.shape == rows[0].shape])).save(chosen.sheet)


if __name__ == "__main__":
    main()

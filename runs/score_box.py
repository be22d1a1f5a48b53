"""How well the model in the box paints captions: new ones, whose content the oracle reads back from the pixels.

    python runs/score_box.py [--model FOLDER] [--captions 500] [--wide 200] [--sheet SHEET.png] [--output SCORES.md]

Each of the first rows replaces the model by the truth up to one stage: the true picture through MoVQ; the true
picture's CLIP embedding, painted; the caption, painted. Then captions with a colour and a shape that never occur
together in training, and captions painted at other ratios. As a control, pictures are compared with another caption, as
if embeddings were shuffled. Scenes come from a seed that no training uses.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from scoring import FRESH_SEED, fresh, image_grid, mean, painted, row

from kandinsky22 import Kandinsky, Request, text2img, variations
from kandinsky22.checkpoints import catalog
from kandinsky22.compositions import Scene, caption, render
from kandinsky22.evaluation.fidelity import ATTRIBUTES
from kandinsky22.imaging.pixels import to_image, to_pixels

RATIOS = {"1:2": (2, 1), "2:1": (1, 2), "3:2": (1, 1.5)}  # width:height -> height and width over the shorter side


def reconstructed(kandinsky: Kandinsky, scenes: Sequence[Scene], side: int) -> list[Image.Image]:
    """The true pictures, encoded and decoded by MoVQ."""
    decoder = kandinsky.decoder(catalog.DECODER)
    images = []
    for scene in track(scenes, "through MoVQ"):
        pixels = to_pixels(render(scene, side).astype(np.float32) / 255)
        with torch.inference_mode():
            images.append(to_image(decoder.decode(decoder.encode(pixels))[0]))
    return images


def psnr(picture: Image.Image, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.square(np.asarray(picture, np.float64) - truth).mean()
    return float(10 * np.log10(255**2 / error))


def captioned(scenes: Sequence[Scene], **size: int) -> list[Request]:
    """A request for each scene's plain caption."""
    return [text2img(caption(scene, whole=True), seed=i, **size) for i, scene in enumerate(scenes)]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the model in the box with the oracle.")
    parser.add_argument("--model", default="box")
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument(
        "--wide", type=int, default=200, help="captions for each other ratio, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--sheet", type=Path, help="write the first 64 paintings, eight to a row")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    chosen = parser.parse_args()

    kandinsky = Kandinsky.load(chosen.model, device="cpu", dtype="float32")
    side = kandinsky.defaults.height
    scenes, unseen = fresh(chosen.captions), fresh(chosen.captions, 1, held_out=True)
    true_embeddings = [variations(image=render(scene, side), seed=i) for i, scene in enumerate(scenes)]
    through = reconstructed(kandinsky, scenes, side)
    paintings = painted(kandinsky, captioned(scenes), "from captions")
    table = [
        f"| % right of {len(scenes)} (95% interval) | " + " | ".join(ATTRIBUTES.values()) + " |",
        "|---" * (len(ATTRIBUTES) + 1) + "|",
        row("true picture, through MoVQ", through, scenes),
        row("true embedding, painted", painted(kandinsky, true_embeddings, "from true embeddings"), scenes),
        row("**caption, painted**", paintings, scenes),
        row("caption of a pair never seen together", painted(kandinsky, captioned(unseen), "unseen pairs"), unseen),
    ]
    wide = scenes[: chosen.wide]
    for ratio, (height, width) in RATIOS.items() if wide else ():
        size = {"height": round(height * side), "width": round(width * side)}
        pictures = painted(kandinsky, captioned(wide, **size), f"at {ratio}")
        table.append(
            row(f"caption, at {ratio} ({size['width']} x {size['height']}), {len(wide)} of them", pictures, wide)
        )
    table.append(row("control: shuffled embeddings", paintings, [*scenes[1:], scenes[0]]))
    plain = [psnr(picture, render(s, side, grain=False)) for picture, s in zip(through, scenes, strict=True)]
    weights = ", ".join(f"{name} {digest}" for name, digest in kandinsky.stored.fingerprints(catalog.DECODER).items())
    stages = [
        f"{name}: {s.sampler}, {s.steps} steps, guidance {s.guidance_scale:g}"
        for name, s in (("prior", kandinsky.defaults.prior), ("decoder", kandinsky.defaults.decoder))
    ]
    notes = [
        f"MoVQ against the picture without its grain: PSNR {mean(plain, 1)} dB.",
        f"{side} px; {'; '.join(stages)}; scene seed {FRESH_SEED}; weights {weights}.",
    ]
    text = "\n".join([*table, "", *(line for note in notes for line in (note, ""))])
    print(text)
    if chosen.output:
        chosen.output.write_text(text)
    if chosen.sheet:
        image_grid(paintings[:64]).save(chosen.sheet)


if __name__ == "__main__":
    main()

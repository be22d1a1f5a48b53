"""Pictures that a model in training paints from prompts, to see what it learns beside its metrics."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.files import atomic_write
from kandinsky22.imaging.images import sheet
from kandinsky22.request.tasks import text2img

SEED = 0  # of every prompt, so that the pictures of all checkpoints compare


def paint(model: Path, prompts: Sequence[str], path: Path, loras: Sequence[Path] = ()) -> None:
    """Paint prompts with the model in a folder and these LoRAs, on the CPU, and write them side by side to a PNG."""
    kandinsky = Kandinsky.load(model, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about prompts and networks of a model that is not ready
        images = [kandinsky(text2img(prompt, seed=SEED, loras=loras))[0].image for prompt in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        sheet(images, prompts).save(partial, format="png")

"""How much information CLIP's image embeddings contain about a scene: linear probes, fitted and tested on unseen
scenes.

    python runs/compare_clips.py box FOLDER... [--fit 8000] [--read 1000] [--output TABLE.md]

Probes that were trained with a CLIP fit that CLIP, so new ones are fitted here for each model, on the same scenes, in
as many steps. Neither the scenes to fit on nor those to read were used in training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from scoring import fresh
from torch import Tensor

from kandinsky22 import Kandinsky
from kandinsky22.compositions import Scene, render
from kandinsky22.evaluation.fidelity import Rate
from kandinsky22.training.probes import PER_COLOR, Probes, labels

FIT, READ = 31, 32  # streams of scenes
BATCH, EPOCHS, RATE = 256, 40, 1e-2


def embedded(model: Kandinsky, scenes: Sequence[Scene]) -> Tensor:
    """Image embeddings [n, D] of scenes."""
    with torch.inference_mode():
        return torch.cat(
            [
                model.prior.encode_images([Image.fromarray(render(scene, 128)) for scene in scenes[i : i + 64]])
                for i in track(range(0, len(scenes), 64), "embedding")
            ]
        )


def fitted(embeds: Tensor, targets: dict[str, Tensor]) -> Probes:
    """Probes of standardised embeddings."""
    torch.manual_seed(0)
    probes, rows = Probes(embeds.shape[1]), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(probes.parameters(), lr=RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(embeds) // BATCH)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(embeds), (BATCH,), generator=rows)
        loss = probes.loss(embeds[batch], {name: value[batch] for name, value in targets.items()}).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return probes


def main() -> None:
    """Fit and test the probes, and print the table."""
    parser = argparse.ArgumentParser(description="Compare what models' image embeddings say about scenes.")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--fit", type=int, default=8000)
    parser.add_argument("--read", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    fit, read = fresh(chosen.fit, FIT), fresh(chosen.read, READ)
    fit_labels, read_labels = labels(fit), labels(read)
    names = list(fit_labels)
    lines = [
        f"| % read right of {chosen.read} new scenes | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for name in chosen.models:
        model = Kandinsky.load(name, device="cpu", dtype="float32")
        embeds, others = embedded(model, fit), embedded(model, read)
        middle, spread = embeds.mean(0), embeds.std(0)
        probes = fitted((embeds - middle) / spread, fit_labels)
        accuracy = probes.accuracy((others - middle) / spread, read_labels)
        present = int((read_labels["count"] > 0).sum())
        rates = [Rate(round(accuracy[n] * (k := present if n in PER_COLOR else len(read))), k) for n in names]
        lines.append(f"| {name} | " + " | ".join(map(str, rates)) + " |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if chosen.output:
        chosen.output.write_text(table + "\n")


if __name__ == "__main__":
    main()

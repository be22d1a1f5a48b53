"""CLIP's objective: a picture and its caption belong together (Radford et al. 2021), against captions wrong by one word."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.compositions import caption, perturb
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Compositions
from kandinsky22.training.loop import Objective, Recipe
from kandinsky22.training.probes import Probes, labels
from kandinsky22.training.run import Sheet, beside, grid, nearest

MAX_SCALE = 60.0  # of the logits
PROBE_WEIGHT = 2.0


class CLIP(nn.Module):
    """Both towers, the temperature, and the probes that share the training."""

    def __init__(self, vision: CLIPVisionConfig, text: CLIPTextConfig) -> None:
        super().__init__()
        self.vision, self.text = CLIPVision(vision), CLIPText(text)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.probes = Probes(vision.projection_dim)


def objective(clip: CLIP, tokenizer: Tokenizer, data: Compositions, recipe: Recipe, *, hard: int) -> Objective:
    """Contrastive loss over a batch, the first `hard` pictures also against a caption with one change."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([recipe.seed, step])
        indices = rng.integers(len(data), size=recipe.batch)
        scenes = [data.scene(int(i)) for i in indices]
        captions = [caption(scene, rng) for scene in scenes]
        wrong_scenes = [perturb(scene, rng) for scene in scenes[:hard]]
        wrong = [caption(scene, rng, whole=True) for scene in wrong_scenes]

        image = clip.vision(data.seen(indices)).float()
        text = clip.text(tokenizer(captions + wrong).trimmed().ids).embed.float()
        scale = clip.logit_scale.exp().clamp(max=MAX_SCALE)
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        same = torch.tensor(
            [[a == b and i != j for j, b in enumerate(captions + wrong)] for i, a in enumerate(captions)]
        )
        logits = logits.masked_fill(same, -1e4)  # another picture's caption, word for word, is not wrong
        targets = torch.arange(recipe.batch)
        contrast = F.cross_entropy(logits, targets) + F.cross_entropy(logits[:, : recipe.batch].T, targets)

        probes = clip.probes.loss(image, labels(scenes))
        probes = probes + clip.probes.loss(text, labels(scenes + wrong_scenes, captions + wrong))
        return contrast / 2 + PROBE_WEIGHT * probes, {
            "contrast": float(contrast.detach()) / 2,
            "probes": float(probes.detach()),
        }

    return loss


@torch.no_grad()
def validate(
    clip: CLIP, tokenizer: Tokenizer, held_out: Compositions, count: int = 512
) -> tuple[Image.Image, dict[str, float]]:
    """Retrieval among `count` unseen pairs, hard negatives told apart, and the probes' readings of both embeddings.

    The picture has a row for each of eight captions: the true picture, then those CLIP finds most like the caption.
    """
    rng, count = np.random.default_rng(0), min(count, len(held_out))
    scenes = [held_out.scene(i) for i in range(count)]
    captions = [caption(scene, rng, whole=True) for scene in scenes]
    wrong = [caption(perturb(scene, rng), rng, whole=True) for scene in scenes]
    image = torch.cat([clip.vision(held_out.seen(range(i, min(i + 128, count)))) for i in range(0, count, 128)])
    text, wrong_text = (
        torch.cat([clip.text(tokenizer(said[i : i + 128]).trimmed().ids).embed for i in range(0, count, 128)])
        for said in (captions, wrong)
    )
    images, texts, wrongs = (F.normalize(x, dim=-1) for x in (image, text, wrong_text))
    similar = images @ texts.T
    truth = torch.arange(count)
    measured = {
        "image_to_text": float((similar.argmax(1) == truth).float().mean()),
        "text_to_image": float((similar.argmax(0) == truth).float().mean()),
        "hard": float(((images * texts).sum(-1) > (images * wrongs).sum(-1)).float().mean()),
    }
    for name, embeds, said in (("image", image, None), ("text", text, captions)):
        rates = clip.probes.accuracy(embeds, labels(scenes, said))
        measured.update({f"{name}_{attribute}": rate for attribute, rate in rates.items()})
    found = nearest(text[:8], image, held_out.pictures(range(count)), columns=min(7, count))
    return beside(grid([*held_out.pictures(range(8))], 1), found), measured


def sheet(copy: CLIP, tokenizer: Tokenizer, held_out: Compositions) -> Sheet:
    """`validate` of the averaged weights, loaded into `copy`."""

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy.load_state_dict(weights)
        return validate(copy, tokenizer, held_out)

    return draw

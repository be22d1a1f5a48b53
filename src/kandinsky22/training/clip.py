"""CLIP's objective: a picture and its caption belong together (Radford et al. 2021), against captions wrong by one word."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.compositions import caption, perturb
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.loop import Batch, Objective, Recipe, generator, on
from kandinsky22.training.probes import Probes, labels
from kandinsky22.training.run import Sheet, beside, grid, nearest, stand_in

MAX_SCALE = 60.0  # of the logits
PROBE_WEIGHT = 2.0
LOOKED_AT, COMPARED, AT_ONCE = 64, 512, 128  # unseen pairs of a sheet: for its loss, for retrieval, and together


class CLIP(nn.Module):
    """Both towers, the temperature, and, where the pictures are the world's, the probes that share the training."""

    def __init__(self, vision: CLIPVisionConfig, text: CLIPTextConfig, *, probed: bool = True) -> None:
        super().__init__()
        self.vision, self.text = CLIPVision(vision), CLIPText(text)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(10.0)))  # FSDP takes no scalar
        self.probes = Probes(vision.projection_dim) if probed else None


def alone(rows: Tensor) -> Tensor:
    """All rows of a batch, where this process has them all."""
    return rows


def objective(
    clip: CLIP,
    tokenizer: Tokenizer,
    sets: Sequence[Pictures],
    recipe: Recipe,
    *,
    hard: int = 0,
    gathered: Callable[[Tensor], Tensor] = alone,
) -> Objective:
    """Contrastive loss over a batch of pictures of one set; of the world's, the first `hard` also against a caption with one
    change.

    `gathered` gives the rows of all processes for those of this one, in the order that row r of process p of P is row
    rP + p of the batch; gradients flow back through it.
    """
    shares = torch.tensor([data.share for data in sets])

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        data = sets[int(torch.multinomial(shares, 1, generator=generator(recipe.seed, step)))]
        indices = rng.choice(len(data), size=recipe.batch, replace=len(data) < recipe.batch)
        said, wrong, targets = data.captions(indices, rng), [], {}
        if clip.probes is not None and isinstance(data, Compositions):
            scenes = [data.scene(int(i)) for i in indices]
            others = [perturb(scene, rng) for scene in scenes[:hard]]
            wrong = [caption(scene, rng, whole=True) for scene in others]
            targets = {f"picture.{name}": value for name, value in labels(scenes).items()}
            targets |= {f"text.{name}": value for name, value in labels(scenes, said).items()}
            targets |= {f"wrong.{name}": value for name, value in labels(others, wrong).items()}
        ids = tokenizer(said + wrong).trimmed().ids
        meanings = {words: number for number, words in enumerate(dict.fromkeys(said + wrong))}
        means = torch.tensor([meanings[words] for words in said + wrong])
        rows = {
            "seen": data.clip_inputs(indices),
            "row": torch.arange(len(said)),
            "picture": torch.from_numpy(indices),
            "ids": ids[: len(said)],
            "means": means[: len(said)],
        }
        if wrong:
            rows |= {"wrong_ids": ids[len(said) :], "wrong_means": means[len(said) :]}
        return {**rows, **targets}

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image = clip.vision(rows["seen"]).float()
        text = clip.text(rows["ids"]).embed.float()
        scale = clip.logit_scale.exp().clamp(max=MAX_SCALE)
        images, texts = (gathered(F.normalize(embeds, dim=-1)) for embeds in (image, text))
        means = gathered(rows["means"])
        own = rows["row"]
        wrong = clip.text(rows["wrong_ids"]).embed.float() if "wrong_ids" in rows else text[:0]
        candidates, candidate_means = texts, means
        if "wrong_ids" in rows:
            candidates = torch.cat([texts, gathered(F.normalize(wrong, dim=-1))])
            candidate_means = torch.cat([means, gathered(rows["wrong_means"])])
        logits = scale * images[own] @ candidates.T
        # another picture's caption, word for word, is not wrong, nor is another wording of this one's
        same = candidate_means == rows["means"][:, None]
        same[:, : len(means)] |= gathered(rows["picture"]) == rows["picture"][:, None]
        same[torch.arange(len(own)), own] = False
        to_image = (scale * texts[own] @ images.T).masked_fill(same[:, : len(means)], -1e4)
        contrast = (F.cross_entropy(logits.masked_fill(same, -1e4), own, reduction="none")) / 2
        contrast = contrast + F.cross_entropy(to_image, own, reduction="none") / 2
        if clip.probes is None:
            return contrast, {}
        probes = clip.probes.loss(image, _targets(rows, "picture"))
        of_texts = clip.probes.loss(text, _targets(rows, "text"))
        of_wrong = clip.probes.loss(wrong, _targets(rows, "wrong")) if len(wrong) else of_texts[:0]
        # the mean over all captions, right and wrong, told as one number for each picture
        of_texts = torch.cat([of_texts, of_wrong]).mean().expand(len(own))
        probes = probes + of_texts
        return contrast + PROBE_WEIGHT * probes, {"contrast": contrast, "probes": probes}

    return Objective(draw, loss, coupled=True)


def _targets(rows: Batch, of: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{of}."): value for name, value in rows.items() if name.startswith(f"{of}.")}


@torch.no_grad()
def validate(
    clip: CLIP, tokenizer: Tokenizer, held_out: Pictures, count: int = COMPARED
) -> tuple[Image.Image, dict[str, float]]:
    """Retrieval among `count` unseen pairs, and, in the world, hard negatives told apart and the probes' readings of both
    embeddings.

    The picture has a row for each of eight captions: the true picture, then those CLIP finds most like the caption.
    """
    rng, count = np.random.default_rng(0), min(count, len(held_out))
    scenes = [held_out.scene(i) for i in range(count)] if isinstance(held_out, Compositions) else []
    captions = [caption(scene, rng, whole=True) for scene in scenes] or held_out.captions(np.arange(count), rng)
    device, starts = clip.logit_scale.device, range(0, count, AT_ONCE)
    image = torch.cat([clip.vision(held_out.clip_inputs(range(i, min(i + AT_ONCE, count))).to(device)) for i in starts])
    text = _texts(clip, tokenizer, captions)
    images, texts = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    similar, truth = images @ texts.T, torch.arange(count, device=device)
    measured = {
        "image_to_text": float((similar.argmax(1) == truth).float().mean()),
        "text_to_image": float((similar.argmax(0) == truth).float().mean()),
    }
    if clip.probes is not None:
        wrongs = _texts(clip, tokenizer, [caption(perturb(scene, rng), rng, whole=True) for scene in scenes])
        told_apart = (images * texts).sum(-1) > (images * F.normalize(wrongs, dim=-1)).sum(-1)
        measured["hard"] = float(told_apart.float().mean())
        for name, embeds, said in (("image", image, None), ("text", text, captions)):
            rates = clip.probes.accuracy(embeds, on(device, labels(scenes, said)))
            measured.update({f"{name}_{attribute}": rate for attribute, rate in rates.items()})
    found = nearest(text[:8].cpu(), image.cpu(), held_out.pictures(range(count)), columns=min(7, count))
    return beside(grid([*held_out.pictures(range(min(8, count)))], 1), found), measured


def _texts(clip: CLIP, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    parts = (tokenizer(captions[i : i + AT_ONCE]).trimmed().ids for i in range(0, len(captions), AT_ONCE))
    return torch.cat([clip.text(ids.to(clip.logit_scale.device)).embed for ids in parts])


def sheet(network: CLIP, tokenizer: Tokenizer, held_out: Pictures, recipe: Recipe) -> Sheet:
    """`validate` of the averaged weights, and the loss on a fixed batch of unseen pairs."""
    configs, probed = (network.vision.config, network.text.config), network.probes is not None
    device = network.logit_scale.device

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy = stand_in(lambda: CLIP(*configs, probed=probed), weights, device)
        validation = objective(copy, tokenizer, [held_out], replace(recipe, batch=min(recipe.batch, LOOKED_AT)))
        with torch.no_grad():
            contrast, _ = validation.loss(on(device, validation.draw(0)))
        picture, measured = validate(copy, tokenizer, held_out)
        return picture, {"validation": float(contrast.mean()), **measured}

    return draw

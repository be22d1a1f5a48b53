"""CLIP's objective: contrastive loss of pictures and captions (Radford et al. 2021), with hard negatives that differ
in one word."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.compositions.thing_scenes import ThingScene
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.clip_data import training_examples, validation_examples
from kandinsky22.training.data import Pictures
from kandinsky22.training.loop import Batch, Objective, Recipe, move_batch, step_generator
from kandinsky22.training.metrics import Validation
from kandinsky22.training.mixture import Mixture
from kandinsky22.training.probes import Probes
from kandinsky22.training.sample_grid import SampleGrid, captioned_column, nearest_images, network_with, side_by_side

MAX_SCALE = 60.0  # of the logits
PROBE_WEIGHT = 2.0
VALIDATION_PAIRS = 64  # for the validation loss
RETRIEVAL_PAIRS = 512
ENCODING_BATCH = 128


class CLIP(nn.Module):
    """Both towers, the temperature, and with `probed` (pictures of the world) linear probes, which are trained with
    them; `things`: the number of things that the probes classify."""

    def __init__(self, vision: CLIPVisionConfig, text: CLIPTextConfig, *, probed: bool = True, things: int = 0) -> None:
        super().__init__()
        self.vision, self.text = CLIPVision(vision), CLIPText(text)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(10.0)))  # FSDP takes no scalar
        self.probes = Probes(vision.projection_dim, things) if probed else None
        self.things = things


def identity(rows: Tensor) -> Tensor:
    """The `gather` of a single process, which has all rows of a batch."""
    return rows


def objective(
    clip: CLIP,
    tokenizer: Tokenizer,
    sets: Sequence[Pictures],
    recipe: Recipe,
    *,
    hard: int = 0,
    gather: Callable[[Tensor], Tensor] = identity,
) -> Objective:
    """Contrastive loss over a batch of pictures of one set. The first `hard` of the world's are also contrasted with a
    caption that has one change.

    `gather` maps the rows of this process to those of all, in the batch's order: row r of process p of P becomes row rP
    + p. Gradients flow back through it.
    """
    shares = torch.tensor([data.share for data in sets])

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        data = sets[int(torch.multinomial(shares, 1, generator=step_generator(recipe.seed, step)))]
        indices = rng.choice(len(data), size=recipe.batch, replace=len(data) < recipe.batch)
        examples = training_examples(data, indices, rng, hard if clip.probes is not None else 0)
        captions, wrong = examples.captions, examples.negatives
        ids = tokenizer(captions + wrong).trimmed().ids
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions + wrong))}
        caption_ids = torch.tensor([numbers[text] for text in captions + wrong])
        rows = {
            "pixels": data.clip_inputs(indices),
            "row": torch.arange(len(captions)),
            "picture": torch.from_numpy(examples.picture_ids),
            "ids": ids[: len(captions)],
            "caption": caption_ids[: len(captions)],
        }
        if wrong:
            rows |= {"wrong_ids": ids[len(captions) :], "wrong_caption": caption_ids[len(captions) :]}
        if clip.probes is None:
            return rows
        targets = {
            "picture": examples.picture_labels,
            "text": examples.caption_labels,
            "wrong": examples.negative_labels,
        }
        return {**rows, **{f"{of}.{name}": value for of, labels in targets.items() for name, value in labels.items()}}

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image = clip.vision(rows["pixels"]).float()
        text = clip.text(rows["ids"]).embed.float()
        scale = clip.logit_scale.exp().clamp(max=MAX_SCALE)
        images, texts = (gather(F.normalize(embeds, dim=-1)) for embeds in (image, text))
        caption_ids, row = gather(rows["caption"]), rows["row"]
        wrong = clip.text(rows["wrong_ids"]).embed.float() if "wrong_ids" in rows else text[:0]
        candidates, candidate_ids = texts, caption_ids
        if "wrong_ids" in rows:
            candidates = torch.cat([texts, gather(F.normalize(wrong, dim=-1))])
            candidate_ids = torch.cat([caption_ids, gather(rows["wrong_caption"])])
        logits = scale * images[row] @ candidates.T
        # Not negatives: an equal caption of another picture, and another caption of the same picture.
        same = candidate_ids == rows["caption"][:, None]
        same[:, : len(caption_ids)] |= gather(rows["picture"]) == rows["picture"][:, None]
        same[torch.arange(len(row)), row] = False
        to_image = (scale * texts[row] @ images.T).masked_fill(same[:, : len(caption_ids)], -1e4)
        contrast = (F.cross_entropy(logits.masked_fill(same, -1e4), row, reduction="none")) / 2
        contrast = contrast + F.cross_entropy(to_image, row, reduction="none") / 2
        if clip.probes is None:
            return contrast, {}
        probes = clip.probes.loss(image, _targets(rows, "picture"))
        of_texts = clip.probes.loss(text, _targets(rows, "text"))
        of_wrong = clip.probes.loss(wrong, _targets(rows, "wrong")) if len(wrong) else of_texts[:0]
        # One value for all rows: the mean over all captions, right and wrong.
        of_texts = torch.cat([of_texts, of_wrong]).mean().expand(len(row))
        probes = probes + of_texts
        return contrast + PROBE_WEIGHT * probes, {"contrast": contrast, "probes": probes}

    return Objective(draw, loss, coupled=True)


def _targets(rows: Batch, of: str) -> dict[str, Tensor]:
    """The probes' labels of "picture", "text" or "wrong" among the rows, by attribute."""
    return {name.removeprefix(f"{of}."): value for name, value in rows.items() if name.startswith(f"{of}.")}


@torch.no_grad()
def validate(
    clip: CLIP, tokenizer: Tokenizer, held_out: Pictures, count: int = RETRIEVAL_PAIRS
) -> tuple[Image.Image, dict[str, float]]:
    """Retrieval accuracy among `count` held-out pairs; with probes, the share of hard negatives that are less similar
    than the true caption, and the probes' accuracy on both embeddings; of scenes with things, the accuracy of naming
    them.

    The picture has a row for each of eight captions: the caption, the true picture, then those most similar to it.
    """
    count = min(count, len(held_out))
    examples = validation_examples(held_out, count, np.random.default_rng(0))
    captions = examples.captions
    device, starts = clip.logit_scale.device, range(0, count, ENCODING_BATCH)
    batches = (held_out.clip_inputs(range(i, min(i + ENCODING_BATCH, count))) for i in starts)
    image = torch.cat([clip.vision(pixels.to(device)) for pixels in batches])
    text = _text_embeds(clip, tokenizer, captions)
    images, texts = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    similarity, truth = images @ texts.T, torch.arange(count, device=device)
    measured = {
        "image_to_text": float((similarity.argmax(1) == truth).float().mean()),
        "text_to_image": float((similarity.argmax(0) == truth).float().mean()),
    }
    if clip.probes is not None:
        wrongs = _text_embeds(clip, tokenizer, examples.negatives)
        correct = (images * texts).sum(-1) > (images * F.normalize(wrongs, dim=-1)).sum(-1)
        measured["hard"] = float(correct.float().mean())
        for name, embeds, labels in (
            ("image", image, examples.picture_labels),
            ("text", text, examples.caption_labels),
        ):
            rates = clip.probes.accuracy(embeds, move_batch(labels, device))
            measured.update({f"{name}_{attribute}": rate for attribute, rate in rates.items()})
    if isinstance(held_out, Mixture):
        measured |= _naming_accuracy(clip, tokenizer, held_out, image)
    pictures = held_out.pictures(range(count))
    nearest = nearest_images(text[:8].cpu(), image.cpu(), pictures, columns=min(7, count))
    return side_by_side(captioned_column(captions[:8], pictures[:8]), nearest), measured


def _naming_accuracy(clip: CLIP, tokenizer: Tokenizer, held_out: Mixture, image: Tensor) -> dict[str, float]:
    """Zero-shot classification of pictures of one kind of thing by the English names of all things: top-1 and top-5
    accuracy, "named_1" and "named_5"; empty if no picture shows things of one kind. `image` [N, D] are the embeddings
    of the first pictures."""
    scenes = [held_out.scene(i) for i in range(len(image))]
    labels = {
        row: held_out.things.number(scene.things[0])
        for row, scene in enumerate(scenes)
        if isinstance(scene, ThingScene) and scene.relation is None
    }
    if not labels:
        return {}
    names = F.normalize(_text_embeds(clip, tokenizer, [thing.name for thing in held_out.things.things]), dim=-1)
    predicted = (F.normalize(image[[*labels]], dim=-1) @ names.T).topk(5).indices.cpu()
    correct = predicted == torch.tensor([*labels.values()])[:, None]
    return {"named_1": float(correct[:, 0].float().mean()), "named_5": float(correct.any(1).float().mean())}


def _text_embeds(clip: CLIP, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """Text embeddings [N, D] of captions."""
    parts = (tokenizer(captions[i : i + ENCODING_BATCH]).trimmed().ids for i in range(0, len(captions), ENCODING_BATCH))
    return torch.cat([clip.text(ids.to(clip.logit_scale.device)).embed for ids in parts])


def sample_grid(network: CLIP, tokenizer: Tokenizer, held_out: Pictures, recipe: Recipe) -> SampleGrid:
    """`validate` of the averaged weights, and the loss on a fixed batch of held-out pairs."""
    configs, probed, things = (network.vision.config, network.text.config), network.probes is not None, network.things
    device = network.logit_scale.device

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        averaged = network_with(lambda: CLIP(*configs, probed=probed, things=things), weights, device)
        validation = objective(
            averaged, tokenizer, [held_out], replace(recipe, batch=min(recipe.batch, VALIDATION_PAIRS))
        )
        with torch.no_grad():
            contrast, _ = validation.loss(move_batch(validation.draw(0), device))
        picture, measured = validate(averaged, tokenizer, held_out)
        return picture, Validation(float(contrast.mean()), measured)

    return draw

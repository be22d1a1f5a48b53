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

from kandinsky22.compositions import caption, perturb
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.loop import Batch, Objective, Recipe, move_batch, step_generator
from kandinsky22.training.probes import Probes, labels
from kandinsky22.training.sample_grid import SampleGrid, image_grid, nearest_images, network_with, side_by_side

MAX_SCALE = 60.0  # of the logits
PROBE_WEIGHT = 2.0
VALIDATION_PAIRS, RETRIEVAL_PAIRS, ENCODING_BATCH = (
    64,
    512,
    128,
)  # for the validation loss, for retrieval, encoded together


class CLIP(nn.Module):
    """Both towers, the temperature, and with `probed` (pictures of the world) linear probes, which are trained with
    them."""

    def __init__(self, vision: CLIPVisionConfig, text: CLIPTextConfig, *, probed: bool = True) -> None:
        super().__init__()
        self.vision, self.text = CLIPVision(vision), CLIPText(text)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(10.0)))  # FSDP takes no scalar
        self.probes = Probes(vision.projection_dim) if probed else None


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
        captions, wrong, targets = data.captions(indices, rng), [], {}
        if clip.probes is not None and isinstance(data, Compositions):
            scenes = [data.scene(int(i)) for i in indices]
            others = [perturb(scene, rng) for scene in scenes[:hard]]
            wrong = [caption(scene, rng, whole=True) for scene in others]
            targets = {f"picture.{name}": value for name, value in labels(scenes).items()}
            targets |= {f"text.{name}": value for name, value in labels(scenes, captions).items()}
            targets |= {f"wrong.{name}": value for name, value in labels(others, wrong).items()}
        ids = tokenizer(captions + wrong).trimmed().ids
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions + wrong))}
        caption_ids = torch.tensor([numbers[text] for text in captions + wrong])
        rows = {
            "pixels": data.clip_inputs(indices),
            "row": torch.arange(len(captions)),
            "picture": torch.from_numpy(indices),
            "ids": ids[: len(captions)],
            "caption": caption_ids[: len(captions)],
        }
        if wrong:
            rows |= {"wrong_ids": ids[len(captions) :], "wrong_caption": caption_ids[len(captions) :]}
        return {**rows, **targets}

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
    """Retrieval accuracy among `count` held-out pairs, and with probes, the share of hard negatives that are less
    similar than the true caption, and the probes' accuracy on both embeddings.

    The picture has a row for each of eight captions: the true picture, then those most similar to the caption.
    """
    rng, count = np.random.default_rng(0), min(count, len(held_out))
    scenes = [held_out.scene(i) for i in range(count)] if isinstance(held_out, Compositions) else []
    captions = [caption(scene, rng, whole=True) for scene in scenes] or held_out.captions(np.arange(count), rng)
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
        wrongs = _text_embeds(clip, tokenizer, [caption(perturb(scene, rng), rng, whole=True) for scene in scenes])
        correct = (images * texts).sum(-1) > (images * F.normalize(wrongs, dim=-1)).sum(-1)
        measured["hard"] = float(correct.float().mean())
        for name, embeds, stated in (("image", image, None), ("text", text, captions)):
            rates = clip.probes.accuracy(embeds, move_batch(labels(scenes, stated), device))
            measured.update({f"{name}_{attribute}": rate for attribute, rate in rates.items()})
    nearest = nearest_images(text[:8].cpu(), image.cpu(), held_out.pictures(range(count)), columns=min(7, count))
    return side_by_side(image_grid([*held_out.pictures(range(min(8, count)))], 1), nearest), measured


def _text_embeds(clip: CLIP, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """Text embeddings [N, D] of captions."""
    parts = (tokenizer(captions[i : i + ENCODING_BATCH]).trimmed().ids for i in range(0, len(captions), ENCODING_BATCH))
    return torch.cat([clip.text(ids.to(clip.logit_scale.device)).embed for ids in parts])


def sample_grid(network: CLIP, tokenizer: Tokenizer, held_out: Pictures, recipe: Recipe) -> SampleGrid:
    """`validate` of the averaged weights, and the loss on a fixed batch of held-out pairs."""
    configs, probed = (network.vision.config, network.text.config), network.probes is not None
    device = network.logit_scale.device

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        averaged = network_with(lambda: CLIP(*configs, probed=probed), weights, device)
        validation = objective(
            averaged, tokenizer, [held_out], replace(recipe, batch=min(recipe.batch, VALIDATION_PAIRS))
        )
        with torch.no_grad():
            contrast, _ = validation.loss(move_batch(validation.draw(0), device))
        picture, measured = validate(averaged, tokenizer, held_out)
        return picture, {"validation": float(contrast.mean()), **measured}

    return draw

"""What each network's training is made of, without pictures or weights: what `plan` counts."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText, CLIPVision
from kandinsky22.models.movq import MAX_UNTILED_PIXELS, MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet
from kandinsky22.training import clip, decoder, movq, prior
from kandinsky22.training.loop import Batch
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.plan import FLOAT32, Loss, Plan, planned, reached, table
from kandinsky22.training.precompute import HELD_OUT
from kandinsky22.training.preprocess_cost import Aside, Before, Once, aside
from kandinsky22.training.recipes import PAINTERS, ModelRecipe
from kandinsky22.training.run import EVERY
from kandinsky22.training.shards import BATCH

GPU = "H100 SXM"
MILLION = 1_000_000  # pictures, where it is not known how many there are
HALF = 2  # bytes, of what is kept in float16


def say_plan(
    recipe: ModelRecipe,
    network: str,
    steps: int | None,
    processes: int,
    device: str,
    *,
    every: int = EVERY,
    pictures: int | None = None,
) -> None:
    """Print what memory and time the training of a network takes. Raises `ValueError` for a device that is not known."""
    device = device or GPU
    run = recipe.runs.get(network)
    rate, single = reached(device, bfloat16=run is None or run.bfloat16), reached(device, bfloat16=False)
    plan = plan_of(recipe, network, steps, processes, every=every, pictures=pictures)
    print("\n".join(table(plan, rate, device, single)))


def plan_of(
    recipe: ModelRecipe,
    network: str,
    steps: int | None,
    processes: int,
    *,
    every: int = EVERY,
    pictures: int | None = None,
) -> Plan:
    """The plan of a network's training, with a sheet every so many steps. `pictures` is how many of a person's own there are;
    without it, those of the world, or where the recipe is not of the world, a million. Raises `ValueError` for the linear
    prior, which takes one pass over embeddings."""
    if network == "linear-prior":
        raise ValueError(
            "the linear prior is fitted in closed form: one pass over the captions, and no memory to speak of"
        )
    parts = PARTS["decoder" if network in PAINTERS else network.removesuffix("-decoder")](recipe, network)
    run, steps = recipe.runs[network], steps or recipe.steps[network]
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants of modules have numbers
        sheet = parts.sheet()
        before = computed_before(recipe, network, pictures)
    return planned(
        parts.made,
        parts.loss,
        parts.rows,
        run,
        steps,
        processes=processes,
        frozen=parts.frozen,
        sheet=sheet,
        sheets=ceil(steps / every),
        before=before,
    )


def at_once(pictures: int, side: int) -> int:
    """How many of these pictures MoVQ computes together; one after the other does the same to each, so one tells all."""
    return pictures if side**2 <= MAX_UNTILED_PIXELS else 1


class Parts(NamedTuple):
    """What learns, what it learns, rows of it, bytes of frozen networks that the loss uses, and what a sheet takes."""

    made: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Loss]
    rows: Callable[[int], Batch]
    frozen: int
    sheet: Callable[[], Aside]


def computed_before(recipe: ModelRecipe, network: str, pictures: int | None) -> Before | None:
    """Latents and embeddings, which a network learns from in the place of pictures; where tensors have no numbers. A network
    that estimates depth is not known here."""
    if network not in (*PAINTERS, "prior"):
        return None
    squares, others = (pictures, 0) if pictures is not None else (MILLION, 0)
    if pictures is None and recipe.pictures:
        squares, others = recipe.pictures + HELD_OUT, len(recipe.shapes) * recipe.stretched
    quick, side, seen = recipe.runs[network].bfloat16, recipe.side, recipe.vision.image_size
    tower = CLIPVision(recipe.vision).requires_grad_(False)
    embedding = aside(lambda: tower(torch.zeros(BATCH, 3, seen, seen)), bfloat16=quick)
    embeds = Once("embeddings", squares, embedding.operations // BATCH, HALF * recipe.prior.embedding_dim)
    if network == "prior":
        return Before(embedding.with_weights(tower).memory, (embeds,))
    coder, cells = MoVQ(recipe.movq).requires_grad_(False), (side // recipe.movq.factor) ** 2
    some = at_once(BATCH, side)
    encoding = aside(lambda: coder.encode(torch.zeros(some, 3, side, side)), bfloat16=quick)
    encoding = encoding._replace(memory=encoding.memory + (BATCH - some) * 3 * side**2 * FLOAT32)
    latents = Once("latents", squares + others, encoding.operations // some, HALF * recipe.movq.latent_channels * cells)
    return Before(encoding.then(embedding).with_weights(tower, coder).memory, (latents, embeds))


def _painter(recipe: ModelRecipe, network: str) -> Parts:
    latent, cells = recipe.movq.latent_channels, recipe.side // recipe.movq.factor
    config = recipe.unet
    if network == "inpaint":
        config = replace(config, in_channels=2 * latent + 1)
    elif network == "controlnet":
        config = replace(config, in_channels=2 * latent, addition_embed_type="image_hint")
    schedule, run = NoiseSchedule.from_config(recipe.decoder_scheduler), recipe.runs[network]

    def loss(unet: nn.Module) -> Loss:
        assert isinstance(unet, UNet)
        bucket = decoder.Bucket(torch.zeros(1, latent, cells, cells), torch.zeros(1, config.encoder_hid_dim))
        return decoder.objective(unet, schedule, [bucket], torch.zeros(1, config.encoder_hid_dim), run).loss

    def rows(n: int) -> Batch:
        x = torch.zeros(n, latent, cells, cells)
        made = {
            "x0": x,
            "embeds": torch.zeros(n, config.encoder_hid_dim),
            "t": torch.zeros(n, dtype=torch.long),
            "noise": x.clone(),
        }
        if network == "inpaint":
            made["masked"] = torch.zeros(n, latent + 1, cells, cells)
        elif network == "controlnet":
            made["hint"] = torch.zeros(n, 3, recipe.side, recipe.side)
        return made

    def sheet() -> Aside:
        unet, coder = UNet(config).requires_grad_(False), MoVQ(recipe.movq).requires_grad_(False)
        seen, guided_rows = (
            rows(2 * decoder.PAINTED),
            torch.arange(decoder.PAINTED),
        )  # guided, so each state is answered twice
        more = {name: seen[name] for name in decoder.BESIDE if name in seen}
        told = aside(lambda: unet.condition(seen["embeds"], **more))
        step = aside(
            lambda: unet(seen["x0"][guided_rows], seen["t"], unet.condition(seen["embeds"], **more), guided_rows)
        )
        steps = Aside(step.memory, step.operations + (decoder.STEPS - 1) * (step.operations - told.operations))
        decoded = aside(lambda: coder.decode(seen["x0"][:1]))
        looked = decoder.looked_at(run)
        validation = aside(lambda: loss(unet)(rows(looked.batch)))
        shown = 3 if network == "inpaint" else 2
        return (
            validation.times(decoder.VALIDATION)
            .then(steps.times(decoder.SHOWN / decoder.PAINTED), decoded.times(shown * decoder.SHOWN))
            .with_weights(unet, coder)
        )

    return Parts(lambda: UNet(config), loss, rows, 0, sheet)


def _prior(recipe: ModelRecipe, network: str) -> Parts:
    text = recipe.text_config(recipe.vocabulary)
    schedule, run = NoiseSchedule.from_config(recipe.prior_scheduler), recipe.runs[network]
    dim, length = recipe.prior.embedding_dim, recipe.text_length

    def loss(network: nn.Module) -> Loss:
        assert isinstance(network, PriorTransformer)
        tower = CLIPText(text).requires_grad_(False)
        told = prior.Told(torch.zeros(1, dim), lambda indices, rng: [""])
        return prior.objective(network, tower, None, schedule, [told], run).loss  # type: ignore[arg-type]  # draws nothing

    def rows(n: int) -> Batch:
        ids, mask = torch.zeros(n, length, dtype=torch.long), torch.ones(n, length, dtype=torch.bool)
        x = torch.zeros(n, dim)
        return {"x0": x, "ids": ids, "mask": mask, "t": torch.zeros(n, dtype=torch.long), "noise": x.clone()}

    def sheet() -> Aside:
        network, seen = PriorTransformer(recipe.prior).requires_grad_(False), rows(prior.SAMPLED)
        tower = CLIPText(text).requires_grad_(False)
        told = aside(lambda: prior.prefix(network, tower, seen["ids"], seen["mask"]))
        step = aside(lambda: network(seen["x0"], seen["t"], prior.prefix(network, tower, seen["ids"], seen["mask"])))
        steps = Aside(step.memory, step.operations + (prior.STEPS - 1) * (step.operations - told.operations))
        validation = aside(lambda: loss(network)(rows(decoder.looked_at(run).batch)))
        return validation.times(decoder.VALIDATION).then(steps).with_weights(network)

    return Parts(lambda: PriorTransformer(recipe.prior), loss, rows, _bytes(lambda: CLIPText(text)), sheet)


def _movq(recipe: ModelRecipe, network: str) -> Parts:
    run, terms = recipe.runs[network], recipe.terms
    cells = recipe.crop // recipe.movq.factor

    def loss(both: nn.Module) -> Loss:
        assert isinstance(both, movq.Autoencoder)
        perceived = Perceptual(CLIPVision(recipe.vision), recipe.image_processor) if terms.perceptual else None
        return movq.objective(both, [], run, recipe.crop, lambda: run.batch, perceived).loss

    def rows(n: int) -> Batch:
        noise = torch.zeros(n, recipe.movq.vq_embed_dim, cells, cells)
        return {
            "picture": torch.zeros(n, 3, recipe.crop, recipe.crop),
            "noise": noise,
            "step": torch.tensor(
                [recipe.terms.adversarial_from]
            ),  # of all rows: of a single number torch keeps the value
        }

    frozen = _bytes(lambda: CLIPVision(recipe.vision)) if terms.perceptual else 0

    def made() -> movq.Autoencoder:
        both = movq.Autoencoder(MoVQ(recipe.movq), terms)
        if network == "movq-decoder":
            both.movq.encoder.requires_grad_(False)
            both.movq.quant_conv.requires_grad_(False)
        return both

    def sheet() -> Aside:
        both = made().requires_grad_(False)
        coder = both.movq

        some, cells = at_once(movq.AT_ONCE, recipe.side), recipe.side // recipe.movq.factor
        encoded = aside(lambda: coder.encode(torch.zeros(some, 3, recipe.side, recipe.side)))
        quantised = aside(lambda: coder.quantize(torch.zeros(movq.AT_ONCE, recipe.movq.vq_embed_dim, cells, cells)))
        decoded = aside(lambda: coder.decode(torch.zeros(some, recipe.movq.vq_embed_dim, cells, cells)))
        coded = encoded.then(decoded).times(movq.GIVEN_BACK / some)
        return coded.then(quantised.times(movq.GIVEN_BACK / movq.AT_ONCE)).with_weights(both)

    return Parts(made, loss, rows, frozen, sheet)


def _clip(recipe: ModelRecipe, network: str) -> Parts:
    text, side = recipe.text_config(recipe.vocabulary), recipe.vision.image_size

    def loss(both: nn.Module) -> Loss:
        assert isinstance(both, clip.CLIP)
        return clip.objective(both, None, [], recipe.runs[network]).loss  # type: ignore[arg-type]  # draws nothing

    def rows(n: int) -> Batch:
        ids = torch.zeros(n, recipe.text_length, dtype=torch.long)
        return {
            "seen": torch.zeros(n, 3, side, side),
            "row": torch.arange(n),
            "picture": torch.arange(n),
            "ids": ids,
            "means": torch.arange(n),
        }

    def made() -> clip.CLIP:
        return clip.CLIP(recipe.vision, text, probed=False)

    def sheet() -> Aside:
        both = made().requires_grad_(False)
        ids = torch.zeros(clip.AT_ONCE, recipe.text_length, dtype=torch.long)
        compared = aside(lambda: (both.vision(torch.zeros(clip.AT_ONCE, 3, side, side)), both.text(ids)))
        validation = aside(lambda: loss(both)(rows(min(recipe.runs[network].batch, clip.LOOKED_AT))))
        return validation.then(compared.times(clip.COMPARED / clip.AT_ONCE)).with_weights(both)

    return Parts(made, loss, rows, 0, sheet)


PARTS: dict[str, Callable[[ModelRecipe, str], Parts]] = {
    "decoder": _painter,
    "prior": _prior,
    "movq": _movq,
    "clip": _clip,
}


def _bytes(network: Callable[[], nn.Module]) -> int:
    """Of a network's weights in float32."""
    with torch.device("meta"):
        return sum(value.numel() * value.itemsize for value in network().state_dict().values())

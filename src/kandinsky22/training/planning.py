"""What each network's training is made of, without pictures or weights: what `plan` counts."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText, CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet
from kandinsky22.training import clip, decoder, movq, prior
from kandinsky22.training.loop import Batch
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.plan import Loss, Plan, planned, reached, table
from kandinsky22.training.recipes import PAINTERS, ModelRecipe

GPU = "H100 SXM"


def say_plan(recipe: ModelRecipe, network: str, steps: int | None, processes: int, device: str) -> None:
    """Print what memory and time the training of a network takes. Raises `ValueError` for a device that is not known."""
    device = device or GPU
    rate = reached(device, bfloat16=recipe.runs[network].bfloat16 if network in recipe.runs else True)
    print("\n".join(table(plan_of(recipe, network, steps, processes), rate, device)))


def plan_of(recipe: ModelRecipe, network: str, steps: int | None, processes: int) -> Plan:
    """The plan of a network's training. Raises `ValueError` for the linear prior, which takes one pass over embeddings."""
    if network == "linear-prior":
        raise ValueError(
            "the linear prior is fitted in closed form: one pass over the captions, and no memory to speak of"
        )
    parts = PARTS["decoder" if network in PAINTERS else network.removesuffix("-decoder")]
    made, loss, rows, frozen = parts(recipe, network)
    run = recipe.runs[network]
    return planned(made, loss, rows, run, steps or recipe.steps[network], processes=processes, frozen=frozen)


Parts = tuple[Callable[[], nn.Module], Callable[[nn.Module], Loss], Callable[[int], Batch], int]
"""What learns, what it learns, rows of it, and bytes that do not learn: of frozen networks, and of the copy that draws sheets."""


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

    sheet = _bytes(lambda: UNet(config)) + _bytes(lambda: MoVQ(recipe.movq))
    return lambda: UNet(config), loss, rows, sheet


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

    frozen = _bytes(lambda: CLIPText(text)) + _bytes(lambda: PriorTransformer(recipe.prior))
    return lambda: PriorTransformer(recipe.prior), loss, rows, frozen


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

    def made() -> nn.Module:
        both = movq.Autoencoder(MoVQ(recipe.movq), terms)
        if network == "movq-decoder":
            both.movq.encoder.requires_grad_(False)
            both.movq.quant_conv.requires_grad_(False)
        return both

    return made, loss, rows, frozen + _bytes(made)


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

    def made() -> nn.Module:
        return clip.CLIP(recipe.vision, text, probed=False)

    return made, loss, rows, _bytes(made)


PARTS: dict[str, Callable[[ModelRecipe, str], Parts]] = {
    "decoder": _painter, "prior": _prior, "movq": _movq, "clip": _clip,
}  # fmt: skip


def _bytes(network: Callable[[], nn.Module]) -> int:
    """Of a network's weights in float32."""
    with torch.device("meta"):
        return sum(value.numel() * value.itemsize for value in network().state_dict().values())

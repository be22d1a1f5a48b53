"""MoVQ's objective: give back the picture, in brightness, hue and edges, at several scales.

Kandinsky 2.2 decodes latents that were never quantised, so the latents are continuous here too: kept small, and decoded
with a little noise, so that the U-Net's small errors stay small in the picture. The codebook is fitted afterwards.
`Terms` asks for more: latents that are quantised while they are learnt (van den Oord et al. 2017, arXiv:1711.00937), and
pictures that look right to another network and pass for real (Esser et al. 2021, arXiv:2012.09841), as MoVQ's own were.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.movq import Attention, MoVQ, ResnetBlock, SpatialNorm
from kandinsky22.training import adversary
from kandinsky22.training.data import Pictures
from kandinsky22.training.loop import Batch, Objective, Recipe, generator
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.run import Sheet, grid, stand_in

EDGE_WEIGHT = 0.4
PYRAMID = 3  # halvings at which the difference is looked at again
CHROMA = 3.0  # plain RGB differences teach brightness first and hue last
GIVEN_BACK, AT_ONCE = 64, 8  # pictures of a sheet, and how many of them together
CELLS_AT_ONCE = 4096  # compared with all codes together

# ITU-R BT.601: brightness and the two colour differences, the latter weighted
YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
YCC_WEIGHTS = ((1.0,), (CHROMA,), (CHROMA,))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What counts beside the reconstruction, whose weight is 1. As it is, the recipe of the box: nothing more.

    Latents are either continuous, with noise of `latent_noise` (in units of the latents' own deviation) before decoding
    and their mean square weighted by `latent_weight`, or `quantised`, with the encoder's distance from its codes weighted by
    `commitment`. The adversarial term counts, and its network learns, from step `adversarial_from` on.

    The authors' code for a MoVQ of this size (ai-forever/MoVQGAN, `configs/movqgan_67M.yaml` and the loss it names) has squared
    errors of pixels, a perceptual and an adversarial term of 0.1 each, the latter from step 1 with 2 layers, and commitment as
    here. The width and the 3 layers are PatchGAN's; the other values, and what the reconstruction is, are ours.
    """

    latent_noise: float = 0.05
    latent_weight: float = 1e-3
    quantised: bool = False
    commitment: float = 0.25
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_from: int = 0
    discriminator_width: int = 64
    discriminator_layers: int = 3


class Autoencoder(nn.Module):
    """What is trained: MoVQ, and beside it the discriminator, where the terms have an adversarial one."""

    def __init__(self, movq: MoVQ, terms: Terms | None = None) -> None:
        super().__init__()
        self.movq, self.terms = movq, terms or Terms()
        shape = self.terms.discriminator_width, self.terms.discriminator_layers
        self.discriminator = adversary.Discriminator(*shape) if self.terms.adversarial else None


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Pictures [n, 3, H, W] and what they should be -> [n], float32: the mean absolute difference in weighted YCbCr, of its
    edges, and of its averages over squares."""
    difference = decoded.float() - pictures
    # not as a matrix product: that would be one of bfloat16
    ycc = torch.tensor(YCC) * torch.tensor(YCC_WEIGHTS)
    difference = (ycc.to(decoded.device)[:, :, None, None] * difference[:, None]).sum(2)
    loss = _size(difference) + EDGE_WEIGHT * (_size(difference.diff(dim=-1)) + _size(difference.diff(dim=-2)))
    for _ in range(PYRAMID):
        difference = F.avg_pool2d(difference, 2)
        loss = loss + _size(difference)
    return loss


def code_loss(z: Tensor, codes: Tensor, commitment: float) -> Tensor:
    """Latents and their nearest codes, [n, C, h, w] each -> [n]: the codes move to the latents, and the latents, as far as
    `commitment` says, to the codes (VQ-VAE, equation 3)."""
    return _square(z.detach() - codes) + commitment * _square(z - codes.detach())


def objective(
    network: Autoencoder,
    sets: Sequence[Pictures],
    recipe: Recipe,
    crop: int,
    whole_from: Callable[[], int],
    perceptual: Perceptual | None = None,
) -> Objective:
    """Reconstruction of squares of `crop` pixels cut from the pictures of a set, which each step chooses anew: the network is
    convolutional but for its middle, so small squares teach it most for their cost. From step `whole_from` on it sees
    whole pictures, as many pixels a step as before, for the middle's sake.

    Raises `ValueError` where the network's terms ask for `perceptual` and it is not given, or the other way round.
    """
    movq, terms = network.movq, network.terms
    if (terms.perceptual > 0) != (perceptual is not None):
        raise ValueError(
            f"a perceptual term of weight {terms.perceptual:g} and what measures it go together; give both"
        )
    shares = torch.tensor([pictures.share for pictures in sets])

    def draw(step: int) -> Batch:
        numbers = generator(recipe.seed, step)
        chosen = sets[int(torch.multinomial(shares, 1, generator=numbers))] if len(sets) > 1 else sets[0]
        square = min(crop, *chosen.size)
        cut = step < whole_from()
        height, width = (square, square) if cut else chosen.size
        batch = max(1, recipe.batch * crop**2 // (height * width))
        indices = torch.randint(len(chosen), (batch,), generator=numbers)
        if cut:
            room = (side - square + 1 for side in chosen.size)
            corners = torch.stack([torch.randint(places, (batch,), generator=numbers) for places in room], dim=1)
            pictures = chosen.crops(indices.numpy(), corners.numpy(), square)
        else:
            pictures = chosen.pictures(indices.numpy())
        factor, channels = movq.config.factor, movq.config.vq_embed_dim
        noise = torch.randn(batch, channels, height // factor, width // factor, generator=numbers)
        return {"picture": pictures, "noise": noise, "step": torch.full((batch,), step)}

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = rows["picture"]
        z = movq.encode(pictures).float()
        if terms.quantised:
            seen, indices = movq.quantize(z)
            latent = code_loss(z, movq.quantize.embedding(indices).movedim(-1, 1), terms.commitment)
        else:
            seen = z + terms.latent_noise * rows["noise"]
            latent = terms.latent_weight * _square(z)
        decoded = movq.decode(seen).float()
        measured = {"reconstruction": reconstruction_loss(decoded, pictures)}
        total = measured["reconstruction"] + latent
        if perceptual is not None:
            measured["perceptual"] = perceptual(decoded, pictures)
            total = total + terms.perceptual * measured["perceptual"]
        counts = rows["step"] >= terms.adversarial_from
        if network.discriminator is not None and counts.any():
            deceiving, telling = adversary.losses(network.discriminator, decoded, pictures)
            measured |= {"adversarial": counts * deceiving, "discriminator": counts * telling}
            # One weight for both: Adam does not mind, and the discriminator's gradient gets less say in the clipping.
            total = total + terms.adversarial * counts * (deceiving + telling)
        return total, measured

    return Objective(draw, loss)


@torch.no_grad()
def initialise(movq: MoVQ, pictures: Tensor, *, quantised: bool = False) -> None:
    """Start where learning is quick: spatial norms as plain ones, residual blocks as their shortcut, latents of unit
    deviation on `pictures` [N, 3, H, W] (the default ones are a hundred times smaller than the noise added to them).

    `quantised`: the codes, too, start among the latents; near zero, where they are drawn, few would ever be the nearest.
    """
    for module in movq.modules():
        if isinstance(module, SpatialNorm):
            nn.init.normal_(module.conv_y.weight, std=0.02)
            nn.init.ones_(module.conv_y.bias)  # type: ignore[arg-type]  # the convolution has a bias
            nn.init.normal_(module.conv_b.weight, std=0.02)
            nn.init.zeros_(module.conv_b.bias)  # type: ignore[arg-type]  # likewise
        elif isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)  # type: ignore[arg-type]  # a linear layer
    _whiten(movq, movq.encode(pictures))
    if quantised:
        fit_codebook(movq.quantize.embedding, movq.encode(pictures))


def encoder_fingerprint(movq: MoVQ) -> str:
    """Twelve letters that tell the space of the latents: a hash of all that encodes."""
    digest = hashlib.sha256()
    for part in (movq.encoder, movq.quant_conv):
        for value in part.state_dict().values():
            digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:12]


def psnr(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture [B, 3, H, W] in [-1, 1]."""
    return -10 * torch.log10(((decoded.clamp(-1, 1) - pictures) / 2).square().mean(dim=(1, 2, 3)))


@torch.no_grad()
def standardise(movq: MoVQ, latents: Tensor) -> None:
    """Give the latents zero mean and unit deviation in every channel, as measured on `latents` [N, 4, h, w], by changing
    the 1x1 convolutions around them. Decoding gives the same pictures as before."""
    mean, std = _whiten(movq, latents)
    readers = [movq.post_quant_conv]
    for module in movq.modules():
        if isinstance(module, SpatialNorm):
            readers += [module.conv_y, module.conv_b]
    for conv in readers:
        conv.bias.add_(conv.weight[:, :, 0, 0] @ mean)  # type: ignore[union-attr]
        conv.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def fit_codebook(codes: nn.Embedding, latents: Tensor, rounds: int = 20, seed: int = 0) -> float:
    """k-means of the latents' cells [N, 4, h, w] into `codes`, of which some stay alike where there are fewer cells; returns
    the share of codes in use."""
    cells = latents.movedim(1, -1).flatten(0, 2)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(cells), generator=draw).repeat(-(-codes.num_embeddings // len(cells)))
    centres = cells[chosen[: codes.num_embeddings]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(some, centres).argmin(dim=1) for some in cells.split(CELLS_AT_ONCE)])
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, cells)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
    codes.weight.copy_(centres)
    return float(used.float().mean())


def _whiten(movq: MoVQ, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Make `encode` give these latents with zero mean and unit deviation; returns what they were, [4] each."""
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    movq.quant_conv.weight.div_(std[:, None, None, None])
    movq.quant_conv.bias.sub_(mean).div_(std)  # type: ignore[union-attr]  # the convolution has a bias
    return mean, std


def codes_in_use(indices: Tensor, codes: int) -> dict[str, float]:
    """Which of `codes` codes the cells chose, int64 of any shape -> the share that any chose, and the perplexity: how many
    codes, chosen equally often, would tell as much; from 1 to `codes`."""
    counts = torch.bincount(indices.flatten(), minlength=codes)
    entropy = torch.special.entr(counts / counts.sum()).sum()
    return {"codes_used": float((counts > 0).float().mean()), "perplexity": float(entropy.exp())}


def sheet(network: Autoencoder, held_out: Pictures, count: int = GIVEN_BACK) -> Sheet:
    """Unseen pictures above what comes back of them; the mean reconstruction loss, "validation", and the mean PSNR; and of
    a codebook that was fitted or is learnt, which codes are in use. Computed where the network is."""
    config, terms = network.movq.config, network.terms
    pictures = held_out.pictures(range(min(count, len(held_out))))

    @torch.no_grad()
    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        device = next(network.parameters()).device
        copy = stand_in(lambda: Autoencoder(MoVQ(config), terms), weights, device)
        codebook = copy.movq.quantize.embedding
        decoded, indices = [], []
        for some in pictures.to(device).split(AT_ONCE):
            z = copy.movq.encode(some)
            codes, chosen = copy.movq.quantize(z)
            decoded.append(copy.movq.decode(codes if terms.quantised else z).cpu())
            indices.append(chosen.cpu())
        back = torch.cat(decoded)
        measured = {
            "validation": float(reconstruction_loss(back, pictures).mean()),
            "psnr": float(psnr(back, pictures).mean()),
        }
        if codebook.weight.abs().max() > 1 / codebook.num_embeddings:  # no longer as it was drawn
            measured |= codes_in_use(torch.cat(indices), codebook.num_embeddings)
        return grid([*pictures[:8], *back[:8]], min(8, len(pictures))), measured

    return draw


def _size(values: Tensor) -> Tensor:
    """The mean absolute value of each row."""
    return values.abs().flatten(1).mean(1)


def _square(values: Tensor) -> Tensor:
    """The mean square of each row."""
    return values.square().flatten(1).mean(1)

"""MoVQ's objective: reconstruct pictures in brightness, hue and edges, at several scales.

Kandinsky 2.2 decodes latents that were never quantised, so by default latents are continuous here too: their size is
penalised, and a little noise is added before decoding, so that small errors of the U-Net cause small errors in the
picture. The codebook is fitted afterwards. `Terms` can ask for the terms that MoVQ itself was trained with: latents
quantised during training (van den Oord et al. 2017, arXiv:1711.00937), and perceptual and adversarial losses (Esser et
al. 2021, arXiv:2012.09841).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.movq import Attention, MoVQ, ResnetBlock, SpatialNorm
from kandinsky22.training.data import Pictures
from kandinsky22.training.discriminator import Discriminator, adversarial_losses
from kandinsky22.training.loop import Batch, Objective, Recipe, step_generator
from kandinsky22.training.metrics import Validation
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.sample_grid import SampleGrid, image_grid, network_with

EDGE_WEIGHT = 0.4
PYRAMID = 3  # halvings of the resolution at which the difference counts too
CHROMA = 3.0  # weight of colour differences: with plain RGB differences hue is learned last
NUM_RECONSTRUCTIONS, ENCODING_BATCH = 32, 8  # pictures of the validation loss, and how many are encoded together
KMEANS_BATCH = 4096  # latent cells compared with all codes at once

# ITU-R BT.601: luma and the two colour differences; the latter are weighted by CHROMA
YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
YCC_WEIGHTS = ((1.0,), (CHROMA,), (CHROMA,))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Weights of the loss terms beside reconstruction, whose weight is 1. The defaults are the recipe of the shipped
    model.

    Latents are either continuous or `quantised`. Continuous latents get noise of `latent_noise` (relative to their
    standard deviation) before decoding, and their mean square has the weight `latent_weight`. Quantised ones have the
    commitment loss with the weight `commitment`. The adversarial term counts, and the discriminator is trained, from
    step `adversarial_from` on.

    The authors' code for a MoVQ of this size (ai-forever/MoVQGAN, `configs/movqgan_67M.yaml` and the loss it names) has
    squared errors of pixels, a perceptual and an adversarial term of weight 0.1 each, the latter from step 1 with 2
    layers, and commitment as here. The width and the 3 layers are PatchGAN's; the other values, and the reconstruction
    term, are ours.
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
    """What is trained: MoVQ, and a discriminator if the terms include an adversarial one."""

    def __init__(self, movq: MoVQ, terms: Terms | None = None) -> None:
        super().__init__()
        self.movq, self.terms = movq, terms or Terms()
        shape = self.terms.discriminator_width, self.terms.discriminator_layers
        self.discriminator = Discriminator(*shape) if self.terms.adversarial else None


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Decoded pictures and originals, [n, 3, H, W] in [-1, 1] -> [n], float32: the mean absolute difference in
    weighted YCbCr, plus that of its gradients and of its averages over squares."""
    difference = decoded.float() - pictures
    # Not a matrix product: autocast would compute that in bfloat16.
    ycc = torch.tensor(YCC) * torch.tensor(YCC_WEIGHTS)
    difference = (ycc.to(decoded.device)[:, :, None, None] * difference[:, None]).sum(2)
    loss = _size(difference) + EDGE_WEIGHT * (_size(difference.diff(dim=-1)) + _size(difference.diff(dim=-2)))
    for _ in range(PYRAMID):
        difference = F.avg_pool2d(difference, 2)
        loss = loss + _size(difference)
    return loss


def code_loss(z: Tensor, codes: Tensor, commitment: float) -> Tensor:
    """Latents and their nearest codes, [n, C, h, w] each -> [n]: the codebook loss, plus the commitment loss
    weighted by `commitment` (VQ-VAE, equation 3)."""
    return _square(z.detach() - codes) + commitment * _square(z - codes.detach())


def objective(
    network: Autoencoder,
    sets: Sequence[Pictures],
    recipe: Recipe,
    crop: int,
    full_size_from: Callable[[], int],
    perceptual: Perceptual | None = None,
) -> Objective:
    """Reconstruction of random crops of `crop` x `crop` pixels; each step takes pictures of one set.

    The network is convolutional except for its middle block's attention, so it learns most per operation from small
    crops. From step `full_size_from()` on, rows are complete pictures with as many pixels a step in total, which trains
    the middle block.

    Raises `ValueError` unless `perceptual` is given exactly if the network's terms have a perceptual one.
    """
    movq, terms = network.movq, network.terms
    if (terms.perceptual > 0) != (perceptual is not None):
        raise ValueError(
            f"a perceptual term of weight {terms.perceptual:g} and its distance go together; pass both or neither"
        )
    shares = torch.tensor([pictures.share for pictures in sets])

    def draw(step: int) -> Batch:
        generator = step_generator(recipe.seed, step)
        pictures = sets[int(torch.multinomial(shares, 1, generator=generator))] if len(sets) > 1 else sets[0]
        square = min(crop, *pictures.size)
        cropped = step < full_size_from()
        height, width = (square, square) if cropped else pictures.size
        batch = max(1, recipe.batch * crop**2 // (height * width))
        indices = torch.randint(len(pictures), (batch,), generator=generator)
        if cropped:
            limits = (side - square + 1 for side in pictures.size)
            corners = torch.stack([torch.randint(limit, (batch,), generator=generator) for limit in limits], dim=1)
            pixels = pictures.crops(indices.numpy(), corners.numpy(), square)
        else:
            pixels = pictures.pictures(indices.numpy())
        factor, channels = movq.config.factor, movq.config.vq_embed_dim
        noise = torch.randn(batch, channels, height // factor, width // factor, generator=generator)
        return {"picture": pixels, "noise": noise, "step": torch.full((batch,), step)}

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = rows["picture"]
        z = movq.encode(pictures).float()
        if terms.quantised:
            decoder_input, indices = movq.quantize(z)
            latent = code_loss(z, movq.quantize.embedding(indices).movedim(-1, 1), terms.commitment)
        else:
            decoder_input = z + terms.latent_noise * rows["noise"]
            latent = terms.latent_weight * _square(z)
        decoded = movq.decode(decoder_input).float()
        measured = {"reconstruction": reconstruction_loss(decoded, pictures)}
        total = measured["reconstruction"] + latent
        if perceptual is not None:
            measured["perceptual"] = perceptual(decoded, pictures)
            total = total + terms.perceptual * measured["perceptual"]
        counts = rows["step"] >= terms.adversarial_from
        if network.discriminator is not None and counts.any():
            generator_loss, discriminator_loss = adversarial_losses(network.discriminator, decoded, pictures)
            measured |= {"adversarial": counts * generator_loss, "discriminator": counts * discriminator_loss}
            # One weight for both: Adam is invariant to it, and the discriminator's gradient counts less in the clipped
            # norm.
            total = total + terms.adversarial * counts * (generator_loss + discriminator_loss)
        return total, measured

    return Objective(draw, loss)


@torch.no_grad()
def initialise(movq: MoVQ, pictures: Tensor, *, quantised: bool = False) -> None:
    """Set initial weights that train quickly: spatial norms act as plain ones, residual blocks as their shortcut, and
    latents have unit deviation on `pictures` [N, 3, H, W] (by default they are a hundred times smaller than the noise
    added to them).

    `quantised`: codes are initialised from latents as well; with their default values near zero, few would ever be the
    nearest.
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
    """Identifies the latent space: twelve hexadecimal digits of a hash of the encoder's weights."""
    digest = hashlib.sha256()
    for part in (movq.encoder, movq.quant_conv):
        for value in part.state_dict().values():
            digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:12]


def psnr(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of the decoded pictures [B, 3, H, W] in [-1, 1], as float32 [B]."""
    return -10 * torch.log10(((decoded.clamp(-1, 1) - pictures) / 2).square().mean(dim=(1, 2, 3)))


@torch.no_grad()
def standardise(movq: MoVQ, latents: Tensor) -> None:
    """Normalise the latents to zero mean and unit deviation in every channel, measured on `latents` [N, 4, h, w], by
    changing the 1x1 convolutions before and after them. Reconstructions stay the same."""
    mean, std = _whiten(movq, latents)
    consumers = [movq.post_quant_conv]
    for module in movq.modules():
        if isinstance(module, SpatialNorm):
            consumers += [module.conv_y, module.conv_b]
    for conv in consumers:
        conv.bias.add_(conv.weight[:, :, 0, 0] @ mean)  # type: ignore[union-attr]
        conv.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def fit_codebook(codes: nn.Embedding, latents: Tensor, rounds: int = 20, seed: int = 0) -> float:
    """Fit `codes` to the cells of latents [N, 4, h, w] by k-means; with fewer cells than codes, some codes stay equal.
    Returns the share of codes in use."""
    cells = latents.movedim(1, -1).flatten(0, 2)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(cells), generator=generator).repeat(-(-codes.num_embeddings // len(cells)))
    centres = cells[order[: codes.num_embeddings]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(dim=1) for part in cells.split(KMEANS_BATCH)])
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, cells)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
    codes.weight.copy_(centres)
    return float(used.float().mean())


def _whiten(movq: MoVQ, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Make `encode` return these latents with zero mean and unit deviation; returns their previous mean and
    deviation, [4] each."""
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    movq.quant_conv.weight.div_(std[:, None, None, None])
    movq.quant_conv.bias.sub_(mean).div_(std)  # type: ignore[union-attr]  # the convolution has a bias
    return mean, std


def codes_in_use(indices: Tensor, codes: int) -> dict[str, float]:
    """The use of a codebook of `codes` codes, from code indices, int64 of any shape: the share of codes that occur,
    and the perplexity, the number of equally frequent codes with the same entropy, from 1 to `codes`."""
    counts = torch.bincount(indices.flatten(), minlength=codes)
    entropy = torch.special.entr(counts / counts.sum()).sum()
    return {"codes_used": float((counts > 0).float().mean()), "perplexity": float(entropy.exp())}


def sample_grid(network: Autoencoder, held_out: Pictures, count: int = NUM_RECONSTRUCTIONS) -> SampleGrid:
    """Validation pictures above their reconstructions. Metrics: the mean reconstruction loss, the mean PSNR, and of a
    codebook that is trained or was fitted, its use. Computed on the network's device."""
    config, terms = network.movq.config, network.terms
    pictures = held_out.pictures(range(min(count, len(held_out))))

    @torch.no_grad()
    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        device = next(network.parameters()).device
        averaged = network_with(lambda: Autoencoder(MoVQ(config), terms), weights, device)
        codebook = averaged.movq.quantize.embedding
        parts, indices = [], []
        for batch in pictures.to(device).split(ENCODING_BATCH):
            z = averaged.movq.encode(batch)
            codes, code_indices = averaged.movq.quantize(z)
            parts.append(averaged.movq.decode(codes if terms.quantised else z).cpu())
            indices.append(code_indices.cpu())
        decoded = torch.cat(parts)
        loss, further = reconstruction_loss(decoded, pictures).mean(), {"psnr": float(psnr(decoded, pictures).mean())}
        if codebook.weight.abs().max() > 1 / codebook.num_embeddings:  # not the initial one
            further |= codes_in_use(torch.cat(indices), codebook.num_embeddings)
        return image_grid([*pictures[:8], *decoded[:8]], min(8, len(pictures))), Validation(float(loss), further)

    return draw


def _size(values: Tensor) -> Tensor:
    """The mean absolute value of each row."""
    return values.abs().flatten(1).mean(1)


def _square(values: Tensor) -> Tensor:
    """The mean square of each row."""
    return values.square().flatten(1).mean(1)

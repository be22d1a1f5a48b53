"""MoVQ's objective: give back the picture, in brightness, hue and edges, at several scales.

Kandinsky 2.2 decodes latents that were never quantised, so the latents are continuous here too: kept small, and decoded
with a little noise, so that the U-Net's small errors stay small in the picture. The codebook is fitted afterwards.
"""

import hashlib

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.movq import Attention, MoVQ, ResnetBlock, SpatialNorm
from kandinsky22.training.data import Compositions
from kandinsky22.training.loop import Objective, Recipe, generator
from kandinsky22.training.run import Sheet, grid

LATENT_NOISE = 0.05  # standard deviation added before decoding, in units of the latents' own
LATENT_WEIGHT = 1e-3
EDGE_WEIGHT = 0.4
PYRAMID = 3  # halvings at which the difference is looked at again
CHROMA = 3.0  # plain RGB differences teach brightness first and hue last

# ITU-R BT.601: brightness and the two colour differences, the latter weighted
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
YCC_WEIGHTED = YCC * torch.tensor([[1.0], [CHROMA], [CHROMA]])


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute difference of [B, 3, H, W] pictures in weighted YCbCr, of its edges, and of its averages."""
    difference = torch.einsum("ij,bjhw->bihw", YCC_WEIGHTED.to(decoded.device), decoded - pictures)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    loss = difference.abs().mean() + EDGE_WEIGHT * edges
    for _ in range(PYRAMID):
        difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.abs().mean()
    return loss


def objective(movq: MoVQ, data: Compositions, recipe: Recipe, crop: int, whole_from: int) -> Objective:
    """Reconstruction of squares of `crop` pixels cut from the pictures in `data`: the network is convolutional but for
    its middle, so small squares teach it most for their cost. From step `whole_from` on it sees whole pictures, as many
    pixels a step as before, for the middle's sake."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = generator(recipe.seed, step)
        size = crop if step < whole_from else data.side
        batch = max(1, recipe.batch * crop**2 // size**2)
        indices = torch.randint(len(data), (batch,), generator=draw)
        corners = torch.randint(data.side - size + 1, (batch, 2), generator=draw)
        pictures = data.crops(indices.numpy(), corners.numpy(), size)
        z = movq.encode(pictures).float()
        decoded = movq.decode(z + LATENT_NOISE * torch.randn(z.shape, generator=draw)).float()
        reconstruction = reconstruction_loss(decoded, pictures)
        return reconstruction + LATENT_WEIGHT * z.square().mean(), {"reconstruction": float(reconstruction.detach())}

    return loss


@torch.no_grad()
def initialise(movq: MoVQ, pictures: Tensor) -> None:
    """Start where learning is quick: spatial norms as plain ones, residual blocks as their shortcut, latents of unit
    deviation on `pictures` [N, 3, H, W] (the default ones are a hundred times smaller than the noise added to them)."""
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
    """k-means of the latents' cells [N, 4, h, w] into `codes`; returns the share of codes in use."""
    cells = latents.movedim(1, -1).flatten(0, 2)
    draw = torch.Generator().manual_seed(seed)
    centres = cells[torch.randperm(len(cells), generator=draw)[: codes.num_embeddings]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(cells, centres).argmin(dim=1)
        counts = torch.bincount(nearest, minlength=len(centres)).clamp(min=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, cells)
        used = torch.bincount(nearest, minlength=len(centres)) > 0
        centres[used] = (sums / counts[:, None])[used]
    codes.weight.copy_(centres)
    return float(used.float().mean())


def _whiten(movq: MoVQ, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Make `encode` give these latents with zero mean and unit deviation; returns what they were, [4] each."""
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    movq.quant_conv.weight.div_(std[:, None, None, None])
    movq.quant_conv.bias.sub_(mean).div_(std)  # type: ignore[union-attr]  # the convolution has a bias
    return mean, std


def sheet(movq: MoVQ, held_out: Compositions, count: int = 64) -> Sheet:
    """Unseen pictures above what comes back of them, and the mean PSNR."""
    copy = MoVQ(movq.config)
    pictures = held_out.pictures(range(min(count, len(held_out))))

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy.load_state_dict(weights)
        with torch.no_grad():
            decoded = copy.decode(copy.encode(pictures))
        return grid([*pictures[:8], *decoded[:8]], 8), {"psnr": float(psnr(decoded, pictures).mean())}

    return draw

"""A network that tells pictures from what an autoencoder gives back of them, and what both learn from it: PatchGAN (Isola
et al. 2017, arXiv:1611.07004) with the hinge loss (Lim and Ye 2017, arXiv:1705.02894).

Both losses may be added and go back through the networks in one pass: each reaches its own network alone.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

GROUPS = 8


class Discriminator(nn.Sequential):
    """Pictures [n, 3, H, W] in [-1, 1] -> logits, above 0 for real, of patches that overlap: [n, 1, H/8 - 2, W/8 - 2] with 3
    layers that halve the sides, which are 32 pixels at least; each logit then sees 70 x 70.

    Channels are normalised within a picture, and not over the batch as in the paper: a row's loss must not depend on the
    other rows. `width` is that of the first layer, a multiple of 4.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        widths = [width * 2**i for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            stride = 2 if after != widths[-1] else 1
            convolution = nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False)
            parts += [convolution, nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


def losses(discriminator: Discriminator, decoded: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What was given back and the pictures, [n, 3, H, W] in [-1, 1] each -> float32 [n] each: what the autoencoder is to
    lower, and what the discriminator is to lower. Their gradients reach `decoded` alone, and the discriminator alone."""
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    deceiving = -_mean(functional_call(discriminator, frozen, (decoded,)))
    telling = hinge(discriminator(pictures), discriminator(decoded.detach()))
    return deceiving, telling


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Logits of real and of made pictures, [n, ...] -> float32 [n]: 0 where all are beyond 1 on their own side."""
    return _mean(F.relu(1 - real.float())) + _mean(F.relu(1 + made.float()))


def _mean(values: Tensor) -> Tensor:
    """Over all but the rows, in float32."""
    return values.float().flatten(1).mean(1)

"""A PatchGAN discriminator (Isola et al. 2017, arXiv:1611.07004) with the hinge loss (Lim and Ye 2017,
arXiv:1705.02894).

The losses of autoencoder and discriminator may be added and differentiated in one backward pass: the gradient of each
reaches its own network alone.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

GROUPS = 8


class Discriminator(nn.Sequential):
    """Pictures [n, 3, H, W] in [-1, 1] -> logits of overlapping patches, above 0 for real ones.

    With 3 layers that halve the sides, logits are [n, 1, H/8 - 2, W/8 - 2], each sees 70 x 70 pixels, and sides are at
    least 32 pixels. Channels are normalised within a picture, and not over the batch as in the paper: a row's loss must
    not depend on the other rows. `width` is the number of channels of the first layer, a multiple of 4.
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


def adversarial_losses(discriminator: Discriminator, decoded: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded and real pictures, [n, 3, H, W] in [-1, 1] each -> the generator's loss and the discriminator's, float32
    [n] each.

    The first has gradients for `decoded` alone, the second for the discriminator alone.
    """
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    generator_loss = -_row_means(functional_call(discriminator, frozen, (decoded,)))
    discriminator_loss = hinge_loss(discriminator(pictures), discriminator(decoded.detach()))
    return generator_loss, discriminator_loss


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logits of real and of decoded pictures, [n, ...] -> float32 [n]: 0 where all are above 1 and below -1,
    respectively."""
    return _row_means(F.relu(1 - real.float())) + _row_means(F.relu(1 + fake.float()))


def _row_means(values: Tensor) -> Tensor:
    """The mean of each row, in float32."""
    return values.float().flatten(1).mean(1)

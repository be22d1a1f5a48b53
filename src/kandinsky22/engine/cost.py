"""An estimate of how long a picture takes: the networks' operations over the measured speed of this device."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.request.sizes import MIN_SIDE

TRIALS, CHANNELS = 5, 384  # of the convolution that is timed, one of the published U-Net's


@dataclass(frozen=True, slots=True)
class Work:
    """Operations (two for each multiplication with addition) of one text, one step of one row, and one picture."""

    text: int
    prior_step: int
    decoder_step: int
    decode: int

    def of_a_picture(self, prior_steps: int, decoder_steps: int) -> int:
        """The operations of one guided picture: two texts, two rows per step."""
        return 2 * self.text + 2 * prior_steps * self.prior_step + 2 * decoder_steps * self.decoder_step + self.decode


class UNetStep(NamedTuple):
    """Operations of one step of one row: of the whole U-Net, and of its first level (where deeper ones are reused)."""

    whole: int
    first: int

    @classmethod
    def of(cls, config: UNetConfig, h: int, w: int) -> "UNetStep":
        """For latents of h x w cells, counted on the meta device."""
        with torch.device("meta"):
            unet, z, t = UNet(config), torch.empty(1, config.in_channels, h, w), torch.empty(1)
            conditioned = unet.condition(torch.empty(1, config.encoder_hid_dim))
            deep = torch.empty(1, config.block_out_channels[1], h, w)
            return cls(
                whole=_counted(lambda: unet(z, t, conditioned)),
                first=_counted(lambda: unet.forward_cached(z, t, conditioned, deep)),
            )


def work(
    text: CLIPTextConfig, prior: PriorConfig, unet: UNetConfig, movq: MoVQConfig, *, height: int, width: int
) -> Work:
    """Count text-to-image at a size, for sides rounded up to multiples of 64. No memory is allocated."""
    height, width = (-(-side // MIN_SIDE) * MIN_SIDE for side in (height, width))
    with torch.device("meta"):
        encoder, transformer, autoencoder = CLIPText(text), PriorTransformer(prior), MoVQ(movq)
        z = torch.empty(1, movq.latent_channels, height // movq.factor, width // movq.factor)
        ids = torch.zeros(1, prior.num_embeddings, dtype=torch.long)
        states, embed = torch.empty(1, prior.num_embeddings, prior.embedding_dim), torch.empty(1, prior.embedding_dim)
        t, mask = torch.empty(1), torch.ones(1, prior.num_embeddings, dtype=torch.bool)
        prefix = transformer.prefill(states, embed, mask)
        return Work(
            text=_counted(lambda: encoder(ids)) + _counted(lambda: transformer.prefill(states, embed, mask)),
            prior_step=_counted(lambda: transformer(embed, t, prefix)),
            decoder_step=UNetStep.of(unet, *z.shape[-2:]).whole,
            decode=_counted(lambda: autoencoder.decode(z)),
        )


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of this device in a convolution like the decoder's; takes a second or two."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    x = torch.randn(2, CHANNELS, 32, 32, device=device, dtype=dtype)
    count = 2 * 9 * CHANNELS**2 * x.shape[0] * x.shape[2] * x.shape[3]
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        conv(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return count / sorted(times[1:])[TRIALS // 2 - 1]  # the first one warms up


def _counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())

"""The stages of a model on tensors: the prior (prompts to image embeddings) and a decoder (image embeddings to pixels).

Used by `engine.kandinsky` for requests, where every picture has its own noise, and by `pipelines` for code written
against diffusers, where one generator draws for all rows. Knows no request and no picture file.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints.model import DecoderSource, PriorSource
from kandinsky22.diffusion import SAMPLERS, Draw, Job, NoiseSchedule, keep
from kandinsky22.diffusion.denoiser import Guidance
from kandinsky22.engine import preview
from kandinsky22.engine.placement import Networks
from kandinsky22.engine.preview import LatentPreview
from kandinsky22.engine.runs import Constrain, InpaintCondition, KnownRegion, Run, StartState, Step, run_sampler
from kandinsky22.files import cache_dir
from kandinsky22.generators import drain
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision
from kandinsky22.models.lora import NONE, RowAdapters, Stack
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.unet import UNet, UNetCondition

# The 3x3 neighbourhood by which the published inpainting weights were trained to grow the repainted region: all cells
# but the two corners of one diagonal; diffusers does the same in `prepare_mask`.
GROWTH = ((1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0))


class Embeds(NamedTuple):
    """CLIP image embeddings [n, D] of the pictures to paint, and their negative embeddings (None: no guidance)."""

    image: Tensor
    negative: Tensor | None


class PromptFeatures(NamedTuple):
    """CLIP's text features of prompts: embeddings [B, D], states [B, L, D] at full length, and a mask of real tokens,
    bool [B, L]."""

    embed: Tensor
    hidden: Tensor
    mask: Tensor


class PriorAdapters(NamedTuple):
    """The adapters of the text encoder and of the prior that a prompt is embedded with."""

    text_encoder: Stack = NONE
    prior: Stack = NONE


NO_ADAPTERS = PriorAdapters()


class PriorStage:
    """Prompts and pictures to CLIP image embeddings, by the networks of a prior's folder."""

    def __init__(self, stored: PriorSource, networks: Networks) -> None:
        self.stored, self.networks = stored, networks
        self.schedule = NoiseSchedule.from_config(stored.scheduler)
        self.tokenizer = stored.tokenizer
        self._zero: Tensor | None = None
        self._processor: CLIPImageProcessor | None = None

    @property
    def network(self) -> PriorTransformer:
        """The prior itself."""
        return self.networks.get(self.stored.prior)

    @property
    def text_encoder(self) -> CLIPText:
        """CLIP's text tower."""
        return self.networks.get(self.stored.text_encoder)

    @property
    def image_encoder(self) -> CLIPVision:
        """CLIP's vision tower."""
        return self.networks.get(self.stored.image_encoder)

    @property
    def dim(self) -> int:
        """Size of an embedding."""
        return self.stored.prior.config.embedding_dim

    @property
    def zero_image_embed(self) -> Tensor:
        """The embedding [1, D] of the all-zero (grey) picture: the default negative embedding."""
        if self._zero is None:
            self._zero = self.stored.zero_image_embed().to(self.networks.device)
        return self._zero

    def encode_prompts(self, prompts: Sequence[str], adapters: Sequence[PriorAdapters] = ()) -> Prefix:
        """The prior's prefix for prompts, one row each. adapters: of each prompt; empty: of none."""
        text, prior = (RowAdapters(tuple(row[i] for row in adapters)) for i in range(2))
        tokens = self.tokenizer(list(prompts)).trimmed()
        features = self.text_encoder(tokens.ids.to(self.networks.device), text)
        self.networks.release(self.stored.text_encoder)
        return self.network.prefill(features.hidden, features.embed, tokens.mask.to(self.networks.device), prior)

    def map_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The image embeddings [n, D] that the linear prior gives for prompts."""
        embeds = self.encode_text(prompts).embed
        mapped = self.networks.get(self.stored.linear_prior)(embeds.to(self.networks.dtype)).float()
        self.networks.release(self.stored.linear_prior)
        return mapped

    def encode_text(self, prompts: Sequence[str]) -> PromptFeatures:
        """CLIP's text features of prompts, one row each, padded to full length."""
        tokens = self.tokenizer(list(prompts))
        features = self.text_encoder(tokens.ids.to(self.networks.device))
        self.networks.release(self.stored.text_encoder)
        return PromptFeatures(features.embed, features.hidden, tokens.mask.to(self.networks.device))

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """CLIP's image embeddings of pictures, float32 [n, D]."""
        return self.encode_pixels(self.preprocess(images))

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures as pixels [n, 3, S, S], by CLIP's processor."""
        if self._processor is None:
            self._processor = self.stored.image_processor()
        return self._processor(list(images))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """CLIP's image embeddings [n, D] of pixels [n, 3, S, S] as its processor makes them."""
        embeds = self.image_encoder(pixels.to(self.networks.device, self.networks.dtype)).float()
        self.networks.release(self.stored.image_encoder)
        return embeds

    def prepare_run(
        self,
        prompts: Prefix,
        texts: Sequence[int],
        negative: Sequence[int],
        weight: float | Tensor,
        sampler: str,
        start: StartState,
        noise: Draw,
        constrain: Constrain = keep,
    ) -> Run[Prefix]:
        """A run from `start` for `texts`, one row each, guided away from `negative` by `weight` (1: no guidance).

        texts and negative: row indices into `prompts`, so that each prompt is encoded once however often it is used.
        """
        guidance = self.guidance(prompts, texts, negative, weight, start.timesteps)
        job = Job(SAMPLERS[sampler](self.schedule, start.x, start.timesteps, noise), constrain)
        return Run(job, len(start.timesteps), guidance)

    def guidance(
        self,
        prompts: Prefix,
        texts: Sequence[int],
        negative: Sequence[int],
        weight: float | Tensor,
        timesteps: Sequence[int],
    ) -> Guidance[Prefix]:
        """The conditions of a run that visits `timesteps`; the other arguments as in `prepare_run`."""
        device = prompts.mask.device
        weights = torch.as_tensor(weight, dtype=torch.float32, device=device).expand(len(texts))
        uncond = [row for row, w in zip(negative, weights.tolist(), strict=True) if w != 1]
        used = list(dict.fromkeys([*texts, *uncond]))
        cached = self.network.precompute_timesteps(prompts[torch.tensor(used, device=device)], timesteps)

        def rows(indices: Sequence[int]) -> Prefix:
            return cached[torch.tensor([used.index(row) for row in indices], device=device)]

        return Guidance(rows(texts), rows(uncond) if uncond else None, weights)

    def sample(self, run: Run[Prefix]) -> Generator[Step, None, Tensor]:
        """Run the prior; returns image embeddings [n, D] in CLIP's space."""
        network = self.network
        try:
            return network.denormalised(
                (yield from run_sampler("prior", run, network, self.schedule, self.networks.dtype))
            )
        finally:
            self.networks.release(self.stored.prior)


class DecoderStage:
    """Image embeddings to latents to pixels, by the networks of one decoder's folder."""

    def __init__(self, stored: DecoderSource, networks: Networks) -> None:
        self.stored, self.networks = stored, networks
        self.schedule = NoiseSchedule.from_config(stored.scheduler)
        self._preview: LatentPreview | None = None

    @property
    def unet(self) -> UNet:
        """The U-Net."""
        return self.networks.get(self.stored.unet)

    @property
    def movq(self) -> MoVQ:
        """The autoencoder."""
        return self.networks.get(self.stored.movq)

    def shape(self, n: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of the latents of n pictures of height x width pixels."""
        config = self.stored.movq.config
        return n, config.latent_channels, height // config.factor, width // config.factor

    def encode(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Latents [n, 4, h, w] of pixels [n, 3, H, W] in [-1, 1]."""
        z = self.movq.encode(torch.as_tensor(pixels).to(self.networks.device, self.networks.dtype)).float()
        self.networks.release(self.stored.movq)
        return z

    def load_latent_preview(self) -> LatentPreview:
        """The map that previews latents: shipped with the model, cached on this machine, or fitted now and cached."""
        if self._preview is None:
            stored, fingerprint = self.stored.movq, self.stored.movq.fingerprint
            cached = cache_dir() / "latent-preview" / f"{fingerprint}.safetensors"
            folder = getattr(stored, "folder", None)  # only of a network that is stored in one
            places = [cached] if folder is None else [folder / preview.SHIPPED, cached]
            found = (LatentPreview.read(path, fingerprint, stored.config.latent_channels) for path in places)
            self._preview = next((one for one in found if one is not None), None)
            if self._preview is None:
                self._preview = LatentPreview.fit(self.movq)
                self.networks.release(stored)
                with contextlib.suppress(OSError):  # without a cache it is fitted again next time
                    self._preview.write(cached, fingerprint)
        return self._preview

    def inpaint_condition(self, pixels: Tensor, repaint: Tensor) -> InpaintCondition:
        """The latents of pixels [n, 3, H, W] in [-1, 1], known where `repaint` [n, 1, H, W] is 0; the repainted region
        grows by a latent cell."""
        z = self.encode(pixels)
        unknown = F.interpolate(repaint.to(z), size=z.shape[-2:], mode="nearest")
        grown = F.conv2d(unknown, torch.tensor(GROWTH).to(z)[None, None], padding=1) > 0
        return InpaintCondition(z, 1 - grown.to(z))

    def prepare_run(
        self,
        embeds: Embeds,
        weight: float | Tensor,
        sampler: str,
        start: StartState,
        noise: Draw,
        *,
        hint: Tensor | None = None,
        inpaint: KnownRegion | None = None,
        constrain: Constrain = keep,
        interval: tuple[float, float] = (0, 1),
        reuse: int = 1,
        adapters: Stack = NONE,
    ) -> Run[UNetCondition]:
        """A run from `start` conditioned on `embeds`, one row each.

        hint: [1 or n, 3, H, W] in [0, 1], of the computed size. inpaint: its constraint is applied before `constrain`.
        interval, reuse: as in `request.Sampling`. adapters: of every row.
        """
        masked = None if inpaint is None else inpaint.channels
        guidance = self.guidance(
            embeds, weight, start.timesteps, hint=hint, masked=masked, interval=interval, adapters=adapters
        )
        if inpaint is not None:
            constrain = _chain(inpaint.constraint(start, self.schedule), constrain)
        job = Job(SAMPLERS[sampler](self.schedule, start.x, start.timesteps, noise), constrain)
        return Run(job, len(start.timesteps), guidance, reuse)

    def guidance(
        self,
        embeds: Embeds,
        weight: float | Tensor,
        timesteps: Sequence[int],
        *,
        hint: Tensor | None = None,
        masked: Tensor | None = None,
        interval: tuple[float, float] = (0, 1),
        adapters: Stack = NONE,
    ) -> Guidance[UNetCondition]:
        """The conditions of a run that visits `timesteps`.

        masked: `InpaintCondition.channels`; the other arguments as in `prepare_run`.
        """
        n = len(embeds.image)
        dtype, device = self.networks.dtype, self.networks.device
        weights = torch.as_tensor(weight, dtype=torch.float32, device=device).expand(n)
        negative = embeds.negative if bool((weights != 1).any()) else None
        image_embeds = embeds.image if negative is None else torch.cat([embeds.image, negative])

        def expand(maps: Tensor) -> Tensor:
            return maps.expand(n, -1, -1, -1).repeat(len(image_embeds) // n, 1, 1, 1).to(device, dtype)

        hint, masked = (None if maps is None else expand(maps) for maps in (hint, masked))
        rows = RowAdapters((adapters,) * len(image_embeds))
        conditioned = self.unet.condition(image_embeds.to(device, dtype), hint=hint, masked=masked, adapters=rows)
        conditioned = self.unet.precompute_timesteps(conditioned, timesteps)
        cond, uncond = conditioned[:n], conditioned[-n:]
        if negative is None:
            weights = torch.ones_like(weights)
        return Guidance.of(cond, uncond, weights, self.schedule.timestep_interval(*interval))

    def sample(self, run: Run[UNetCondition]) -> Generator[Step, None, Tensor]:
        """Run the U-Net; returns finished latents [n, 4, h, w]."""
        try:
            return (yield from run_sampler("decoder", run, self.unet, self.schedule, self.networks.dtype))
        finally:
            self.networks.release(self.stored.unet)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents [n, 4, h, w], float32 [n, 3, H, W] in about [-1, 1]; one by one, which saves memory."""
        decoded = torch.cat([drain(self.decode_in_tiles(z)) for z in latents.split(1)])
        self.networks.release(self.stored.movq)
        return decoded

    def decode_in_tiles(self, z: Tensor) -> Generator[None, None, Tensor]:
        """Pixels of latents [1, 4, h, w], float32 [1, 3, H, W]; pauses after each tile.

        Raises `FloatingPointError` if they are not finite.
        """
        tiles = self.movq.decode_in_tiles(z.to(self.networks.device, self.networks.dtype))
        pixels = (yield from tiles).float()
        if not bool(pixels.isfinite().all()):
            raise FloatingPointError("the decoded picture is not finite, so nothing was saved; use --dtype float32")
        return pixels


def _chain(first: Constrain, second: Constrain) -> Constrain:
    return first if second is keep else (lambda x, t: second(first(x, t), t))

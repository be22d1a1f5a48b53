"""The whole system bare: text to image over the lowest parts of the package, without its engine.

python examples/minimal.py ["PROMPT"] [MODEL FOLDER]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints import locate
from kandinsky22.checkpoints.model import StoredDecoder, StoredPrior
from kandinsky22.diffusion import SAMPLERS, Noise, NoiseSchedule, Prediction, guide, interpret, sample, split_variance

PROMPT, MODEL = "three red circles over a blue triangle", "box"


class Sampling(NamedTuple):
    """How a stage is sampled."""

    sampler: str
    steps: int
    guidance_scale: float


PRIOR = Sampling("unclip", steps=25, guidance_scale=4.0)
DECODER = Sampling("ddpm", steps=50, guidance_scale=4.0)


def denoise(
    network: Callable[..., Tensor], rows: Any, scheduler: dict, sampling: Sampling, x: Tensor, noise: Noise
) -> Tensor:
    """The clean state of noise x [1, ...], guided from the first of two rows (unconditional) to the second."""
    schedule = NoiseSchedule.from_config(scheduler)

    def predict(x: Tensor, t: int) -> Prediction:
        output, variance = split_variance(network(x.expand(2, *x.shape[1:]), torch.tensor([t, t]), rows), x)
        guided = guide(output[:1], output[1:], sampling.guidance_scale)
        return interpret(guided, x, t, schedule, None if variance is None else variance[1:])

    sampler = SAMPLERS[sampling.sampler](schedule, x, schedule.timesteps(sampling.steps), noise)
    *_, last = sample(sampler, predict)
    return last.x


@torch.inference_mode()
def paint(
    prompt: str, model: str, seed: int = 7, prior_sampling: Sampling = PRIOR, sampling: Sampling = DECODER
) -> Image.Image:
    """The picture of a prompt, at the model's own size."""
    folders, where = locate.part_folders(model), (torch.float32, torch.device("cpu"))
    priors, decoders = StoredPrior(folders["prior"]), StoredDecoder(folders["decoder"])
    text_encoder, prior = priors.text_encoder.load(*where), priors.prior.load(*where)
    unet, movq = decoders.unet.load(*where), decoders.movq.load(*where)

    # 1. CLIP encodes the empty prompt and the prompt: states of all tokens [2, L, D], embeddings [2, D].
    tokens = priors.tokenizer(["", prompt])
    text = text_encoder(tokens.ids)

    # 2. The prior denoises a CLIP image embedding [1, D], conditioned on the text.
    noise = Noise([seed], "prior")
    rows = prior.prefill(text.hidden, text.embed, tokens.mask)
    x = noise.draw((1, prior.config.embedding_dim))
    image_embed = prior.denormalised(denoise(prior, rows, priors.scheduler, prior_sampling, x, noise))

    # 3. The U-Net denoises latents [1, 4, h, w], conditioned on that embedding; the unconditional row on grey's.
    noise = Noise([seed], "decoder")
    rows = unet.condition(torch.cat([priors.zero_image_embed(), image_embed]))
    x = noise.draw((1, movq.config.latent_channels, unet.config.sample_size, unet.config.sample_size))
    latents = denoise(unet, rows, decoders.scheduler, sampling, x, noise)

    # 4. MoVQ decodes them to pixels [3, H, W], about [-1, 1].
    pixels = (movq.decode(latents)[0] * 0.5 + 0.5).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().movedim(0, -1).numpy())


if __name__ == "__main__":
    chosen = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
    path = Path("out/example-minimal.png")
    path.parent.mkdir(exist_ok=True)
    paint(*chosen).save(path)
    print(path)

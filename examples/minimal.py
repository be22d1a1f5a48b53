"""The whole system bare: tokenize, embed, prior loop, decoder loop, decode. `Kandinsky` does the same, faster.

python examples/minimal.py ["PROMPT"] [MODEL FOLDER]
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints import locate
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.diffusion import SAMPLERS, Noise, NoiseSchedule, Prediction, guide, interpret, sample, split_variance
from kandinsky22.imaging.images import save_image
from kandinsky22.request import Sampling

PROMPT, MODEL = "three red circles over a blue triangle", "box"
PRIOR = Sampling(sampler="unclip", steps=25, guidance_scale=4.0)
DECODER = Sampling(sampler="ddpm", steps=50, guidance_scale=4.0)


def denoise(network: Callable[..., Tensor], rows: Any, config: Any, how: Sampling, shape: Any, noise: Noise) -> Tensor:
    """A clean state [1, ...] from noise, guided away from the first of two rows of conditions to the second."""
    schedule = NoiseSchedule.from_config(config)

    def predict(x: Tensor, t: int) -> Prediction:
        output, variance = split_variance(network(x.expand(2, *x.shape[1:]), torch.tensor([t, t]), rows), x)
        output = guide(output[:1], output[1:], how.weight)
        return interpret(output, x, t, schedule, None if variance is None else variance[1:])

    sampler = SAMPLERS[how.sampler](schedule, noise.draw(shape), schedule.timesteps(how.steps), noise)
    *_, last = sample(sampler, predict)
    return last.x


@torch.inference_mode()
def paint(
    prompt: str, model: str, seed: int = 7, prior_sampling: Sampling = PRIOR, sampling: Sampling = DECODER
) -> Image.Image:
    """The picture of a prompt, at the model's own size."""
    stored = StoredModel(locate.part_folders(model))
    parts = (stored.prior.text_encoder, stored.prior.prior, stored.first.unet, stored.first.movq)
    text_encoder, prior, unet, movq = (part.load(torch.float32, torch.device("cpu")) for part in parts)

    tokens = stored.prior.tokenizer(["", prompt])  # the unconditional row first
    text = text_encoder(tokens.ids)  # states of all tokens [2, L, D], and embeddings [2, D]

    rows, shape = prior.prefill(text.hidden, text.embed, tokens.mask), (1, prior.config.embedding_dim)
    x = denoise(prior, rows, stored.prior.scheduler, prior_sampling, shape, Noise([seed], "prior"))
    image_embed = prior.denormalised(x)  # [1, D], in the space of CLIP's image embeddings

    rows = unet.condition(torch.cat([stored.prior.zero_image_embed(), image_embed]))
    shape = (1, movq.config.latent_channels, unet.config.sample_size, unet.config.sample_size)
    latents = denoise(unet, rows, stored.first.scheduler, sampling, shape, Noise([seed], "decoder"))

    pixels = (movq.decode(latents)[0] * 0.5 + 0.5).clamp(0, 1) * 255  # [3, H, W]
    return Image.fromarray(pixels.round().byte().movedim(0, -1).numpy())


if __name__ == "__main__":
    prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
    print(save_image(paint(prompt, model), "out/example-minimal.png"))

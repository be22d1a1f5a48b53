"""A whole text-to-image run against diffusers' pipelines: one folder, one generator, the published schedulers."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor

from kandinsky22 import Kandinsky, text2img
from kandinsky22.diffusion import SharedNoise

PROMPT, NEGATIVE = "two red circles, and a square", "a blue triangle"


@pytest.fixture(scope="module")
def pipelines(tiny_model: Path) -> tuple[Any, Any]:
    """diffusers' prior and decoder, from the same folder."""
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior")
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    assert isinstance(prior.text_encoder, transformers.CLIPTextModelWithProjection)
    return prior, decoder


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_whole_run_agrees(
    tiny_model: Path, pipelines: tuple[Any, Any], negative: str | None, guidance: float
) -> None:
    """Embeddings to 2e-5, latents to 2e-4, and afterwards both generators stand at the same draw."""
    prior, decoder = pipelines
    theirs = torch.Generator().manual_seed(5)
    out = prior(PROMPT, negative_prompt=negative, num_inference_steps=5, guidance_scale=guidance, generator=theirs)
    size = {"height": 64, "width": 128}
    latents = decoder(
        **out, **size, num_inference_steps=6, guidance_scale=guidance, generator=theirs, output_type="latent"
    )

    kandinsky = Kandinsky.load(tiny_model)
    request = text2img(
        PROMPT, negative_prompt=negative, **size, num_inference_steps=6, prior_num_inference_steps=5,
        guidance_scale=guidance, prior_guidance_scale=guidance,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    noise = SharedNoise(generator)
    embeds = kandinsky.embed(request, noise)
    assert error(embeds.image, out.image_embeds) < 2e-5
    if guidance > 1 or negative:  # else nobody looks at it, and it is not made
        assert embeds.negative is not None
        assert error(embeds.negative, out.negative_image_embeds) < 2e-5
    begun = kandinsky.begin(request, noise)
    finished = kandinsky.sample(request, embeds, begun, noise)
    assert error(finished, latents.images) < 2e-4
    assert torch.equal(generator.get_state(), theirs.get_state())


def test_pictures_agree_to_one_level(tiny_model: Path, pipelines: tuple[Any, Any]) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    z = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        decoded = pipelines[1].movq.decode(z, force_not_quantize=True).sample
    theirs = ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round()
    ours = torch.stack([torch.tensor(list(image.tobytes())).view(64, 128, 3) for image in kandinsky.decode(z)])
    assert error(ours.movedim(-1, 1).float(), theirs) <= 1

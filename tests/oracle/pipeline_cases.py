"""Pieces of code that run unchanged with diffusers and with kandinsky22.pipelines, one function each.

Each takes a library (the module to import the classes from), the model's folder and a generator, and returns named
results. `CASES` has each with the tolerance of the comparison.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from kandinsky22.checkpoints.catalog import INPAINT
from tests.models_on_disk import DIM
from tests.oracle.pipeline_inputs import (
    CASES as CASES,
)
from tests.oracle.pipeline_inputs import (
    COMBINED,
    EMBEDS,
    FEW,
    INPAINTED,
    LATENTS,
    NEGATIVE,
    PICTURES,
    PROMPT,
    SIZE,
    case,
    decoder,
    depth,
    load,
    mask_array,
    prior,
    tensor,
)
from tests.pipelines.inputs import embeds, photo, randn

# The sections of the model card, in its order.


@case(PICTURES)
def card_text_to_image(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pipe = library.AutoPipelineForText2Image.from_pretrained(model / "decoder", torch_dtype=torch.float32)
    pipe = pipe.to("cpu")
    pipe.set_progress_bar_config(disable=True)
    arguments = {**COMBINED, "generator": generator}
    arguments |= {"prompt": PROMPT, "negative_prompt": NEGATIVE, "prior_guidance_scale": 1.0}
    return {"images": pipe(**arguments, output_type="np").images, "again": pipe(**arguments).images}


@case(PICTURES)
def card_image_to_image(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pipe = library.AutoPipelineForImage2Image.from_pretrained(model / "decoder")
    pipe.set_progress_bar_config(disable=True)
    arguments = {**COMBINED, "prompt": PROMPT, "image": photo(), "num_inference_steps": 10, "strength": 0.3}
    return pipe(**arguments, generator=generator, output_type="np")


@case(PICTURES)
def card_interpolate(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    things = ["a red circle", photo(seed=1), photo(70, 90, seed=2)]
    prior_out = prior(library, model).interpolate(things, [0.3, 0.3, 0.4], num_inference_steps=3, generator=generator)
    images = decoder(library, model)(**prior_out, **SIZE, **FEW, generator=generator, output_type="np").images
    return {**prior_out, "images": images}


@case(INPAINTED)
def card_inpaint(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pipe = library.AutoPipelineForInpainting.from_pretrained(model / INPAINT)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt="a star", image=photo(64, 64), mask_image=mask_array(), **COMBINED, generator=generator, output_type="np"
    )
    return {"images": out.images}


@case(PICTURES)
def card_controlnet(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    image_emb, zero_image_emb = prior(library, model)(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, generator=generator
    ).to_tuple()
    images = load(library, "KandinskyV22ControlnetPipeline", model)(
        image_embeds=image_emb,
        negative_image_embeds=zero_image_emb,
        hint=depth(),
        **FEW,
        generator=generator,
        **SIZE,
        output_type="np",
    ).images
    return {"image_emb": image_emb, "zero_image_emb": zero_image_emb, "images": images}


@case(PICTURES)
def card_controlnet_image_to_image(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    emb2emb = load(library, "KandinskyV22PriorEmb2EmbPipeline", model)
    img = photo(64, 64)
    img_emb = emb2emb(prompt=PROMPT, image=img, strength=0.85, num_inference_steps=5, generator=generator)
    negative_emb = emb2emb(prompt=NEGATIVE, image=img, strength=1, num_inference_steps=5, generator=generator)
    images = load(library, "KandinskyV22ControlnetImg2ImgPipeline", model)(
        image=img,
        strength=0.5,
        image_embeds=img_emb.image_embeds,
        negative_image_embeds=negative_emb.image_embeds,
        hint=depth(),
        num_inference_steps=8,
        generator=generator,
        **SIZE,
        output_type="np",
    ).images
    return {"img_emb": img_emb.image_embeds, "negative_emb": negative_emb.image_embeds, "images": images}


# The prior.


@case(EMBEDS)
def prior_of_many(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model)(
        [PROMPT, "a ring"], num_images_per_prompt=2, num_inference_steps=4, generator=generator
    )


@case(EMBEDS)
def prior_of_many_negatives(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model)([PROMPT, "a ring"], [NEGATIVE, ""], 2, 3, generator, guidance_scale=2.5)


@case(EMBEDS)
def prior_unguided(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model)(
        PROMPT, negative_prompt=NEGATIVE, guidance_scale=1.0, num_inference_steps=3, generator=generator
    )


@case(EMBEDS)
def prior_below_one_is_unguided(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model)(PROMPT, guidance_scale=0.5, num_inference_steps=3, generator=generator)


@case(EMBEDS)
def prior_from_latents(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pair = prior(library, model)(
        PROMPT,
        num_images_per_prompt=2,
        latents=randn(2, DIM),
        num_inference_steps=3,
        generator=generator,
        output_type="np",
        return_dict=False,
    )
    assert all(isinstance(values, np.ndarray) for values in pair)
    return dict(enumerate(pair))


@case(EMBEDS)
def prior_with_the_empty_prompt_as_negative(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model)(PROMPT, negative_prompt="", num_inference_steps=3, generator=generator)


@case(EMBEDS)
def interpolate_negatives(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model).interpolate(
        [photo(), "a ring", randn(1, 3, 32, 32), "a star"],
        [0.5, -0.2, 0.3, 1.1],
        num_images_per_prompt=2,
        num_inference_steps=3,
        generator=generator,
        negative_prior_prompt="yellow",
        negative_prompt="black",
        guidance_scale=2.0,
    )


@case(EMBEDS)
def interpolate_from_latents(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return prior(library, model).interpolate(
        ["a ring", photo()], [0.5, 0.5], num_inference_steps=3, generator=generator, latents=randn(1, DIM)
    )


@case(EMBEDS)
def emb2emb_of_pictures(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22PriorEmb2EmbPipeline", model)(
        [PROMPT, "a ring"],
        [photo(seed=1), photo(seed=2)],
        negative_prompt=[NEGATIVE, "black"],
        strength=0.7,
        num_images_per_prompt=2,
        num_inference_steps=5,
        generator=generator,
    )


@case(EMBEDS)
def emb2emb_of_pixels(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22PriorEmb2EmbPipeline", model)(
        [PROMPT, "a ring"],
        randn(1, 3, 32, 32),
        num_inference_steps=5,
        strength=0.5,
        generator=generator,
        guidance_scale=1.0,
        output_type="np",
    )


@case(EMBEDS)
def emb2emb_of_embeddings(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pair = load(library, "KandinskyV22PriorEmb2EmbPipeline", model)(
        PROMPT, [randn(1, DIM)], 1.0, NEGATIVE, 2, 4, generator, return_dict=False
    )
    return dict(enumerate(pair))


# The decoders.


@case(PICTURES)
def decoder_of_many(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    listed = {name: list(rows.split(1)) for name, rows in embeds(2).items()}
    return decoder(library, model)(
        **listed, height=64, width=128, **FEW, num_images_per_prompt=2, generator=generator, output_type="np"
    )


@case(PICTURES)
def decoder_rounds_sides_up(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pair = decoder(library, model)(
        **embeds(), height=40, width=100, **FEW, generator=generator, output_type="np", return_dict=False
    )
    assert pair[0].shape == (1, 64, 128, 3)
    return dict(enumerate(pair))


@case(PICTURES)
def decoder_unguided(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return decoder(library, model)(**embeds(), **SIZE, **FEW, guidance_scale=1.0, generator=generator, output_type="np")


@case(PICTURES)
def decoder_from_latents(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    latents = randn(2, 4, 8, 8)
    out = decoder(library, model)(**embeds(2), **SIZE, **FEW, latents=latents, generator=generator, output_type="np")
    assert torch.equal(latents, randn(2, 4, 8, 8))
    return out


@case(PICTURES)
def decoder_with_ddim(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    pipe = library.KandinskyV22Pipeline.from_pretrained(model / "decoder")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe(**embeds(), **SIZE, **FEW, generator=generator, output_type="np")


@case(PICTURES)
def decoder_with_a_scheduler_of_other_settings(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    scheduler = diffusers.DDPMScheduler.from_pretrained(model / "decoder", subfolder="scheduler", clip_sample_range=2.0)
    pipe = library.KandinskyV22Pipeline.from_pretrained(model / "decoder", scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**embeds(), **SIZE, **FEW, generator=generator, output_type="np")


@case(PICTURES)
def image_to_image_many(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22Img2ImgPipeline", model)(
        **embeds(2),
        image=[photo(seed=1), photo(50, 60, seed=2)],
        **SIZE,
        num_inference_steps=6,
        strength=0.6,
        num_images_per_prompt=2,
        generator=generator,
        output_type="np",
    )


@case(PICTURES)
def image_to_image_shares_the_noise_of_one_picture(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22Img2ImgPipeline", model)(
        **embeds(2), image=photo(), **SIZE, num_inference_steps=6, strength=0.6, generator=generator, output_type="np"
    )


@case(PICTURES)
def image_to_image_of_a_tensor(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    """In [0, 1], resized with nearest neighbours; the picture comes back in [0, 1] too."""
    return load(library, "KandinskyV22Img2ImgPipeline", model)(
        **embeds(), image=tensor(photo()), **SIZE, **FEW, strength=1.0, generator=generator, output_type="pt"
    )


@case(PICTURES)
def image_to_image_unguided(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    arguments = {**embeds(), "image": photo(), **SIZE, **FEW, "strength": 0.5, "guidance_scale": 1.0}
    out = load(library, "KandinskyV22Img2ImgPipeline", model)(**arguments, generator=generator, output_type="latent")
    return {"latents": out.images}


@case(LATENTS)
def inpaint_tensors(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22InpaintPipeline", model)(
        **embeds(),
        image=tensor(photo(64, 64)) * 2 - 1,
        mask_image=torch.from_numpy(mask_array()),
        **SIZE,
        **FEW,
        num_images_per_prompt=2,
        generator=generator,
        output_type="latent",
    )


@case(LATENTS)
def inpaint_pictures(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    """The same picture twice: diffusers inpaints a batch of different pictures wrongly."""
    mask = Image.fromarray((mask_array(100) * 255).astype(np.uint8))
    return load(library, "KandinskyV22InpaintPipeline", model)(
        **embeds(2),
        image=[photo(), photo()],
        mask_image=[mask, mask],
        height=128,
        width=64,
        **FEW,
        generator=generator,
        latents=randn(2, 4, 16, 8),
        output_type="latent",
    )


@case(LATENTS)
def inpaint_unguided_array(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22InpaintPipeline", model)(
        **embeds(),
        image=np.array(photo(64, 64)),
        mask_image=mask_array(),
        **SIZE,
        **FEW,
        guidance_scale=1.0,
        generator=generator,
        output_type="latent",
    )


@case(PICTURES)
def controlnet_of_many(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22ControlnetPipeline", model)(
        **embeds(2),
        hint=list(depth(2).split(1)),
        **SIZE,
        **FEW,
        num_images_per_prompt=2,
        generator=generator,
        output_type="np",
    )


@case(PICTURES)
def controlnet_unguided_from_latents(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22ControlnetPipeline", model)(
        **embeds(),
        hint=depth(),
        **SIZE,
        **FEW,
        guidance_scale=1.0,
        latents=randn(1, 4, 8, 8),
        generator=generator,
        output_type="np",
    )


@case(PICTURES)
def controlnet_image_to_image_of_many(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22ControlnetImg2ImgPipeline", model)(
        **embeds(2),
        image=torch.cat([tensor(photo(seed=k)) for k in (1, 2)]),
        hint=depth(2),
        **SIZE,
        strength=0.6,
        num_inference_steps=5,
        num_images_per_prompt=2,
        generator=generator,
        output_type="pt",
    )


# Both networks in one.


@case(PICTURES)
def combined_text_to_image(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    return load(library, "KandinskyV22CombinedPipeline", model)(
        [PROMPT, "a ring"],
        [NEGATIVE, "black"],
        **COMBINED,
        num_images_per_prompt=2,
        generator=generator,
        latents=randn(8, DIM),
        output_type="np",
    )


@case(PICTURES)
def combined_image_to_image(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    """One picture for two prompts, two images each, whose initial noise is drawn for every image."""
    return load(library, "KandinskyV22Img2ImgCombinedPipeline", model)(
        [PROMPT, "a ring"],
        photo(),
        **COMBINED,
        num_images_per_prompt=2,
        strength=0.6,
        generator=generator,
        output_type="np",
    )


@case(LATENTS)
def combined_inpaint(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    mask = Image.fromarray((mask_array() * 255).astype(np.uint8))
    return load(library, "KandinskyV22InpaintCombinedPipeline", model)(
        PROMPT, photo(), mask, NEGATIVE, **COMBINED, num_images_per_prompt=2, generator=generator, output_type="latent"
    )


@case(PICTURES)
def combined_of_parts(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    """The components of two pipelines make a third."""
    parts = {f"prior_{name}": part for name, part in prior(library, model).components.items()}
    pipe = library.KandinskyV22CombinedPipeline(**decoder(library, model).components, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, **COMBINED, generator=generator, output_type="np")


@case(PICTURES)
def auto_pipeline_from_another(library: Any, model: Path, generator: Any) -> Mapping[str, Any]:
    other = load(library, "KandinskyV22CombinedPipeline", model)
    pipe = library.AutoPipelineForImage2Image.from_pipe(other)
    assert type(pipe).__name__ == "KandinskyV22Img2ImgCombinedPipeline" and pipe.unet is other.unet
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, photo(), **COMBINED, strength=0.6, generator=generator, output_type="np")

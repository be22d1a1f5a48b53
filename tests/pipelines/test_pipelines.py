"""What pipelines compute where diffusers fails or differs, their results, callbacks and schedulers."""

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22 import pipelines
from kandinsky22.pipelines import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DDPMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
)
from tests.pipelines.inputs import FEW, embeds, photo, randn, record_networks, seeded, upper_half


class EulerDiscreteScheduler:
    """Has the attributes of diffusers' scheduler that are read."""

    config: ClassVar = {"beta_start": 0.00085}


def test_a_schedulers_configuration_selects_the_original_codes_preset(tiny_model: Path) -> None:
    """The preset described in docs/diffusers.md changes the schedule and the picture."""
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    plain = pipe(**embeds(), **FEW, generator=seeded()).images
    preset = {"variance_type": "learned_range", "clip_sample_range": 2.0, "timestep_spacing": "linspace"}
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, **preset)
    assert all(getattr(pipe.stage.schedule, name) == value for name, value in preset.items())
    assert not np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, plain)


def test_sides_are_rounded_up_for_image_to_image_and_inpainting(
    img2img: KandinskyV22Img2ImgPipeline, inpaint: KandinskyV22InpaintPipeline
) -> None:
    odd = {**embeds(), **FEW, "height": 40, "width": 100}
    assert img2img(**odd, image=photo(), strength=0.5).images.shape == (1, 64, 128, 3)
    assert inpaint(**odd, image=photo(), mask_image=upper_half()).images.shape == (1, 64, 128, 3)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1"])
def test_pictures_of_any_mode_start_image_to_image(img2img: KandinskyV22Img2ImgPipeline, mode: str) -> None:
    image = photo().convert(mode)
    arguments = {**embeds(), **FEW, "strength": 0.5}
    ours = img2img(**arguments, image=image, generator=seeded()).images
    assert np.array_equal(ours, img2img(**arguments, image=image.convert("RGB"), generator=seeded()).images)


def test_latents_start_image_to_image(img2img: KandinskyV22Img2ImgPipeline) -> None:
    """The latents of a picture give the same result as the picture."""
    image = torch.from_numpy(np.array(photo(64, 64))).movedim(-1, 0)[None].contiguous() / 255
    with torch.no_grad():
        latents = img2img.movq.encode(image * 2 - 1).latents
    arguments = {**embeds(), **FEW, "strength": 0.5}
    ours = img2img(**arguments, image=latents, generator=seeded()).images
    assert np.abs(ours - img2img(**arguments, image=image, generator=seeded()).images).max() < 1e-5


def test_each_picture_of_an_inpainting_batch_keeps_its_own_known_region(inpaint: KandinskyV22InpaintPipeline) -> None:
    """Each is as if painted alone, where diffusers puts the first one's known region into all."""
    masks = [upper_half(), upper_half()[::-1].copy()]
    images = [photo(64, 64, seed=1), photo(64, 64, seed=2)]
    latents = randn(2, 4, 8, 8)
    generators = [seeded(1), seeded(2)]
    arguments = {**FEW, "output_type": "latent"}
    batch = inpaint(
        **embeds(2), image=images, mask_image=masks, latents=latents, generator=generators, **arguments
    ).images
    for k in range(2):
        alone = inpaint(
            **{name: rows[k : k + 1] for name, rows in embeds(2).items()},
            image=images[k],
            mask_image=masks[k],
            latents=latents[k : k + 1],
            generator=seeded(k + 1),
            **arguments,
        ).images
        assert (batch[k : k + 1] - alone).abs().max() < 2e-5 * alone.abs().max()
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(images[k])).movedim(-1, 0)[None].contiguous() / 127.5 - 1
            z = inpaint.movq.encode(pixels).latents
        known = slice(5, None) if k == 0 else slice(None, 3)  # the cells beside the mask are repainted too
        assert (batch[k, :, known] - z[0, :, known]).abs().max() < 1e-4


def test_several_images_per_prompt_work_without_guidance(decoder: KandinskyV22Pipeline) -> None:
    """diffusers repeats embeddings only with guidance, and fails without."""
    out = decoder(**embeds(2), **FEW, guidance_scale=1.0, num_images_per_prompt=2, generator=seeded()).images
    assert out.shape == (4, 64, 64, 3)
    without = decoder(
        embeds(2)["image_embeds"], None, **FEW, guidance_scale=1.0, num_images_per_prompt=2, generator=seeded()
    )
    assert np.array_equal(without.images, out)


def test_the_prior_samples_in_one_step(prior: KandinskyV22PriorPipeline) -> None:
    """diffusers divides by zero there."""
    assert prior("a ring", num_inference_steps=1).image_embeds.isfinite().all()


def test_one_hint_serves_all_embeddings(depth: KandinskyV22ControlnetPipeline) -> None:
    hint = randn(1, 3, 64, 64).sigmoid()
    one = depth(**embeds(2), **FEW, hint=hint, generator=seeded()).images
    assert np.array_equal(one, depth(**embeds(2), **FEW, hint=hint.repeat(2, 1, 1, 1), generator=seeded()).images)


def test_emb2emb_interpolates_as_the_prior_does(tiny_model: Path, prior: KandinskyV22PriorPipeline) -> None:
    emb2emb = KandinskyV22PriorEmb2EmbPipeline.from_pretrained(tiny_model / "prior")
    arguments = (["a ring", photo()], [0.5, 0.5])
    ours, priors = (
        pipe.interpolate(*arguments, num_inference_steps=2, generator=seeded()) for pipe in (emb2emb, prior)
    )
    assert all(torch.equal(ours[name], priors[name]) for name in ours)


def test_interpolate_does_not_run_the_prior_for_an_unused_embedding(prior: KandinskyV22PriorPipeline) -> None:
    with record_networks() as ran:
        prior.interpolate(["a ring", photo()], [0.5, 0.5], num_inference_steps=3)
    assert ran.count("PriorTransformer") == 3


def test_combined_pipelines_pair_images_with_prompts(tiny_model: Path) -> None:
    """Two prompts with two images each: picture b starts both images of prompt b."""
    pipe = AutoPipelineForImage2Image.from_pretrained(tiny_model / "decoder")
    arguments = {**FEW, "prior_num_inference_steps": 2, "num_inference_steps": 20, "strength": 0.05}
    images = [Image.new("RGB", (64, 64), color) for color in ("white", "black")]
    out = pipe(["a ring", "a star"], images, **arguments, num_images_per_prompt=2, generator=seeded()).images
    alone = [pipe("a ring", image, **arguments, generator=seeded()).images[0] for image in images]
    near = [int(np.argmin([np.abs(one - other).mean() for other in alone])) for one in out]
    assert near == [0, 0, 1, 1]


def test_results_are_read_by_attribute_name_index_and_unpacking(prior: KandinskyV22PriorPipeline) -> None:
    out = prior("a ring", num_inference_steps=2)
    assert list(out) == ["image_embeds", "negative_image_embeds"] and len(out) == 2
    assert out["image_embeds"] is out.image_embeds is out[0] is out.to_tuple()[0] is dict(**out)["image_embeds"]
    assert out[-1] is out.negative_image_embeds and out[:1] == (out.image_embeds,)
    with pytest.raises(KeyError):
        out["images"]
    with pytest.raises(AttributeError):
        out.image_embeds = None  # type: ignore[misc]
    out.image_embeds[0, 0] = 0  # not an inference tensor, so it can be modified


def test_callbacks_that_return_what_they_were_given_change_nothing(decoder: KandinskyV22Pipeline) -> None:
    plain = decoder(**embeds(), **FEW, generator=seeded()).images
    names = {"callback_on_step_end_tensor_inputs": decoder._callback_tensor_inputs}
    for callback in (lambda *_: None, lambda *args: args[3]):
        out = decoder(**embeds(), **FEW, **names, generator=seeded(), callback_on_step_end=callback).images
        assert np.array_equal(out, plain)
    assert decoder.num_timesteps == 2 and decoder.guidance_scale == 4.0 and decoder.do_classifier_free_guidance


def test_attributes_that_nothing_would_use_cannot_be_set(decoder: KandinskyV22Pipeline) -> None:
    decoder.safety_checker = None  # there is none
    for name, value, message in (
        ("vae", decoder.movq, "has no vae; setting it would change nothing"),
        ("schedular", decoder.scheduler, "has no schedular"),
        ("guidance_scale", 2.0, "can be read, and not be set"),
        ("device", "cuda", "can be read, and not be set"),
    ):
        with pytest.raises(AttributeError, match=message):
            setattr(decoder, name, value)


def test_programs_read_the_attributes_of_diffusers(decoder: KandinskyV22Pipeline) -> None:
    assert decoder.config["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert (
        decoder.unet.config["in_channels"] == 4 and decoder.unet.device == decoder.device == decoder._execution_device
    )
    assert decoder.movq_scale_factor == 8 and decoder._optional_components == []
    (picture,) = decoder.numpy_to_pil(np.full((1, 2, 3, 3), 0.5, np.float32))
    assert picture.size == (3, 2) and picture.getpixel((0, 0)) == (128, 128, 128)
    with decoder.progress_bar(total=2) as bar:
        bar.update()
    assert list(decoder.progress_bar([1, 2])) == [1, 2]
    decoder.maybe_free_model_hooks()


def test_own_output_is_taken_as_input(decoder: KandinskyV22Pipeline, img2img: KandinskyV22Img2ImgPipeline) -> None:
    """ "pt" is not clipped, so it is a little outside of [-1, 1]."""
    image = decoder(**embeds(), **FEW | {"output_type": "pt"}, generator=seeded()).images
    image = image * 1.35 / image.abs().max()
    assert img2img(**embeds(), **FEW, image=image, strength=1.0).images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_more_than_eight_bits_are_scaled(img2img: KandinskyV22Img2ImgPipeline, mode: str) -> None:
    grey = photo().convert("L")
    levels = np.asarray(grey)
    wide = {
        "I;16": Image.fromarray(levels.astype(np.uint16) * 257),
        "I": Image.fromarray(levels.astype(np.int32) * 257),
        "F": Image.fromarray(levels.astype(np.float32) / 255),
    }[mode]
    arguments = {**embeds(), **FEW, "strength": 1.0}
    painted, expected = (img2img(**arguments, image=image, generator=seeded()).images for image in (wide, grey))
    assert np.array_equal(painted, expected)


def test_a_prior_in_bfloat16_returns_arrays(tiny_model: Path) -> None:
    prior = KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior", torch_dtype=torch.bfloat16)
    out = prior("a ring", num_inference_steps=2, output_type="np")
    assert out.image_embeds.dtype == np.float32


def test_a_scheduler_is_replaced_by_another_class_or_sampler(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.prediction_type == "epsilon" and pipe.scheduler.config.variance_type == "fixed_small"
    ddim = pipe(**embeds(), **FEW, generator=seeded()).images
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, sampler="ddim")
    assert np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, ddim)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, sampler="heun")
    assert not np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, ddim)


def test_unsupported_schedulers_are_refused(decoder: KandinskyV22Pipeline) -> None:
    before = decoder.scheduler
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler is not supported.*sampler='dpmpp_2m'"):
        decoder.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="sampler must be one of"):
        DDPMScheduler.from_config(before.config, sampler="euler_a")
    with pytest.raises(ValueError, match="thresholding"):
        decoder.scheduler = DDPMScheduler.from_config(before.config, thresholding=True)
    assert decoder.scheduler is before


def test_progress_is_printed_on_a_terminal_unless_disabled(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for config, printed in (
        ({}, True),
        ({"disable": True}, False),
        ({"leave": False, "ncols": 9, "desc": "Paint"}, True),
    ):
        written = io.StringIO()
        monkeypatch.setattr("sys.stderr", written)
        pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
        pipe.set_progress_bar_config(**config)
        pipe(**embeds(), **FEW)
        assert bool(written.getvalue()) is printed and ("Paint" in written.getvalue()) == ("desc" in config)


@pytest.mark.parametrize("name", pipelines.__all__)
def test_every_exported_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(pipelines, name))


def test_docstrings_state_the_differences_from_diffusers() -> None:
    differences: dict[Callable[..., Any], str] = {
        KandinskyV22Img2ImgPipeline: "not square",
        KandinskyV22InpaintPipeline: "own known region",
        KandinskyV22PriorEmb2EmbPipeline: "interpolate",
        KandinskyV22CombinedPipeline: "own prompt",
    }
    for kind, words in differences.items():
        text = inspect.getdoc(kind) or ""
        assert "Not reproduced" in text and words in text.replace("\n", " ")

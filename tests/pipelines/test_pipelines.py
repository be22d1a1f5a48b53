"""The door on its own: what it refuses, and before what; where it goes its own way; how it loads, moves and shares."""

import ast
import http.server
import inspect
import io
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kandinsky22 import acceleration, pipelines
from kandinsky22.checkpoints.catalog import DEPTH, INPAINT
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.pipelines import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DDPMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    pipeline,
)
from kandinsky22.pipelines.pixels import repainted
from tests.models_on_disk import DIM

FEW = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeds(rows: int = 1) -> dict[str, Tensor]:
    return {"image_embeds": randn(rows, DIM, seed=1), "negative_image_embeds": randn(rows, DIM, seed=2)}


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def upper_half(size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.float32)
    mask[: size // 2] = 1
    return mask


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prior(tiny_model: Path) -> KandinskyV22PriorPipeline:
    return KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior")


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> KandinskyV22Pipeline:
    return KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")


@pytest.fixture(scope="module")
def img2img(tiny_model: Path) -> KandinskyV22Img2ImgPipeline:
    return KandinskyV22Img2ImgPipeline.from_pretrained(tiny_model / "decoder")


@pytest.fixture(scope="module")
def inpaint(tiny_model: Path) -> KandinskyV22InpaintPipeline:
    return KandinskyV22InpaintPipeline.from_pretrained(tiny_model / INPAINT)


@pytest.fixture(scope="module")
def depth(tiny_model: Path) -> KandinskyV22ControlnetPipeline:
    return KandinskyV22ControlnetPipeline.from_pretrained(tiny_model / DEPTH)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The networks that run: the names of their classes, in order."""
    ran: list[str] = []

    def note(module: nn.Module, _: Any) -> None:
        if type(module).__name__ in {"UNet", "MoVQ", "PriorTransformer", "CLIPText", "CLIPVision", "Encoder"}:
            ran.append(type(module).__name__)

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        hook.remove()


# Refusals.

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("decoder", {"prompt": "a ring"}, "only the prior takes a prompt"),
    ("decoder", {"image_embeds": None}, "image_embeds must be given"),
    ("decoder", {"image_embeds": randn(1, DIM + 1)}, r"image_embeds must be \[1, 32\], got \[1, 33\]"),
    ("decoder", {"image_embeds": "a ring"}, "image_embeds must be a tensor"),
    ("decoder", {"negative_image_embeds": randn(2, DIM)}, "negative_image_embeds must be"),
    ("decoder", {"negative_image_embeds": None}, "unless guidance_scale is 1"),
    ("decoder", {"height": 0}, "height must be a whole number"),
    ("decoder", {"width": 64.0}, "width must be a whole number"),
    ("decoder", {"num_inference_steps": 1000}, "ask for fewer steps"),
    ("decoder", {"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 up"),
    ("decoder", {"num_inference_steps": 2.5}, "whole number"),
    ("decoder", {"guidance_scale": "high"}, "guidance_scale must be a number"),
    ("decoder", {"num_images_per_prompt": 0}, "from 1 up"),
    ("decoder", {"latents": randn(1, 4, 8, 16)}, r"latents must be \[1, 4, 8, 8\]"),
    ("decoder", {"generator": [seeded(), seeded()]}, "2 generators for 1 rows"),
    ("decoder", {"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent"),
    ("decoder", {"callback_on_step_end_tensor_inputs": ["mask_image"]}, "not for mask_image"),
    ("img2img", {"image": None}, "image must be given"),
    ("img2img", {"image": "photo.png"}, "a picture must be"),
    ("img2img", {"image": []}, "empty"),
    ("img2img", {"image": randn(1, 5, 64, 64).sigmoid()}, "a picture must be"),
    ("img2img", {"image": randn(1, 3, 64, 64) * 9}, r"must lie in \[-1, 1\]"),
    ("img2img", {"image": randn(1, 4, 8, 16)}, "latents to start from"),
    ("img2img", {"image": [photo(), photo(), photo()]}, "image must be one for all or 1, got 3"),
    ("img2img", {"strength": 0.0}, r"strength must be in \(0, 1\]"),
    ("img2img", {"strength": 1.5}, r"strength must be in \(0, 1\]"),
    ("img2img", {"strength": 0.3}, "leaves none of 2 steps"),
    ("inpaint", {"mask_image": None}, "mask_image must be given"),
    ("inpaint", {"mask_image": np.zeros((64, 64, 3), np.float32)}, "mask's array must be"),
    ("inpaint", {"mask_image": torch.full((64, 64), 255.0)}, r"mask_image must lie in \[0, 1\]"),
    ("inpaint", {"mask_image": [upper_half()] * 3}, "got 3"),
    ("inpaint", {"image": np.zeros((64, 64, 3), np.float32)}, "whole numbers from 0 to 255"),
    ("depth", {"hint": None}, "hint must be given"),
    ("depth", {"hint": randn(1, 3, 32, 32).sigmoid()}, r"hint must be \[B, 3, 64, 64\], got \[3, 32, 32\]; resize it"),
    ("depth", {"hint": randn(3, 3, 64, 64).sigmoid()}, "hint must be one for all or 1, got 3"),
    ("depth", {"hint": photo()}, "hint must be a tensor"),
    ("depth", {"output_type": "latent"}, "output_type must be one of pil, np, pt, got"),
    ("prior", {"prompt": None}, "need as many negative prompts|1 prompts|0 prompts"),
    ("prior", {"prompt": 3}, "a prompt must be a text"),
    ("prior", {"prompt": ("a", "b")}, "a prompt must be a text"),
    ("prior", {"negative_prompt": ["a", "b"]}, "1 prompts need as many negative prompts"),
    ("prior", {"negative_prompt": "a", "generator": [seeded()] * 3}, "3 generators for 2 rows"),
    ("prior", {"latents": randn(2, DIM)}, r"latents must be \[1, 32\]"),
    ("prior", {"output_type": "pil"}, "output_type must be one of pt, np"),
    ("prior", {"generator": 5}, "generator must be a torch.Generator, got 5"),
    ("decoder", {"generator": 5}, "generator must be a torch.Generator, got 5"),
    ("decoder", {"generator": [None]}, "generator must be a torch.Generator, got None"),
    ("decoder", {"num_images_per_prompt": True}, "whole number from 1 up, got True"),
    ("decoder", {"guidance_scale": True}, "guidance_scale must be a number, got True"),
    ("decoder", {"guidance_scale": float("nan")}, "guidance_scale must be a number, got nan"),
    ("decoder", {"height": np.float32(64)}, "height must be a whole number"),
    ("decoder", {"callback_steps": 0.5}, "callback_steps must be a whole number"),
    ("decoder", {"latents": np.zeros((1, 4, 8, 8))}, "latents must be .*, a tensor; got ndarray"),
    ("decoder", {"latents": torch.full((1, 4, 8, 8), torch.nan)}, "latents must be finite"),
    ("decoder", {"image_embeds": torch.full((1, DIM), torch.inf)}, "image_embeds must be finite"),
    ("decoder", {"image_embeds": torch.zeros(0, DIM)}, "image_embeds must be finite numbers, at least one"),
    ("img2img", {"strength": "half"}, "strength must be a number"),
    ("img2img", {"image": torch.zeros(0, 3, 64, 64)}, "picture or mask is empty"),
    ("img2img", {"image": torch.zeros(1, 3, 0, 64)}, "picture or mask is empty"),
    ("img2img", {"image": Image.new("RGB", (0, 0))}, "picture or mask is empty"),
    ("img2img", {"image": np.zeros((0, 64, 3), np.uint8)}, "picture or mask is empty"),
    ("img2img", {"image": torch.full((1, 4, 8, 8), torch.nan)}, "latents to start from must be finite"),
    ("inpaint", {"mask_image": []}, "the list of masks is empty"),
    ("inpaint", {"mask_image": torch.zeros(0, 64, 64)}, "picture or mask is empty"),
    ("inpaint", {"mask_image": np.zeros((0, 64), np.float32)}, "picture or mask is empty"),
    ("inpaint", {"mask_image": Image.new("L", (0, 0))}, "picture or mask is empty"),
    ("inpaint", {"mask_image": upper_half() * -3}, r"mask_image must lie in \[0, 1\], got -3 to"),
    ("inpaint", {"mask_image": upper_half() * np.nan}, "mask_image must lie in"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), torch.nan)}, "hint must be finite"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), 255.0)}, r"hint must lie in \[0, 1\], .*divide by 255"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), -0.5)}, r"hint must lie in \[0, 1\]"),
    ("depth", {"hint": torch.zeros(0, 3, 64, 64)}, "hint must be finite numbers, at least one"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), REFUSED, ids=range(len(REFUSED)))
def test_wrong_arguments_are_refused_before_any_network_runs(
    name: str, wrong: dict[str, Any], said: str, request: pytest.FixtureRequest
) -> None:
    right: dict[str, Any] = {**embeds(), **FEW} if name != "prior" else {"prompt": "a ring", "num_inference_steps": 2}
    right |= {"image": photo(), "strength": 0.5} if name == "img2img" else {}
    right |= {"image": photo(), "mask_image": upper_half()} if name == "inpaint" else {}
    right |= {"hint": randn(1, 3, 64, 64).sigmoid()} if name == "depth" else {}
    pipe = request.getfixturevalue(name)
    with counted() as ran:
        with pytest.raises(ValueError, match=said):
            pipe(**right | wrong)
        assert ran == []
        pipe(**right)
        assert ran != []


def test_combined_pipelines_check_the_decoders_part_before_the_prior_runs(tiny_model: Path) -> None:
    pipe = AutoPipelineForImage2Image.from_pretrained(tiny_model / "decoder")
    with counted() as ran:
        for wrong in ({"strength": 2}, {"output_type": "jpg"}, {"image": [photo()] * 3}, {"height": -1}):
            with pytest.raises(ValueError):
                pipe(**{"prompt": "a ring", "image": photo(), **FEW, "prior_num_inference_steps": 2} | wrong)
        assert ran == []


def test_interpolate_refuses_before_any_network_runs(prior: KandinskyV22PriorPipeline) -> None:
    with counted() as ran:
        with pytest.raises(ValueError, match="2 images_and_prompts need as many weights, got 1"):
            prior.interpolate(["a", "b"], [1.0])
        with pytest.raises(ValueError, match="texts, PIL pictures and tensors"):
            prior.interpolate(["a", 3], [1.0, 1.0])
        for parts, weights, said in (
            ([], [], "at least one text or picture"),
            ("a", [1.0], "must be a list"),
            (["a"], 1.0, "need as many weights, got 1.0"),
            (["a"], ["x"], "each of weights must be a number, got 'x'"),
            (["a"], [float("nan")], "each of weights must be a number, got nan"),
            (["a"], [True], "each of weights must be a number, got True"),
            ([randn(3, 32, 32)], [1.0], r"pixels \[1, 3, S, S\]"),
            ([torch.full((1, 3, 32, 32), torch.nan)], [1.0], "finite"),
            (["a", randn(2, 3, 32, 32)], [1.0, 1.0], "one picture each"),
        ):
            with pytest.raises(ValueError, match=said):
                prior.interpolate(parts, weights)
        assert ran == []


def test_emb2emb_refuses_what_it_cannot_start_from(tiny_model: Path) -> None:
    pipe = KandinskyV22PriorEmb2EmbPipeline.from_pretrained(tiny_model / "prior")
    with counted() as ran:
        for image in (
            [],
            torch.zeros(0, DIM),
            torch.full((1, DIM), torch.nan),
            randn(1, DIM + 1),
            Image.new("L", (0, 0)),
        ):
            with pytest.raises(ValueError, match="image"):
                pipe("a ring", image, strength=0.5)
        assert ran == []


def test_numpys_numbers_are_numbers(prior: KandinskyV22PriorPipeline, img2img: KandinskyV22Img2ImgPipeline) -> None:
    """As Python's, to the bit: 0.5, 1.5 and the like are the same numbers in float32."""
    whole: Any
    real: Any
    made = []
    for whole, real in ((int, float), (np.int64, np.float32), (np.uint8, np.float64)):
        few = {"num_inference_steps": whole(2), "num_images_per_prompt": whole(2), "guidance_scale": real(1.5)}
        mixed = prior.interpolate(["a ring", photo()], [real(0.5), real(0.25)], generator=seeded(), **few)
        out = img2img(
            **embeds(),
            **few,
            image=photo(),
            strength=real(0.5),
            height=whole(64),
            width=whole(64),
            output_type="np",
            callback_steps=whole(1),
            generator=seeded(),
        )
        made.append((mixed.image_embeds.numpy(), out.images))
    for other in made[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(made[0], other, strict=True))
    weights = np.array([0.5, 0.25])
    again = prior.interpolate(["a ring", photo()], weights, 2, 2, seeded(), guidance_scale=1.5)  # type: ignore[arg-type]
    assert np.array_equal(again.image_embeds.numpy(), made[0][0])


def test_a_hint_that_a_filter_resized_is_taken(depth: KandinskyV22ControlnetPipeline) -> None:
    """A bicubic filter leaves a little outside [0, 1]."""
    assert depth(**embeds(), **FEW, hint=torch.full((1, 3, 64, 64), 1.005)).images.shape == (1, 64, 64, 3)


def test_a_folder_that_is_a_file_is_not_saved_to(decoder: KandinskyV22Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    for folder in (file, file / "decoder"):
        with pytest.raises(ValueError, match="notes is a file; choose a folder"):
            decoder.save_pretrained(folder)
    assert file.read_text() == "mine"


def test_dtypes_by_name_and_of_networks(tiny_model: Path) -> None:
    """The network's own dtype, and that of its part before and after it is read."""
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype="bfloat16")
    assert pipe.dtype == torch.bfloat16 and pipe.handles()["unet"].dtype == torch.float32  # in its file
    assert pipe.unet.dtype == pipe.handles()["unet"].dtype == pipe.components["movq"].dtype == torch.bfloat16
    assert pipe.to(dtype="float32").unet.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype must be one for all"):
        pipe.to(dtype="half")


def test_the_originals_preset_through_a_schedulers_configuration(tiny_model: Path) -> None:
    """As docs/diffusers.md says: it is followed, and paints something else."""
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    plain = pipe(**embeds(), **FEW, generator=seeded()).images
    preset = {"variance_type": "learned_range", "clip_sample_range": 2.0, "timestep_spacing": "linspace"}
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, **preset)
    assert all(getattr(pipe.stage.schedule, name) == value for name, value in preset.items())
    assert not np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, plain)


def test_unknown_arguments_are_refused(decoder: KandinskyV22Pipeline) -> None:
    """diffusers takes any keyword, and drops it."""
    with pytest.raises(TypeError, match="eta"):
        decoder(**embeds(), **FEW, eta=0.5)


def test_the_right_u_net_is_needed(tiny_model: Path) -> None:
    for kind, folder in (
        (KandinskyV22InpaintPipeline, "decoder"),
        (KandinskyV22Pipeline, INPAINT),
        (KandinskyV22Img2ImgPipeline, DEPTH),
        (AutoPipelineForInpainting, "decoder"),
        (AutoPipelineForText2Image, INPAINT),
    ):
        with pytest.raises(CheckpointError, match="this pipeline needs one of"):
            kind.from_pretrained(tiny_model / folder)


def test_what_is_not_here_names_what_is(decoder: KandinskyV22Pipeline) -> None:
    with pytest.raises(AttributeError, match="leave the line out"):
        decoder.enable_xformers_memory_efficient_attention()
    with pytest.raises(AttributeError, match="merge the LoRA"):
        decoder.load_lora_weights("lora")
    assert not hasattr(decoder, "enable_attention_slicing") and not hasattr(decoder, "nothing")


# Where it goes its own way, on purpose.


def test_sides_are_rounded_up_whatever_starts_it(
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
    """What MoVQ makes of the picture gives what the picture gives, and MoVQ does not encode it again."""
    image = torch.from_numpy(np.array(photo(64, 64))).movedim(-1, 0)[None].contiguous() / 255
    with torch.no_grad():
        latents = img2img.movq.encode(image * 2 - 1)
    arguments = {**embeds(), **FEW, "strength": 0.5}
    ours = img2img(**arguments, image=latents, generator=seeded()).images
    assert np.abs(ours - img2img(**arguments, image=image, generator=seeded()).images).max() < 1e-5


def test_each_picture_of_an_inpainting_batch_keeps_its_own_known_region(inpaint: KandinskyV22InpaintPipeline) -> None:
    """Each comes out as it does alone, where diffusers puts the first one's known region into all."""
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
            z = inpaint.movq.encode(torch.from_numpy(np.array(images[k])).movedim(-1, 0)[None].contiguous() / 127.5 - 1)
        kept = slice(5, None) if k == 0 else slice(None, 3)  # a cell beside the mask is repainted too
        assert (batch[k, :, kept] - z[0, :, kept]).abs().max() < 1e-4


def test_masks_that_are_passed_in_are_not_modified(inpaint: KandinskyV22InpaintPipeline) -> None:
    grey = torch.linspace(0, 1, 64).repeat(64, 1)
    for mask in (grey.clone(), grey.numpy().copy()):
        inpaint(**embeds(), **FEW, image=randn(1, 3, 64, 64).tanh(), mask_image=mask)
        assert np.array_equal(np.asarray(mask), grey.numpy())


def test_many_images_without_guidance(decoder: KandinskyV22Pipeline) -> None:
    """diffusers repeats embeddings only for guidance, and fails."""
    out = decoder(**embeds(2), **FEW, guidance_scale=1.0, num_images_per_prompt=2, generator=seeded()).images
    assert out.shape == (4, 64, 64, 3)
    without = decoder(
        embeds(2)["image_embeds"], None, **FEW, guidance_scale=1.0, num_images_per_prompt=2, generator=seeded()
    )
    assert np.array_equal(without.images, out)


def test_one_step_is_enough_for_the_prior(prior: KandinskyV22PriorPipeline) -> None:
    """diffusers divides by zero."""
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


def test_the_unused_pass_of_interpolate_does_not_run_the_prior(prior: KandinskyV22PriorPipeline) -> None:
    with counted() as ran:
        prior.interpolate(["a ring", photo()], [0.5, 0.5], num_inference_steps=3)
    assert ran.count("PriorTransformer") == 3


def test_combined_pipelines_pair_pictures_with_prompts(tiny_model: Path) -> None:
    """Two prompts with two images each: picture b starts both images of prompt b."""
    pipe = AutoPipelineForImage2Image.from_pretrained(tiny_model / "decoder")
    how = {**FEW, "prior_num_inference_steps": 2, "num_inference_steps": 20, "strength": 0.05}
    images = [Image.new("RGB", (64, 64), color) for color in ("white", "black")]
    out = pipe(["a ring", "a star"], images, **how, num_images_per_prompt=2, generator=seeded()).images
    alone = [pipe("a ring", image, **how, generator=seeded()).images[0] for image in images]
    near = [int(np.argmin([np.abs(one - other).mean() for other in alone])) for one in out]
    assert near == [0, 0, 1, 1]


# Results.


def test_results_are_read_in_every_way(prior: KandinskyV22PriorPipeline) -> None:
    out = prior("a ring", num_inference_steps=2)
    assert list(out) == ["image_embeds", "negative_image_embeds"] and len(out) == 2
    assert out["image_embeds"] is out.image_embeds is out[0] is out.to_tuple()[0] is dict(**out)["image_embeds"]
    assert out[-1] is out.negative_image_embeds and out[:1] == (out.image_embeds,)
    with pytest.raises(KeyError):
        out["images"]
    with pytest.raises(AttributeError):
        out.image_embeds = None  # type: ignore[misc]
    out.image_embeds[0, 0] = 0  # no inference tensor: it may be written to


def test_callbacks(decoder: KandinskyV22Pipeline) -> None:
    """None changes nothing; giving back what was shown changes nothing; anything else but latents is refused."""
    plain = decoder(**embeds(), **FEW, generator=seeded()).images
    names = {"callback_on_step_end_tensor_inputs": ["latents", "image_embeds"]}
    for callback in (lambda *_: None, lambda *told: told[3]):
        out = decoder(**embeds(), **FEW, **names, generator=seeded(), callback_on_step_end=callback).images
        assert np.array_equal(out, plain)
    with pytest.raises(ValueError, match="may change latents and nothing else; it gave back other image_embeds"):
        decoder(**embeds(), **FEW, callback_on_step_end=lambda *_: {"image_embeds": randn(2, DIM)})
    with pytest.raises(ValueError, match="gave back latents"):
        decoder(**embeds(), **FEW, callback_on_step_end=lambda *_: {"latents": randn(2, 4, 8, 8)})
    assert decoder.num_timesteps == 2 and decoder.guidance_scale == 4.0 and decoder.do_classifier_free_guidance


def test_a_long_prompt_is_told_of(prior: KandinskyV22PriorPipeline) -> None:
    with pytest.warns(UserWarning, match="does not see: .*ring"):
        prior("a ring beside " * 30, num_inference_steps=2)


# Schedulers.


def test_schedulers_are_exchanged_without_diffusers(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.prediction_type == "epsilon" and pipe.scheduler.config.variance_type == "fixed_small"
    ddim = pipe(**embeds(), **FEW, generator=seeded()).images
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, sampler="ddim")
    assert np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, ddim)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, sampler="heun")
    assert not np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, ddim)


class EulerDiscreteScheduler:
    """diffusers', as far as the door looks at it."""

    config: ClassVar = {"beta_start": 0.00085}


def test_a_scheduler_that_is_not_here_is_refused(decoder: KandinskyV22Pipeline) -> None:
    before = decoder.scheduler
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler is not supported.*sampler='dpmpp_2m'"):
        decoder.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="sampler must be one of"):
        DDPMScheduler.from_config(before.config, sampler="euler_a")
    with pytest.raises(ValueError, match="thresholding"):
        decoder.scheduler = DDPMScheduler.from_config(before.config, thresholding=True)
    assert decoder.scheduler is before


# Loading.


def test_the_prior_is_found_by_the_card_beside_the_decoder_or_by_name(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model / "decoder", tmp_path / "decoder")
    (tmp_path / "decoder" / "README.md").unlink()
    with pytest.raises(CheckpointError, match="does not say where its prior is"):
        AutoPipelineForText2Image.from_pretrained(tmp_path / "decoder")
    named = AutoPipelineForText2Image.from_pretrained(tmp_path / "decoder", prior=tiny_model / "prior")
    shutil.copytree(tiny_model / "prior", tmp_path / "prior")
    beside = AutoPipelineForText2Image.from_pretrained(tmp_path / "decoder")
    carded = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    for pipe in (named, beside, carded):
        assert type(pipe) is KandinskyV22CombinedPipeline
        assert torch.equal(pipe.prior_prior.clip_mean, carded.prior_prior.clip_mean)


def test_names_on_the_hub_are_found_in_its_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder by its name, and the prior by the name in the decoder's card."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for part in ("decoder", "prior"):
        repository = tmp_path / f"models--someone--tiny-{part}"
        shutil.copytree(tiny_model / part, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    card = tmp_path / "models--someone--tiny-decoder" / "snapshots" / ("0" * 40) / "README.md"
    card.write_text("---\nprior:\n- someone/tiny-prior\n---\n")
    for revision in (None, "main", "0" * 40):
        pipe = AutoPipelineForText2Image.from_pretrained(
            "someone/tiny-decoder", local_files_only=True, revision=revision, use_safetensors=True
        )
        assert pipe.handles()["prior_prior"].folder.is_relative_to(tmp_path / "models--someone--tiny-prior")
    with pytest.raises(CheckpointError, match="someone/other is not in the hub's cache"):
        KandinskyV22Pipeline.from_pretrained("someone/other", local_files_only=True)


def test_a_variant_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model / "decoder", tmp_path / "decoder")
    pipe = KandinskyV22Pipeline.from_pretrained(tmp_path / "decoder")
    with torch.no_grad():
        pipe.unet.conv_in.bias.fill_(0.5)
    pipe.to(torch.float16).save_pretrained(tmp_path / "decoder", variant="fp16")
    assert (tmp_path / "decoder" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    biases = [
        KandinskyV22Pipeline.from_pretrained(tmp_path / "decoder", variant=variant).unet.conv_in.bias
        for variant in (None, "fp16")
    ]
    assert not (biases[0] == 0.5).any() and (biases[1] == 0.5).all()


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"device_map": "balanced"}, ValueError, r"use .to\(device\)"),
        ({"cache_dir": "here"}, ValueError, "set HF_HOME"),
        ({"torch_dtype": "int8"}, ValueError, "such as torch.float16"),
        ({"dtype": torch.int8}, ValueError, "such as torch.float16"),
        ({"torch_dype": torch.float16}, TypeError, "no argument 'torch_dype'"),
        ({"unet": nn.Linear(1, 1)}, ValueError, "unet must be a UNet of kandinsky22"),
    ],
)
def test_from_pretrained_refuses(tiny_model: Path, how: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", **how)


def test_folders_of_other_things_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds a KandinskyV22PriorPipeline, and a KandinskyV22Pipeline also needs"
    ):
        KandinskyV22Pipeline.from_pretrained(tiny_model / "prior")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="contains a StableDiffusionPipeline"):
        KandinskyV22Pipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        KandinskyV22Pipeline.from_pretrained(tmp_path / "nothing")


def test_loading_reads_no_network_and_painting_only_those_it_needs(tiny_model: Path) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    parts = pipe.handles()
    networks = ("unet", "movq", "prior_prior", "prior_text_encoder", "prior_image_encoder")
    assert [parts[name].network for name in networks] == [None] * 5
    pipe("a ring", **FEW, prior_num_inference_steps=2)
    assert [name for name in networks if parts[name].network is None] == ["prior_image_encoder"]


def test_pipelines_share_networks_and_where_they_are(tiny_model: Path) -> None:
    first = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder").to(torch.bfloat16)
    second = AutoPipelineForImage2Image.from_pipe(first)
    third = KandinskyV22Img2ImgPipeline(unet=first.unet, scheduler=first.scheduler, movq=first.movq)
    assert first.unet is second.unet is third.unet is first.components["unet"]
    assert first.dtype == second.dtype == third.dtype == third.unet.conv_in.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="also needs prior_prior"):
        AutoPipelineForText2Image.from_pipe(third)


def test_a_part_that_is_assigned_is_used(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    before = pipe(**embeds(), **FEW, generator=seeded()).images
    unet = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder").unet
    with torch.no_grad():
        unet.conv_out.bias.add_(1.0)
    pipe.unet = unet
    assert pipe.unet is unet
    assert not np.array_equal(pipe(**embeds(), **FEW, generator=seeded()).images, before)


def test_a_compiled_network_may_be_assigned(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    before = pipe(**embeds(), **FEW, generator=seeded()).images
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    # a network that is compiled is the plain one, which rounds otherwise than the prepared one
    assert np.abs(pipe(**embeds(), **FEW, generator=seeded()).images - before).max() < 1e-4


# Where it runs.


def test_float16_on_a_cpu_without_acceleration_runs_in_float32_and_says_so_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(acceleration.ENV_VARIABLE, "off")
    expected = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")(
        **embeds(), **FEW, generator=seeded()
    ).images
    pipeline._say_once.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", torch_dtype=torch.float16)
        assert said == []  # it may yet go elsewhere
        for again in (pipe, KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype=torch.float16)):
            assert np.array_equal(again(**embeds(), **FEW, generator=seeded()).images, expected)
    assert [str(warning.message).partition(",")[0] for warning in said] == [
        "float16 is slow and coarse on a CPU without acceleration"
    ]
    assert pipe.dtype == torch.float16


def test_bfloat16_is_near(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    exact = pipe(**embeds(), **FEW, generator=seeded()).images
    coarse = pipe.to("cpu", torch.bfloat16)(**embeds(), **FEW, generator=seeded()).images
    assert 0 < np.abs(coarse - exact).mean() < 0.05


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without an accelerator")
def test_without_an_accelerator_offloading_changes_nothing_and_cuda_is_refused(tiny_model: Path) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload()
    assert pipe.device == torch.device("cpu") and pipe.placement == pipe.prior_pipe.placement == "keep"
    with pytest.raises(ValueError, match="the device 'cuda' cannot be used here"):
        pipe.to("cuda")


@pytest.mark.parametrize("placement", ["offload", "sequential"])
def test_networks_that_come_and_go_paint_the_same(tiny_model: Path, placement: Any) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    first = pipe("a ring", **FEW, prior_num_inference_steps=2, generator=seeded()).images
    other = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    other.place("cpu", placement=placement)
    assert np.array_equal(other("a ring", **FEW, prior_num_inference_steps=2, generator=seeded()).images, first)
    assert other.handles()["unet"].network is None  # it was let go


def test_progress_is_shown_on_a_terminal_unless_it_is_switched_off(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for config, shown in (
        ({}, True),
        ({"disable": True}, False),
        ({"leave": False, "ncols": 9, "desc": "Paint"}, True),
    ):
        written = io.StringIO()
        monkeypatch.setattr("sys.stderr", written)
        pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
        pipe.set_progress_bar_config(**config)
        pipe(**embeds(), **FEW)
        assert bool(written.getvalue()) is shown and ("Paint" in written.getvalue()) == ("desc" in config)


def test_load_image_from_an_address() -> None:
    written = io.BytesIO()
    photo().save(written, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(written.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        image = pipelines.load_image(f"http://127.0.0.1:{server.server_port}/photo.png")
    assert image.tobytes() == photo().tobytes()
    for wrong in ("nowhere.png", 3):
        with pytest.raises(ValueError, match=r"there is no picture|a picture is a file"):
            pipelines.load_image(wrong)


def test_load_image_says_what_cannot_be_read(tmp_path: Path) -> None:
    """A file that is no picture, half a picture, and an address where nobody answers."""
    photo().save(tmp_path / "photo.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "photo.png").read_bytes()[:2000])
    (tmp_path / "t1.py").write_text("print()")
    for file in ("half.png", "t1.py"):
        with pytest.raises(ValueError, match=f"cannot read .*{file} as a picture"):
            pipelines.load_image(str(tmp_path / file))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port  # free again in a moment
    for address in (f"http://127.0.0.1:{port}/photo.png", "http://"):
        with pytest.raises(ValueError, match="cannot fetch http"):
            pipelines.load_image(address)


# The door stays a door.


def test_the_door_is_short_and_computes_nothing() -> None:
    """Under 450 lines; no arithmetic but of whole numbers and lists, no function of torch's that computes, no timesteps."""
    text = Path(inspect.getfile(pipelines)).read_text("utf-8")
    assert len(text.splitlines()) < 450
    tree = ast.parse(text)
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"
    }
    assert used <= {"no_grad"}
    operators = {type(node.op) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    assert operators <= {ast.Add, ast.Mult, ast.BitOr}
    loops = [ast.unparse(node.iter) for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]
    assert not [loop for loop in loops if "step" in loop] and "While" not in ast.dump(tree)


@pytest.mark.parametrize("name", pipelines.__all__)
def test_every_class_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(pipelines, name))


def test_exceptions_are_stated_in_docstrings() -> None:
    said: dict[Callable[..., Any], str] = {
        KandinskyV22Img2ImgPipeline: "not square",
        KandinskyV22InpaintPipeline: "own known region",
        KandinskyV22PriorEmb2EmbPipeline: "interpolate",
        KandinskyV22CombinedPipeline: "own prompt",
    }
    for kind, words in said.items():
        text = inspect.getdoc(kind) or ""
        assert "Not reproduced" in text and words in text.replace("\n", " ")


def test_a_mask_of_bytes_is_white_but_for_zero() -> None:
    """As diffusers takes it, whose threshold at one half all other bytes pass."""
    mask = np.array([[0, 1], [128, 255]], np.uint8)
    assert repainted(mask, 2, 2).flatten().tolist() == [0, 1, 1, 1]

"""What step callbacks change in diffusers, they change here: guidance, embeddings, masks and latents."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from torch import Tensor

from kandinsky22 import pipelines
from tests.models_on_disk import DIM
from tests.oracle.pipeline_inputs import EMBEDS, LATENTS, NEGATIVE, PICTURES, arguments_of, load, result
from tests.pipelines.inputs import randn, seeded

Callback = Callable[[Any, int, Any, dict[str, Tensor]], Mapping[str, Tensor]]


def lower_guidance(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    pipe._guidance_scale = 1.5
    return tensors


def raise_guidance(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    pipe._guidance_scale += 1.0
    return tensors


def end_guidance(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """As diffusers documents it: from some step on without guidance, and so without the negative rows."""
    if step == 0:
        pipe._guidance_scale = 0.0
        return {name: value.chunk(2)[-1] for name, value in tensors.items() if name != "latents"}
    return {}


def other_embeddings(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return {"image_embeds": randn(*tensors["image_embeds"].shape, seed=step + 7)}


def other_mask(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    if step == 1:
        return {"mask_image": tensors["mask_image"].flip(2), "masked_image": tensors["masked_image"] * 0.5}
    return {}


def other_features(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return {"prompt_embeds": tensors["prompt_embeds"] * 0.5, "text_mask": tensors["text_mask"].roll(1, 0)}


IMAGE = ["latents", "image_embeds"]
MASK = [*IMAGE, "masked_image", "mask_image"]
TEXT = ["latents", "prompt_embeds", "text_encoder_hidden_states", "text_mask"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "callback", "tensors"),
    [
        ("", lower_guidance, ["latents"]),
        ("", raise_guidance, ["latents"]),
        ("", end_guidance, IMAGE),
        ("", other_embeddings, IMAGE),
        ("Img2Img", lower_guidance, ["latents"]),
        ("Img2Img", end_guidance, IMAGE),
        ("Inpaint", lower_guidance, ["latents"]),
        ("Inpaint", end_guidance, MASK),
        ("Inpaint", other_mask, MASK),
        ("Inpaint", other_embeddings, MASK),
        ("Prior", lower_guidance, ["latents"]),
        ("Prior", raise_guidance, ["latents"]),
        ("Prior", end_guidance, TEXT),
        ("Prior", other_features, TEXT),
    ],
)
def test_callbacks_change_what_they_change_in_diffusers(
    name: str, callback: Callback, tensors: list[str], tiny_model: Path
) -> None:
    kind = f"KandinskyV22{name}Pipeline"
    arguments = arguments_of(kind)
    if name == "Prior":
        arguments |= {"num_images_per_prompt": 2} | ({} if callback is end_guidance else {"negative_prompt": NEGATIVE})
    else:
        arguments |= {"output_type": "latent"}
    results, scales = [], []
    for library in (pipelines, diffusers):
        pipe = load(library, kind, tiny_model)
        out = pipe(
            **arguments,
            generator=seeded(),
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=tensors,
        )
        results.append(result(out))
        scales.append(pipe.guidance_scale)
    largest = max(1.0, float(np.abs(results[1]).max()))
    tolerance = {"Prior": EMBEDS, "Inpaint": LATENTS}.get(name, PICTURES)
    assert np.abs(results[0] - results[1]).max() < tolerance * largest
    assert scales[0] == scales[1]
    unchanged = result(load(pipelines, kind, tiny_model)(**arguments, generator=seeded()))
    assert np.abs(results[0] - unchanged).max() > 100 * tolerance


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_combined_pipelines_callbacks_change_guidance(tiny_model: Path) -> None:
    kind = "KandinskyV22CombinedPipeline"
    callbacks = {"prior_callback_on_step_end": raise_guidance, "callback_on_step_end": lower_guidance}
    ours, theirs = (
        result(load(library, kind, tiny_model)(**arguments_of(kind), generator=seeded(), **callbacks))
        for library in (pipelines, diffusers)
    )
    assert np.abs(ours - theirs).max() < PICTURES


def test_changes_that_cannot_be_made_are_refused(tiny_model: Path) -> None:
    decoder = load(pipelines, "KandinskyV22Pipeline", tiny_model)
    arguments = arguments_of("KandinskyV22Pipeline")
    for returned, message in (
        (
            {"negative_image_embeds": randn(1, DIM)},
            "may change latents, image_embeds; it returned other negative_image",
        ),
        ({"mask_image": randn(1, 1, 8, 8)}, "it returned other mask_image"),
        ({"image_embeds": randn(3, DIM)}, r"must return image_embeds \[2, 32\], got \[3, 32\]"),
        ({"latents": randn(2, 4, 8, 8)}, "must return latents"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(**arguments, callback_on_step_end=lambda *_, returned=returned: returned)
    with pytest.raises(ValueError, match="needs negative_image_embeds"):
        decoder(
            **arguments | {"negative_image_embeds": None, "guidance_scale": 1.0}, callback_on_step_end=raise_guidance
        )


def test_guidance_may_be_turned_on_during_a_run(tiny_model: Path) -> None:
    """diffusers fails there; here the negative embeddings of the call are used."""
    decoder = load(pipelines, "KandinskyV22Pipeline", tiny_model)
    arguments = arguments_of("KandinskyV22Pipeline") | {"guidance_scale": 1.0}
    plain = decoder(**arguments, generator=seeded()).images
    raised = decoder(**arguments, generator=seeded(), callback_on_step_end=raise_guidance).images
    assert np.isfinite(raised).all() and np.abs(raised - plain).max() > 1e-3

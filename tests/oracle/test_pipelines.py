"""kandinsky22.pipelines against diffusers: the same code, folders and generators give the same results.

Results agree within each case's tolerance (see `pipeline_cases.py`), and the generator ends in the same state.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22 import pipelines
from tests.oracle.pipeline_cases import CASES
from tests.oracle.pipeline_inputs import (
    CLASSES,
    COMBINED,
    EMBEDS,
    FEW,
    INPAINTED,
    LATENTS,
    NEGATIVE,
    PICTURES,
    PROMPT,
    SIZE,
    Case,
    depth,
    load,
    mask_array,
)
from tests.pipelines.inputs import embeds, photo


def run(library: Any, function: Case, model: Path, generator: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        if library is diffusers:  # its combined pipelines warn of themselves
            warnings.simplefilter("ignore")
        return dict(function(library, model, generator))


def generators(count: int | None) -> Any:
    if count is None:
        return torch.Generator().manual_seed(5)
    return [torch.Generator().manual_seed(5 + k) for k in range(count)]


def array(value: Any) -> np.ndarray:
    if isinstance(value, list):  # of PIL pictures
        return np.stack([np.asarray(image) for image in value]).astype(np.float64) / 255
    return np.asarray(value, dtype=np.float64)


def assert_close(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert type(ours[name]) is type(theirs[name]), name
        mine, reference = array(ours[name]), array(theirs[name])
        assert mine.shape == reference.shape, name
        allowed = 1 / 255 + 1e-9 if isinstance(ours[name], list) else tolerance * max(1.0, np.abs(reference).max())
        assert np.abs(mine - reference).max() <= allowed, name


def states(generator: Any) -> list[bytes]:
    listed = generator if isinstance(generator, list) else [generator]
    return [bytes(one.get_state().numpy()) for one in listed]


@pytest.mark.parametrize("name", CASES)
def test_the_same_code_gives_the_same_result_and_generator_state(name: str, tiny_model: Path) -> None:
    function, tolerance = CASES[name]
    mine, reference = generators(None), generators(None)
    ours, theirs = run(pipelines, function, tiny_model, mine), run(diffusers, function, tiny_model, reference)
    assert_close(ours, theirs, tolerance)
    assert states(mine) == states(reference)


# How many generators diffusers takes for each: the prior's rows with negatives, then the decoder's.
LISTED = {
    "prior_of_many": 4,
    "prior_of_many_negatives": 8,
    "prior_from_latents": 2,
    "interpolate_from_latents": 1,
    "emb2emb_of_pictures": 8,
    "decoder_of_many": 4,
    "decoder_from_latents": 2,
    "image_to_image_many": 4,
    "inpaint_tensors": 2,
    "controlnet_image_to_image_of_many": 4,
    "combined_text_to_image": 8,
    "combined_image_to_image": 4,
    "combined_inpaint": 4,
}


@pytest.mark.parametrize("name", LISTED)
def test_a_list_of_generators_draws_as_in_diffusers(name: str, tiny_model: Path) -> None:
    function, tolerance = CASES[name]
    mine, reference = generators(LISTED[name]), generators(LISTED[name])
    ours, theirs = run(pipelines, function, tiny_model, mine), run(diffusers, function, tiny_model, reference)
    assert_close(ours, theirs, tolerance)
    assert states(mine) == states(reference)


def test_without_a_generator_torchs_global_seed_is_used(tiny_model: Path) -> None:
    def seeded(library: Any) -> Any:
        torch.manual_seed(3)
        return run(library, CASES["card_controlnet"][0], tiny_model, None)

    with torch.random.fork_rng():
        assert_close(seeded(pipelines), seeded(diffusers), PICTURES)


@pytest.mark.parametrize(
    ("name", "output_type"),
    [
        *product(["", "Img2Img", "Inpaint"], ["pil", "np", "pt", "latent"]),
        *product(["Controlnet", "ControlnetImg2Img"], ["pil", "np", "pt"]),
    ],
)
def test_output_types_have_the_types_and_ranges_of_diffusers(name: str, output_type: str, tiny_model: Path) -> None:
    """ "pt" is in about [-1, 1], in [0, 1] after image to image; the depth decoders have no "latent"."""
    arguments: dict[str, Any] = {**embeds(), **SIZE, **FEW, "output_type": output_type}
    arguments |= {"image": photo(), "strength": 0.5} if "Img2Img" in name else {}
    arguments |= {"image": photo(64, 64), "mask_image": mask_array()} if name == "Inpaint" else {}
    arguments |= {"hint": depth()} if "Controlnet" in name else {}

    def out(library: Any) -> Any:
        return load(library, f"KandinskyV22{name}Pipeline", tiny_model)(**arguments, generator=generators(None))

    assert_close(out(pipelines), out(diffusers), INPAINTED if name == "Inpaint" else PICTURES)


@pytest.mark.parametrize("name", ["Img2Img", "ControlnetImg2Img", "Img2ImgCombined"])
def test_pictures_that_are_not_square_have_the_requested_size(name: str, tiny_model: Path) -> None:
    """diffusers has swapped the sides since 0.34: with height and width exchanged, it gives this picture."""
    arguments: dict[str, Any] = {"image": photo(), "num_inference_steps": 6, "strength": 0.5, "output_type": "np"}
    if "Combined" in name:
        arguments |= {"prompt": PROMPT, "prior_num_inference_steps": 2}
    else:
        arguments |= embeds()
    arguments |= {"hint": torch.cat([depth(), depth()], dim=3)} if "Controlnet" in name else {}

    def out(library: Any, height: int, width: int) -> Any:
        pipe = load(library, f"KandinskyV22{name}Pipeline", tiny_model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if library is diffusers else "error")
            return pipe(**arguments, height=height, width=width, generator=generators(None)).images

    ours = out(pipelines, 64, 128)
    assert ours.shape == (1, 64, 128, 3)
    assert np.abs(ours - out(diffusers, 128, 64)).max() < PICTURES


class RecordingCallback:
    """A callback that records its arguments and shrinks the latents."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.tensors: dict[str, Any] = {}

    def __call__(self, pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert hasattr(pipe, "components")
        self.steps.append((step, int(t)))
        self.tensors = {name: value.clone() for name, value in tensors.items() if name != "latents"}
        return {"latents": tensors["latents"] * 0.9}


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("Prior", ["latents"]),
        ("Prior", ["latents", "prompt_embeds", "text_encoder_hidden_states", "text_mask"]),
        ("", ["latents", "image_embeds", "negative_image_embeds"]),
        ("Img2Img", ["latents", "image_embeds"]),
        ("Inpaint", ["latents", "masked_image", "mask_image"]),
    ],
)
def test_callbacks_get_the_same_tensors_and_change_latents(name: str, tensors: list[str], tiny_model: Path) -> None:
    arguments: dict[str, Any] = {**embeds(), **SIZE, "num_inference_steps": 6, "output_type": "np"}
    arguments |= {"image": photo(64, 64), "strength": 0.5} if name == "Img2Img" else {}
    if name == "Inpaint":
        arguments |= {"image": photo(64, 64), "mask_image": mask_array(), "output_type": "latent"}
    if name == "Prior":
        arguments = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 4}
    callbacks = []
    outs = []
    for library in (pipelines, diffusers):
        callbacks.append(RecordingCallback())
        outs.append(
            load(library, f"KandinskyV22{name}Pipeline", tiny_model)(
                **arguments,
                num_images_per_prompt=2,
                generator=generators(None),
                callback_on_step_end=callbacks[-1],
                callback_on_step_end_tensor_inputs=tensors,
            )
        )
    assert callbacks[0].steps == callbacks[1].steps and len(callbacks[0].steps) >= 3
    assert_close(callbacks[0].tensors, callbacks[1].tensors, 1e-4)
    assert_close(outs[0], outs[1], {"Inpaint": LATENTS, "Prior": EMBEDS}.get(name, PICTURES))


def test_combined_pipelines_run_a_callback_for_each_network(tiny_model: Path) -> None:
    def call(library: Any) -> tuple[Any, list[Any]]:
        of_prior, of_decoder, old = RecordingCallback(), RecordingCallback(), []
        with warnings.catch_warnings():
            if library is diffusers:
                warnings.simplefilter("ignore")
            out = load(library, "KandinskyV22CombinedPipeline", tiny_model)(
                PROMPT,
                **COMBINED,
                generator=generators(None),
                output_type="np",
                prior_callback_on_step_end=of_prior,
                callback_on_step_end=of_decoder,
                callback=lambda *args: old.append(args),
                callback_steps=3,
            )
        return out, [of_prior.steps, of_decoder.steps, [(i, int(t)) for i, t, _ in old]]

    (ours, our_steps), (theirs, their_steps) = call(pipelines), call(diffusers)
    assert our_steps == their_steps and our_steps[2]
    assert_close(ours, theirs, PICTURES)


@pytest.mark.parametrize("name", ["ControlnetPipeline", "ControlnetImg2ImgPipeline", "Pipeline"])
def test_old_callbacks_run_every_few_steps(name: str, tiny_model: Path) -> None:
    arguments: dict[str, Any] = {**embeds(), **SIZE, "num_inference_steps": 5, "output_type": "np"}
    arguments |= {"hint": depth()} if "Controlnet" in name else {}
    arguments |= {"image": photo(), "strength": 0.8} if "Img2Img" in name else {}

    def steps(library: Any) -> list[tuple[int, int]]:
        called: list[tuple[int, int]] = []

        def callback(step: int, t: Any, latents: Tensor) -> None:
            assert latents.shape == (1, 4, 8, 8)
            called.append((step, int(t)))

        with warnings.catch_warnings():
            if library is diffusers:
                warnings.simplefilter("ignore")
            pipeline = load(library, f"KandinskyV22{name}", tiny_model)
            pipeline(**arguments, generator=generators(None), callback=callback, callback_steps=2)
        return called

    assert steps(pipelines) == steps(diffusers)


# Signatures, parts and saved folders.


def parameters_of(function: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = parameter.default
            yield name, list(default) if isinstance(default, tuple | list) else default


@pytest.mark.parametrize(
    "name", [*[f"{name}.__call__" for name in CLASSES], *[f"{name}.interpolate" for name in CLASSES[:2]]]
)
def test_calls_have_the_arguments_order_and_defaults_of_diffusers(name: str) -> None:
    """Ours may have more after theirs: the old callbacks, which diffusers takes from **kwargs."""
    kind, _, method = name.partition(".")
    ours = list(parameters_of(getattr(getattr(pipelines, kind), method)))
    theirs = list(parameters_of(getattr(getattr(diffusers, kind), method)))
    assert ours[: len(theirs)] == theirs
    assert {name for name, _ in ours[len(theirs) :]} <= {"callback", "callback_steps"}


@pytest.mark.parametrize("name", CLASSES)
def test_components_have_the_names_of_diffusers(name: str, tiny_model: Path) -> None:
    ours, theirs = load(pipelines, name, tiny_model), load(diffusers, name, tiny_model)
    assert ours.components.keys() == theirs.components.keys()
    constructor = dict(parameters_of(getattr(pipelines, name).__init__))
    assert constructor.keys() == dict(parameters_of(getattr(diffusers, name).__init__)).keys()


@pytest.mark.parametrize("name", CLASSES)
def test_saved_folders_load_in_both_libraries(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """All weights and scheduler settings are the same, so pictures from the saved folder are too."""
    load(pipelines, name, tiny_model).save_pretrained(tmp_path)
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    ours = getattr(pipelines, name).from_pretrained(tmp_path)
    original = load(diffusers, name, tiny_model)
    for part, network in original.components.items():
        if not isinstance(network, torch.nn.Module):
            continue
        for again in (theirs, ours):
            saved = getattr(again, part).state_dict()
            assert all(torch.equal(saved[key], value) for key, value in network.state_dict().items() if key in saved)
            assert saved.keys() >= {key for key in network.state_dict() if not key.endswith("position_ids")}
    for part in ("scheduler", "prior_scheduler"):
        if part in original.components:
            saved, first = getattr(theirs, part).config, getattr(original, part).config
            assert {key: saved.get(key) for key in first if key[0] != "_"} == {
                k: v for k, v in first.items() if k[0] != "_"
            }


def test_load_image_gives_the_picture_of_diffusers(tmp_path: Path) -> None:
    path = str(tmp_path / "photo.png")
    photo().convert("RGBA").save(path)
    for source in (path, photo().convert("L")):
        ours, theirs = pipelines.load_image(source), diffusers.utils.load_image(source)
        assert ours.mode == theirs.mode == "RGB" and ours.tobytes() == theirs.tobytes()

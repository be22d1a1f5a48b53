"""The kinds of checks that diffusers' own tests make of each pipeline, on networks of diffusers that are handed in."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from kandinsky22 import pipelines
from tests.oracle.pipeline_inputs import CLASSES, INPAINTED, PICTURES, arguments_of, load, result
from tests.pipelines.inputs import seeded

EACH_CLASS = pytest.mark.parametrize("name", CLASSES)
BATCHED = ("prompt", "image_embeds", "negative_image_embeds", "image", "mask_image", "hint")


def handed_in(name: str, model: Path) -> Any:
    return getattr(pipelines, name)(**load(diffusers, name, model).components)


def tolerance(name: str) -> float:
    return INPAINTED if "Inpaint" in name else PICTURES


def run(pipe: Any, **changes: Any) -> np.ndarray:
    return result(pipe(**arguments_of(type(pipe).__name__) | {"generator": seeded()} | changes))


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """Switches say that they change nothing."""


@EACH_CLASS
def test_a_saved_pipeline_gives_the_same_after_its_folder_is_gone(name: str, tiny_model: Path, tmp_path: Path) -> None:
    pipe = handed_in(name, tiny_model)
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder, safe_serialization=False)
    loaded = getattr(pipelines, name).from_pretrained(folder)
    folder.rename(tmp_path / "elsewhere")
    assert np.abs(run(loaded) - run(pipe)).max() < tolerance(name)
    assert loaded.config == pipe.config and loaded.components.keys() == pipe.components.keys()


@EACH_CLASS
def test_the_first_of_a_batch_is_what_it_is_alone(name: str, tiny_model: Path) -> None:
    pipe = handed_in(name, tiny_model)
    batch = {key: 3 * [value] for key, value in arguments_of(name).items() if key in BATCHED}
    if "prompt" in batch:
        batch["prompt"][1:] = ["a ring", "circle " * 90]  # which is too long
    together = run(pipe, **batch, generator=[seeded(k) for k in range(3)])
    alone = run(pipe, generator=seeded(0))
    assert len(together) == 3
    assert np.abs(together[0] - alone[0]).max() < tolerance(name)


@EACH_CLASS
def test_counts_tuples_guidance_and_switches(name: str, tiny_model: Path) -> None:
    pipe = handed_in(name, tiny_model)
    plain = run(pipe)
    pipe.enable_attention_slicing(slice_size=1)
    for part in pipe.components.values():
        if hasattr(part, "set_default_attn_processor"):
            part.set_default_attn_processor()
    assert np.array_equal(run(pipe), plain)
    (first, *_) = pipe(**arguments_of(name), generator=seeded(), return_dict=False)
    assert np.array_equal(np.asarray(first), plain)
    assert run(pipe, num_images_per_prompt=2).shape == (2, *plain.shape[1:])
    unguided, guided = run(pipe, guidance_scale=1.0), run(pipe, guidance_scale=7.5)
    assert unguided.shape == guided.shape and not np.array_equal(unguided, guided)


@EACH_CLASS
def test_variants_and_dtypes_are_saved_and_loaded(name: str, tiny_model: Path, tmp_path: Path) -> None:
    pipe, kind = handed_in(name, tiny_model), getattr(pipelines, name)
    pipe.save_pretrained(tmp_path / "fp16", variant="fp16")
    loaded = kind.from_pretrained(tmp_path / "fp16", variant="fp16")
    networks = {part: network for part, network in pipe.components.items() if isinstance(network, torch.nn.Module)}
    for part, network in networks.items():
        assert any(".fp16." in file.name for file in (tmp_path / "fp16" / part).iterdir())
        again = dict(getattr(loaded, part).named_parameters())
        assert all(torch.equal(again[key], value) for key, value in network.named_parameters())
    pipe.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        kind.from_pretrained(tmp_path / "plain", variant="fp16")
    first = next(iter(networks))
    mixed = kind.from_pretrained(tmp_path / "plain", dtype={first: torch.bfloat16, "default": torch.float16})
    for part in networks:
        assert getattr(mixed, part).dtype == (torch.bfloat16 if part == first else torch.float16)
    for word in ("dtype", "torch_dtype"):
        same = kind.from_pretrained(tmp_path / "plain", **{word: torch.float16}, device_map="cpu")
        assert {getattr(same, part).dtype for part in networks} == {torch.float16}

"""Programs that construct pipelines from diffusers' and transformers' own networks, and folders that these write."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from torch import nn

from kandinsky22 import pipelines
from kandinsky22.checkpoints.locate import model_folder
from tests.models_on_disk import randomise
from tests.oracle.pipeline_inputs import CLASSES, EMBEDS, INPAINTED, PICTURES, arguments_of, folder_of, load, result
from tests.pipelines.inputs import seeded

TOLERANCE = {"Prior": EMBEDS, "Inpaint": INPAINTED}


def tolerance(name: str) -> float:
    return next((value for part, value in TOLERANCE.items() if part in name), PICTURES)


def assert_same_result(ours: Any, theirs: Any, name: str) -> None:
    arguments = arguments_of(name)
    mine = result(ours(**arguments, generator=seeded()))
    reference = result(theirs(**arguments, generator=seeded()))
    assert mine.shape == reference.shape
    assert np.abs(mine - reference).max() < tolerance(name) * max(1.0, float(np.abs(reference).max()))


def fresh(name: str, model: Path) -> Any:
    """diffusers' pipeline with networks of its own, as the tests change them."""
    pipe = getattr(diffusers, name).from_pretrained(model / folder_of(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_networks_of_diffusers_give_the_same_result(name: str, tiny_model: Path) -> None:
    theirs = load(diffusers, name, tiny_model)
    ours = getattr(pipelines, name)(**theirs.components)
    assert_same_result(ours, theirs, name)
    assert ours.components.keys() == theirs.components.keys()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_folders_saved_by_diffusers_give_the_same_result(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """transformers writes the tokenizer as tokenizer.json alone."""
    theirs = load(diffusers, name, tiny_model)
    theirs.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*/vocab.json"))
    ours = getattr(pipelines, name).from_pretrained(tmp_path)
    assert_same_result(ours, theirs, name)


def test_one_network_may_be_handed_in_by_name_or_assigned(tiny_model: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_model / "decoder" / "unet")
    randomise(unet, seed=9)
    handed_in = pipelines.KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", unet=unet)
    assigned = pipelines.KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    assigned.unet = unet
    theirs = diffusers.KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", unet=unet)
    theirs.set_progress_bar_config(disable=True)
    for ours in (handed_in, assigned):
        assert_same_result(ours, theirs, "KandinskyV22Pipeline")


def test_a_network_that_was_handed_in_is_shared_with_its_owner(tiny_model: Path) -> None:
    """It moves with the pipeline, as in diffusers, and what its owner changes is painted."""
    theirs = fresh("KandinskyV22Pipeline", tiny_model)
    ours = pipelines.KandinskyV22Pipeline(**theirs.components)
    arguments = arguments_of("KandinskyV22Pipeline")
    before = ours(**arguments, generator=seeded()).images
    with torch.no_grad():
        theirs.unet.conv_out.bias.add_(1.0)
    assert np.abs(ours(**arguments, generator=seeded()).images - before).max() > 1e-3
    assert_same_result(ours, theirs, "KandinskyV22Pipeline")
    ours.to(dtype=torch.float16)
    assert theirs.unet.dtype == theirs.movq.dtype == ours.dtype == torch.float16
    theirs.unet.float()
    assert ours.dtype == torch.float32 and ours.unet.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in theirs.unet.parameters())  # it may be in training


def test_networks_of_other_architectures_are_refused(tiny_model: Path) -> None:
    other = diffusers.UNet2DConditionModel(block_out_channels=(32, 32, 32, 32), cross_attention_dim=8)
    load_from = pipelines.KandinskyV22Pipeline.from_pretrained
    with pytest.raises(ValueError, match=r"this UNet2DConditionModel is no network of Kandinsky 2\.2"):
        load_from(tiny_model / "decoder", unet=other)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(hidden_size=32, num_attention_heads=4))
    with pytest.raises(ValueError, match="CLIPTextModel"):
        pipelines.KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior", text_encoder=text)
    with pytest.raises(ValueError, match=r"tokenizer must be CLIP's, of transformers"):
        pipelines.KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior", tokenizer=nn.Identity())


def test_the_box_paints_the_same_in_both_libraries() -> None:
    """MoVQ is stored once: a decoder of another task takes it from the folder `decoder`."""
    box = model_folder("box")
    movq = diffusers.VQModel.from_pretrained(box / "decoder" / "movq")
    for name, folder in (("Inpaint", "decoder-inpaint"), ("Controlnet", "controlnet-depth")):
        kind = f"KandinskyV22{name}Pipeline"
        theirs = getattr(diffusers, kind).from_pretrained(box / folder, movq=movq)
        theirs.set_progress_bar_config(disable=True)
        ours = getattr(pipelines, kind).from_pretrained(box / folder)
        dim = ours.unet.config.encoder_hid_dim
        arguments = arguments_of(kind) | {
            key: torch.ones(1, dim) * 0.3 for key in ("image_embeds", "negative_image_embeds")
        }
        mine, reference = (result(pipe(**arguments, generator=seeded())) for pipe in (ours, theirs))
        assert np.abs(mine - reference).max() < tolerance(kind)
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(box / "prior")
    assert {prior.prior.dtype, prior.text_encoder.dtype, prior.image_encoder.dtype} == {torch.float32}
    prior.set_progress_bar_config(disable=True)
    ours = pipelines.KandinskyV22PriorPipeline.from_pretrained(box / "prior")
    arguments = {"prompt": "a red star", "num_inference_steps": 3}
    mine, reference = (result(pipe(**arguments, generator=seeded())) for pipe in (ours, prior))
    assert np.abs(mine - reference).max() < 2e-3

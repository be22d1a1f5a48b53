"""Pipelines are loaded, saved, moved and share their parts."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kandinsky22 import acceleration
from kandinsky22.checkpoints.catalog import DEPTH, INPAINT
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.locate import model_folder
from kandinsky22.pipelines import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    switches,
)
from tests.pipelines.inputs import FEW, embeds, photo, record_networks, seeded


def test_save_pretrained_refuses_a_file_as_folder(decoder: KandinskyV22Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    for folder in (file, file / "decoder"):
        with pytest.raises(ValueError, match="notes is a file; choose a folder"):
            decoder.save_pretrained(folder)
    assert file.read_text() == "mine"


def test_dtypes_are_accepted_by_name_and_read_from_networks_and_parts(tiny_model: Path) -> None:
    """The network's own dtype, and that of its part before and after it is read."""
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype="bfloat16")
    assert pipe.dtype == pipe.parts["unet"].dtype == torch.bfloat16
    assert pipe.unet.dtype == pipe.parts["unet"].dtype == pipe.components["movq"].dtype == torch.bfloat16
    assert pipe.to(dtype="float32").unet.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype must be one for all"):
        pipe.to(dtype="half")


def test_the_unet_of_another_task_is_refused(tiny_model: Path) -> None:
    for kind, folder in (
        (KandinskyV22InpaintPipeline, "decoder"),
        (KandinskyV22Pipeline, INPAINT),
        (KandinskyV22Img2ImgPipeline, DEPTH),
        (AutoPipelineForInpainting, "decoder"),
        (AutoPipelineForText2Image, INPAINT),
    ):
        with pytest.raises(CheckpointError, match="this pipeline needs one of"):
            kind.from_pretrained(tiny_model / folder)


def test_from_pretrained_finds_the_prior_by_card_by_folder_or_by_argument(tiny_model: Path, tmp_path: Path) -> None:
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


def test_from_pretrained_finds_hub_names_in_the_cache(
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
        assert pipe.parts["prior_prior"].folder.is_relative_to(tmp_path / "models--someone--tiny-prior")
    with pytest.raises(CheckpointError, match="someone/other is not in the hub's cache"):
        KandinskyV22Pipeline.from_pretrained("someone/other", local_files_only=True)


def test_from_pretrained_loads_a_variant(tiny_model: Path, tmp_path: Path) -> None:
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
    ("arguments", "error", "message"),
    [
        ({"device_map": {"unet": "cpu", "movq": "meta"}}, ValueError, "one device for all networks, got cpu, meta"),
        ({"device_map": "nowhere"}, ValueError, "the device 'nowhere' cannot be used here"),
        ({"proxies": {"https": "here"}}, ValueError, "set HTTPS_PROXY"),
        ({"variant": "fp16"}, ValueError, "trying to load the model files of the `variant=fp16`"),
        ({"torch_dtype": "int8"}, ValueError, "such as torch.float16"),
        ({"dtype": torch.int8}, ValueError, "such as torch.float16"),
        ({"torch_dype": torch.float16}, TypeError, "no argument 'torch_dype'"),
        ({"unet": nn.Linear(1, 1)}, ValueError, "unet must be a UNet of kandinsky22, or such a network of diffusers"),
        ({"safety_checker": nn.Linear(1, 1)}, TypeError, "no argument 'safety_checker'"),
    ],
)
def test_from_pretrained_refuses_unsupported_arguments(
    tiny_model: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", **arguments)


def test_from_pretrained_refuses_folders_of_other_models(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds a KandinskyV22PriorPipeline, and a KandinskyV22Pipeline also needs"
    ):
        KandinskyV22Pipeline.from_pretrained(tiny_model / "prior")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="contains a StableDiffusionPipeline"):
        KandinskyV22Pipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        KandinskyV22Pipeline.from_pretrained(tmp_path / "nothing")


def test_networks_are_loaded_only_when_a_call_needs_them(tiny_model: Path) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    parts = pipe.parts
    networks = ("unet", "movq", "prior_prior", "prior_text_encoder", "prior_image_encoder")
    assert [parts[name].network for name in networks] == [None] * 5
    pipe("a ring", **FEW, prior_num_inference_steps=2)
    assert [name for name in networks if parts[name].network is None] == ["prior_image_encoder"]


def test_pipelines_share_networks_device_and_dtype(tiny_model: Path) -> None:
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


def test_combined_pipelines_replace_parts_in_their_two_pipelines(tiny_model: Path) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    other = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    pipe.prior_prior, pipe.unet = other.prior_prior, other.unet
    assert pipe.prior_pipe.prior is pipe.prior_prior is other.prior_prior
    assert pipe.decoder_pipe.unet is pipe.unet is other.unet
    assert list(pipe.parts) == list(other.parts)


def test_a_compiled_network_may_be_assigned(tiny_model: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    before = pipe(**embeds(), **FEW, generator=seeded()).images
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    # a network that is compiled is the plain one, which rounds otherwise than the prepared one
    assert np.abs(pipe(**embeds(), **FEW, generator=seeded()).images - before).max() < 1e-4


def test_float16_on_a_cpu_without_acceleration_runs_in_float32_with_one_warning(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(acceleration.ENV_VARIABLE, "off")
    expected = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")(
        **embeds(), **FEW, generator=seeded()
    ).images
    switches.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", torch_dtype=torch.float16)
        assert caught == []  # it may still be moved to another device
        for again in (pipe, KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype=torch.float16)):
            assert np.array_equal(again(**embeds(), **FEW, generator=seeded()).images, expected)
    assert [str(warning.message).partition(",")[0] for warning in caught] == [
        "float16 is slow and coarse on a CPU without acceleration"
    ]
    assert pipe.dtype == torch.float16


def test_bfloat16_pictures_are_close_to_float32(tiny_model: Path) -> None:
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
def test_offloaded_networks_paint_the_same_and_are_released(tiny_model: Path, placement: Any) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    first = pipe("a ring", **FEW, prior_num_inference_steps=2, generator=seeded()).images
    other = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    other.place("cpu", placement=placement)
    assert np.array_equal(other("a ring", **FEW, prior_num_inference_steps=2, generator=seeded()).images, first)
    assert other.parts["unet"].network is None  # it was let go


def test_words_without_effect_are_accepted(tiny_model: Path, tmp_path: Path) -> None:
    pipe = KandinskyV22Pipeline.from_pretrained(
        tiny_model / "decoder",
        cache_dir=tmp_path,
        token="hf_none",
        safety_checker=None,
        feature_extractor=None,
        device_map="cpu",
        torch_dtype="auto",
        use_safetensors=True,
        resume_download=True,
    )
    assert pipe.dtype == torch.float32 and pipe.device == torch.device("cpu")


def test_each_part_may_have_its_own_dtype(tiny_model: Path) -> None:
    """When the pipeline runs, all have that of its first network."""
    dtypes = {"movq": torch.float32, "default": "bfloat16"}
    pipe = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype=dtypes)
    assert (pipe.unet.dtype, pipe.movq.dtype) == (torch.bfloat16, torch.float32)
    same = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype="bfloat16")
    painted, expected = (each(**embeds(), **FEW, generator=seeded()).images for each in (pipe, same))
    assert np.array_equal(painted, expected) and pipe.movq.dtype == torch.bfloat16


def test_the_weights_are_opened_at_once_so_that_the_folder_may_be_deleted(tiny_model: Path, tmp_path: Path) -> None:
    for part in ("prior", "decoder"):
        shutil.copytree(tiny_model / part, tmp_path / part)
    pipe = AutoPipelineForImage2Image.from_pretrained(tmp_path / "decoder", torch_dtype=torch.bfloat16)
    shutil.rmtree(tmp_path / "prior")
    shutil.rmtree(tmp_path / "decoder")
    few = {**FEW, "prior_num_inference_steps": 2, "strength": 1.0}
    expected = AutoPipelineForImage2Image.from_pretrained(tiny_model / "decoder", torch_dtype=torch.bfloat16)
    painted, reference = (each("a ring", photo(), **few, generator=seeded()).images for each in (pipe, expected))
    assert np.array_equal(painted, reference)
    assert pipe.prior_pipe.interpolate([photo()], [1.0]).image_embeds.isfinite().all()


@pytest.mark.parametrize(
    "kind", [KandinskyV22InpaintPipeline, KandinskyV22ControlnetPipeline, AutoPipelineForInpainting]
)
def test_the_boxs_decoders_find_the_movq_that_is_stored_once(kind: Any) -> None:
    folder = DEPTH if kind is KandinskyV22ControlnetPipeline else INPAINT
    pipe = kind.from_pretrained(model_folder("box") / folder)
    assert pipe.parts["movq"].folder == model_folder("box") / "decoder" / "movq"


def test_pipelines_that_share_networks_move_together(tiny_model: Path) -> None:
    """As in diffusers: the networks are one, so are their dtype and device, and both paint with them."""
    first = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    plain = first(**embeds(), **FEW, generator=seeded()).images
    second = KandinskyV22Img2ImgPipeline.from_pipe(first).to(torch.bfloat16)
    second(**embeds(), **FEW, image=photo(), strength=1.0)
    assert first.dtype == second.dtype == first.unet.dtype == torch.bfloat16
    coarse = first(**embeds(), **FEW, generator=seeded()).images
    alone = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder", dtype="bfloat16")
    assert np.array_equal(coarse, alone(**embeds(), **FEW, generator=seeded()).images)
    first.unet.to(torch.float32)
    assert second.dtype == torch.float32
    assert 0 < np.abs(first(**embeds(), **FEW, generator=seeded()).images - plain).max() < 0.2  # of rounded weights
    assert KandinskyV22Img2ImgPipeline.from_pipe(first, torch_dtype="bfloat16").dtype == first.dtype == torch.bfloat16


def test_parts_may_be_none_until_they_are_needed(tiny_model: Path, tmp_path: Path) -> None:
    pipe = KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior", image_encoder=None, image_processor=None)
    assert pipe.image_encoder is None and pipe.config["image_encoder"] == [None, None]
    assert pipe("a ring", negative_prompt="a star", num_inference_steps=2).image_embeds.isfinite().all()
    with record_networks() as ran:
        with pytest.raises(CheckpointError, match="this pipeline has no image_encoder; pass one"):
            pipe("a ring", num_inference_steps=2)
        assert ran == []
    pipe.save_pretrained(tmp_path)
    assert KandinskyV22PriorPipeline.from_pretrained(tmp_path).image_encoder is None
    decoder = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    decoder.movq = None
    with pytest.raises(CheckpointError, match="this pipeline has no movq"):
        decoder(**embeds(), **FEW)


def test_the_base_class_loads_the_class_that_the_folder_names(tiny_model: Path) -> None:
    load = DiffusionPipeline.from_pretrained
    assert type(load(tiny_model / "prior")) is KandinskyV22PriorPipeline
    assert type(load(tiny_model / "decoder", torch_dtype=torch.float32)) is KandinskyV22Pipeline
    assert type(load(tiny_model / INPAINT)) is KandinskyV22InpaintPipeline
    connected = load(tiny_model / "decoder", load_connected_pipeline=True)
    assert type(connected) is KandinskyV22CombinedPipeline and isinstance(connected, DiffusionPipeline)
    assert connected.config["_class_name"] == "KandinskyV22CombinedPipeline"


def test_a_prior_and_a_decoder_of_different_models_are_refused(tiny_model: Path) -> None:
    box = KandinskyV22PriorPipeline.from_pretrained(model_folder("box") / "prior")
    decoder = KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    parts = {f"prior_{name}": part for name, part in box.parts.items()} | decoder.parts
    with pytest.raises(CheckpointError, match=r"the prior makes embeddings of .* they are not of one model"):
        KandinskyV22CombinedPipeline(**parts)
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_model / "decoder")
    for name, part in parts.items():
        setattr(pipe, name, part)
    with record_networks() as ran:
        with pytest.raises(CheckpointError, match="not of one model"):
            pipe("a ring", **FEW)
        assert ran == []

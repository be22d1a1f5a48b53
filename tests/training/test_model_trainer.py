"""The whole training of a model, far too short, and what comes of it: a folder that paints, here and in diffusers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kandinsky22 import Kandinsky, controlnet, inpaint, text2img
from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.prior import PriorConfig
from kandinsky22.training.lock import held
from kandinsky22.training.loop import Recipe
from kandinsky22.training.model_trainer import Workshop
from kandinsky22.training.recipes import BOX, NETWORKS
from kandinsky22.training.run import lines

SHORT = replace(
    BOX,
    side=64,
    crop=32,
    pictures=24,
    shapes=((1, 2),),
    stretched=8,
    hints=16,
    vision=replace(
        BOX.vision, image_size=32, hidden_size=32, num_attention_heads=2, num_hidden_layers=1, projection_dim=32
    ),
    text={**BOX.text, "hidden_size": 32, "projection_dim": 32, "num_hidden_layers": 1, "intermediate_size": 32},
    image_processor=replace(BOX.image_processor, size=32, crop_size=32),
    movq=MoVQConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, num_vq_embeddings=16, sample_size=32),
    prior=PriorConfig(num_layers=1, num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_embeddings=32),
    unet=replace(BOX.unet, block_out_channels=(32, 32), cross_attention_dim=16, encoder_hid_dim=32, sample_size=8),
    runs={name: Recipe(batch=4, learning_rate=1e-3, bfloat16=False) for name in NETWORKS},
    hard_negatives=2,
)


TRAINED = [network for network in NETWORKS if network != "linear-prior"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """All networks, two steps each."""
    patch = pytest.MonkeyPatch()
    patch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    patch.setattr("kandinsky22.training.model_trainer.CAPTIONS_TO_LEARN_FROM", 200)
    box = Workshop(SHORT, tmp_path_factory.mktemp("box"))
    for network in TRAINED:
        lines = list(box.train(network, steps=2))
        assert [line["step"] for line in lines] == [1, 2]
        assert all(line["loss"] > 0 for line in lines)
    yield box
    patch.undo()


def test_the_folder_paints(trained: Workshop) -> None:
    kandinsky = Kandinsky.load(trained.folder / "model")
    assert kandinsky.defaults.decoder.guidance_scale == BOX.defaults["decoder"]["guidance_scale"]
    (picture,) = kandinsky(text2img("two red circles", seed=1, num_inference_steps=2, prior_num_inference_steps=2))
    assert picture.image.size == (64, 64)


def test_the_folder_loads_in_diffusers(trained: Workshop) -> None:
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(trained.model / catalog.PRIOR, dtype=torch.float32)
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(trained.model / catalog.DECODER, dtype=torch.float32)
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = prior("two red circles", num_inference_steps=2, generator=generator)
    images = decoder(**out, num_inference_steps=2, height=64, width=64, generator=generator, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_a_stage_that_is_started_again_is_done_and_other_steps_are_refused(trained: Workshop) -> None:
    assert list(trained.train("prior")) == []
    with pytest.raises(ValueError, match="holds a run of 2 steps, 2 of them done"):
        next(trained.train("prior", steps=3))


def test_a_stage_says_which_one_it_needs_first(tmp_path: Path) -> None:
    for stage, first in (("prior", "clip"), ("decoder", "movq")):
        with pytest.raises(CheckpointError, match=f"train {first} first"):
            next(Workshop(SHORT, tmp_path).train(stage, steps=1))


def test_a_stopped_stage_reaches_the_weights_of_one_that_was_not(trained: Workshop, tmp_path: Path) -> None:
    """The U-Net, stopped after its checkpoint; all that came before is shared."""
    folder = shutil.copytree(trained.folder, tmp_path / "stopped", ignore=shutil.ignore_patterns("decoder*", "movq"))
    shutil.copytree(trained.model / catalog.DECODER / "movq", folder / "model" / "decoder" / "movq")
    twin = shutil.copytree(folder, tmp_path / "whole")
    list(Workshop(SHORT, twin).train("decoder", steps=5, every=2))
    for line in Workshop(SHORT, folder).train("decoder", steps=5, every=2):
        if line["step"] == 3:
            break
    assert [line["step"] for line in Workshop(SHORT, folder).train("decoder")] == [3, 4, 5]
    unets = [
        load_file(f / "model" / "decoder" / "unet" / "diffusion_pytorch_model.safetensors") for f in (folder, twin)
    ]
    assert all(torch.equal(value, unets[1][name]) for name, value in unets[0].items())


def test_a_checkpoint_does_not_go_on_with_another_clip(trained: Workshop, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "switched")
    weights = folder / "model" / "prior" / "image_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["visual_projection.weight"] += 1
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="the checkpoint learnt from another image_encoder than"):
        next(Workshop(SHORT, folder).train("decoder"))


def test_movqs_decoder_goes_on_without_moving_the_latents(trained: Workshop, tmp_path: Path) -> None:
    """So the U-Nets, taught on those latents, still fit, and their runs may go on."""
    folder = shutil.copytree(trained.folder, tmp_path / "again")
    shutil.rmtree(folder / "movq-decoder")
    before = Workshop(SHORT, folder)
    pictures = before.material("movq").held_out.pictures(range(2))
    z, decoded = before.movq.encode(pictures), before.movq.decode(before.movq.encode(pictures))
    list(before.train("movq-decoder", steps=2))
    after = Workshop(SHORT, folder)
    assert torch.equal(after.movq.encode(pictures), z)
    assert not torch.equal(after.movq.decode(z), decoded)
    assert list(after.train("decoder")) == []


def test_the_decoders_of_the_other_tasks_share_movq_and_paint(trained: Workshop) -> None:
    assert not (trained.folder / "model" / catalog.INPAINT / "movq").exists()
    kandinsky = Kandinsky.load(trained.folder / "model")
    few = {"num_inference_steps": 2, "prior_num_inference_steps": 2, "seed": 1}
    picture = Image.new("RGB", (64, 64), "red")
    for request in (
        inpaint("two red circles", image=picture, mask_image=picture.convert("L"), **few),  # type: ignore[arg-type]
        controlnet("two red circles", hint=picture, **few),  # type: ignore[arg-type]
    ):
        (painting,) = kandinsky(request)
        assert painting.image.size == (64, 64)


def test_two_runs_in_one_folder_are_refused(trained: Workshop) -> None:
    with held(trained.folder / "decoder"), pytest.raises(OSError, match=r"another run is going on in .*decoder; wait"):
        next(trained.train("decoder"))


def test_minutes_fix_the_number_of_steps(trained: Workshop, tmp_path: Path) -> None:
    (line,) = Workshop(SHORT, tmp_path).train("movq", minutes=1e-9)
    assert line["of"] == 1


def test_a_fitted_codebook_says_how_much_of_it_is_used(trained: Workshop) -> None:
    assert 0 < json.loads((trained.folder / "movq" / "codebook.json").read_text())["codes_used"] <= 1


def test_sheets_are_drawn(trained: Workshop) -> None:
    for network in TRAINED:
        assert (trained.folder / network / "sheet.png").stat().st_size > 0


def test_what_was_trained_on_top_stays_when_a_finished_network_is_asked_for_again(trained: Workshop) -> None:
    """`train movq` after `train movq-decoder` would undo the latter."""
    weights = trained.model / catalog.DECODER / "movq" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert list(Workshop(SHORT, trained.folder).train("movq")) == []
    assert weights.read_bytes() == before


def test_the_linear_prior_leaves_its_line(trained: Workshop) -> None:
    (line,) = trained.train("linear-prior")
    assert lines(trained.folder / "linear-prior") == [line] and line["loss"] > 0

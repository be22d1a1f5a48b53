"""Training all networks of a small model for a few steps: the model generates pictures, here and in diffusers."""

import json
import shutil
import sys
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
from kandinsky22.training.loop import Recipe
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.recipes import BOX
from kandinsky22.training.registry import ITERATIVE
from kandinsky22.training.run import read_metrics
from kandinsky22.training.run_lock import run_lock

SHORT = replace(
    BOX,
    side=64,
    crop=32,
    things=0.0,
    text_length=32,
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
    runs={name: Recipe(batch=4, learning_rate=1e-3, bfloat16=False) for name in ITERATIVE},
    hard_negatives=2,
)

TRAINED = [*ITERATIVE]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelTrainer]:
    """A model of which all networks were trained for two steps."""
    patch = pytest.MonkeyPatch()
    patch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    patch.setattr("kandinsky22.training.captions.LEARNED_FROM", 200)
    trainer = ModelTrainer(SHORT, tmp_path_factory.mktemp("box"))
    for network in TRAINED:
        metrics = list(trainer.train(network, steps=2))
        assert [line.step for line in metrics] == [1, 2]
        assert all(line.loss > 0 for line in metrics)
    yield trainer
    patch.undo()


def test_trained_model_generates_a_picture(trained: ModelTrainer) -> None:
    kandinsky = Kandinsky.load(trained.folder / "model")
    assert kandinsky.defaults.decoder.guidance_scale == BOX.defaults["decoder"]["guidance_scale"]
    (picture,) = kandinsky(text2img("two red circles", seed=1, num_inference_steps=2, prior_num_inference_steps=2))
    assert picture.image.size == (64, 64)


def test_trained_model_loads_in_diffusers(trained: ModelTrainer) -> None:
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(trained.model.path / catalog.PRIOR, dtype=torch.float32)
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(trained.model.path / catalog.DECODER, dtype=torch.float32)
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = prior("two red circles", num_inference_steps=2, generator=generator)
    images = decoder(**out, num_inference_steps=2, height=64, width=64, generator=generator, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_finished_network_is_not_trained_again_and_other_steps_are_refused(trained: ModelTrainer) -> None:
    assert list(trained.train("prior")) == []
    with pytest.raises(ValueError, match="holds a run of 2 steps, 2 of them done"):
        next(trained.train("prior", steps=3))


def test_resumed_clip_keeps_its_tokenizer(trained: ModelTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that is learned again may number its tokens differently."""
    monkeypatch.delattr("kandinsky22.training.network_training.learn_tokenizer")
    assert list(trained.train("clip")) == []


@pytest.mark.parametrize(
    ("network", "required"),
    [("prior", "clip"), ("linear-prior", "clip"), ("decoder", "movq"), ("movq-decoder", "movq")],
)
def test_missing_network_that_must_be_trained_first_is_named(network: str, required: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"train {required} first"):
        next(ModelTrainer(SHORT, tmp_path).train(network, steps=1))


def test_interrupted_decoder_training_reaches_the_same_weights(trained: ModelTrainer, tmp_path: Path) -> None:
    """Interrupted a step after its checkpoint, compared with one run to the end."""
    folder = shutil.copytree(
        trained.folder, tmp_path / "interrupted", ignore=shutil.ignore_patterns("decoder*", "movq")
    )
    shutil.copytree(trained.model.path / catalog.DECODER / "movq", folder / "model" / "decoder" / "movq")
    uninterrupted = shutil.copytree(folder, tmp_path / "uninterrupted")
    list(ModelTrainer(SHORT, uninterrupted).train("decoder", steps=5, every=2))
    for line in ModelTrainer(SHORT, folder).train("decoder", steps=5, every=2):
        if line.step == 3:
            break
    assert [line.step for line in ModelTrainer(SHORT, folder).train("decoder")] == [3, 4, 5]
    unets = [
        load_file(f / "model" / "decoder" / "unet" / "diffusion_pytorch_model.safetensors")
        for f in (folder, uninterrupted)
    ]
    assert all(torch.equal(value, unets[1][name]) for name, value in unets[0].items())


def test_resume_with_another_image_encoder_is_refused(trained: ModelTrainer, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "switched")
    weights = folder / "model" / "prior" / "image_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["visual_projection.weight"] += 1
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="the checkpoint was trained with a different image_encoder"):
        next(ModelTrainer(SHORT, folder).train("decoder"))


def test_training_the_movq_decoder_leaves_the_latents_unchanged(trained: ModelTrainer, tmp_path: Path) -> None:
    """The decoders trained on these latents stay valid, and their runs can be resumed."""
    folder = shutil.copytree(trained.folder, tmp_path / "again")
    shutil.rmtree(folder / "movq-decoder")
    before = ModelTrainer(SHORT, folder)
    pictures = before.data("movq").held_out.pictures(range(2))
    z, decoded = before.frozen.movq.encode(pictures), before.frozen.movq.decode(before.frozen.movq.encode(pictures))
    list(before.train("movq-decoder", steps=2))
    after = ModelTrainer(SHORT, folder)
    assert torch.equal(after.frozen.movq.encode(pictures), z)
    assert not torch.equal(after.frozen.movq.decode(z), decoded)
    assert list(after.train("decoder")) == []


def test_inpainting_and_depth_decoders_share_movq_and_generate_pictures(trained: ModelTrainer) -> None:
    assert not (trained.folder / "model" / catalog.INPAINT / "movq").exists()
    kandinsky = Kandinsky.load(trained.folder / "model")
    sampling = {"num_inference_steps": 2, "prior_num_inference_steps": 2, "seed": 1}
    picture = Image.new("RGB", (64, 64), "red")
    for request in (
        inpaint("two red circles", image=picture, mask_image=picture.convert("L"), **sampling),  # type: ignore[arg-type]
        controlnet("two red circles", hint=picture, **sampling),  # type: ignore[arg-type]
    ):
        (result,) = kandinsky(request)
        assert result.image.size == (64, 64)


def test_second_run_in_the_same_folder_is_refused(trained: ModelTrainer) -> None:
    with (
        run_lock(trained.folder / "decoder"),
        pytest.raises(OSError, match=r"another run is going on in .*decoder; wait"),
    ):
        next(trained.train("decoder"))


def test_minutes_determine_the_number_of_steps(trained: ModelTrainer, tmp_path: Path) -> None:
    (line,) = ModelTrainer(SHORT, tmp_path).train("movq", minutes=1e-9)
    assert line.steps == 1


def test_share_of_used_codes_is_written_for_a_fitted_codebook(trained: ModelTrainer) -> None:
    assert 0 < json.loads((trained.folder / "movq" / "codebook.json").read_text())["codes_used"] <= 1


def test_sample_grid_is_written_for_each_network(trained: ModelTrainer) -> None:
    for network in TRAINED:
        assert (trained.folder / network / "sheet.png").stat().st_size > 0


def test_repeating_finished_movq_training_keeps_the_later_decoder_training(trained: ModelTrainer) -> None:
    """Adding MoVQ to the model again would undo `train movq-decoder`."""
    weights = trained.model.path / catalog.DECODER / "movq" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert list(ModelTrainer(SHORT, trained.folder).train("movq")) == []
    assert weights.read_bytes() == before


def test_linear_prior_writes_its_metrics(trained: ModelTrainer) -> None:
    (line,) = trained.train("linear-prior")
    assert read_metrics(trained.folder / "linear-prior") == [line.to_json()] and line.loss > 0


def unet_weights(model: Path) -> dict[str, torch.Tensor]:
    """The decoder's U-Net in a model's folder."""
    return load_file(model / catalog.DECODER / "unet" / "diffusion_pytorch_model.safetensors")


def copy_without_decoder(trained: ModelTrainer, folder: Path) -> Path:
    """The folder of a run whose model has everything that a decoder learns from."""
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("decoder*", "movq"))
    shutil.copytree(trained.model.path / catalog.DECODER / "movq", folder / "model" / "decoder" / "movq")
    return folder


def stop_after(trainer: ModelTrainer, step: int, **options: int) -> None:
    """Stop a decoder's run after a step."""
    for line in trainer.train("decoder", **options):  # type: ignore[arg-type]
        if line.step == step:
            break


def test_a_stopped_run_leaves_a_model_with_its_last_checkpoint(trained: ModelTrainer, tmp_path: Path) -> None:
    folder = copy_without_decoder(trained, tmp_path / "run")
    stop_after(ModelTrainer(SHORT, folder), 5, steps=30, every=2)
    weights = unet_weights(folder / "model")
    trainer = ModelTrainer(SHORT, folder)
    assert trainer.export("decoder", 4) == 4
    assert all(torch.equal(value, weights[name]) for name, value in unet_weights(folder / "model").items())


def test_export_writes_the_network_of_a_checkpoint_or_the_best_one(trained: ModelTrainer, tmp_path: Path) -> None:
    folder = copy_without_decoder(trained, tmp_path / "run")
    list(ModelTrainer(SHORT, folder).train("decoder", steps=4, every=2))
    last = unet_weights(folder / "model")
    assert ModelTrainer(SHORT, folder).export("decoder", 2) == 2
    exported = unet_weights(folder / "model")
    assert any(not torch.equal(value, last[name]) for name, value in exported.items())
    assert list(ModelTrainer(SHORT, folder).train("decoder")) == [], "a complete run does not undo an export"
    assert torch.equal(unet_weights(folder / "model")["conv_in.weight"], exported["conv_in.weight"])
    assert ModelTrainer(SHORT, folder).export("decoder", best=True) is None
    best = load_file(folder / "decoder" / "best.safetensors")
    assert torch.equal(unet_weights(folder / "model")["conv_in.weight"], best["conv_in.weight"].half())
    with pytest.raises(ValueError, match="has no checkpoint of step 3; those of steps 2, 4 are there"):
        ModelTrainer(SHORT, folder).export("decoder", 3)


def test_a_stopped_run_is_finished_and_a_complete_one_trained_for_more(trained: ModelTrainer, tmp_path: Path) -> None:
    folder = copy_without_decoder(trained, tmp_path / "run")
    stop_after(ModelTrainer(SHORT, folder), 5, steps=30, every=2)
    assert [line.step for line in ModelTrainer(SHORT, folder).train("decoder", finish=True)] == [5]
    assert list(ModelTrainer(SHORT, folder).train("decoder", finish=True)) == []
    assert [line.step for line in ModelTrainer(SHORT, folder).train("decoder", more=2)] == [6, 7]
    assert [line.step for line in ModelTrainer(SHORT, folder).train("decoder", more=2)] == [8, 9]


def test_what_cannot_go_on_is_refused_before_anything_is_computed(
    trained: ModelTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_without_decoder(trained, tmp_path / "run")
    for option in ({"finish": True}, {"more": 2}):
        with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
            next(ModelTrainer(SHORT, folder).train("decoder", **option))  # type: ignore[arg-type]
    stop_after(ModelTrainer(SHORT, folder), 3, steps=4, every=2)
    monkeypatch.delattr("kandinsky22.training.shards.load_or_compute")
    with pytest.raises(ValueError, match="a run of 4 steps, 2 of them done; --more is for a complete one"):
        next(ModelTrainer(SHORT, folder).train("decoder", more=2))
    with pytest.raises(ValueError, match=r"its schedule is fixed; leave --steps out to resume"):
        next(ModelTrainer(SHORT, folder).train("decoder", steps=9))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'kandinsky22\[train\]'"):
        next(ModelTrainer(SHORT, folder).train("decoder", tensorboard=True))


def test_prompts_are_painted_at_every_checkpoint(trained: ModelTrainer, tmp_path: Path) -> None:
    folder = copy_without_decoder(trained, tmp_path / "run")
    shutil.copytree(trained.model.path / catalog.DECODER / "unet", folder / "model" / "decoder" / "unet")
    shutil.copytree(trained.model.path / catalog.DECODER / "scheduler", folder / "model" / "decoder" / "scheduler")
    list(ModelTrainer(SHORT, folder).train("decoder", steps=2, every=1, samples=["a red star", "two rings"]))
    assert [path.name for path in sorted((folder / "decoder" / "samples").iterdir())] == [
        "00000001.png",
        "00000002.png",
    ]


def test_prompts_are_refused_before_the_model_can_paint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--sample paints with the whole model, which has no clip yet; leave it out"):
        next(ModelTrainer(SHORT, tmp_path).train("movq", steps=1, samples=["a red star"]))

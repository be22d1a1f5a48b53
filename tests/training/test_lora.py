"""Training low-rank adapters: they start as nothing, resume bit for bit, and are files that any program loads."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kandinsky22 import Kandinsky, text2img
from kandinsky22.checkpoints import lora_files
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import lora
from kandinsky22.training.cli import main
from kandinsky22.training.lora import LoRAConfig
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.network_plans import plan_of
from kandinsky22.training.recipes import BOX, of_model
from tests.models_on_disk import randomise
from tests.training.test_model_trainer import SHORT

CONFIG = LoRAConfig(rank=2, alpha=4.0)
UNET = UNetConfig(
    block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=16, cross_attention_dim=16, encoder_hid_dim=24
)


NETWORKS = ("prior", "vision", "text", "text_length", "unet", "movq", "image_processor")


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    yield


def trainer(base: Path, folder: Path, config: LoRAConfig = CONFIG) -> ModelTrainer:
    """Trains adapters of a model on the picture world, with the recipe `SHORT`."""
    parts = {part.name: part for part in base.iterdir() if part.is_dir()}
    sizes = of_model(parts)
    recipe = replace(SHORT, **{name: getattr(sizes, name) for name in NETWORKS})
    return ModelTrainer(recipe, folder, parts, lora=config)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_network_begins_as_the_network_and_trains_only_adapters(dora: bool) -> None:
    network = UNet(UNET)
    randomise(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lora.adapt(network, replace(CONFIG, dora=dora, targets=("to_q", "conv1")))
    merged = lora.merged(network.state_dict())
    assert merged.keys() == before.keys()
    assert all(torch.allclose(merged[name], value, atol=1e-6) for name, value in before.items())
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(".parametrizations.weight.0." in name for name in trained)
    adapter = lora.adapter_of(network.state_dict())
    assert all(name.endswith(("to_q", "conv1")) for name in adapter.layers)
    assert all(layer.scaling == 2 and (layer.magnitude is not None) == dora for layer in adapter.layers.values())


def test_a_target_that_is_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer's name ends in 'to_x'"):
        lora.adapt(UNet(UNET), replace(CONFIG, targets=("to_q", "to_x")))


def test_a_resumed_run_writes_the_adapter_of_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    for line in trainer(tiny_model, tmp_path / "stopped").train("decoder", steps=4, every=2):
        if line.step == 3:
            break
    assert [line.step for line in trainer(tiny_model, tmp_path / "stopped").train("decoder")] == [3, 4]
    list(trainer(tiny_model, tmp_path / "whole").train("decoder", steps=4, every=2))
    files = [load_file(trainer(tiny_model, tmp_path / name).lora_file("decoder")) for name in ("stopped", "whole")]
    assert files[0].keys() == files[1].keys() and all(torch.equal(x, files[1][name]) for name, x in files[0].items())
    unet = load_file(next((tiny_model / "decoder" / "unet").glob("*.safetensors")))
    shards = sum(path.stat().st_size for path in (tmp_path / "whole" / "decoder" / "checkpoints").rglob("*.distcp"))
    assert shards < sum(x.nbytes for x in unet.values())


@pytest.mark.parametrize("network", ["prior", "decoder"])
def test_a_trained_file_changes_pictures_and_not_the_model(network: str, tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(tiny_model, tmp_path, replace(CONFIG, dora=network == "prior"))
    list(run.train(network, steps=2))
    file = lora_files.read(run.lora_file(network))
    assert set(file.layers) == {"prior" if network == "prior" else "unet"}
    kandinsky = Kandinsky.load(tmp_path / "model")
    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    plain = kandinsky(text2img("two red circles", **options))[0].image
    assert kandinsky(text2img("two red circles", loras=[f"{run.lora_file(network)}:9"], **options))[0].image != plain
    unet = next((tiny_model / "decoder" / "unet").glob("*.safetensors")).read_bytes()
    assert next((tmp_path / "model" / "decoder" / "unet").glob("*.safetensors")).read_bytes() == unet


def test_export_writes_the_adapter_of_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(tiny_model, tmp_path)
    list(run.train("decoder", steps=4, every=2))
    last = shutil.copy(run.lora_file("decoder"), tmp_path / "last.safetensors")
    assert trainer(tiny_model, tmp_path).export("decoder", 2) == 2
    assert run.lora_file("decoder").read_bytes() != Path(last).read_bytes()
    assert trainer(tiny_model, tmp_path).export("decoder") == 4
    assert run.lora_file("decoder").read_bytes() == Path(last).read_bytes()
    trainer(tiny_model, tmp_path).export("decoder", best=True)


def test_the_plan_of_adapters_has_their_gradients_alone() -> None:
    plan, whole = (plan_of(BOX, "decoder", 10, 1, config) for config in (LoRAConfig(rank=4, alpha=4.0), None))
    assert plan.gradients + plan.moments + plan.ema < whole.gradients / 2
    assert plan.step_memory < whole.step_memory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoder", "--dora"], "--dora is about low-rank adapters: give their rank with --lora"),
        (["decoder", "--lora", "4"], "name its model with --start-from"),
        (["movq", "--lora", "4"], "--lora does not apply to movq"),
        (["decoder", "--lora", "0"], "whole number from 1 up"),
    ],
)
def test_options_of_adapters_are_checked(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main([*arguments, "--folder", str(tmp_path)])

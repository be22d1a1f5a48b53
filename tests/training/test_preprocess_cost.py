"""Costs beside the training steps, sample grids and preprocessing: counted on fake tensors, they equal the real
work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.tokenizer import Tokens
from kandinsky22.models.unet import UNet
from kandinsky22.training import decoder, movq, prior, shards
from kandinsky22.training.flops import FlopCounter
from kandinsky22.training.network_plans import plan_of, preprocess_cost
from kandinsky22.training.plan_table import table
from kandinsky22.training.preprocess_cost import InferenceCost, inference_cost, network_bytes
from kandinsky22.training.recipes import BOX
from tests.training.scale_program import NoisePictures
from tests.training.test_model_trainer import SHORT

CELLS = SHORT.side // SHORT.movq.factor


def test_peak_memory_is_that_counted_by_hand() -> None:
    """A layer's input is freed once the next layer's output exists; tensors from before do not count."""
    layers, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.zeros(4, 8)
    assert inference_cost(lambda: layers(x)) == InferenceCost(2 * 4 * 8 * 4, 5 * 2 * 4 * 8 * 8)
    wide = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
    assert inference_cost(lambda: wide(x)).memory == 4 * (32 + 8) * 4
    outputs: list[Tensor] = []
    assert inference_cost(lambda: outputs.extend(layer(x) for layer in layers)).memory == 5 * 4 * 8 * 4
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
        assert inference_cost(lambda: fake(torch.zeros(4, 8))).memory == 3 * 4 * 8 * 4  # including its input
    assert network_bytes(layers) == 5 * 4 * (64 + 8)


def test_consecutive_work_adds_operations_and_takes_the_largest_memory() -> None:
    first, second = InferenceCost(10, 3), InferenceCost(4, 5)
    assert first.then(second) == InferenceCost(10, 8) and first.times(4) == InferenceCost(10, 12)


class FullLengthTokenizer:
    """A tokenizer whose captions all have the full length."""

    def __call__(self, captions: list[str]) -> Tokens:
        shape = len(captions), SHORT.text_length
        return Tokens(torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool), ("",) * len(captions))


def operations_of(sample_grid: object, network: nn.Module) -> int:
    with FlopCounter() as counter:
        sample_grid(network.state_dict())  # type: ignore[operator]
    return counter.total


def test_the_decoders_sample_grid_takes_the_planned_operations() -> None:
    unet, coder = UNet(SHORT.unet), MoVQ(SHORT.movq)
    held_out = decoder.Bucket(torch.randn(20, 4, CELLS, CELLS), torch.randn(20, 32))
    schedule = NoiseSchedule.from_config(SHORT.decoder_scheduler)
    sample_grid = decoder.sample_grid(unet, coder, schedule, held_out, torch.zeros(1, 32), SHORT.runs["decoder"])
    assert plan_of(SHORT, "decoder", 1, 1).sample_grid.operations == operations_of(sample_grid, unet)


def test_movqs_sample_grid_takes_the_planned_operations() -> None:
    both = movq.Autoencoder(MoVQ(SHORT.movq))
    pictures = replace(NoisePictures(), size=(SHORT.side, SHORT.side))
    sample_grid = movq.sample_grid(both, pictures, 40)  # type: ignore[arg-type]
    planned = plan_of(SHORT, "movq", 1, 1).sample_grid.operations
    assert planned * 40 / movq.NUM_RECONSTRUCTIONS == operations_of(sample_grid, both)


def test_the_priors_sample_grid_takes_the_planned_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for the empty caption, which is encoded once and planned for every row."""
    text = CLIPText(SHORT.text_config(SHORT.vocabulary))
    network, held_out = (
        PriorTransformer(SHORT.prior),
        prior.CaptionedEmbeds(torch.randn(256, 32), lambda indices, rng: [""] * len(indices)),
    )
    schedule = NoiseSchedule.from_config(SHORT.prior_scheduler)
    pictures = replace(NoisePictures(), size=(8, 8))
    # type: ignore[arg-type]
    sample_grid = prior.sample_grid(
        network, text, FullLengthTokenizer(), schedule, held_out, pictures, SHORT.runs["prior"]
    )
    assert plan_of(SHORT, "prior", 1, 1).sample_grid.operations == pytest.approx(
        operations_of(sample_grid, network), rel=0.01
    )


def test_preprocessing_takes_the_planned_operations_and_disk(tmp_path: Path) -> None:
    coder, count = MoVQ(SHORT.movq).requires_grad_(False), 20
    with FakeTensorMode(allow_non_fake_inputs=True):
        before = preprocess_cost(SHORT, "decoder", count)
    assert before is not None
    latents, embeds = before.values
    with FlopCounter() as counter:
        shards.load_or_compute(
            tmp_path, "a", count, lambda rows: coder.encode(torch.zeros(len(rows), 3, SHORT.side, SHORT.side))
        )
    assert counter.total == count * latents.operations
    size = (tmp_path / "00000.safetensors").stat().st_size
    assert count * latents.disk <= size < count * latents.disk + 1000
    assert embeds.disk == 2 * 32 and before.disk == count * (latents.disk + embeds.disk)
    assert before.memory > network_bytes(coder)


def test_preprocessing_counts_the_worlds_pictures_the_given_number_or_a_million() -> None:
    counted = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for recipe, pictures in ((BOX, None), (BOX, 70), (replace(BOX, pictures=0), None)):
            before = preprocess_cost(recipe, "decoder", pictures)
            assert before is not None
            counted[recipe.pictures, pictures] = [value.pictures for value in before.values]
        assert preprocess_cost(BOX, "movq", 70) is preprocess_cost(BOX, "clip", 70) is None
        prior_needs = preprocess_cost(BOX, "prior", 70)
    assert counted == {(98_304, None): [132_072, 99_304], (98_304, 70): [70, 70], (0, None): [1_000_000, 1_000_000]}
    assert prior_needs is not None and [value.name for value in prior_needs.values] == ["embeddings"]


def test_the_table_has_sample_grids_and_preprocessing() -> None:
    plan = plan_of(SHORT, "decoder", 501, 1)
    text = "\n".join(table(plan, 1e12, "RTX 4090", 1e9))
    assert plan.sample_grids == 3 and "3 sample grids, each drawn by one process" in text
    for part in (
        "while it draws a sample grid",
        "while latents and embeddings are computed",
        "operations of a sample grid",
    ):
        assert part in text
    assert "on disk" in text and plan.peak_memory >= max(plan.step_memory, plan.sampling_memory)
    huge = replace(plan, sample_grid=InferenceCost(40 << 30, 1))
    assert "It does NOT fit RTX 4090" in "\n".join(table(huge, 1e12, "RTX 4090", 1e9))

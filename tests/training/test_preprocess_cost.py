"""What is beside the steps: counted without numbers as with them, and as what really happens."""

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
from kandinsky22.training.flops import Operations
from kandinsky22.training.plan import table
from kandinsky22.training.planning import computed_before, plan_of
from kandinsky22.training.preprocess_cost import Aside, aside, weight
from kandinsky22.training.recipes import BOX
from tests.training.scale_program import Noisy
from tests.training.test_model_trainer import SHORT

CELLS = SHORT.side // SHORT.movq.factor


def test_the_most_that_lives_at_once_is_by_hand() -> None:
    """A layer's input dies when the next layer's output is there; what was there before does not count."""
    layers, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.zeros(4, 8)
    assert aside(lambda: layers(x)) == Aside(2 * 4 * 8 * 4, 5 * 2 * 4 * 8 * 8)
    wide = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
    assert aside(lambda: wide(x)).memory == 4 * (32 + 8) * 4
    kept: list[Tensor] = []
    assert aside(lambda: kept.extend(layer(x) for layer in layers)).memory == 5 * 4 * 8 * 4
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
        assert aside(lambda: fake(torch.zeros(4, 8))).memory == 3 * 4 * 8 * 4  # with what it is given
    assert weight(layers) == 5 * 4 * (64 + 8)


def test_one_after_the_other_needs_the_most_of_them() -> None:
    one, other = Aside(10, 3), Aside(4, 5)
    assert one.then(other) == Aside(10, 8) and one.times(4) == Aside(10, 12)


class Full:
    """A tokenizer whose captions are all of full length."""

    def __call__(self, captions: list[str]) -> Tokens:
        shape = len(captions), SHORT.text_length
        return Tokens(torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool), ("",) * len(captions))


def operations_of(sheet: object, network: nn.Module) -> int:
    with Operations() as counter:
        sheet(network.state_dict())  # type: ignore[operator]
    return counter.total


def test_a_painters_sheet_does_the_operations_that_are_planned() -> None:
    unet, coder = UNet(SHORT.unet), MoVQ(SHORT.movq)
    held_out = decoder.Bucket(torch.randn(20, 4, CELLS, CELLS), torch.randn(20, 32))
    schedule = NoiseSchedule.from_config(SHORT.decoder_scheduler)
    sheet = decoder.sheet(unet, coder, schedule, held_out, torch.zeros(1, 32), SHORT.runs["decoder"])
    assert plan_of(SHORT, "decoder", 1, 1).sheet.operations == operations_of(sheet, unet)


def test_movqs_sheet_does_the_operations_that_are_planned() -> None:
    both = movq.Autoencoder(MoVQ(SHORT.movq))
    pictures = replace(Noisy(), size=(SHORT.side, SHORT.side))
    sheet = movq.sheet(both, pictures, 40)  # type: ignore[arg-type]
    planned = plan_of(SHORT, "movq", 1, 1).sheet.operations
    assert planned * 40 / movq.GIVEN_BACK == operations_of(sheet, both)


def test_the_priors_sheet_does_the_operations_that_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the empty caption's, of which a sheet needs a single one."""
    text = CLIPText(SHORT.text_config(SHORT.vocabulary))
    network, held_out = (
        PriorTransformer(SHORT.prior),
        prior.Told(torch.randn(256, 32), lambda indices, rng: [""] * len(indices)),
    )
    schedule = NoiseSchedule.from_config(SHORT.prior_scheduler)
    pictures = replace(Noisy(), size=(8, 8))
    sheet = prior.sheet(network, text, Full(), schedule, held_out, pictures, SHORT.runs["prior"])  # type: ignore[arg-type]
    assert plan_of(SHORT, "prior", 1, 1).sheet.operations == pytest.approx(operations_of(sheet, network), rel=0.01)


def test_what_is_computed_before_is_what_is_computed(tmp_path: Path) -> None:
    coder, count = MoVQ(SHORT.movq).requires_grad_(False), 20
    with FakeTensorMode(allow_non_fake_inputs=True):
        before = computed_before(SHORT, "decoder", count)
    assert before is not None
    latents, embeds = before.each
    with Operations() as counter:
        shards.load_or_compute(
            tmp_path, "a", count, lambda rows: coder.encode(torch.zeros(len(rows), 3, SHORT.side, SHORT.side))
        )
    assert counter.total == count * latents.operations
    size = (tmp_path / "00000.safetensors").stat().st_size
    assert count * latents.disk <= size < count * latents.disk + 1000
    assert embeds.disk == 2 * 32 and before.disk == count * (latents.disk + embeds.disk)
    assert before.memory > weight(coder)


def test_how_many_pictures_there_are() -> None:
    """Of the world with its other shapes; of a person's own as many as were found; else of a million."""
    counted = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for recipe, pictures in ((BOX, None), (BOX, 70), (replace(BOX, pictures=0), None)):
            before = computed_before(recipe, "decoder", pictures)
            assert before is not None
            counted[recipe.pictures, pictures] = [one.pictures for one in before.each]
        assert computed_before(BOX, "movq", 70) is computed_before(BOX, "clip", 70) is None
        prior_needs = computed_before(BOX, "prior", 70)
    assert counted == {(60_000, None): [77_000, 61_000], (60_000, 70): [70, 70], (0, None): [1_000_000, 1_000_000]}
    assert prior_needs is not None and [one.what for one in prior_needs.each] == ["embeddings"]


def test_the_table_says_what_is_beside_the_steps() -> None:
    plan = plan_of(SHORT, "decoder", 501, 1)
    said = "\n".join(table(plan, 1e12, "RTX 4090", 1e9))
    assert plan.sheets == 3 and "3 sheets, each drawn by one process" in said
    for part in ("while it draws a sheet", "while latents and embeddings are computed", "operations of a sheet"):
        assert part in said
    assert "on disk" in said and plan.most >= max(plan.total, plan.drawing)
    huge = replace(plan, sheet=Aside(40 << 30, 1))
    assert "It does NOT fit RTX 4090" in "\n".join(table(huge, 1e12, "RTX 4090", 1e9))

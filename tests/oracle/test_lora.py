"""Adapters against those of peft, in diffusers' networks with the same weights."""

from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from kandinsky22 import acceleration
from kandinsky22.models.lora import Applied, RowAdapters
from tests.oracle.lora import ATTENTION, EVERY_LAYER, UNET_TARGETS, draw, inject, of_peft
from tests.oracle.test_networks import error
from tests.oracle.tiny import priors, unets

TOLERANCE = 2e-5
KINDS = [
    {"r": 1, "lora_alpha": 1},
    {"r": 16, "lora_alpha": 8},
    {"r": 64, "lora_alpha": 32, "use_rslora": True},
    {"r": 4, "lora_alpha": 6, "use_dora": True},
]
X, T, EMBEDS = draw(3, 4, 8, 16), torch.tensor([7, 500, 981]), draw(3, 24, seed=1)


def unet_error(ours: Any, theirs: Any, *applied: Applied) -> float:
    condition = ours.condition(EMBEDS, adapters=RowAdapters.of(applied, 3))
    result = ours(X, T, ours.precompute_timesteps(condition, [7, 500, 981]))
    return error(result, theirs(X, T, None, added_cond_kwargs={"image_embeds": EMBEDS}).sample.detach())


@pytest.mark.parametrize("targets", [UNET_TARGETS, EVERY_LAYER], ids=["attention", "every layer"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_unet_with_an_adapter_equals_diffusers_with_peft(kind: dict[str, Any], targets: list[str]) -> None:
    ours, theirs = unets()
    inject(theirs, target_modules=targets, **kind)
    adapter = of_peft(theirs)
    assert adapter.mismatch(ours) is None
    assert unet_error(ours, theirs, Applied(adapter, 1.0)) < TOLERANCE
    acceleration.prepare(ours)
    with torch.inference_mode():
        assert unet_error(ours, theirs, Applied(adapter, 1.0)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prior_with_an_adapter_equals_diffusers_with_peft(kind: dict[str, Any]) -> None:
    ours, theirs = priors()
    inject(theirs, target_modules=[*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "linear_1"], **kind)
    hidden, embed, x = draw(3, 9, 24), draw(3, 24, seed=1), draw(3, 24, seed=2)
    mask, t = torch.arange(9)[None] < torch.tensor([[3], [7], [5]]), torch.tensor([0, 374, 999])
    reference = theirs(x, t, embed, hidden, mask).predicted_image_embedding
    prefix = ours.prefill(hidden, embed, mask, RowAdapters.of([Applied(of_peft(theirs), 1.0)], 3))
    assert error(ours(x, t, prefix), reference) < TOLERANCE
    assert error(ours(x, t, ours.precompute_timesteps(prefix, [0, 374, 999])), reference) < TOLERANCE


def test_scales_and_several_adapters_equal_those_of_peft() -> None:
    ours, theirs = unets()
    for name, seed, kind in (("one", 1, KINDS[1]), ("two", 2, KINDS[2]), ("dora", 3, KINDS[3])):
        inject(theirs, name, seed=seed, target_modules=UNET_TARGETS, **kind)
    one, two, dora = (of_peft(theirs, name) for name in ("one", "two", "dora"))
    for names, scales in ((["one", "two"], (0.8, -0.5)), (["dora"], (0.7,)), (["one", "dora"], (0.6, 0.9))):
        applied = [Applied({"one": one, "two": two, "dora": dora}[n], s) for n, s in zip(names, scales, strict=True)]
        for module in theirs.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(names)
                for name, scale in zip(names, scales, strict=True):
                    module.set_scale(name, scale)
        assert unet_error(ours, theirs, *applied) < TOLERANCE


def test_an_adapter_merged_into_the_weights_equals_the_same_beside_them() -> None:
    for kind in KINDS:
        ours, theirs = unets()
        inject(theirs, target_modules=EVERY_LAYER, **kind)
        adapter = of_peft(theirs)
        beside = ours(X, T, ours.condition(EMBEDS, adapters=RowAdapters.of([Applied(adapter, 0.8)], 3)))
        for name, layer in adapter.layers.items():
            weight = ours.get_submodule(name).weight
            weight.copy_(layer.merged(weight, 0.8))
        assert error(ours(X, T, ours.condition(EMBEDS)), beside) < TOLERANCE

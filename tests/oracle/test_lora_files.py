"""Files of adapters, exchanged with diffusers and peft in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from kandinsky22.checkpoints import lora_files
from kandinsky22.models.lora import Adapter, Applied, RowAdapters
from tests.oracle.lora import EVERY_LAYER, UNET_TARGETS, inject, of_peft
from tests.oracle.test_lora import EMBEDS, KINDS, TOLERANCE, T, X
from tests.oracle.test_networks import error
from tests.oracle.tiny import unets


def ours_with(ours: Any, adapter: Adapter | None) -> torch.Tensor:
    assert adapter is not None
    result: torch.Tensor = ours(X, T, ours.condition(EMBEDS, adapters=RowAdapters.of([Applied(adapter, 1.0)], 3)))
    return result


def theirs_of(network: Any) -> torch.Tensor:
    result: torch.Tensor = network(X, T, None, added_cond_kwargs={"image_embeds": EMBEDS}).sample.detach()
    return result


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_diffusers_saves_is_read(kind: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = unets()
    theirs.add_adapter(LoraConfig(init_lora_weights=False, target_modules=UNET_TARGETS, **kind))
    theirs.eval().save_lora_adapter(tmp_path)
    adapter = lora_files.read(tmp_path).adapter(lora_files.UNET, ours)
    assert error(ours_with(ours, adapter), theirs_of(theirs)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_diffusers_loads_what_is_written(kind: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = unets()
    _, source = unets()
    inject(source, target_modules=EVERY_LAYER, **kind)
    adapter = of_peft(source)
    lora_files.write(tmp_path / "x.safetensors", {lora_files.UNET: adapter})
    theirs.load_lora_adapter(tmp_path, weight_name="x.safetensors", prefix="unet")
    assert error(ours_with(ours, adapter), theirs_of(theirs.eval())) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_peft_loads_what_is_written(kind: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = unets()
    _, source = unets()
    inject(source, target_modules=EVERY_LAYER, **kind)
    adapter = of_peft(source)
    lora_files.write(tmp_path / "x", {lora_files.UNET: adapter}, "peft")
    loaded = PeftModel.from_pretrained(theirs, tmp_path / "x")
    assert error(ours_with(ours, adapter), theirs_of(loaded.eval())) < TOLERANCE

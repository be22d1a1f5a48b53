"""`kandinsky22 lora`: what it prints, and that what it writes paints the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.checkpoints import lora_files
from kandinsky22.checkpoints.model import StoredDecoder
from kandinsky22.checkpoints.network import save
from kandinsky22.cli.app import run
from kandinsky22.models.lora import merge
from tests.loras_on_disk import random_adapter, write_lora
from tests.models_on_disk import write_tiny_model

Capture = pytest.CaptureFixture[str]


def test_info_prints_what_a_file_is_for(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_lora(tmp_path / "style.safetensors", tiny_model, ("unet", "prior"), rank=3)
    assert run(["lora", "info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "format:" in text and "layers of a decoder, rank 3, alpha 3" in text and "layers of the prior" in text


def test_merged_loras_paint_what_both_paint(tiny_model: Path, tmp_path: Path) -> None:
    one, two = (write_lora(tmp_path / f"{n}.safetensors", tiny_model, seed=n, rank=n) for n in (1, 2))
    both = tmp_path / "both.safetensors"
    assert run(["lora", "merge", f"{one}:0.5", str(two), str(both)]) == 0
    assert lora_files.read(both).ranks == [3]
    kandinsky = Kandinsky.load(tiny_model)
    stacked, merged = (
        np.asarray(kandinsky(text2img("a star", seed=1, loras=loras))[0].image).astype(int)
        for loras in ([f"{one}:0.5", str(two)], [str(both)])
    )
    assert np.abs(stacked - merged).max() <= 1


def test_extract_restores_an_adapter_that_was_merged(tmp_path: Path, capsys: Capture) -> None:
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    for folder in (plain, changed):
        write_tiny_model(folder)
    unet = StoredDecoder(changed / "decoder").unet.load(torch.float32, torch.device("cpu"))
    adapter = random_adapter(unet, rank=2)
    merge(unet, adapter)
    save(changed / "decoder" / "unet", unet, dtype=torch.float32, name="diffusion_pytorch_model")
    target = tmp_path / "difference.safetensors"
    assert run(["lora", "extract", str(plain), str(changed), str(target), "--rank", "2"]) == 0
    found = lora_files.read(target).layers
    assert list(found) == ["unet"] and found["unet"].keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        assert torch.allclose(found["unet"][name].delta(), layer.delta(), atol=1e-4)
    assert run(["lora", "extract", str(plain), str(plain), str(target)]) != 0
    assert "nothing to extract" in capsys.readouterr().err

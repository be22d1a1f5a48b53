"""Networks in folders: what is saved is loaded, wrong tensors are named, and folders that are read stay unchanged."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models_on_disk import randomise
from tests.oracle.tiny import UNET

from kandinsky22.checkpoints import locate, zero_image
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.files import cache_dir
from kandinsky22.models.clip import CLIPVision, CLIPVisionConfig
from kandinsky22.models.tokenizer import learn
from kandinsky22.models.unet import UNet, UNetConfig

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tmp_path: Path) -> UNet:
    """A network, also saved in `tmp_path`."""
    network = UNet(UNET)
    randomise(network)
    save(tmp_path, network, dtype=torch.float32)
    return network


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of the saved file; None removes one."""
    saved = load_file(folder / FILE)
    for name, value in tensors.items():
        saved.pop(name, None)
        if value is not None:
            saved[name] = value
    save_file(saved, folder / FILE)


def test_a_saved_network_is_loaded_unchanged(unet: UNet, tmp_path: Path) -> None:
    loaded = Stored(tmp_path, UNet, UNetConfig).load(torch.float32, CPU)
    assert loaded.config == UNET
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_weights_are_loaded_in_the_requested_dtype(unet: UNet, tmp_path: Path) -> None:
    save(tmp_path, unet, dtype=torch.float16)
    loaded = Stored(tmp_path, UNet, UNetConfig).load(torch.bfloat16, CPU)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}


def test_numbers_that_a_dtype_cannot_represent_are_refused(unet: UNet, tmp_path: Path) -> None:
    change(tmp_path, **{"conv_in.bias": torch.full_like(unet.conv_in.bias, -70_000.0)})
    stored = Stored(tmp_path, UNet, UNetConfig)
    with pytest.raises(
        CheckpointError, match=rf"{FILE}: conv_in.bias has .* too large for float16; use --dtype float3"
    ):
        stored.load(torch.float16, CPU)
    assert all(stored.load(dtype, CPU).conv_in.bias.isfinite().all() for dtype in (torch.float32, torch.bfloat16))


def test_an_outline_allocates_no_memory(unet: UNet, tmp_path: Path) -> None:
    outline = Stored(tmp_path, UNet, UNetConfig).outline
    assert all(value.is_meta for value in outline.state_dict().values())


def test_pickled_weights_are_read_without_running_code(unet: UNet, tmp_path: Path) -> None:
    (tmp_path / FILE).unlink()
    torch.save(unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    loaded = Stored(tmp_path, UNet, UNetConfig).load(torch.float32, CPU)
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight)

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "attack",)

    torch.save({**unet.state_dict(), "attack": Attack()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError):
        Stored(tmp_path, UNet, UNetConfig)
    assert not (tmp_path / "attack").exists()


def test_every_wrong_tensor_is_named(unet: UNet, tmp_path: Path) -> None:
    change(tmp_path, **{"conv_in.bias": None, "conv_out.bias": torch.zeros(3), "lora.up": torch.zeros(1)})
    with pytest.raises(CheckpointError) as refused:
        Stored(tmp_path, UNet, UNetConfig)
    for part in ("missing conv_in.bias", "extra lora.up", "misshapen conv_out.bias (3,), not (8,)"):
        assert part in str(refused.value)


def test_constants_in_old_files_of_clip_are_ignored(unet: UNet, tmp_path: Path) -> None:
    change(tmp_path, **{"text_model.embeddings.position_ids": torch.arange(77)[None]})
    Stored(tmp_path, UNet, UNetConfig).load(torch.float32, CPU)


@pytest.mark.parametrize("length", [0, 5, 2000])
def test_a_truncated_file_is_reported_as_damaged(unet: UNet, tmp_path: Path, length: int) -> None:
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:length])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        Stored(tmp_path, UNet, UNetConfig)


def test_missing_files_are_named(unet: UNet, tmp_path: Path) -> None:
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Stored(tmp_path, UNet, UNetConfig)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Stored(tmp_path, UNet, UNetConfig)


def test_a_fingerprint_identifies_weights(unet: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1 << 30, 1 << 10):  # hashed as a whole, and by samples
        monkeypatch.setattr("kandinsky22.checkpoints.network.MAX_HASHED_BYTES", limit)
        first = Stored(tmp_path, UNet, UNetConfig).fingerprint
        assert Stored(tmp_path, UNet, UNetConfig).fingerprint == first
        with torch.no_grad():
            unet.conv_in.weight.mul_(1.5)
            unet.mid_block.resnets[0].conv1.weight.add_(0.1)
        save(tmp_path, unet, dtype=torch.float32)
        assert Stored(tmp_path, UNet, UNetConfig).fingerprint != first


def test_a_saved_tokenizer_is_loaded_unchanged(tmp_path: Path) -> None:
    tokenizer = learn(["two red circles over a blue triangle"] * 3, 560, 20)
    save_tokenizer(tmp_path, tokenizer)
    loaded = load_tokenizer(tmp_path)
    for text in ("a red circle, привет", "TWO circles #1", "zebra"):
        assert torch.equal(loaded([text]).ids, tokenizer([text]).ids)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnot a merge\n")
    with pytest.raises(CheckpointError, match="does not contain CLIP's tokenizer"):
        load_tokenizer(tmp_path)


def test_the_zero_images_embedding_is_read_from_the_folder_or_computed_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder, computed and cached it is the same; the model's folder is not written to."""
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    prior = shutil.copytree(tiny_model / "prior", tmp_path / "prior")
    shipped = zero_image.zero_image_embed(prior)
    (prior / zero_image.SHIPPED).unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in prior.rglob("*"))
    assert torch.allclose(zero_image.zero_image_embed(prior), shipped, atol=1e-6)
    assert len(list((cache_dir() / "zero-image").iterdir())) == 1
    monkeypatch.setattr(zero_image, "compute", lambda stored: pytest.fail("computed twice"))
    assert torch.allclose(zero_image.zero_image_embed(prior), shipped, atol=1e-6)
    assert sorted((path, path.stat().st_mtime_ns) for path in prior.rglob("*")) == before

    encoder = Stored(prior / "image_encoder", CLIPVision, CLIPVisionConfig)
    zero_image.write(prior / zero_image.SHIPPED, shipped + 1, "of another encoder")
    assert torch.allclose(zero_image.zero_image_embed(prior), shipped, atol=1e-6)
    zero_image.write(prior / zero_image.SHIPPED, shipped + 1, encoder.fingerprint)
    assert torch.allclose(zero_image.zero_image_embed(prior), shipped + 1, atol=1e-6)


def test_unknown_models_are_refused_with_the_possible_ones() -> None:
    with pytest.raises(ValueError, match="there is no model 'nowhere'"):
        locate.model_folder("nowhere")
    with pytest.raises(ValueError, match="hf download kandinsky-community/kandinsky-2-2-decoder"):
        locate.model_folder("kandinsky-2.2")


def test_loading_a_model_imports_no_compiler(tiny_model: Path) -> None:
    """torch's initialisers would import it on the meta device, which takes over a second."""
    load = f"from kandinsky22 import Kandinsky; Kandinsky.load({str(tiny_model)!r})"
    code = f"import sys; {load}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

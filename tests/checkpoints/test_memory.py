"""Reading a network takes the memory of the network itself, and little of what the file takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models_on_disk import randomise
from tests.oracle.tiny import PRIOR

from kandinsky22.checkpoints import weight_files
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.models.prior import PriorConfig, PriorTransformer

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model"


@pytest.fixture
def prior(tmp_path: Path) -> PriorTransformer:
    """A network, also saved in `tmp_path`."""
    network = PriorTransformer(PRIOR)
    randomise(network)
    save(tmp_path, network, dtype=torch.float32)
    return network


def pickle(folder: Path, network: torch.nn.Module, *, zipped: bool = True) -> None:
    """Replace the safetensors file by a `.bin`."""
    (folder / f"{FILE}.safetensors").unlink()
    torch.save(network.state_dict(), folder / f"{FILE}.bin", _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("mapped", [1, 3000, 1 << 30])
def test_the_weights_are_the_same_however_the_file_is_mapped(
    prior: PriorTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mapped: int
) -> None:
    """Mapped again for every tensor, for some, and once for all."""
    if kind != "safetensors":
        pickle(tmp_path, prior, zipped=kind == "bin")
    monkeypatch.setattr(weight_files, "MAPPED", mapped)
    loaded = Stored(tmp_path, PriorTransformer, PriorConfig).load(torch.float32, CPU)
    assert all(torch.equal(value, prior.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_each_load_reads_another_network(prior: PriorTransformer, tmp_path: Path) -> None:
    stored = Stored(tmp_path, PriorTransformer, PriorConfig)
    half, full = stored.load(torch.bfloat16, CPU), stored.load(torch.float32, CPU)
    assert half is not full
    assert half.prd_embedding.dtype == torch.bfloat16 and full.prd_embedding.dtype == torch.float32
    assert torch.equal(full.prd_embedding, prior.prd_embedding)
    assert stored.elements == sum(value.numel() for value in prior.state_dict().values())


@torch.inference_mode()
def test_a_network_loaded_in_inference_mode_can_be_trained(prior: PriorTransformer, tmp_path: Path) -> None:
    loaded = Stored(tmp_path, PriorTransformer, PriorConfig).load(torch.float32, CPU)
    assert not any(parameter.is_inference() for parameter in loaded.parameters())


MEASURE = """
import sys, torch
from pathlib import Path
from kandinsky22.checkpoints import network, weight_files
from kandinsky22.models.prior import PriorConfig, PriorTransformer

weight_files.MAPPED = 8 << 20
status = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) << 10
stored = network.Stored(Path(sys.argv[1]), PriorTransformer, PriorConfig)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak
before = status("VmRSS")
loaded = stored.load(torch.bfloat16, torch.device("cpu"))
print(status("VmHWM") - before, 2 * stored.elements)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_float32_file_in_bfloat16_needs_half_its_size(tmp_path: Path, kind: str) -> None:
    """Of resident memory, which includes the pages of a mapped file; in its own process."""
    config = PriorConfig(
        num_layers=4, num_attention_heads=16, attention_head_dim=64, embedding_dim=64, num_embeddings=9
    )
    network = PriorTransformer(config)
    save(tmp_path, network, dtype=torch.float32)
    if kind == "bin":
        pickle(tmp_path, network)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, weights = map(int, done.stdout.split())
    assert peak - weights < 40 << 20 < weights, done.stdout  # the mapped bytes, one tensor more, and the reader itself

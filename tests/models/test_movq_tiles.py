"""Tiles give the whole picture: at any size, whatever is cut where; and they need less memory."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from kandinsky22.acceleration.flags import HUGE_PAGES
from kandinsky22.models import movq as module
from kandinsky22.models import tiles
from kandinsky22.models.layers import Norm
from kandinsky22.models.movq import MoVQ
from tests.models_on_disk import randomise
from tests.oracle.tiny import MOVQ

SIZES = [(8, 8, 1), (5, 9, 300), (7, 3, 1), (16, 4, 1000), (9, 6, 1700), (1, 6, 1), (6, 1, 64)]
"""Height and width of the latents, and pixels of a tile: from one row of latents to several with a rest."""


@pytest.fixture(scope="module")
def movq() -> MoVQ:
    network = MoVQ(MOVQ)
    randomise(network)
    return network.eval().requires_grad_(False)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in standard deviations."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
@torch.no_grad()
def test_tiles_decode_what_the_whole_decodes(movq: MoVQ, height: int, width: int, tile: int) -> None:
    """Two pictures: each has statistics of its own."""
    z = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]).view(
        2, 1, 1, 1
    )
    assert apart(movq.decode(z, tile=tile), movq.decode(z)) < 5e-4  # of values up to 5, by some processors' rounding


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
@torch.no_grad()
def test_tiles_encode_what_the_whole_encodes(movq: MoVQ, height: int, width: int, tile: int) -> None:
    pictures = torch.rand(2, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert apart(movq.encode(pictures, tile=tile), movq.encode(pictures)) < 1e-4


@torch.no_grad()
def test_nothing_but_rounding_differs(movq: MoVQ) -> None:
    """In float64 next to nothing does."""
    exact = copy.deepcopy(movq).double()
    z = torch.randn(1, 4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = exact.decode(z)
    assert apart(exact.decode(z, tile=1), whole) < 1e-12
    assert apart(exact.encode(whole, tile=1), exact.encode(whole)) < 1e-12


@torch.no_grad()
def test_a_large_mean_drowns_no_variance() -> None:
    """Statistics hold where the mean is a thousand deviations, and differs from strip to strip."""
    norm = Norm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 30, 50, generator=torch.Generator().manual_seed(0)) + 1000 + torch.linspace(0, 3, 30)[:, None]
    mean, variance = tiles._moments(tiles.Strips(x.split([7, 11, 12], dim=2)), norm)
    groups = x.double().view(2, -1)
    assert torch.allclose(mean.double(), groups.mean(dim=1), rtol=1e-6)
    assert torch.allclose(variance.double(), groups.var(dim=1, correction=0), rtol=1e-4)


@torch.no_grad()
def test_bfloat16_is_no_coarser_in_tiles(movq: MoVQ) -> None:
    z = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(0))
    exact = movq.decode(z)
    coarse = copy.deepcopy(movq).bfloat16()
    whole, tiled = (coarse.decode(z.bfloat16(), tile=tile) for tile in (None, 800))
    assert tiled.dtype == torch.bfloat16
    assert (tiled - exact).square().mean() < 1.1 * (whole - exact).square().mean()


def test_large_pictures_are_tiled_unless_gradients_are_needed(movq: MoVQ, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(module, "MAX_UNTILED_PIXELS", 64 * 64)
    monkeypatch.setattr(module, "TILE_PIXELS", 2048)
    for name in ("decode", "encode"):
        real = getattr(tiles, name)
        monkeypatch.setattr(tiles, name, lambda *a, real=real, name=name: calls.append((name, a[-1])) or real(*a))
    small, large = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 9, 8)
    with torch.no_grad():
        movq.encode(movq.decode(small))
        assert calls == []
        movq.encode(movq.decode(large))
        assert calls == [("decode", 4), ("encode", 4)]
        movq.decode(large, tile=10**9)
    movq.encode(movq.decode(large))
    assert len(calls) == 2
    with pytest.raises(ValueError, match="tiles have no gradients"):
        movq.decode(large, tile=2048)


MEASURE = """
import torch
from kandinsky22.models import movq
from kandinsky22.engine.placement import free_unused

def peak(work):
    free_unused()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark
    status = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
    before = status("VmRSS")
    work()
    return status("VmHWM") - before

config = movq.MoVQConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, num_vq_embeddings=48)
network = movq.MoVQ(config).eval()
z, pictures = torch.randn(1, 4, 56, 64), torch.rand(1, 3, 448, 512)
with torch.inference_mode():
    for work in (lambda tile: network.decode(z, tile=tile), lambda tile: network.encode(pictures, tile=tile)):
        print(peak(lambda: work(4096)), peak(lambda: work(10**9)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tiles_need_a_fraction_of_the_memory() -> None:
    """Resident memory in a process of its own: torch's tensors are invisible to tracemalloc. Without huge pages, which are as
    large as the tensors here."""
    environment = {**os.environ, HUGE_PAGES: "0"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        tiled, whole = map(int, line.split())
        assert tiled < 0.5 * whole, done.stdout

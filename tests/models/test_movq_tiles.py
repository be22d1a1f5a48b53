"""MoVQ in tiles gives the untiled result, at any size and wherever the tiles are cut, and needs less memory."""

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
"""Height and width of the latents, and pixels of a tile: from one row of latents to several with a remainder."""


@pytest.fixture(scope="module")
def movq() -> MoVQ:
    network = MoVQ(MOVQ)
    randomise(network)
    return network.eval().requires_grad_(False)


def max_deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in standard deviations."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
@torch.no_grad()
def test_tiled_decoding_equals_untiled_decoding(movq: MoVQ, height: int, width: int, tile: int) -> None:
    """Two pictures, because each has its own normalisation statistics."""
    z = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]).view(
        2, 1, 1, 1
    )
    # values are up to 5, and processors round differently
    assert max_deviation(movq.decode(z, tile=tile), movq.decode(z)) < 5e-4


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
@torch.no_grad()
def test_tiled_encoding_equals_untiled_encoding(movq: MoVQ, height: int, width: int, tile: int) -> None:
    pictures = torch.rand(2, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert max_deviation(movq.encode(pictures, tile=tile), movq.encode(pictures)) < 1e-4


@torch.no_grad()
def test_tiling_differs_only_by_rounding(movq: MoVQ) -> None:
    """In float64 the difference is below 1e-12."""
    exact = copy.deepcopy(movq).double()
    z = torch.randn(1, 4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    untiled = exact.decode(z)
    assert max_deviation(exact.decode(z, tile=1), untiled) < 1e-12
    assert max_deviation(exact.encode(untiled, tile=1), exact.encode(untiled)) < 1e-12


@torch.no_grad()
def test_moments_are_exact_at_a_large_mean() -> None:
    """The moments are accurate where the mean is a thousand standard deviations and differs between strips."""
    norm = Norm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 30, 50, generator=torch.Generator().manual_seed(0)) + 1000 + torch.linspace(0, 3, 30)[:, None]
    mean, variance = tiles.moments(tiles.Strips(x.split([7, 11, 12], dim=2)), norm)
    groups = x.double().view(2, -1)
    assert torch.allclose(mean.double(), groups.mean(dim=1), rtol=1e-6)
    assert torch.allclose(variance.double(), groups.var(dim=1, correction=0), rtol=1e-4)


@torch.no_grad()
def test_bfloat16_is_as_accurate_in_tiles(movq: MoVQ) -> None:
    z = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(0))
    exact = movq.decode(z)
    half_precision = copy.deepcopy(movq).bfloat16()
    untiled, tiled = (half_precision.decode(z.bfloat16(), tile=tile) for tile in (None, 800))
    assert tiled.dtype == torch.bfloat16
    assert (tiled - exact).square().mean() < 1.1 * (untiled - exact).square().mean()


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
def test_tiling_needs_less_than_half_the_memory() -> None:
    """Measures resident memory in a subprocess, because tracemalloc does not see torch's tensors.

    Huge pages are off there: they are as large as the tensors of this test.
    """
    environment = {**os.environ, HUGE_PAGES: "0"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        tiled, untiled = map(int, line.split())
        assert tiled < 0.5 * untiled, done.stdout

"""A prepared network trains, changes and compiles like the plain one; each part can be switched off."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from kandinsky22 import Kandinsky, acceleration
from kandinsky22.acceleration import convolution, kernels
from kandinsky22.acceleration.flags import HUGE_PAGES
from kandinsky22.models.layers import Conv3x3, Norm, UpsampleConv3x3
from kandinsky22.models.unet import UNet
from tests.acceleration.comparison import UNET, for_inference, noise, relative_rms
from tests.models_on_disk import randomise

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SUPPORTED_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def test_training_computes_as_with_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 64), UpsampleConv3x3(64, 32))
    x = noise(1, 32, 8, 8)

    def gradients() -> list[torch.Tensor]:
        plain.zero_grad()
        y = plain(x)
        y.square().sum().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in plain.parameters())]

    before = gradients()
    acceleration.prepare(plain, budget=1 << 30)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))


@torch.no_grad()
def test_changed_weights_are_used() -> None:
    """As when an adapter is merged into them, or they are replaced by an average of weights."""
    conv = for_inference(Conv3x3(32, 32))
    acceleration.prepare(conv, budget=1 << 30)
    x, other = noise(1, 32, 16, 16), for_inference(Conv3x3(32, 32))
    conv(x), conv(x)
    assert conv.filter_cache[1]
    conv.load_state_dict(other.state_dict())
    assert relative_rms(conv(x), other(x)) < 1e-5
    conv.weight.mul_(2)
    assert relative_rms(conv(x) - conv.bias[:, None, None], 2 * (other(x) - other.bias[:, None, None])) < 1e-5
    assert conv.double()(x.double()).dtype == torch.float64


@torch.no_grad()
def test_filters_of_computed_weights_are_never_cached() -> None:
    """As an adapter's weights may be: they may lie where other weights lay before."""

    class Scale(nn.Module):
        factor = 1.0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.factor

    conv, x = for_inference(Conv3x3(32, 32)), noise(1, 32, 16, 16)
    plain, bias = conv(x), conv.bias[:, None, None]
    acceleration.prepare(conv, budget=1 << 30)
    register_parametrization(conv, "weight", scale := Scale())
    for scale.factor in (1.0, 1.0, 2.0, -3.0):
        assert relative_rms(conv(x) - bias, scale.factor * (plain - bias)) < 1e-5


@torch.no_grad()
def test_filter_memory_goes_to_the_largest_maps_first() -> None:
    unet = for_inference(UNet(UNET))
    randomise(unet)
    convs = [module for module in unet.modules() if isinstance(module, Conv3x3)]
    sizes = {conv: convolution.filter_bytes(conv, torch.float32) for conv in convs}
    acceleration.prepare(unet, budget=sum(sizes.values()) // 3)
    caching = [conv for conv in convs if conv.caches_filter]
    assert 0 < sum(sizes[conv] for conv in caching) <= sum(sizes.values()) // 3
    widest = max(conv.out_channels for conv in caching)
    assert all(conv.caches_filter for conv in convs if conv.out_channels < widest)
    assert acceleration.extra_bytes(unet, torch.float32, 1 << 40) == sum(sizes.values())
    assert acceleration.extra_bytes(unet, torch.float32, 400) == 400


@torch.no_grad()
def test_half_precision_filters_are_stored_with_channels_last_and_the_same_values() -> None:
    unet = for_inference(UNet(UNET)).bfloat16()
    randomise(unet)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    acceleration.prepare(unet)
    convs = [module for module in unet.modules() if isinstance(module, Conv3x3)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@torch.no_grad()
def test_a_half_precision_upsampling_has_the_same_numbers_with_and_without_memory_for_its_filter() -> None:
    conv, x = for_inference(UpsampleConv3x3(32, 64)).bfloat16(), noise(1, 32, 8, 8).bfloat16()
    acceleration.prepare(conv, budget=0)
    without = conv(x)
    acceleration.prepare(conv, budget=convolution.filter_bytes(conv, torch.bfloat16))
    assert conv.caches_filter and torch.equal(conv(x), without) and torch.equal(conv(x), without)
    conv.weight.mul_(2)
    assert relative_rms(conv(x) - conv.bias[:, None, None], 2 * (without - conv.bias[:, None, None])) < 1e-2


@torch.no_grad()
def test_a_convolution_marked_keep_exact_has_the_plain_networks_bits() -> None:
    """In any memory layout. Winograd's algorithm would round otherwise."""
    plain = for_inference(Conv3x3(64, 64, keep_exact=True))
    fast, x = copy.deepcopy(plain), noise(2, 64, 20, 20)
    acceleration.prepare(fast, budget=1 << 30)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), plain(x))
    assert torch.equal(fast.forward_strip(x.contiguous(memory_format=torch.channels_last)), plain.forward_strip(x))
    assert (
        convolution.filter_bytes(fast, torch.float32) == 0
        and acceleration.extra_bytes(fast, torch.float32, 1 << 30) == 0
    )
    other = for_inference(Conv3x3(64, 64))
    other.load_state_dict(plain.state_dict())
    acceleration.prepare(other, budget=1 << 30)
    assert not torch.equal(other(x), plain(x))


@torch.no_grad()
def test_a_compiled_network_is_the_plain_one() -> None:
    """Kernels that are called by pointer cannot be traced."""
    conv, x = for_inference(nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 32))), noise(1, 32, 16, 16)
    plain = conv(x)
    acceleration.prepare(conv, budget=1 << 30)
    assert torch.equal(torch.compile(conv, backend="eager", fullgraph=True)(x), plain)


def test_acceleration_can_be_switched_off(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(kandinsky: Kandinsky) -> bool:
        return type(kandinsky.decoder("decoder").unet.conv_in) is not Conv3x3

    assert prepared(Kandinsky.load(tiny_model))
    assert not prepared(Kandinsky.load(tiny_model, accelerated=False))
    monkeypatch.setenv(acceleration.ENV_VARIABLE, "off")
    assert not prepared(Kandinsky.load(tiny_model))
    assert prepared(Kandinsky.load(tiny_model, accelerated=True))
    assert not acceleration.is_wanted(torch.device("meta"))


@torch.no_grad()
def test_each_part_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = (
        for_inference(nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 32), nn.Linear(16, 8))),
        noise(1, 32, 16, 16),
    )
    plain = network(x)

    def fast_layers(disabled: str) -> list[str]:
        monkeypatch.setenv(acceleration.ENV_VARIABLE, disabled)
        acceleration.prepare(network, budget=acceleration.filter_budget())
        assert relative_rms(network(x), plain) < 1e-5
        return [
            name
            for name, module in zip(("normalisations", "convolutions", "linear"), network, strict=True)
            if "Fast" in repr(type(module))
        ]

    everything = fast_layers("")
    assert everything == ["normalisations", "convolutions", "linear"]
    for part in everything:
        assert part not in fast_layers(part) and len(fast_layers(part)) == 2
    assert fast_layers("kernels, filters") == everything
    assert kernels.library() is None and acceleration.filter_budget() == 0
    assert acceleration.describe() == "torch"
    with pytest.raises(
        ValueError, match=r"KANDINSKY22_ACCELERATION must be off, or some of convolutions, .* got 'winograd'"
    ):
        fast_layers("winograd")


@pytest.mark.parametrize("disabled", ["", "pages", "off"])
def test_huge_pages_are_requested_unless_they_are_switched_off(disabled: str, tiny_model: Path) -> None:
    """By loading a model. Whether there are any is up to Linux."""
    code = (
        f"import os, pathlib, kandinsky22, torch; kandinsky22.Kandinsky.load({str(tiny_model)!r})\n"
        "x = torch.ones(1 << 24)\n"
        "pages = pathlib.Path('/proc/self/smaps_rollup')\n"
        "print(os.environ.get('THP_MEM_ALLOC_ENABLE'), pages.read_text() if pages.exists() else '')"
    )
    environment = {**os.environ, acceleration.ENV_VARIABLE: disabled}
    environment.pop(HUGE_PAGES, None)
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("None" if disabled else "1")
    if Path(SUPPORTED_PAGES).exists() and "[madvise]" in Path(SUPPORTED_PAGES).read_text():
        huge = next(int(line.split()[1]) for line in printed.splitlines() if line.startswith("AnonHugePages"))
        assert (huge > 0) != bool(disabled)


def test_pictures_store_what_accelerated_them(tiny_model: Path) -> None:
    pictures = [Kandinsky.load(tiny_model, accelerated=way)("a red star", seed=1)[0] for way in (True, False)]
    assert pictures[0].made_by["acceleration"] == acceleration.describe()
    assert "acceleration" not in pictures[1].made_by


def test_kernels_of_another_source_have_another_name(tmp_path: Path) -> None:
    """It contains the source's checksum, so that outdated kernels are not called."""
    current = kernels.library_path("avx2")
    source = tmp_path / "kernels.c"
    source.write_text(current.with_name("kernels.c").read_text() + "\n")
    assert kernels.library_path("avx2", source).name != current.name


def test_kernels_are_declared_with_their_argument_types() -> None:
    """With wrong types, C would read arguments of another width from whatever is in memory."""
    source = kernels.library_path("avx2").with_name("kernels.c").read_text()
    declared = {}
    for name, arguments in re.findall(r"^void (\w+)\(([^)]*)\) {", source, re.MULTILINE):
        declared[name] = "".join("P" if "*" in one else one.split()[0][0] for one in arguments.split(","))
    assert declared == {name: letters.replace(" ", "") for name, letters in kernels.SIGNATURES.items()}


def test_the_build_succeeds_without_a_compiler(tmp_path: Path) -> None:
    """By calling the build hook without hatchling."""
    folder = tmp_path / "src" / "kandinsky22" / "acceleration"
    folder.mkdir(parents=True)
    (folder / "kernels.c").write_bytes((ROOT / "src/kandinsky22/acceleration/kernels.c").read_bytes())
    (tmp_path / "hatch_build.py").write_bytes((ROOT / "hatch_build.py").read_bytes())
    (folder / "kernels-avx2-00000000.so").touch()  # outdated
    stand_in = (
        "import sys, types\n"
        "name = 'hatchling.builders.hooks.plugin.interface'\n"
        "sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules[name].BuildHookInterface = dict\n"
        "import hatch_build\n"
        "assert hatch_build.compile_kernels() == []\n"
    )
    environment = {"PATH": str(tmp_path), "CC": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", stand_in], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("*.so")) == []

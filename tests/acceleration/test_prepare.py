"""A prepared network is the network: it saves, trains, changes and moves as before; and what is asked is what happens."""

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
from tests.acceleration.test_exactness import UNET, apart, made, noise
from tests.models_on_disk import randomise

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
OFFERED = "/sys/kernel/mm/transparent_hugepage/enabled"


def test_with_gradients_it_is_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 64), UpsampleConv3x3(64, 32))
    x = noise(1, 32, 8, 8)

    def learnt() -> list[torch.Tensor]:
        plain.zero_grad()
        y = plain(x)
        y.square().sum().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in plain.parameters())]

    before = learnt()
    acceleration.prepare(plain, room=1 << 30)
    assert all(torch.equal(a, b) for a, b in zip(learnt(), before, strict=True))


@torch.no_grad()
def test_weights_that_change_are_seen() -> None:
    """As when an adapter is merged into them, or an average of the weights is put in their place."""
    conv = made(Conv3x3(32, 32))
    acceleration.prepare(conv, room=1 << 30)
    x, other = noise(1, 32, 16, 16), made(Conv3x3(32, 32))
    conv(x), conv(x)
    assert conv._kept[1]
    conv.load_state_dict(other.state_dict())
    assert apart(conv(x), other(x)) < 1e-5
    conv.weight.mul_(2)
    assert apart(conv(x) - conv.bias[:, None, None], 2 * (other(x) - other.bias[:, None, None])) < 1e-5
    assert conv.double()(x.double()).dtype == torch.float64


@torch.no_grad()
def test_weights_that_are_made_at_each_look_are_never_kept() -> None:
    """As an adapter's may be, in memory that held others before."""

    class Times(nn.Module):
        by = 1.0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.by

    conv, x = made(Conv3x3(32, 32)), noise(1, 32, 16, 16)
    plain, bias = conv(x), conv.bias[:, None, None]
    acceleration.prepare(conv, room=1 << 30)
    register_parametrization(conv, "weight", times := Times())
    for times.by in (1.0, 1.0, 2.0, -3.0):
        assert apart(conv(x) - bias, times.by * (plain - bias)) < 1e-5


@torch.no_grad()
def test_room_goes_to_the_largest_maps_first() -> None:
    unet = made(UNet(UNET))
    randomise(unet)
    convs = [module for module in unet.modules() if isinstance(module, Conv3x3)]
    forms = {conv: convolution.form(conv) for conv in convs}
    acceleration.prepare(unet, room=sum(forms.values()) // 3)
    roomy = [conv for conv in convs if conv.roomy]
    assert 0 < sum(forms[conv] for conv in roomy) <= sum(forms.values()) // 3
    widest = max(conv.out_channels for conv in roomy)
    assert all(conv.roomy for conv in convs if conv.out_channels < widest)
    assert acceleration.more(unet, torch.float32, 1 << 40) == sum(forms.values())
    assert acceleration.more(unet, torch.float32, 400) == 400


@torch.no_grad()
def test_what_is_delicate_is_computed_as_it_is_plainly() -> None:
    """To the last bit, however it is laid out. Winograd's algorithm, here with room, would round otherwise."""
    plain = made(Conv3x3(64, 64, keep_exact=True))
    fast, x = copy.deepcopy(plain), noise(2, 64, 20, 20)
    acceleration.prepare(fast, room=1 << 30)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), plain(x))
    assert torch.equal(fast.forward_strip(x.contiguous(memory_format=torch.channels_last)), plain.forward_strip(x))
    assert convolution.form(fast) == 0 and acceleration.more(fast, torch.float32, 1 << 30) == 0
    usual = made(Conv3x3(64, 64))
    usual.load_state_dict(plain.state_dict())
    acceleration.prepare(usual, room=1 << 30)
    assert not torch.equal(usual(x), plain(x))


@torch.no_grad()
def test_what_is_compiled_is_the_plain_network() -> None:
    """Kernels that are called by pointer cannot be traced."""
    conv, x = made(nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 32))), noise(1, 32, 16, 16)
    plain = conv(x)
    acceleration.prepare(conv, room=1 << 30)
    assert torch.equal(torch.compile(conv, backend="eager", fullgraph=True)(x), plain)


def test_it_can_be_left_out(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(kandinsky: Kandinsky) -> bool:
        return type(kandinsky.decoder("decoder").unet.conv_in) is not Conv3x3

    assert prepared(Kandinsky.load(tiny_model))
    assert not prepared(Kandinsky.load(tiny_model, accelerated=False))
    monkeypatch.setenv(acceleration.SWITCH, "off")
    assert not prepared(Kandinsky.load(tiny_model))
    assert prepared(Kandinsky.load(tiny_model, accelerated=True))
    assert not acceleration.wanted(torch.device("meta"))


@torch.no_grad()
def test_each_part_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = made(nn.Sequential(Norm(8, 32, eps=1e-5), Conv3x3(32, 32), nn.Linear(16, 8))), noise(1, 32, 16, 16)
    plain = network(x)

    def prepared(left_out: str) -> list[str]:
        monkeypatch.setenv(acceleration.SWITCH, left_out)
        acceleration.prepare(network, room=acceleration.room())
        assert apart(network(x), plain) < 1e-5
        return [
            name
            for name, module in zip(("normalisations", "convolutions", "linear"), network, strict=True)
            if "Fast" in repr(type(module))
        ]

    everything = prepared("")
    assert everything == ["normalisations", "convolutions", "linear"]
    for part in everything:
        assert part not in prepared(part) and len(prepared(part)) == 2
    assert prepared("kernels, filters") == everything
    assert kernels.library() is None and acceleration.room() == 0
    assert acceleration.described() == "torch"
    with pytest.raises(
        ValueError, match=r"KANDINSKY22_ACCELERATION must be off, or some of convolutions, .* got 'winograd'"
    ):
        prepared("winograd")


@pytest.mark.parametrize("left_out", ["", "pages", "off"])
def test_huge_pages(left_out: str) -> None:
    """Asked for where nothing else was said. Whether there are any is Linux's to say."""
    code = (
        "import os, pathlib, kandinsky22.acceleration, torch; x = torch.ones(1 << 24)\n"
        "pages = pathlib.Path('/proc/self/smaps_rollup')\n"
        "print(os.environ.get('THP_MEM_ALLOC_ENABLE'), pages.read_text() if pages.exists() else '')"
    )
    environment = {**os.environ, acceleration.SWITCH: left_out}
    environment.pop(HUGE_PAGES, None)
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("None" if left_out else "1")
    if Path(OFFERED).exists() and "[madvise]" in Path(OFFERED).read_text():
        huge = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("AnonHugePages"))
        assert (huge > 0) != bool(left_out)


def test_pictures_say_what_computed(tiny_model: Path) -> None:
    painted = [Kandinsky.load(tiny_model, accelerated=way)("a red star", seed=1)[0] for way in (True, False)]
    assert painted[0].made_by["acceleration"] == acceleration.described()
    assert "acceleration" not in painted[1].made_by


def test_kernels_of_another_source_are_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their name has the source's checksum in it."""
    now = kernels.built("avx2")
    source = tmp_path / "kernels.c"
    source.write_text((now.parent / "kernels.c").read_text() + "\n")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    assert kernels.built("avx2").name != now.name


def test_kernels_are_called_with_what_they_take() -> None:
    """C would read a number of another width, or one too few, from what happens to lie there."""
    source = kernels.built("avx2").with_name("kernels.c").read_text()
    declared = {}
    for name, arguments in re.findall(r"^void (\w+)\(([^)]*)\) {", source, re.MULTILINE):
        declared[name] = "".join("P" if "*" in one else one.split()[0][0] for one in arguments.split(","))
    assert declared == {name: letters.replace(" ", "") for name, letters in kernels.TAKES.items()}


def test_a_machine_without_a_compiler_installs_too(tmp_path: Path) -> None:
    """What the build does, without the tool that calls it."""
    folder = tmp_path / "src" / "kandinsky22" / "acceleration"
    folder.mkdir(parents=True)
    (folder / "kernels.c").write_bytes((ROOT / "src/kandinsky22/acceleration/kernels.c").read_bytes())
    (tmp_path / "hatch_build.py").write_bytes((ROOT / "hatch_build.py").read_bytes())
    (folder / "kernels-avx2-00000000.so").touch()  # of another source
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

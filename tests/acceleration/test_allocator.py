"""Memory that tensors free is kept while somebody computes, and no longer; each tried in a process whose memory is its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky22.acceleration import ENV_VARIABLE

LARGE = 48 << 20  # bytes; glibc maps such a block from the system by itself, and returns it when it is freed
CODE = f"""
import torch
from pathlib import Path
from kandinsky22.acceleration import allocator
torch.set_num_threads(1)  # the system counts pages by core, and tells to some dozens of them
class Stage: pass
unet, movq = Stage(), Stage()

def resident():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

def kept(times=1):
    "How much of a tensor's memory is still here when it is freed."
    before, size = resident(), times * {LARGE}
    x = torch.zeros(size, dtype=torch.uint8) + 1
    del x
    return (resident() - before) / size

LARGER = 4  # times; fits into no hole that memory which was kept may have left, and that glibc would fill first

kept()  # what the first sum brings with it
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told anything")


def told(code: str, **environment: str) -> list[float]:
    """The numbers that a process prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN", ENV_VARIABLE))}
    run = [sys.executable, "-c", CODE + code]
    said = subprocess.run(run, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in said.split()]


def test_it_is_kept_until_the_last_is_done() -> None:
    usual, at_work, by_one_left, back, after = told(f"""
print(kept())
here = resident()
allocator.keep_freed(unet); allocator.keep_freed(movq); allocator.keep_freed(unet)
print(kept())
allocator.stop_keeping(movq)
print((resident() - here) / {LARGE})
allocator.stop_keeping(unet); allocator.stop_keeping(unet)
print((resident() - here) / {LARGE})
print(kept(LARGER))
""")
    assert usual < 0.1 and back < 0.2 and after < 0.1
    assert at_work > 0.8 and by_one_left > 0.8


def test_whoever_is_gone_is_done() -> None:
    (after,) = told(
        "allocator.keep_freed(unet); allocator.keep_freed(movq); del unet; allocator.stop_keeping(movq); print(kept(LARGER))"
    )
    assert after < 0.1


@pytest.mark.parametrize(
    "environment",
    [
        {ENV_VARIABLE: "allocator"},
        {ENV_VARIABLE: "off"},
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"},
    ],
)
def test_who_says_otherwise_is_heard(environment: dict[str, str]) -> None:
    at_work, theirs = told(
        """
allocator.keep_freed(unet)
print(kept())
allocator._tell(allocator.KEEPING)  # as somebody else might
allocator.stop_keeping(unet)
print(kept())
""",
        **environment,
    )
    assert at_work < 0.1 and theirs > 0.8


def test_networks_keep_it_from_their_coming_to_their_leaving(tiny_model: Path) -> None:
    first, then, kept_one, plain = told(f"""
from kandinsky22 import Kandinsky
for placement, accelerated in (("offload", None), ("keep", None), ("keep", False)):
    model = Kandinsky.load({str(tiny_model)!r}, placement=placement, accelerated=accelerated)
    stage = model.decoder("decoder")
    stage.movq
    print(kept() if accelerated is None else kept(LARGER))
    if placement == "offload":
        stage.networks.release(stage.stored.movq)
        print(kept(LARGER))
    stage.networks.release(stage.stored.movq)
""")
    assert first > 0.8 and kept_one > 0.8
    assert then < 0.1 and plain < 0.1

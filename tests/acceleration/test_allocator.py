"""Memory that tensors free is kept while an owner is registered, and no longer; each test runs in its own process."""

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
torch.set_num_threads(1)  # the system counts pages per core, and reports in batches of some dozens
class Stage: pass
unet, movq = Stage(), Stage()

def resident():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

def resident_share(times=1):
    "The share of a tensor's memory that is still resident after it was freed."
    before, size = resident(), times * {LARGE}
    x = torch.zeros(size, dtype=torch.uint8) + 1
    del x
    return (resident() - before) / size

LARGER = 4  # times; too large for any free block that kept memory may have left, which glibc would use first

resident_share()  # loads what the first addition needs
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is configured")


def printed_numbers(code: str, **environment: str) -> list[float]:
    """The numbers that a process prints."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN", ENV_VARIABLE))
    }
    run = [sys.executable, "-c", CODE + code]
    stdout = subprocess.run(run, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in stdout.split()]


def test_freed_memory_stays_until_the_last_owner_is_done() -> None:
    usual, with_owners, with_one_left, afterwards, later = printed_numbers(f"""
print(resident_share())
start = resident()
allocator.keep_freed(unet); allocator.keep_freed(movq); allocator.keep_freed(unet)
print(resident_share())
allocator.stop_keeping(movq)
print((resident() - start) / {LARGE})
allocator.stop_keeping(unet); allocator.stop_keeping(unet)
print((resident() - start) / {LARGE})
print(resident_share(LARGER))
""")
    assert usual < 0.1 and afterwards < 0.2 and later < 0.1
    assert with_owners > 0.8 and with_one_left > 0.8


def test_an_owner_that_was_garbage_collected_counts_as_done() -> None:
    (after,) = printed_numbers(
        "allocator.keep_freed(unet); allocator.keep_freed(movq)\n"
        "del unet; allocator.stop_keeping(movq); print(resident_share(LARGER))"
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
def test_an_environment_that_configures_glibc_is_respected(environment: dict[str, str]) -> None:
    with_owner, set_elsewhere = printed_numbers(
        """
allocator.keep_freed(unet)
print(resident_share())
allocator.set_options(allocator.KEEP_OPTIONS)  # as another library might
allocator.stop_keeping(unet)
print(resident_share())
""",
        **environment,
    )
    assert with_owner < 0.1 and set_elsewhere > 0.8


def test_networks_keep_freed_memory_until_they_are_released(tiny_model: Path) -> None:
    offloaded, released, staying, plain = printed_numbers(f"""
from kandinsky22 import Kandinsky
for placement, accelerated in (("offload", None), ("keep", None), ("keep", False)):
    model = Kandinsky.load({str(tiny_model)!r}, placement=placement, accelerated=accelerated)
    stage = model.decoder("decoder")
    stage.movq
    print(resident_share() if accelerated is None else resident_share(LARGER))
    if placement == "offload":
        stage.networks.release(stage.stored.movq)
        print(resident_share(LARGER))
    stage.networks.release(stage.stored.movq)
""")
    assert offloaded > 0.8 and staying > 0.8
    assert released < 0.1 and plain < 0.1

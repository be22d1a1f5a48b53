"""The least time a stage could take (roofline): its operations at the rate of a large matrix product, or its weights at
the rate of a large read, whichever is longer. Both rates are measured.

    python benchmarks/roofline.py MODEL [--dtype float32] [--threads 2] [--side 512] [--prior-steps 25]

Prints JSON. Operations (two per multiply-add) are those of this package's networks, whose algebra computes nothing
twice; `winograd` is the count with every 3x3 convolution by Winograd's F(4,3), with free transforms: a limit that
nothing reaches.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kandinsky22.checkpoints.network import Stored
from kandinsky22.engine.cost import work
from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.layers import Conv3x3, UpsampleConv3x3
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig

TRIALS, ORDER, READ = 5, 2048, 1 << 30  # per rate; order of the matrix; bytes read
F43 = 36 / 16 / 9  # multiplications relative to the direct algorithm: 36 for 16 outputs, each of which takes 9
F43_DOUBLING = F43 * 25 / 36  # for an upsampled picture 25 of the 36 products remain


def peaks(dtype: torch.dtype) -> dict[str, float]:
    """Operations per second of a large product in the dtype, and bytes per second of a large read; the best of
    several."""
    a, b = (torch.randn(ORDER, ORDER).to(dtype) for _ in range(2))
    numbers = torch.ones(READ // 4)
    return {"operations": 2 * ORDER**3 / best(lambda: a @ b), "bytes": READ / best(numbers.sum)}


def best(run: Callable[[], object]) -> float:
    """The minimum seconds of several runs."""
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def convolved(run: Callable[[], object], network: nn.Module) -> tuple[int, int]:
    """Operations of the 3x3 convolutions in a run: of ordinary ones, and of upsampling ones."""
    counts = {Conv3x3: 0, UpsampleConv3x3: 0}

    def count(module: Any, _: Any, out: torch.Tensor) -> None:
        counts[type(module)] += 2 * module.weight[0].numel() * out.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if type(m) in counts]
    run()
    for hook in hooks:
        hook.remove()
    return counts[Conv3x3], counts[UpsampleConv3x3]


def outlines(model: Path) -> dict[str, Stored[Any, Any]]:
    """The networks of a model, without their weights."""
    return {
        "text": Stored(model / "prior/text_encoder", CLIPText, CLIPTextConfig),
        "prior": Stored(model / "prior/prior", PriorTransformer, PriorConfig),
        "unet": Stored(model / "decoder/unet", UNet, UNetConfig),
        "movq": Stored(model / "decoder/movq", MoVQ, MoVQConfig),
    }


def counted(model: Path, side: int, prior_steps: int, itemsize: int) -> dict[str, dict[str, float]]:
    """By stage: operations, operations with Winograd, and bytes of weights read."""
    stored = outlines(model)
    counts = work(*(stored[name].config for name in stored), height=side, width=side)
    size = {name: one.elements * itemsize for name, one in stored.items()}
    size["movq"] = sum(v.numel() for v in stored["movq"].outline.decoder.state_dict().values()) * itemsize
    z = side // stored["movq"].config.factor
    unet, movq = stored["unet"].outline, stored["movq"].outline
    with torch.device("meta"), torch.no_grad():
        condition = unet.condition(torch.empty(2, unet.config.encoder_hid_dim))
        step = lambda: unet(torch.empty(2, 4, z, z), torch.empty(2), condition)  # noqa: E731
        decode = lambda: movq.decode(torch.empty(1, 4, z, z), tile=side * side)  # noqa: E731
        with FlopCounterMode(display=False) as counter:
            step()
        rows = {
            "unet": (counter.get_total_flops(), convolved(step, unet)),
            "movq": (counts.decode, convolved(decode, movq)),
            "prior": (2 * counts.text + 2 * prior_steps * counts.prior_step, (0, 0)),
        }
    stages = {}
    for name, (operations, (plain, doubling)) in rows.items():
        saved = plain * (1 - F43) + doubling * (1 - F43_DOUBLING)
        stages[name] = {"operations": operations, "winograd": operations - saved, "bytes": size[name]}
    stages["prior"]["bytes"] = size["text"] + (1 + prior_steps) * size["prior"]
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--prior-steps", type=int, default=25)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    dtype: torch.dtype = getattr(torch, a.dtype)
    stages = counted(a.model, a.side, a.prior_steps, dtype.itemsize)
    print(json.dumps({"peaks": peaks(dtype), "stages": stages}))


if __name__ == "__main__":
    main()

"""Nothing in the loop waits for a device.

torch's "meta" device stands for a GPU: what asks for a number that is on it fails, as reading it would wait there. What is to_device
there must not wait either, which a mode that sees every operation checks.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, sample_many
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.engine.runs import InpaintCondition, StartState
from kandinsky22.models.unet import Conditioned, UNet, UNetConfig
from tests.diffusion.toy import DECODER

META = torch.device("meta")
CONFIG = UNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_head_dim=16,
    cross_attention_dim=16,
    encoder_hid_dim=32,
    sample_size=8,
)
STEPS = DECODER.timesteps(5)


class Unwaited(TorchDispatchMode):
    """Fails where something is sent to the device, or brought from it, in a way that waits. `sent`: how often it went well."""

    sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
            if source.device != target.device and (source.ndim or source.device == META):
                given = (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
                assert given, f"{func} of {tuple(source.shape)} waits for the device"
                self.sent += 1
        return out


def guided(network: UNet, rows: int, weight: float, *interval: float) -> Guidance[Conditioned]:
    """What `Guidance.of` makes, whose look at the weights is before the loop."""
    condition = network.precompute_timesteps(
        network.condition(torch.empty(rows, CONFIG.encoder_hid_dim, device=META)), STEPS
    )
    return Guidance(
        condition, condition if weight != 1 else None, torch.full((rows,), weight), *[interval] if interval else []
    )


def run(name: str, monkeypatch: pytest.MonkeyPatch, schedule: NoiseSchedule = DECODER) -> Unwaited:
    """A company of two, one guided in part of the run, one inpainted and with deep features used again."""
    with META:
        network = UNet(CONFIG)
    requests = {"a": guided(network, 2, 4.0, 300, 900), "b": guided(network, 1, 1.0)}
    denoiser = Denoiser(network, schedule, requests, torch.float32, {"b": 2})
    lay_out = denoiser._lay_out

    def before(acting: Any) -> None:
        """A new layout is no step of the loop: rows are looked at when a company changes."""
        with torch.utils._python_dispatch._disable_current_modes():
            lay_out(acting)
            denoiser._guided_rows, denoiser._weight = denoiser._guided_rows.to(META), denoiser._weight.to(META)
            denoiser._rows_of = {key: rows.to(META) for key, rows in denoiser._rows_of.items()}

    monkeypatch.setattr(denoiser, "_lay_out", before)
    x = {key: torch.empty(len(g.cond), 4, 8, 8, device=META) for key, g in requests.items()}
    start = StartState(x["b"], STEPS, x["b"])
    holds = InpaintCondition(torch.empty(1, 4, 8, 8, device=META), torch.empty(1, 1, 8, 8, device=META)).constraint(
        start, schedule
    )
    jobs = {
        "a": Job(SAMPLERS[name](schedule, x["a"], STEPS, Noise([1, 2], "decoder"))),
        "b": Job(SAMPLERS[name](schedule, x["b"], STEPS, Noise([3], "decoder")), holds),
    }
    schedule.alpha_bar(torch.empty(1, dtype=torch.long, device=META))  # its table goes there once
    with Unwaited() as mode:
        ends = [now.x for _, now in sample_many(jobs, denoiser) if now.t < 0]
    assert [end.device for end in ends] == [META] * 2
    return mode


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@torch.no_grad()  # in which the mode sees every copy as one
def test_no_sampler_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = run(name, monkeypatch)
    assert mode.sent >= len(STEPS)  # the timesteps of each round at least


@torch.no_grad()  # in which the mode sees every copy as one
def test_one_that_waits_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a table that is brought there at each step, and a number that is asked for."""

    class Anew(NoiseSchedule):
        def alpha_bar(self, t: int | Tensor) -> Tensor:
            return self.alphas_cumprod.to(t.device)[t] if isinstance(t, Tensor) else super().alpha_bar(t)

    schedule = Anew(**{name: getattr(DECODER, name) for name in Anew.__dataclass_fields__})
    with pytest.raises(AssertionError, match="waits for the device"):
        run("ddim", monkeypatch, schedule)
    with pytest.raises(RuntimeError):
        torch.empty(1, device=META).item()
    with pytest.raises(NotImplementedError):
        torch.empty(1, device=META).cpu()

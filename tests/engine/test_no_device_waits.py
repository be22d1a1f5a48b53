"""Nothing in the sampling loop waits for the device.

torch's "meta" device stands for a GPU: reading a value of a meta tensor fails, where reading it from a GPU would wait.
Copies to the device must not wait either; a dispatch mode that sees every operation checks that they are non-blocking.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky22.diffusion import SAMPLERS, Ask, Job, Noise, NoiseSchedule, Prediction, denoiser
from kandinsky22.diffusion.denoiser import BatchLayout, Denoiser, Guidance
from kandinsky22.engine.runs import InpaintCondition, StartState
from kandinsky22.models.unet import UNet, UNetCondition, UNetConfig
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


class NoBlockingCopies(TorchDispatchMode):
    """Fails at a copy to or from the device that waits for it, and counts the other copies in `copies`."""

    copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
            if source.device != target.device and (source.ndim or source.device == META):
                non_blocking = (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
                assert non_blocking, f"{func} of {tuple(source.shape)} waits for the device"
                self.copies += 1
        return out


def guided(network: UNet, weight: float, *interval: float) -> Guidance[UNetCondition]:
    """The conditions of a picture. `Guidance.of` would read the weights; it is called before the loop."""
    condition = network.precompute_timesteps(
        network.condition(torch.empty(1, CONFIG.encoder_hid_dim, device=META)), STEPS
    )
    return Guidance(
        condition, condition if weight != 1 else None, torch.full((1,), weight), *[interval] if interval else []
    )


def sample_together(jobs: Mapping[tuple[str, ...], Job], denoise: Denoiser[Any]) -> list[Tensor]:
    """The final states of jobs, by the names of their rows; one call answers all that ask."""
    runs = {rows: job.events() for rows, job in jobs.items()}
    replies: dict[tuple[str, ...], Prediction] = {}
    states: dict[tuple[str, ...], Tensor] = {}
    while runs:
        asks = {}
        for rows, run in list(runs.items()):
            try:
                while not isinstance(event := run.send(replies.pop(rows, None)), Ask):
                    states[rows] = event.x
                asks[rows] = event
            except StopIteration:
                del runs[rows]
        if asks:
            times = torch.tensor([ask.t for rows, ask in asks.items() for _ in rows])
            prediction = denoise([row for rows in asks for row in rows], torch.cat([a.x for a in asks.values()]), times)
            replies = dict(zip(asks, prediction.split([len(rows) for rows in asks]), strict=True))
    return list(states.values())


def move_layouts_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out batches on the CPU and move the result: laying out reads the weights, but only when a batch changes."""
    lay_out = denoiser.lay_out

    def on_device(*arguments: Any) -> BatchLayout[Any]:
        layout = lay_out(*arguments)
        return layout._replace(
            weight=layout.weight.to(META, non_blocking=True),
            guided_rows=layout.guided_rows.to(META, non_blocking=True),
            rows_of={key: rows.to(META, non_blocking=True) for key, rows in layout.rows_of.items()},
        )

    monkeypatch.setattr(denoiser, "lay_out", on_device)


def run(name: str, monkeypatch: pytest.MonkeyPatch, schedule: NoiseSchedule = DECODER) -> NoBlockingCopies:
    """Two requests in a batch: one guided in a part of its run, one inpainted and with reused deep features."""
    move_layouts_to_the_device(monkeypatch)
    with META:
        network = UNet(CONFIG)
    rows = {"a": guided(network, 4.0, 300, 900), "a2": guided(network, 4.0, 300, 900), "b": guided(network, 1.0)}
    denoise = Denoiser(network, schedule, rows, torch.float32, {"b": 2})
    x = {n: torch.empty(n, 4, 8, 8, device=META) for n in (1, 2)}
    start = StartState(x[1], STEPS, x[1])
    inpaint = InpaintCondition(torch.empty(1, 4, 8, 8, device=META), torch.empty(1, 1, 8, 8, device=META))
    jobs = {
        ("a", "a2"): Job(SAMPLERS[name](schedule, x[2], STEPS, Noise([1, 2], "decoder"))),
        ("b",): Job(SAMPLERS[name](schedule, x[1], STEPS, Noise([3], "decoder")), inpaint.constraint(start, schedule)),
    }
    schedule.alpha_bar(torch.empty(1, dtype=torch.long, device=META))  # copies the schedule's table there, once
    with NoBlockingCopies() as mode:
        ends = sample_together(jobs, denoise)
    assert [end.device for end in ends] == [META] * 2
    return mode


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@torch.no_grad()  # without it, the mode would not see every copy as one operation
def test_no_sampler_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = run(name, monkeypatch)
    assert mode.copies >= len(STEPS)  # at least the timesteps of each round


@torch.no_grad()  # without it, the mode would not see every copy as one operation
def test_a_sampler_that_waits_for_the_device_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a schedule that copies its table at each step, and reading a value."""

    class CopyingSchedule(NoiseSchedule):
        def alpha_bar(self, t: int | Tensor) -> Tensor:
            return self.alphas_cumprod.to(t.device)[t] if isinstance(t, Tensor) else super().alpha_bar(t)

    schedule = CopyingSchedule(**{name: getattr(DECODER, name) for name in CopyingSchedule.__dataclass_fields__})
    with pytest.raises(AssertionError, match="waits for the device"):
        run("ddim", monkeypatch, schedule)
    with pytest.raises(RuntimeError):
        torch.empty(1, device=META).item()
    with pytest.raises(NotImplementedError):
        torch.empty(1, device=META).cpu()

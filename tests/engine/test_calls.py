"""Sampling as a task: the same states alone and in a batch, bit for bit, and nothing left when it ends."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, Job, keep
from kandinsky22.diffusion.denoiser import Guidance
from kandinsky22.engine.calls import Calls
from kandinsky22.engine.runs import Run
from kandinsky22.engine.scheduler import Finished, Raised, Scheduler, Task
from tests.diffusion.test_denoiser import ScalarCondition
from tests.diffusion.toy import DECODER, drawing, randn

WEIGHTS = randn(4, 4, seed=5)


class Stage:
    """A decoder whose network computes each row from that row alone, in `rows` how many at a time."""

    def __init__(self) -> None:
        self.schedule, self.rows = DECODER, list[int]()
        self.networks = Released()
        self.stored = SimpleNamespace(unet=Elements())

    def unet(self, x: Tensor, t: Tensor, condition: ScalarCondition, guided_rows: Tensor) -> Tensor:
        self.rows.append(len(x))
        x = torch.cat([x[guided_rows], x])
        mixed = (WEIGHTS[:, :, None, None] * x[:, None]).sum(2)
        return torch.sin(mixed + condition.value[:, None, None, None]) + (t / 1000).reshape(-1, 1, 1, 1)


class Elements:
    elements = 1


class Released:
    dtype = torch.float32

    def release(self, stored: Elements) -> None:
        """Nothing is loaded."""


class Case(NamedTuple):
    """A request: sampler, steps, pictures, guidance weight, seed, and whether a constraint inpaints it."""

    sampler: str
    steps: int
    pictures: int
    guidance: float
    seed: int
    inpainted: bool = False
    size: tuple[int, int] = (3, 5)

    def run(self) -> Run[Any]:
        noise = drawing(self.seed)
        x = noise(torch.empty(self.pictures, 4, *self.size))
        sampler = SAMPLERS[self.sampler](DECODER, x, DECODER.timesteps(self.steps), noise)
        cond, uncond = (ScalarCondition(randn(self.pictures, seed=self.seed + k)) for k in (1, 2))
        guidance = Guidance.of(cond, uncond, torch.full((self.pictures,), self.guidance))
        return Run(Job(sampler, self.constrain if self.inpainted else keep), self.steps, guidance)

    def constrain(self, x: Tensor, t: int) -> Tensor:
        return torch.where(torch.arange(self.size[1]) < 2, DECODER.add_noise(torch.zeros_like(x), x, t), x)

    def task(self, stage: Any, calls: Calls) -> Task:
        """Yields every state."""

        def on_step(i: int, x: Tensor, x0: Tensor) -> Iterator[Tensor]:
            yield x

        return calls.sample(stage, self.run(), on_step)


def states(stage: Stage, cases: dict[str, Case], max_rows: int = 100) -> dict[str, list[Tensor]]:
    """All states of cases that are sampled together."""
    scheduler: Scheduler[str] = Scheduler(lambda _: False)
    calls = Calls(max_rows)
    for key, case in cases.items():
        scheduler.add(key, case.task(stage, calls))
    found: dict[str, list[Tensor]] = {key: [] for key in cases}
    while len(scheduler):
        for key, outcome in scheduler.step():
            assert not isinstance(outcome, Raised), outcome
            found[key].append(outcome.value if isinstance(outcome, Finished) else outcome)
    return found


@pytest.mark.parametrize("max_rows", [2, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_the_same_states_alone_and_in_a_batch(name: str, max_rows: int) -> None:
    cases = {other: Case(other, 4 + k, 1 + k % 2, 1.5 * k, 10 * k) for k, other in enumerate(SAMPLERS)}
    cases |= {
        "first": Case(name, 6, 2, 4.0, 100),
        "other prompt and guidance": Case(name, 6, 1, 0.5, 200),
        "other steps": Case(name, 11, 3, 4.0, 100),
        "inpainted": Case(name, 5, 1, 4.0, 300, inpainted=True),
        "other size": Case(name, 6, 1, 4.0, 400, size=(5, 3)),
    }
    together = states(Stage(), cases, max_rows)
    for key, case in cases.items():
        alone = states(Stage(), {key: case})[key]
        assert len(together[key]) == len(alone) == case.steps + 1
        assert all(torch.equal(a, b) for a, b in zip(together[key], alone, strict=True)), key


def test_one_call_serves_all_pictures_of_one_shape() -> None:
    stage = Stage()
    cases = {
        "short": Case("ddim", 3, 1, 1.0, 0),
        "long": Case("ddpm", 7, 2, 1.0, 1),
        "twice a step": Case("heun", 3, 1, 1.0, 2),
        "other size": Case("ddim", 2, 1, 1.0, 3, size=(5, 3)),
    }
    states(stage, cases)
    assert sorted(stage.rows) == sorted([4] * 3 + [3] * 2 + [2] * 2 + [1] * 2)


def test_a_sampler_is_closed_when_its_task_is() -> None:
    case, closed = Case("ddim", 5, 1, 1.0, 0), []
    run = case.run()

    def recorded() -> Any:
        try:
            yield from run.job.sampler
        finally:
            closed.append("it")

    stage: Any = Stage()
    scheduler: Scheduler[str] = Scheduler(lambda _: False)
    recorded_run = Run(Job(recorded()), 5, run.guidance)
    scheduler.add("a", Calls().sample(stage, recorded_run, lambda i, x, x0: ()))
    scheduler.step()
    assert closed == []
    scheduler.remove("a")
    assert closed == ["it"]

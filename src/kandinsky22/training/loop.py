"""The training loop, as a generator: it owns the optimiser, the schedule, the moving average and the step counter.

What is learnt is an objective. Its rows are drawn from the step's own seed, and how wrong the network is about a row does not
depend on who asks, so a run that is stopped and resumed, cut into smaller parts, or shared out among processes learns the
same. Callers own progress, logging and stopping.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.training.processes import ALONE, Processes, unsharded
from kandinsky22.training.settings import Settings, refuse_changes

Batch = dict[str, Tensor]
"""The rows of a step: the first dimension of every tensor counts them."""

FOR_MEMORY = ("accumulate", "checkpointing")  # of a recipe: what they change is not what is learnt
BINS = 4  # of the timesteps, over which the loss is told apart


@dataclass(frozen=True)
class Objective:
    """What is learnt.

    `draw` gives a step's rows on the CPU, from the step alone. `loss` takes any of these rows, on the network's device, and
    returns how wrong the network is about each, [n], and what else is worth logging, [n] each; their means over the step's
    rows are what counts. A `coupled` loss compares a row with the others, so its rows are not cut into parts.
    `timesteps` is how many the rows' "t" may be, where they have one.
    """

    draw: Callable[[int], Batch]
    loss: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
    coupled: bool = False
    timesteps: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast: values of a run. `bfloat16` is the dtype of matrix products, on a device that computes in it;
    weights stay float32.

    `accumulate` cuts a batch into parts that are computed one after the other; `checkpointing` keeps no activations of
    blocks, and computes them again. Both change the memory a step takes and nothing that is learnt. `cond_dropout` is the share
    of rows that learn without their condition, for guidance; `min_snr` the gamma of Hang et al. 2023, which weighs timesteps.
    """

    batch: int
    learning_rate: float
    warmup: int = 100
    decay: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    bfloat16: bool = True
    seed: int = 0
    accumulate: int = 1
    checkpointing: bool = False
    cond_dropout: float = 0.1
    min_snr: float | None = None

    @property
    def settings(self) -> dict[str, object]:
        """What decides the numbers that are learnt, as JSON takes it."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in FOR_MEMORY}
        return {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}

    def rate(self, step: int, steps: int) -> float:
        """The learning rate: linear warm-up, then, unless it is to stay there, a cosine to a hundredth."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))) if self.decay else 1.0
        return self.learning_rate * warm * cosine


def refuse_uncut(recipe: Recipe, processes: int, *, coupled: bool) -> None:
    """Raises `ValueError` where a batch cannot be cut into the parts that are asked for, which can be said before anything is
    read. `coupled`: rows are compared with one another."""
    if coupled and recipe.accumulate > 1:
        raise ValueError(
            "this network compares every row of a batch with every other, so a batch cannot be cut into "
            f"{recipe.accumulate}; use --accumulate 1 and a smaller --batch"
        )
    if coupled and recipe.batch % processes:
        raise ValueError(
            f"this network compares every row of a batch with every other, so all of {processes} processes must have "
            f"as many; use a --batch that {processes} divides, not {recipe.batch}"
        )
    if recipe.batch < processes * recipe.accumulate:
        raise ValueError(
            f"a batch of {recipe.batch} cannot be cut into {processes * recipe.accumulate} parts; use a larger --batch"
        )


class Training:
    """A run: what learns, what it learns, how, and how far it is. `ema` holds the averaged weights that are kept; `products` is
    the dtype of matrix products, `rows` how many the last step had, and `shapes` what they were.

    `learnt_from` names what the objective is made of (fingerprints of frozen networks, the data), so that a checkpoint does
    not go on with something else; `settings` is what decides the numbers beside the recipe. The network is moved to the
    processes' device and, where there are several, shared out.
    Raises `ValueError` where the batch cannot be cut as asked.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        recipe: Recipe,
        steps: int,
        learnt_from: Mapping[str, str] | None = None,
        processes: Processes = ALONE,
        settings: Settings | None = None,
    ) -> None:
        refuse_uncut(recipe, processes.count, coupled=objective.coupled)
        self.network, self.objective, self.recipe, self.steps = network, objective, recipe, steps
        self.processes = processes
        self.learnt_from = dict(learnt_from or {})
        self.settings = {**(settings or {}), **recipe.settings}
        self.step, self.rows = 0, recipe.batch
        self.shapes: tuple[torch.Size, ...] = ()
        quick = recipe.bfloat16 and computes_bfloat16(processes.device)
        self.products = torch.bfloat16 if quick else torch.float32
        self._template = _empty(network)
        self.learner = processes.shared_out(network, objective.loss, checkpointing=recipe.checkpointing)
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self.ema = {name: p.detach().clone() for name, p in named.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Train to the end, yielding what was measured after every step."""
        while self.step < self.steps:
            yield self.advance()

    def advance(self) -> dict[str, float]:
        """One step. Raises `FloatingPointError` where the loss or its gradient is not finite; the weights are then as before."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step, self.steps)
        measured = self.gradients(self.step)
        norm = float(unsharded(torch.nn.utils.clip_grad_norm_(self.parameters, recipe.max_grad_norm)))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the loss or its gradient is not finite at step {self.step}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.processes.own(self.ema.values()), self.processes.own(self.parameters), 1 - decay)
        self.step += 1
        return {"step": self.step, "of": self.steps, **measured, "grad_norm": norm}

    def gradients(self, step: int) -> dict[str, float]:
        """Add the gradient of a step's loss to the parameters, and return what was measured over all its rows."""
        recipe, processes = self.recipe, self.processes
        batch = self.objective.draw(step)
        self.rows = rows = len(next(iter(batch.values())))
        self.shapes = tuple(value.shape for value in batch.values())
        sums: dict[str, Tensor] = {}
        for part in range(recipe.accumulate):
            processes.gather_gradients_after(self.learner, part == recipe.accumulate - 1)
            start, stride = processes.rank + part * processes.count, processes.count * recipe.accumulate
            # where there are fewer rows than parts, some look at one that does not count: all must use the same parameters
            counted = start < rows
            mine = on(processes.device, {name: value[start % rows :: stride] for name, value in batch.items()})
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=self.products == torch.bfloat16):
                losses, measured = self.learner(mine)
            (losses.sum() * (counted * processes.count / rows)).backward()
            for name, value in self._told(losses, measured, mine).items():
                sums[name] = sums.get(name, 0) + counted * value
        return self._means(processes.summed(sums), rows)

    def _told(self, losses: Tensor, measured: Mapping[str, Tensor], rows: Batch) -> dict[str, Tensor]:
        """Sums over rows, float64: of the loss, of what was measured, and of the loss in each stretch of the timesteps."""
        losses = losses.detach().double()
        told = {"loss": losses.sum(), **{name: value.detach().double().sum() for name, value in measured.items()}}
        if self.objective.timesteps:
            at = rows["t"] * BINS // self.objective.timesteps
            for number in range(BINS):
                told[f"loss_t{number}"] = (losses * (at == number)).sum()
                told[f"rows_t{number}"] = (at == number).sum().double()
        return told

    def _means(self, sums: Mapping[str, float], rows: int) -> dict[str, float]:
        means = {name: value / rows for name, value in sums.items() if "_t" not in name}
        for number in range(BINS) if self.objective.timesteps else ():
            if sums[f"rows_t{number}"]:
                means[f"loss_t{number}"] = sums[f"loss_t{number}"] / sums[f"rows_t{number}"]
        return means

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict, whole and on the CPU, with the averaged weights in place of the current ones.

        All processes must ask together.
        """
        state = {**self.network.state_dict(), **self.ema}
        return {name: unsharded(value.detach()).cpu() for name, value in state.items()}

    def finished(self) -> nn.Module:
        """A network of its own with the averaged weights, on the CPU, for inference. All processes must ask together."""
        self._template.load_state_dict(self.averaged(), assign=True)
        return self._template.eval().requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, by name; loading into them sets them."""
        for p in self.parameters:
            if p not in self.optimizer.state:
                self.optimizer.state[p] = {
                    "step": torch.zeros((), device=self.processes.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        held = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for (name, average), p in zip(self.ema.items(), self.parameters, strict=True):
            held[f"ema.{name}"] = average
            held |= {f"{kind}.{name}": self.optimizer.state[p][kind] for kind in ("step", "exp_avg", "exp_avg_sq")}
        return held

    def state(self) -> dict[str, object]:
        """All that is not a tensor, as JSON takes it."""
        return {"step": self.step, "steps": self.steps, "learnt_from": self.learnt_from, "settings": self.settings}

    def go_on_from(self, state: Mapping[str, object]) -> None:
        """Go on from a saved run, to its number of steps. Raises `ValueError` if it learnt from something else, or in
        another way."""
        refuse_changes(state.get("settings", {}), self.settings)  # type: ignore[arg-type]  # it is as `state` wrote it
        before = dict(state["learnt_from"])  # type: ignore[call-overload]  # it is as `state` wrote it
        if changed := [name for name in before if before[name] != self.learnt_from.get(name)]:
            raise ValueError(
                f"the checkpoint learnt from another {' and '.join(changed)} than there is now; go on with what it learnt "
                "from, or start anew in another --folder"
            )
        self.step, self.steps = int(str(state["step"])), int(str(state["steps"]))


def _empty(network: nn.Module) -> nn.Module:
    """The same network with no numbers in it."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    memo |= {id(b): b.to("meta") for b in network.buffers()}
    return copy.deepcopy(network, memo)


def on(device: torch.device, rows: Batch) -> Batch:
    """The rows, on a device."""
    return {name: value.to(device) for name, value in rows.items()}


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of the run's seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) + step)

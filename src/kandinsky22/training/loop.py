"""The training loop as a generator: it owns the optimiser, the learning-rate schedule, the weight average and the step
counter.

What is trained on is an `Objective`. Its rows depend on the run's seed and the step alone, and a row's loss does not
depend on the other rows. So a run learns the same weights when it is resumed, computed in smaller parts, or distributed
over processes. Progress, logging and stopping are left to the caller.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.training import lora
from kandinsky22.training.metrics import Metrics, StepMetrics
from kandinsky22.training.processes import ALONE, Processes, full_tensor, local_shards
from kandinsky22.training.settings import Settings, refuse_changes

Batch: TypeAlias = dict[str, Tensor]
"""The rows of a step, by name; the first dimension of every tensor is the row."""
Loss: TypeAlias = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
"""Rows -> the loss of each, [n], and further metrics by name, [n] each."""

MEMORY_FIELDS = ("accumulate", "checkpointing")  # of a recipe: they change memory use, not what is learned
FINISHING = 0.1  # steps in which a run that is to end now decays, relative to those it has taken
FINAL_RATE = 0.01  # the learning rate after the decay, relative to the peak
QUARTERS = 4  # equal ranges of timesteps over which the loss is also reported


@dataclass(frozen=True)
class Objective:
    """What a network is trained on.

    `draw` returns the rows of a step, on the CPU, as a function of the step number alone. `loss` takes any of these
    rows, on the network's device; the step's loss and metrics are the means over its rows. `coupled`: a row's loss
    depends on the other rows (contrastive), so a batch cannot be computed in parts. `timesteps`: the number of
    timesteps that the rows' "t" is drawn from, 0 if they have no "t".
    """

    draw: Callable[[int], Batch]
    loss: Loss
    coupled: bool = False
    timesteps: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a run.

    `batch` is the number of rows of a step over all processes. `bfloat16`: matrix products are computed in bfloat16 on
    a device that has instructions for it; weights stay float32. `cond_dropout` is the share of rows trained without
    their condition, for classifier-free guidance. `min_snr` is gamma of min-SNR loss weighting (Hang et al. 2023); None
    weighs all timesteps alike.

    `accumulate` computes a batch in that many parts, one after the other; `checkpointing` recomputes the activations of
    blocks in the backward pass. Both reduce memory and change nothing that is learned.
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
        """The values that decide what is learned, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in MEMORY_FIELDS}
        return {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: linear warm-up, and with `decay` a cosine down to a hundredth."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = (
            FINAL_RATE + (1 - FINAL_RATE) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))
            if self.decay
            else 1.0
        )
        return self.learning_rate * warm * cosine


def check_batch_split(recipe: Recipe, processes: int, *, coupled: bool) -> None:
    """Raises `ValueError` where a batch cannot be split over processes and accumulated parts. `coupled`: as in
    `Objective`."""
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
    """A training run: network, objective, recipe and progress.

    `fingerprints` name what the objective depends on (frozen networks, data), so that a checkpoint is not resumed with
    something else. `settings` are further values that decide what is learned, beside the recipe's. The network is moved
    to the processes' device and sharded over them.

    Attributes: `step` counts the steps taken, up to `steps`; the learning-rate schedule begins at `start`, and is a
    straight line down from `finishing_rate` if that is set. `ema` holds the averaged weights, by parameter name;
    `compute_dtype` is the dtype of matrix products; `rows` and `shapes` are the number of rows of the last step and the
    shapes of its tensors.

    Raises `ValueError` where the batch cannot be split as the recipe says.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        recipe: Recipe,
        steps: int,
        fingerprints: Mapping[str, str] | None = None,
        processes: Processes = ALONE,
        settings: Settings | None = None,
    ) -> None:
        check_batch_split(recipe, processes.count, coupled=objective.coupled)
        self.network, self.objective, self.recipe, self.steps = network, objective, recipe, steps
        self.processes = processes
        self.fingerprints = dict(fingerprints or {})
        self.settings = {**(settings or {}), **recipe.settings}
        self.step, self.rows = 0, recipe.batch
        self.start, self.finishing_rate = 0, 0.0
        self.shapes: tuple[torch.Size, ...] = ()
        use_bfloat16 = recipe.bfloat16 and computes_bfloat16(processes.device)
        self.compute_dtype = torch.bfloat16 if use_bfloat16 else torch.float32
        self._template = _meta_copy(network)
        self.loss_module = processes.shard(network, objective.loss, checkpointing=recipe.checkpointing)
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(trainable.values())
        self.ema = {name: p.detach().clone() for name, p in trainable.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )

    def __iter__(self) -> Iterator[Metrics]:
        """Train to the last step, yielding each step's metrics."""
        while self.step < self.steps:
            yield self.advance()

    def advance(self) -> Metrics:
        """Take one step; returns its metrics.

        Raises `FloatingPointError` where the loss or its gradient is not finite; the weights are then unchanged.
        """
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        measured = self.compute_gradients(self.step)
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, recipe.max_grad_norm)))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the loss or its gradient is not finite at step {self.step}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(local_shards(self.ema.values()), local_shards(self.parameters), 1 - decay)
        self.step += 1
        return Metrics(step=self.step, steps=self.steps, measured=measured, grad_norm=norm)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        step, steps = step - self.start, self.steps - self.start
        if self.finishing_rate:
            return self.finishing_rate * (1 - (1 - FINAL_RATE) * (step + 1) / steps)
        return self.recipe.rate(step, steps)

    def extend(self, steps: int) -> None:
        """Train a complete run for `steps` more, with a learning-rate schedule of their own."""
        self.start, self.steps, self.finishing_rate = self.step, self.step + steps, 0.0

    def finish(self) -> None:
        """Let the learning rate fall from now on, in a tenth as many steps as were taken, and end there.

        Does nothing if the run ends sooner.
        """
        steps = max(1, round(FINISHING * self.step))
        if not self.finishing_rate and self.step + steps < self.steps:
            self.finishing_rate = self.rate(self.step)
            self.start, self.steps = self.step, self.step + steps

    def compute_gradients(self, step: int) -> StepMetrics:
        """Add the gradient of a step's loss to the parameters' gradients; returns what was measured over all its
        rows."""
        recipe, processes, timesteps = self.recipe, self.processes, self.objective.timesteps
        batch = self.objective.draw(step)
        self.rows = rows = len(next(iter(batch.values())))
        self.shapes = tuple(value.shape for value in batch.values())
        sums: dict[str, Tensor] = {}
        quarters = torch.zeros(2, QUARTERS if timesteps else 0, dtype=torch.float64, device=processes.device)
        for part in range(recipe.accumulate):
            processes.set_gradient_sync(self.loss_module, part == recipe.accumulate - 1)
            start, stride = processes.rank + part * processes.count, processes.count * recipe.accumulate
            # With fewer rows than parts, some parts compute a row that is not counted: FSDP needs all processes to use
            # the same parameters.
            counted = start < rows
            part_rows = move_batch(
                {name: value[start % rows :: stride] for name, value in batch.items()}, processes.device
            )
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16):
                losses, measured = self.loss_module(part_rows)
            (losses.sum() * (counted * processes.count / rows)).backward()
            for name, value in {"loss": losses, **measured}.items():
                sums[name] = sums.get(name, 0) + counted * value.detach().double().sum()
            if timesteps:
                quarters += counted * _sums_by_quarter(losses, part_rows["t"], timesteps)
        totals = processes.all_reduce(torch.cat([torch.stack([*sums.values()]), quarters.flatten()])).tolist()
        means = {name: total / rows for name, total in zip(sums, totals[: len(sums)], strict=True)}
        losses_and_counts = zip(totals[len(sums) :][:QUARTERS], totals[len(sums) :][QUARTERS:], strict=True)
        quarter_losses = {i: total / n for i, (total, n) in enumerate(losses_and_counts) if n}
        return StepMetrics(means.pop("loss"), means, quarter_losses)

    def ema_state_dict(self) -> dict[str, Tensor]:
        """The network's complete state dict on the CPU, with averaged weights. All processes must call this
        together."""
        state = {**self.network.state_dict(), **self.ema}
        return {name: full_tensor(value.detach()).cpu() for name, value in state.items()}

    def ema_network(self) -> nn.Module:
        """A separate, frozen network with the averaged weights, on the CPU. All processes must call this together."""
        weights = {name: value.clone() for name, value in self.ema_state_dict().items()}
        self._template.load_state_dict(weights, assign=True)
        return self._template.eval().requires_grad_(False)

    def load_averages(self, weights: Mapping[str, Tensor]) -> None:
        """Set the averaged weights to those of a state dict, in a single process.

        Raises `ValueError` if they are of another network.
        """
        if any(name not in weights or weights[name].shape != value.shape for name, value in self.ema.items()):
            raise ValueError("these averaged weights are of another network; train it again")
        with torch.no_grad():
            for name, value in self.ema.items():
                value.copy_(weights[name])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name: weights, averages and the optimiser's state. Loading into them sets
        them."""
        for p in self.parameters:
            if p not in self.optimizer.state:
                self.optimizer.state[p] = {
                    "step": torch.zeros((), device=self.processes.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        frozen = lora.frozen_by_adapter(self.network)
        tensors = {f"network.{name}": x for name, x in self.network.state_dict().items() if name not in frozen}
        for (name, average), p in zip(self.ema.items(), self.parameters, strict=True):
            tensors[f"ema.{name}"] = average
            tensors |= {f"{kind}.{name}": self.optimizer.state[p][kind] for kind in ("step", "exp_avg", "exp_avg_sq")}
        return tensors

    def state(self) -> dict[str, object]:
        """All of a checkpoint that is not a tensor, as JSON values."""
        schedule = {"start": self.start, "finishing_rate": self.finishing_rate} if self.start else {}
        progress = {"step": self.step, "steps": self.steps, **schedule}
        return {**progress, "learnt_from": self.fingerprints, "settings": self.settings}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a checkpoint, up to its number of steps.

        Raises `ValueError` if it was trained with other settings, data or frozen networks.
        """
        refuse_changes(state.get("settings", {}), self.settings)
        refuse_other_inputs(state["learnt_from"], self.fingerprints)
        self.step, self.steps = int(state["step"]), int(state["steps"])
        self.start, self.finishing_rate = int(state.get("start", 0)), float(state.get("finishing_rate", 0))


def refuse_other_inputs(saved: Mapping[str, str], fingerprints: Mapping[str, str]) -> None:
    """Raises `ValueError` if a checkpoint learnt from other data or frozen networks than those with `fingerprints`."""
    if changed := [name for name in saved if saved[name] != fingerprints.get(name)]:
        raise ValueError(
            f"the checkpoint was trained with a different {' and '.join(changed)}; "
            "resume with what it was trained with, or train in another --folder"
        )


def _sums_by_quarter(losses: Tensor, t: Tensor, timesteps: int) -> Tensor:
    """The sum of the losses [n] in each quarter of the timesteps `t` [n], and the number of rows there: float64 [2,
    4]."""
    losses, quarter = losses.detach().double(), t * QUARTERS // timesteps
    within = [quarter == i for i in range(QUARTERS)]
    return torch.stack([*((losses * rows).sum() for rows in within), *(rows.sum().double() for rows in within)]).view(
        2, -1
    )


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy of a network on the meta device, without numbers."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    memo |= {id(b): b.to("meta") for b in network.buffers()}
    return copy.deepcopy(network, memo)


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The same rows on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step, which depends on the run's seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) + step)

"""The training loop, as a generator: it owns the optimiser, the schedule, the moving average and the step counter.

What is learnt is an objective, a function of the step alone (its data and noise are drawn from the step's own seed), so a
run that is stopped and resumed sees the same numbers as one that never was. Callers own progress, logging and stopping.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Objective = Callable[[int], tuple[Tensor, dict[str, float]]]
"""The loss at a step, and what else is worth logging."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast: values of a run. `bfloat16` is the dtype of matrix products; weights stay float32."""

    batch: int
    learning_rate: float
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    bfloat16: bool = True
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate: linear warm-up, then a cosine to a hundredth."""
        warm = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))))


class Training:
    """A run: what learns, what it learns, how, and how far it is. `ema` holds the averaged weights that are kept.

    `learnt_from` names what the objective is made of (fingerprints of frozen networks, the data), so that a checkpoint does
    not go on with something else.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, recipe: Recipe, steps: int, learnt_from: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        self.network, self.objective, self.recipe, self.steps = network, objective, recipe, steps
        self.learnt_from = dict(learnt_from or {})
        self.step = 0
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Train to the end, yielding what was measured after every step."""
        while self.step < self.steps:
            yield self.advance()

    def advance(self) -> dict[str, float]:
        """One step."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step, self.steps)
        device = self.parameters[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
            loss, measured = self.objective(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {self.step}; resume from the last checkpoint with a lower "
                f"learning rate than {recipe.learning_rate:g}"
            )
        self.optimizer.step()
        decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - decay)
        self.step += 1
        return {"step": self.step, "of": self.steps, "loss": float(loss.detach()), "grad_norm": float(norm), **measured}

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict with the averaged weights in place of the current ones."""
        kept = {id(p): e for p, e in zip(self.parameters, self.ema, strict=True)}
        named = {name: kept[id(p)] for name, p in self.network.named_parameters() if id(p) in kept}
        return {name: named.get(name, value).detach() for name, value in self.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All a resumed run needs."""
        return {
            "learnt_from": self.learnt_from,
            "step": self.step,
            "steps": self.steps,
            "network": self.network.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved run, to its number of steps. Raises `ValueError` if it learnt from something else."""
        if state["learnt_from"] != self.learnt_from:
            raise ValueError(
                f"the checkpoint learnt from {state['learnt_from']}, and there is now {self.learnt_from}; "
                "remove its folder to start anew"
            )
        self.step, self.steps = state["step"], state["steps"]
        self.network.load_state_dict(state["network"])
        self.ema = [e.to(p.device) for e, p in zip(state["ema"], self.parameters, strict=True)]
        self.optimizer.load_state_dict(state["optimizer"])


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of the run's seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) + step)

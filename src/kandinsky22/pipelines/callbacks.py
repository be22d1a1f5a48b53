"""The callbacks of a pipeline call, run after each step of a sampler."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky22.diffusion import keep
from kandinsky22.engine.runs import Constrain
from kandinsky22.pipelines.arguments import positive_int

Tensors = Mapping[str, Tensor]


class Conditions(Protocol):
    """What a run is conditioned on, as far as callbacks see and change it."""

    def tensors(self) -> Tensors:
        """The tensors besides latents that a callback may name."""
        ...

    def change(self, tensors: Tensors, guidance_scale: float, timesteps: Sequence[int]) -> None:
        """Continue with other tensors of these names and another guidance scale, for the remaining `timesteps`.

        Raises `ValueError` for tensors that cannot be changed, and for other shapes.
        """
        ...


@dataclass(frozen=True)
class StepCallbacks:
    """diffusers' two kinds of callbacks.

    on_step_end(pipe, i, t, tensors) is called after every step with the tensors named in `tensor_names`, and may return
    a mapping with others, and set `pipe._guidance_scale`. callback(i, t, latents) is called after every
    `callback_steps`th step, from step 0. Raises `ValueError` for a wrong `callback_steps`.
    """

    pipe: Any
    on_step_end: Callable[..., Any] | None = None
    tensor_names: Sequence[str] = ("latents",)
    callback: Callable[..., Any] | None = None
    callback_steps: int = 1

    def __post_init__(self) -> None:
        steps = positive_int("callback_steps", self.callback_steps, 1)
        object.__setattr__(self, "callback_steps", steps)  # the dataclass is frozen

    def constraint(self, timesteps: Sequence[int], conditions: Conditions) -> Constrain:
        """A sampler's constraint that runs the callbacks, for a run that visits `timesteps`.

        It raises `ValueError` if a callback returns something that cannot be changed, or latents of another shape.
        """
        if self.on_step_end is None and self.callback is None:
            return keep
        steps = count()
        guidance_scale = self.pipe.guidance_scale

        def run_callbacks(x: Tensor, _: int) -> Tensor:
            nonlocal guidance_scale
            i = next(steps)
            t = torch.tensor(timesteps[i])
            if self.on_step_end is not None:
                others = any(name != "latents" for name in self.tensor_names)
                available = {**(conditions.tensors() if others else {}), "latents": x}
                passed = {name: available[name] for name in self.tensor_names}
                returned = self.on_step_end(self.pipe, i, t, dict(passed)) or {}
                x = _returned_latents(x, returned)
                changed = {
                    name: value
                    for name, value in returned.items()
                    if name != "latents" and value is not passed.get(name)
                }
                if changed or self.pipe.guidance_scale != guidance_scale:
                    guidance_scale = self.pipe.guidance_scale
                    conditions.change(changed, guidance_scale, timesteps[i + 1 :])
            if self.callback is not None and i % self.callback_steps == 0:
                self.callback(i, t, x)
            return x

        return run_callbacks


def _returned_latents(x: Tensor, returned: Mapping[str, Tensor]) -> Tensor:
    latents = returned.get("latents", x)
    if latents.shape != x.shape:
        raise ValueError(f"a callback must return latents {list(x.shape)}, got {list(latents.shape)}")
    return latents.to(x)

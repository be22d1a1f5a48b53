"""The memory and time that a training run takes, known before it starts.

Bytes and operations are counted (`step_cost`, `preprocess_cost`); how many operations a second a device computes is
assumed, or measured (`plan_table`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kandinsky22.training.loop import Batch, Loss, Recipe, check_batch_split
from kandinsky22.training.preprocess_cost import NO_COST, InferenceCost, PreprocessCost
from kandinsky22.training.step_cost import step_cost

FLOAT32 = 4  # bytes of a weight, gradient, moment or average
MOMENTS = 2  # of AdamW, for every trained weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run takes. Memory is in bytes of one process, at the start of a part's backward pass; operations are those
    of one step over all processes, two for each multiply-add.

    Memory is the sum of everything, as if all gradients existed while all activations still do. This holds from the
    second part of a step on; a step of a single part takes less.
    """

    recipe: Recipe
    steps: int
    processes: int
    rows: int  # of the largest part
    parameters: int  # of the network, frozen ones included
    weights: int  # this process's shard, float32
    gathered: int  # all weights, during a step; 0 for a single process, whose shard they are
    gradients: int  # unsharded: they are reduced after a step's last backward pass
    moments: int
    ema: int
    weight_copies: int  # weights in bfloat16, for matrix products
    activations: int
    frozen: int  # other networks that the loss uses
    operations: int
    recomputed: int  # by checkpointing, in addition
    sample_grid: InferenceCost = NO_COST  # of each sample grid, which one process draws between steps
    sample_grids: int = 0
    preprocess: PreprocessCost | None = None  # before the first step

    @property
    def fixed_memory(self) -> int:
        """Bytes that do not depend on the number of rows of a part."""
        trained = self.weights + self.gathered + self.gradients + self.moments + self.ema
        return trained + self.weight_copies + self.frozen

    @property
    def step_memory(self) -> int:
        """Bytes that one process needs in a step."""
        return self.fixed_memory + self.activations

    @property
    def sampling_memory(self) -> int:
        """Bytes that the process which draws a sample grid needs meanwhile: gradients and activations are freed, and
        there is a second, unsharded copy of the weights."""
        return self.weights + self.moments + self.ema + self.frozen + self.sample_grid.memory

    @property
    def peak_memory(self) -> int:
        """Bytes that one process needs at most."""
        sampling = self.sampling_memory if self.sample_grids else 0
        return max(self.step_memory, sampling, self.preprocess.memory if self.preprocess else 0)

    def seconds(self, rate: float) -> float:
        """The time of all steps if each process computes `rate` operations a second, without the time for reading data,
        exchanging gradients, preprocessing and sample grids."""
        return self.steps * (self.operations + self.recomputed) / (self.processes * rate)


def plan_run(
    network: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Loss],
    rows: Callable[[int], Batch],
    recipe: Recipe,
    steps: int,
    *,
    processes: int,
    frozen: int = 0,
    device: str = "cuda",
    sample_grid: InferenceCost = NO_COST,
    sample_grids: int = 0,
    preprocess: PreprocessCost | None = None,
) -> Plan:
    """The plan of a run of `steps`.

    `network` makes what is trained, `loss` its loss, `rows` a number of rows of the right shapes; all are called with
    fake tensors, so none may depend on the value of a tensor. `frozen` is the bytes of other networks that the loss
    uses. `device` is "cuda" or "cpu": whose rules of mixed precision apply. `sample_grid` is the cost of each of the
    `sample_grids`.

    Raises `ValueError` where the batch cannot be split as the recipe says.
    """
    check_batch_split(recipe, processes, coupled=False)
    largest = ceil(recipe.batch / (processes * recipe.accumulate))
    with FakeTensorMode(allow_non_fake_inputs=True):  # modules have constants that are real tensors
        module = network()
        part = step_cost(module, loss(module), rows(largest), recipe, device=device)
        parameters = list(module.parameters())
        trained = [p for p in parameters if p.requires_grad]
        elements = sum(p.numel() for p in parameters)
        return Plan(
            recipe=recipe,
            steps=steps,
            processes=processes,
            rows=largest,
            parameters=elements,
            weights=FLOAT32 * _shard_size(parameters, processes) + sum(buffer.nbytes for buffer in module.buffers()),
            gathered=FLOAT32 * elements if processes > 1 else 0,
            gradients=FLOAT32 * sum(p.numel() for p in trained),
            moments=MOMENTS * FLOAT32 * _shard_size(trained, processes),
            ema=FLOAT32 * _shard_size(trained, processes),
            weight_copies=part.weight_copies,
            activations=part.activations,
            frozen=frozen,
            operations=round(part.operations * recipe.batch / largest),
            recomputed=round(part.recomputed * recipe.batch / largest),
            sample_grid=sample_grid,
            sample_grids=sample_grids,
            preprocess=preprocess,
        )


def _shard_size(parameters: Iterable[Tensor], processes: int) -> int:
    """The number of elements in the largest shard: FSDP splits the first dimension and pads the last shard."""
    return sum(ceil(len(p) / processes) * (p.numel() // len(p)) if p.ndim else 1 for p in parameters)

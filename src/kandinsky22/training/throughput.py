"""How fast a run trains: rows a second, model FLOPs utilisation, and memory."""

import functools
import resource
import sys
import time
from dataclasses import replace

import torch

from kandinsky22.engine import cost
from kandinsky22.training.flops import FlopCounter
from kandinsky22.training.loop import Training
from kandinsky22.training.metrics import Metrics, Speed


class Throughput:
    """Takes the steps of a run and measures their time, rows, operations and memory.

    The operations of a step, forward and backward, are counted once for each kind of step: rows of the same shapes with
    the same metrics. They are counted in a separate pass whose gradients are dropped, because under the counter torch
    computes the same sums in another way. What checkpointing recomputes does not count. `mfu` is the utilisation
    relative to what this device reaches in one large convolution (`cost.rate`), in the dtype of the run's matrix
    products.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._start, self._step_seconds = training, time.perf_counter(), 0.0
        self._counted: dict[object, int] = {}
        self.operations = 0  # of the last step
        self._peak = _rate(training.processes.device, training.compute_dtype)

    def advance(self) -> Metrics:
        """Take one step of the run; returns its metrics, with its speed."""
        training, start = self._training, time.perf_counter()
        metrics = training.advance()
        self._step_seconds = time.perf_counter() - start
        kind = training.shapes, frozenset(metrics.measured.means)
        if kind not in self._counted:
            with FlopCounter() as counter:
                training.compute_gradients(training.step - 1)
            training.optimizer.zero_grad(set_to_none=True)
            self._counted[kind] = counter.total - counter.recomputed
        self.operations = self._counted[kind]
        return replace(metrics, speed=self._speed())

    def _speed(self) -> Speed:
        device = self._training.processes.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device) / 2**30
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        return Speed(
            seconds=round(time.perf_counter() - self._start, 3),
            rows_per_second=round(self._training.rows / self._step_seconds, 3),
            mfu=round(self.operations / self._step_seconds / self._peak, 4),
            memory_gib=round(memory, 3),
        )


def seconds_per_step(training: Training, rounds: int = 4) -> float:
    """The median time of a few steps without taking them: the weights do not change. The first, a warm-up, does not
    count.

    All processes must call this together and get the same number.
    """
    times = []
    for step in range(rounds):
        start = time.perf_counter()
        training.compute_gradients(step)
        training.optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    processes = training.processes
    median = torch.tensor(sorted(times[1:])[len(times) // 2 - 1], dtype=torch.float64, device=processes.device)
    return float(processes.all_reduce(median)) / processes.count


_rate = functools.cache(cost.rate)

"""Threads that compute: no more for a network call than its work pays for, and none that spin while they wait.

OpenMP's threads spin while they wait for each other. Beside one busy program on two cores, the included model then
takes many times as long with two threads as with one, and on idle cores no less. Imports no torch, which reads the
environment when it is imported.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

WORK_PER_THREAD = 1e9  # multiplications, as `engine.scheduler.Call.cost` counts them: about 20 ms of a core


def let_threads_sleep() -> None:
    """Have waiting threads of this process and those it starts sleep, unless the environment says otherwise.

    For the start of a program, before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def threads_for(work: float, most: int) -> int:
    """The threads for a call of so much work: from 1 up to `most`."""
    return max(1, min(most, int(work / WORK_PER_THREAD)))


@contextmanager
def limited_threads(work: float) -> Iterator[None]:
    """Compute the block with as many of torch's threads as its work pays for."""
    import torch

    most = torch.get_num_threads()
    threads = threads_for(work, most)
    if threads == most:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(most)

"""Drivers: they run samplers by answering their questions and passing on their states.

`sample` runs one request. `sample_many` runs many at once, with one network call a round for all that want one. Both
are lazy: nothing is computed before the next state is asked for, and closing the iterator closes the samplers.
"""

from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import closing
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion.prediction import Prediction
from kandinsky22.diffusion.samplers import Ask, Now, Sampler

K = TypeVar("K", bound=Hashable)
Constrain: TypeAlias = Callable[[Tensor, int], Tensor]


def keep(x: Tensor, t: int) -> Tensor:
    """No constraint."""
    return x


class Job(NamedTuple):
    """One request of many: its sampler, and a constraint on its state (`constrain(x, t)`, as in inpainting)."""

    sampler: Sampler
    constrain: Constrain = keep


def sample(
    sampler: Sampler, denoise: Callable[[Tensor, int], Prediction], constrain: Constrain = keep
) -> Generator[Now, None, None]:
    """Runs one request: yields every state, constrained, as the sampler reaches it; the last one has t = -1.

    `denoise(x, t)` predicts for x [B, ...]; `constrain(x, t)` returns the state to go on from, shaped like x.
    """
    with closing(sampler):
        states, ask = _advance(Job(sampler, constrain), None)
        yield from states
        while ask is not None:
            states, ask = _advance(Job(sampler, constrain), denoise(ask.x, ask.t))
            yield from states


def sample_many(
    jobs: Mapping[K, Job], denoise_rows: Callable[[list[K], Tensor, Tensor], Prediction]
) -> Generator[tuple[K, Now], None, None]:
    """Runs many requests together: yields (key, state) as each of them advances; a job's last state has t = -1.

    Every round answers every open Ask, with one `denoise_rows(keys, x, t)` for all those whose x agree in shape[1:],
    dtype and device. x holds the rows of the named jobs one after the other (a job may have several), t [rows] the
    timestep of each row, on the CPU, where it is looked at without waiting for a device. Jobs may differ in sampler,
    timesteps and number of rows, and each gets what it would get alone. The mapping is read again before every round:
    a job that was added joins, one that was removed is closed.
    """
    seen: dict[K, Job] = {}
    open_asks: dict[K, Ask] = {}
    try:
        while True:
            for key in [key for key, job in seen.items() if jobs.get(key) is not job]:
                open_asks.pop(key, None)
                seen.pop(key).sampler.close()
            answers: dict[K, Prediction | None] = {key: None for key in jobs if key not in seen}
            seen.update((key, jobs[key]) for key in answers)
            for keys in _alike(open_asks):
                answers |= _answer({key: open_asks.pop(key) for key in keys}, denoise_rows)
            if not answers:
                return
            for key, answer in answers.items():
                if jobs.get(key) is not seen[key]:  # removed since this round began
                    continue
                states, ask = _advance(seen[key], answer)
                if ask is not None:
                    open_asks[key] = ask
                for state in states:
                    yield key, state
    finally:
        for job in seen.values():
            job.sampler.close()


def _advance(job: Job, answer: Prediction | None) -> tuple[list[Now], Ask | None]:
    """Lets a sampler run to its next Ask, None at its end; and the states it passed."""
    states: list[Now] = []
    reply: Prediction | Tensor | None = answer
    while True:
        try:
            event = job.sampler.send(reply)
        except StopIteration:
            return states, None
        if isinstance(event, Ask):
            return states, event
        reply = job.constrain(event.x, event.t)
        states.append(Now(reply, event.t))


def _alike(asks: Mapping[K, Ask]) -> list[list[K]]:
    """The keys of Asks that one network call can answer, group by group."""
    groups: dict[object, list[K]] = {}
    for key, (x, _) in asks.items():
        groups.setdefault((x.shape[1:], x.dtype, x.device), []).append(key)
    return list(groups.values())


def _answer(
    asks: Mapping[K, Ask], denoise_rows: Callable[[list[K], Tensor, Tensor], Prediction]
) -> dict[K, Prediction]:
    """One network call for all of these, and to each its own rows of the answer."""
    rows = [len(ask.x) for ask in asks.values()]
    x = torch.cat([ask.x for ask in asks.values()])
    t = torch.tensor([ask.t for ask, count in zip(asks.values(), rows, strict=True) for _ in range(count)])
    predictions = denoise_rows(list(asks), x, t).split(rows)
    return dict(zip(asks, predictions, strict=True))

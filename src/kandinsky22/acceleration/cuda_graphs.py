"""A network's call, recorded once for each shape and played again: on a GPU its thousand launches become one.

What a recording reads and writes lies at fixed addresses. So inputs are copied into buffers of its own, outputs are handed out
as copies, and where weights have moved since it is thrown away. `cuda_graph` records; anything else that makes of a call
something to call again will do in its place.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Call: TypeAlias = Callable[[], Any]
Record: TypeAlias = Callable[[Call, object], Call]  # of a call and a pool of memory, the same call to be played again
SHAPES = 16  # that a network's calls are remembered of, the last used ones
OURS = ("kandinsky22", "torch")  # whose layers do the same at each call; an adapter's may decide something in Python
PARAMETRIZED = "torch.nn.utils.parametrize"  # where torch makes the class of a module whose weights come and go


def cuda_graph(call: Call, pool: object) -> Call:
    """A call as a CUDA graph in a pool of memory. It must have run before, on the same shapes: libraries then are ready."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
        result = call()

    def play() -> Any:
        graph.replay()
        return result

    return play


class Recording(NamedTuple):
    """A recorded call: the tensors that it reads, and how to play it. `given`: what was last copied into them, of frozen values;
    None for others, which whoever called may have changed since."""

    buffers: list[Tensor]
    play: Call
    given: list[Tensor | None]


class Replays:
    """The recordings of one network's calls.

    The first call of a shape is computed as it is, which warms up; the second is recorded, and from then on it is played. The
    `most` shapes that were used last are remembered, so that shapes which come in turn, more than that, are never recorded.
    """

    def __init__(self, record: Record = cuda_graph, most: int = SHAPES) -> None:
        self.record, self.most = record, most
        self.forget()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.record, self.most)  # a copy of a network records for itself

    def __len__(self) -> int:
        return sum(recording is not None for recording in self._shapes.values())

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        self._shapes: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self._weights: tuple[Any, ...] | None = None
        self._pool: object = None

    def __call__(self, network: nn.Module, compute: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`compute(*arguments, **named)`, which is a call of the network. Arguments and result are tensors, None, or tuples and
        frozen dataclasses of such; a tensor in a dataclass is never written to again."""
        weights = state(network)
        if weights is None:
            return compute(*arguments, **named)
        with self._lock, torch.no_grad():
            if weights != self._weights:
                self.forget()
                self._weights = weights
            key = form((arguments, named))
            seen = key in self._shapes
            recording = self._shapes.pop(key, None)
            if seen and recording is None:
                recording = self._recorded(compute, arguments, named)
            self._shapes[key] = recording
            if len(self._shapes) > self.most:
                self._shapes.popitem(last=False)
            return compute(*arguments, **named) if recording is None else _played(recording, (arguments, named))

    def _recorded(self, compute: Callable[..., Any], *asked: Any) -> Recording | None:
        if self._pool is None and self.record is cuda_graph:
            self._pool = (
                torch.cuda.graph_pool_handle()
            )  # for all shapes: nothing in it is looked at after the next call
        with torch.inference_mode(False):  # whoever comes next may be in another mode
            arguments, named = mapped(asked, torch.empty_like)
        buffers = [buffer for buffer, _ in tensors((arguments, named))]
        torch._foreach_copy_(buffers, [x for x, _ in tensors(asked)])
        try:
            play = self.record(lambda: compute(*arguments, **named), self._pool)
        except RuntimeError as error:
            warnings.warn(
                f"a step could not be recorded, and is launched part by part: {first_line(error)}", stacklevel=3
            )
            self.forget()
            self.most = 0  # from now on none is remembered
            return None
        return Recording(buffers, play, [None] * len(buffers))


def state(network: nn.Module) -> tuple[Any, ...] | None:
    """Where a network's weights are and what its layers are: a recording is of these. None where the call may not be recorded,
    since somebody listens in, weights come and go, or a layer is not ours to know."""
    found: list[Any] = []
    rest: list[nn.Module] = [network]
    while rest:  # by hand, since this is done at every step: half a thousand modules in half a millisecond
        module = rest.pop()
        kind, own = type(module), vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own or not _ours(kind.__module__):
            return None
        found.append(kind)
        found += [(value.data_ptr(), value.dtype) for value in own["_parameters"].values() if value is not None]
        found += [(value.data_ptr(), value.dtype) for value in own["_buffers"].values() if value is not None]
        rest += [child for child in own["_modules"].values() if child is not None]
    return tuple(found)


@cache
def _ours(module: str) -> bool:
    return module.partition(".")[0] in OURS and not module.startswith(PARAMETRIZED)


def first_line(error: Exception) -> str:
    """What went wrong, without where."""
    return str(error).partition("\n")[0]


def tensors(value: Any, frozen: bool = False) -> Iterator[tuple[Tensor, bool]]:
    """The tensors of a value, in order, and whether each is in a dataclass."""
    if isinstance(value, Tensor):
        yield value, frozen
    for part in _parts(value):
        yield from tensors(part, frozen or is_dataclass(value))


def form(value: Any) -> Hashable:
    """What a value is but for the numbers in its tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if not (is_dataclass(value) or isinstance(value, tuple | list | dict)):
        return value
    return (type(value), *(value if isinstance(value, dict) else ()), *map(form, _parts(value)))


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value with each of its tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    parts = [mapped(part, function) for part in _parts(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **dict(zip((field.name for field in fields(value)), parts, strict=True)))
    if isinstance(value, dict):
        return dict(zip(value, parts, strict=True))
    if isinstance(value, tuple | list):
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def _parts(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple | list) else []


def _played(recording: Recording, asked: Any) -> Any:
    now, (buffers, play, given) = list(tensors(asked)), recording
    new = [i for i, (x, _) in enumerate(now) if x is not given[i]]
    torch._foreach_copy_([buffers[i] for i in new], [now[i][0] for i in new])
    given[:] = [x if frozen else None for x, frozen in now]
    return mapped(play(), torch.clone)

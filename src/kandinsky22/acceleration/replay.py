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
Key: TypeAlias = tuple[Hashable, ...]
SHAPES = 16  # that a network's calls are remembered of, the last used ones
OURS = ("kandinsky22", "torch")  # whose layers do the same at each call; an adapter's may decide something in Python
PARAMETRIZED = "torch.nn.utils.parametrize"  # where torch makes the class of a module whose weights are computed


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
    """A recorded call: the buffers it reads, by argument, and how to play it. `given`: what was last copied into them."""

    buffers: list[Any]
    play: Call
    given: list[Any]


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
        self._shapes: OrderedDict[Key, Recording | None] = OrderedDict()
        self._weights: Key | None = None
        self._pool: object = None

    def __call__(self, network: nn.Module, compute: Callable[..., Any], *arguments: Any) -> Any:
        """`compute(*arguments)`, which is a call of the network. Arguments and result are tensors, None, or frozen values
        (tuples, dataclasses) of such; a frozen value that is the very one of the call before holds what it held then."""
        weights = state(network)
        if weights is None:
            return compute(*arguments)
        with self._lock, torch.no_grad():
            if weights != self._weights:
                self.forget()
                self._weights = weights
            key = tuple(map(form, arguments))
            seen = key in self._shapes
            recording = self._shapes.pop(key, None)
            if seen and recording is None:
                recording = self._recorded(compute, arguments)
            self._shapes[key] = recording
            if len(self._shapes) > self.most:
                self._shapes.popitem(last=False)
            return compute(*arguments) if recording is None else _played(recording, arguments)

    def _recorded(self, compute: Callable[..., Any], arguments: tuple[Any, ...]) -> Recording | None:
        if self._pool is None and self.record is cuda_graph:
            self._pool = (
                torch.cuda.graph_pool_handle()
            )  # for all shapes: nothing in it is looked at after the next call
        with torch.inference_mode(False):  # whoever comes next may be in another mode
            buffers = [mapped(argument, torch.empty_like) for argument in arguments]
        _copy(list(tensors(buffers)), list(tensors(arguments)))
        try:
            return Recording(buffers, self.record(lambda: compute(*buffers), self._pool), list(arguments))
        except RuntimeError as error:
            warnings.warn(
                f"a step could not be recorded, and is launched part by part: {first_line(error)}", stacklevel=2
            )
            self.forget()
            self.most = 0  # from now on none is remembered
            return None


def state(network: nn.Module) -> Key | None:
    """Where a network's weights are and what its layers are: a recording is of these. None where the call may not be recorded,
    since somebody listens in, weights come and go, or a layer is not ours to know."""
    found: list[Any] = []
    rest: list[nn.Module] = [network]
    while rest:  # by hand, since this is done at every step: half a thousand modules in half a millisecond
        module = rest.pop()
        kind, own = type(module), vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own or not _ours(kind):
            return None
        found += [kind]
        found += [(value.data_ptr(), value.dtype) for value in own["_parameters"].values() if value is not None]
        found += [(value.data_ptr(), value.dtype) for value in own["_buffers"].values() if value is not None]
        rest += [child for child in own["_modules"].values() if child is not None]
    return tuple(found)


@cache
def _ours(kind: type[nn.Module]) -> bool:
    """Parametrised modules are not: their class is made on the spot, and their weights come and go."""
    return kind.__module__.partition(".")[0] in OURS and not kind.__module__.startswith(PARAMETRIZED)


def first_line(error: Exception) -> str:
    """What went wrong, without where."""
    return str(error).partition("\n")[0]


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, in order."""
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from tensors(part)


def form(value: Any) -> Hashable:
    """What a value is but for the numbers in its tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    parts = _parts(value)
    return (type(value), *map(form, parts)) if parts or isinstance(value, tuple | list) else value


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value with each of its tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    parts = [mapped(part, function) for part in _parts(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **dict(zip((field.name for field in fields(value)), parts, strict=True)))
    if isinstance(value, tuple | list):
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def _parts(value: Any) -> list[Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return list(value) if isinstance(value, tuple | list) else []


def _played(recording: Recording, arguments: tuple[Any, ...]) -> Any:
    new = [
        i
        for i, (argument, before) in enumerate(zip(arguments, recording.given, strict=True))
        if isinstance(argument, Tensor) or argument is not before
    ]
    _copy(list(tensors([recording.buffers[i] for i in new])), list(tensors([arguments[i] for i in new])))
    recording.given[:] = arguments
    return mapped(recording.play(), torch.clone)


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)

"""CUDA graphs of a network's calls: recorded once for each shape, then replayed. A GPU's thousand launches become one.

What a graph reads and writes lies at fixed addresses. So inputs are copied into buffers of the graph, outputs are
returned as copies, and when weights have moved since, the graph is discarded. `cuda_graph` records; tests replace it
by a function that needs no GPU.
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
Recorder: TypeAlias = Callable[[Call, object], Call]  # (a call, a memory pool) -> the same call, to be repeated
MAX_SHAPES = 16  # that the calls of a network are remembered for, the last used ones
KNOWN_PACKAGES = ("kandinsky22", "torch")  # whose layers do the same at each call; others may decide in Python
PARAMETRIZED = "torch.nn.utils.parametrize"  # where torch makes the class of a module whose weights are computed


def cuda_graph(call: Call, pool: object) -> Call:
    """A call as a CUDA graph in a memory pool. It must have run before on these shapes, so that libraries are ready."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


class RecordedCall(NamedTuple):
    """A recorded call: the tensors that it reads, and how to replay it.

    last_inputs: what was last copied into each buffer, if it is in a frozen dataclass; None for other inputs, which the
    caller may have changed since.
    """

    buffers: list[Tensor]
    replay: Call
    last_inputs: list[Tensor | None]


class CudaGraphCache:
    """The recorded calls of one network.

    The first call of a shape is computed as usual, which warms up; the second is recorded, and from then on it is
    replayed. The `max_shapes` shapes that were used last are remembered, so that more shapes than that which take
    turns are never recorded.
    """

    def __init__(self, record: Recorder = cuda_graph, max_shapes: int = MAX_SHAPES) -> None:
        self.record, self.max_shapes = record, max_shapes
        self.clear()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.record, self.max_shapes)  # a copy of a network records for itself

    def __len__(self) -> int:
        return sum(recorded is not None for recorded in self._calls.values())

    def clear(self) -> None:
        """Discard all recorded calls and free their memory."""
        self._calls: OrderedDict[Hashable, RecordedCall | None] = OrderedDict()
        self._weights: tuple[Any, ...] | None = None
        self._pool: object = None

    def __call__(self, network: nn.Module, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`compute(*args, **kwargs)`, which calls the network.

        Arguments and result are tensors, None, or tuples and frozen dataclasses of such; a tensor in a dataclass must
        never be written to afterwards.
        """
        weights = recordable_state(network)
        if weights is None:
            return compute(*args, **kwargs)
        with self._lock, torch.no_grad():
            if weights != self._weights:
                self.clear()
                self._weights = weights
            key = structure((args, kwargs))
            seen = key in self._calls
            recorded = self._calls.pop(key, None)
            if seen and recorded is None:
                recorded = self._record(compute, args, kwargs)
            self._calls[key] = recorded
            if len(self._calls) > self.max_shapes:
                self._calls.popitem(last=False)
            return compute(*args, **kwargs) if recorded is None else _replay(recorded, (args, kwargs))

    def _record(self, compute: Callable[..., Any], *inputs: Any) -> RecordedCall | None:
        if self._pool is None and self.record is cuda_graph:
            # For all shapes: nothing in the pool is read after the next call.
            self._pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(False):  # the next caller may be in another mode
            args, kwargs = map_tensors(inputs, torch.empty_like)
        buffers = [buffer for buffer, _ in tensors((args, kwargs))]
        torch._foreach_copy_(buffers, [x for x, _ in tensors(inputs)])
        try:
            replay = self.record(lambda: compute(*args, **kwargs), self._pool)
        except RuntimeError as error:
            warnings.warn(
                f"a step could not be recorded as a CUDA graph, and runs without one: {first_line(error)}", stacklevel=3
            )
            self.clear()
            self.max_shapes = 0  # record none from now on
            return None
        return RecordedCall(buffers, replay, [None] * len(buffers))


def recordable_state(network: nn.Module) -> tuple[Any, ...] | None:
    """Where a network's weights are and what its layers are: a recorded call is valid for these alone.

    None where its calls may not be recorded: it has hooks, computed weights, or layers of another package.
    """
    state: list[Any] = []
    pending: list[nn.Module] = [network]
    while pending:  # a loop, since this is done at every step: half a thousand modules in half a millisecond
        module = pending.pop()
        kind, attributes = type(module), vars(module)
        hooked = attributes["_forward_hooks"] or attributes["_forward_pre_hooks"] or "forward" in attributes
        if hooked or not _is_known(kind.__module__):
            return None
        state.append(kind)
        state += [(value.data_ptr(), value.dtype) for value in attributes["_parameters"].values() if value is not None]
        state += [(value.data_ptr(), value.dtype) for value in attributes["_buffers"].values() if value is not None]
        pending += [child for child in attributes["_modules"].values() if child is not None]
    return tuple(state)


@cache
def _is_known(module: str) -> bool:
    return module.partition(".")[0] in KNOWN_PACKAGES and not module.startswith(PARAMETRIZED)


def first_line(error: Exception) -> str:
    """An error's message without its details."""
    return str(error).partition("\n")[0]


def tensors(value: Any, frozen: bool = False) -> Iterator[tuple[Tensor, bool]]:
    """The tensors of a nested value, in order, and whether each is in a dataclass."""
    if isinstance(value, Tensor):
        yield value, frozen
    for item in _items(value):
        yield from tensors(item, frozen or is_dataclass(value))


def structure(value: Any) -> Hashable:
    """Everything in a nested value except the contents of tensors: types, and their shapes, dtypes and devices."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if not (is_dataclass(value) or isinstance(value, tuple | list | dict)):
        return value
    return (type(value), *(value if isinstance(value, dict) else ()), *map(structure, _items(value)))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with each of its tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    items = [map_tensors(item, function) for item in _items(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **dict(zip((field.name for field in fields(value)), items, strict=True)))
    if isinstance(value, dict):
        return dict(zip(value, items, strict=True))
    if isinstance(value, tuple | list):
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


def _items(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple | list) else []


def _replay(recorded: RecordedCall, inputs: Any) -> Any:
    current, (buffers, replay, last) = list(tensors(inputs)), recorded
    changed = [i for i, (x, _) in enumerate(current) if x is not last[i]]
    torch._foreach_copy_([buffers[i] for i in changed], [current[i][0] for i in changed])
    last[:] = [x if frozen else None for x, frozen in current]
    return map_tensors(replay(), torch.clone)

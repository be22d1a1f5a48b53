"""Runs many tasks together: a step makes one network call and answers everyone who waits for the same kind of call.

A task is a generator. It yields a `Call` and is sent the answers, or a `Shared` and is sent the results of tasks that
several tasks may need, or an event, which is passed on. Imports no torch.

Whose turn it is. Waiting calls of one network and kind form a group. Every group is charged for the calls made for it
(`Call.cost`), and the next call is made for the group that was charged least; at equal charges for the one with the
oldest task. A group that appears starts at the least charge of those that wait, or at its own from before if that is
more. So each group gets an equal share of the time, a cheap network makes many calls while an expensive one makes one,
and nobody starves. Within a group the oldest tasks come first, as many as one call can answer. Where calling another
network means loading it (`one_network`), a network is called until all that waited for it when its turn began have gone
on; then comes the one that the oldest task waits for.
"""

from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from kandinsky22.request.events import Notice, Progress

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Task: TypeAlias = Generator[Any, Any, Any]
ALL = 1 << 30


class Callee(Hashable, Protocol):
    """A network."""

    def release(self) -> None:
        """Called when nobody waits for it any more, or another network has its turn."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A question to a network: `answer(items)` returns one answer per item, also for the items of several calls.

    An answer that is a `Raised` is thrown into the task that asked; what `answer` itself raises is tried item by item.

    kind: calls of one network with equal kinds may be answered together. cost: of an item, about proportional to its
    arithmetic. at_once: the most items that one call may have.
    """

    network: Callee
    kind: Hashable
    items: Sequence[Any]
    answer: Callable[[Sequence[Any]], Sequence[Any]]
    cost: float
    at_once: int = ALL

    @property
    def group(self) -> tuple[Callee, Hashable]:
        """What calls that are answered together have in common."""
        return self.network, self.kind


class Shared(NamedTuple):
    """Tasks by name that are run once, however many tasks ask for them at a time; answered with results by name."""

    tasks: Mapping[Hashable, Callable[[], Task]]


class Finished(NamedTuple):
    """A task has returned a value."""

    value: Any


class Raised(NamedTuple):
    """A task has raised an error."""

    error: Exception


Outcome: TypeAlias = Any  # an event, `Finished` or `Raised`


@dataclass(eq=False)
class _Running:
    """A task that runs. order: when it was added. waiters: of a shared task, the tasks that wait for it."""

    name: Hashable
    order: int
    task: Task
    shared: bool = False
    call: Call | None = None
    answers: dict[int, Any] = field(default_factory=dict)
    waiters: list["_Running"] = field(default_factory=list)
    needs: "dict[Hashable, _Running]" = field(default_factory=dict)
    results: dict[Hashable, Any] = field(default_factory=dict)
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """An item that waits for its answer: number `index` of a task's call."""

    running: _Running
    call: Call
    index: int


class Scheduler(Generic[K]):
    """Runs tasks by key. For one thread.

    is_out_of_memory: whether an error of a call means that it needs too much memory, so that it is split in two.
    one_network: see the module.
    """

    def __init__(self, is_out_of_memory: Callable[[Exception], bool], *, one_network: bool = False) -> None:
        self._is_out_of_memory, self._one_network = is_out_of_memory, one_network
        self._running: dict[K, _Running] = {}
        self._shared: dict[Hashable, _Running] = {}
        self._ready: deque[tuple[_Running, Any, Exception | None]] = deque()  # with what is sent, or thrown
        self._events: list[tuple[K, Outcome]] = []
        self._added = 0
        self._charges: dict[Hashable, float] = {}  # of groups that wait, or were charged more than one that waits
        self._least = 0.0  # the least charge of a group that waits
        self._limits: dict[Hashable, int] = {}  # items of a call that fit into memory
        self._in_use: set[Callee] = set()
        self._turn: tuple[Callee, int] | None = None  # the network, and the newest task that its turn is for

    def __len__(self) -> int:
        return len(self._running)

    def add(self, key: K, task: Task) -> None:
        """Add a task, which starts with the next step. Raises `ValueError` for a key that is in use."""
        if key in self._running:
            raise ValueError(f"{key!r} is already running")
        self._running[key] = self._new(key, task)

    def remove(self, key: K) -> None:
        """Close a task, and the shared tasks that only it waits for."""
        self._drop(self._running.pop(key))
        self._release_idle()

    def close(self) -> None:
        """Close all tasks."""
        for key in list(self._running):
            self.remove(key)

    def step(self) -> list[tuple[K, Outcome]]:
        """Make one network call, and let tasks run until each waits again; returns what happened, by key."""
        self._run_ready()
        if groups := self._groups():
            self._answer(self._choose(groups))
            self._run_ready()
        self._release_idle()
        if not self._running:
            self._charges, self._turn = {}, None  # which refer to networks
        events, self._events = self._events, []
        return events

    def _new(self, name: Hashable, task: Task, *, shared: bool = False) -> _Running:
        running = _Running(name, self._added, task, shared)
        self._added += 1
        self._ready.append((running, None, None))
        return running

    def _drop(self, running: _Running) -> None:
        self._ready = deque(ready for ready in self._ready if ready[0] is not running)
        running.call = None
        running.task.close()
        for name in list(running.needs):
            self._leave(running, name)

    # Tasks

    def _run_ready(self) -> None:
        while self._ready:
            running, reply, error = self._ready.popleft()
            try:
                yielded = running.task.send(reply) if error is None else running.task.throw(error)
            except StopIteration as stop:
                self._end(running, stop.value, None)
            except Exception as raised:  # it belongs to this task alone
                self._end(running, None, raised)
            else:
                self._handle(running, yielded)

    def _handle(self, running: _Running, yielded: Any) -> None:
        if isinstance(yielded, Call):
            running.call, running.answers = yielded, {}
            if not yielded.items:
                self._reply(running, [])
        elif isinstance(yielded, Shared):
            running.results, running.progress = dict.fromkeys(yielded.tasks), None
            for name, start in yielded.tasks.items():
                if name not in self._shared:
                    self._shared[name] = self._new(name, start(), shared=True)
                running.needs[name] = self._shared[name]
                self._shared[name].waiters.append(running)
            if not running.needs:
                self._reply(running, {})
        else:
            self._report(running, yielded)
            self._reply(running, None)

    def _reply(self, running: _Running, value: Any, error: Exception | None = None) -> None:
        running.call = None
        self._ready.append((running, value, error))

    def _end(self, running: _Running, value: Any, error: Exception | None) -> None:
        if not running.shared:
            del self._running[running.name]  # type: ignore[arg-type]  # a key
            self._events.append((running.name, Finished(value) if error is None else Raised(error)))  # type: ignore[arg-type]
            return
        del self._shared[running.name]
        for waiter in running.waiters:
            del waiter.needs[running.name]
            if error is not None:
                for name in list(waiter.needs):
                    self._leave(waiter, name)
                self._reply(waiter, None, error)
            else:
                waiter.results[running.name] = value
                if not waiter.needs:
                    self._reply(waiter, waiter.results)

    def _leave(self, waiter: _Running, name: Hashable) -> None:
        needed = waiter.needs.pop(name)
        needed.waiters.remove(waiter)
        if not needed.waiters and name in self._shared:
            self._drop(self._shared.pop(name))

    def _report(self, running: _Running, event: Any) -> None:
        """Pass an event on; progress of a shared task is that of the slowest that a task waits for."""
        if not running.shared:
            self._events.append((running.name, event))  # type: ignore[arg-type]  # a key
            return
        if isinstance(event, Progress):
            running.progress = event
        for waiter in running.waiters:
            if not isinstance(event, Progress):
                self._report(waiter, event)
                continue
            states = [needed.progress for needed in waiter.needs.values()]
            slowest = min((p for p in states if p is not None), key=lambda p: p.i / p.n)
            known = waiter.progress
            if None not in states and (known is None or slowest.i * known.n > known.i * slowest.n):
                waiter.progress = slowest
                self._report(waiter, slowest)

    # Calls

    def _groups(self) -> dict[tuple[Callee, Hashable], list[_Running]]:
        """The tasks that wait for a call, by group, the oldest first."""
        waiting = [running for running in (*self._running.values(), *self._shared.values()) if running.call is not None]
        groups: dict[tuple[Callee, Hashable], list[_Running]] = {}
        for running in sorted(waiting, key=lambda running: running.order):
            assert running.call is not None
            groups.setdefault(running.call.group, []).append(running)
        return groups

    def _choose(self, groups: dict[tuple[Callee, Hashable], list[_Running]]) -> list[_Running]:
        """The group that is called next; see the module."""
        self._least = min((self._charges[group] for group in groups if group in self._charges), default=self._least)
        charges = {group: charge for group, charge in self._charges.items() if group in groups or charge > self._least}
        self._charges = charges | {group: max(charges.get(group, 0.0), self._least) for group in groups}
        if self._one_network:
            turn = self._turn
            if turn is None or not any(g[0] == turn[0] and w[0].order <= turn[1] for g, w in groups.items()):
                network = min(groups, key=lambda group: groups[group][0].order)[0]
                newest = max(w.order for group, waiting in groups.items() if group[0] == network for w in waiting)
                if turn is not None and turn[0] != network and turn[0] in self._in_use:
                    self._in_use.remove(turn[0])
                    turn[0].release()
                self._turn = turn = network, newest
            groups = {group: waiting for group, waiting in groups.items() if group[0] == turn[0]}
        return groups[min(groups, key=lambda group: (self._charges[group], groups[group][0].order))]

    def _answer(self, waiting: Sequence[_Running]) -> None:
        """Answer the oldest items of a group, as many as one call can."""
        items: list[_Item] = []
        most = ALL
        for running in waiting:
            call = running.call
            assert call is not None
            most = min(most, call.at_once, self._limits.get(call.group, ALL))
            items += [_Item(running, call, i) for i in range(len(call.items)) if i not in running.answers]
        items = items[:most]
        call = items[0].call
        self._in_use.add(call.network)
        self._charges[call.group] += sum(item.call.cost for item in items)
        self._compute(items)

    def _compute(self, items: Sequence[_Item]) -> None:
        call, error = items[0].call, None
        try:
            answers = call.answer([item.call.items[item.index] for item in items])
        except Exception as raised:  # whose it is shows when items are computed alone
            error = raised.with_traceback(None)  # whose frames hold tensors
        if error is None:
            for item, answer in zip(items, answers, strict=True):
                if isinstance(answer, Raised) and item.running.call is item.call:  # another item may have failed
                    self._reply(item.running, None, answer.error)
                item.running.answers[item.index] = answer
            for running in dict.fromkeys(item.running for item in items):
                if running.call is not None and len(running.answers) == len(running.call.items):
                    self._reply(running, [running.answers[i] for i in range(len(running.call.items))])
        elif len(items) == 1:
            if items[0].running.call is items[0].call:  # another of its items may have failed
                self._reply(items[0].running, None, error)
        elif self._is_out_of_memory(error):
            half = (len(items) + 1) // 2
            self._limits[call.group] = half
            for running in dict.fromkeys(item.running for item in items):
                self._report(running, Notice(f"memory ran out, so at most {half} pictures are computed at once"))
            self._compute(items[:half])
            self._compute(items[half:])
        else:
            for item in items:
                self._compute([item])

    def _release_idle(self) -> None:
        """Release the networks that nobody waits for."""
        everyone = (*self._running.values(), *self._shared.values())
        waited_for = {running.call.network for running in everyone if running.call is not None}
        for network in self._in_use - waited_for:
            self._in_use.remove(network)
            network.release()


def run(scheduler: Scheduler[int], task: Generator[Any, Any, T]) -> T:
    """Run one task to its end, and return its value; its events are dropped."""
    scheduler.add(0, task)
    while True:
        for _, outcome in scheduler.step():
            if isinstance(outcome, Raised):
                raise outcome.error
            if isinstance(outcome, Finished):
                value: T = outcome.value
                return value

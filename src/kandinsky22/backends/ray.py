"""A Ray cluster as a backend: a `Pool` whose processes are Ray actors, on this machine or on others.

Needs the extra `ray`. Every machine of the cluster needs this package and the model under the same path. Imports no
torch in the process that uses it.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import ray
from ray.exceptions import RayError

from kandinsky22.backends.pool import CLOSED, LoadKandinsky, Pool
from kandinsky22.backends.worker import STEP_TIMEOUT, LoadModel, Message, Order, Worker, carry_out
from kandinsky22.request import Request
from kandinsky22.threads import let_threads_sleep


def connect(address: str | None = None, *, show_output: bool = False) -> None:
    """Connect this process to a Ray cluster, unless it is already.

    address: of the cluster, or "auto" for one that runs on this machine; None starts Ray on this machine, without a
    dashboard. show_output: print what processes of the cluster print. Ray sends no usage reports. Raises `ValueError`
    if there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that it is closed to others
    if ray.is_initialized():
        return
    here: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        if address and ":" in address:  # Ray itself would wait for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=show_output, logging_level=logging.WARNING, **here)
    except (OSError, RuntimeError, ValueError) as error:
        how = "start one with ray start --head, or leave out the address"
        raise ValueError(f"no Ray cluster answers at {address}; {how}") from error


class Reserve(NamedTuple):
    """What a process that paints asks of Ray."""

    num_cpus: float = 1
    num_gpus: float = 0

    @classmethod
    def of(cls, device: str | None, threads: int) -> Self:
        """A GPU for a process on cuda, and otherwise as many processor cores as it has threads."""
        return cls(1, 1) if device is not None and device.startswith("cuda") else cls(threads)

    @property
    def room(self) -> int:
        """For how many such processes the cluster has the resources, at least 1."""
        total = ray.cluster_resources()
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return max(1, min(int(total.get(name, 0) / amount) for name, amount in amounts.items() if amount))


class RayBackend(Pool):
    """Ray actors that each have a model and a batch that requests join; see `Pool`.

    An actor that dies, by itself or with its machine, is started again where there is room, and its requests begin
    again: at most three times. `close` ends the actors, and leaves Ray as it is.
    """

    @classmethod
    def of(
        cls,
        model: str,
        *,
        processes: int,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        request: Request | Sequence[Request] | None = None,
        address: str | None = None,
    ) -> Self:
        """Actors that each load `model`; of a published one, the networks that `request` needs.

        device: "cuda" reserves a GPU for each actor. threads: of each actor, which reserves as many cores; None is 1.
        address: see `connect`, which may raise `ValueError`.
        """
        connect(address)
        threads = threads or 1
        load = LoadKandinsky(model, device, dtype, threads, request)
        return cls(load, processes=processes, start=partial(RayWorker, reserve=Reserve.of(device, threads)))


class RayWorker(Worker):
    """The pool's end of an actor. reserve: what the actor asks of Ray."""

    def __init__(self, load: LoadModel, reserve: Reserve) -> None:
        self._reserve = reserve
        super().__init__(load)

    def start(self) -> None:
        """Start the actor, after the first one has ended."""
        # The pool waits for pipes, so a thread moves the actor's messages into one.
        self.pipe, end = Pipe(duplex=False)
        self._actor: Any = _start_actor.options(**self._reserve._asdict()).remote(self._load)
        messages = self._actor.messages.remote()
        self._thread = threading.Thread(target=_forward, args=(messages, end), name="kandinsky22-ray", daemon=True)
        self._thread.start()
        self.is_ready = False

    def send(self, order: Order) -> None:
        """Send an order. That the actor has died shows when its pipe is read."""
        with contextlib.suppress(RayError):
            self._actor.order.remote(order)

    def end(self, timeout: float = STEP_TIMEOUT) -> str:
        """End the actor at once, and the thread that forwards its messages; returns how it ended."""
        if not self.pipe.closed:
            self.pipe.close()
            if ray.is_initialized():  # otherwise Ray would be started by the call
                with contextlib.suppress(RayError):
                    ray.kill(self._actor)
            self._thread.join(STEP_TIMEOUT)  # if it called Ray after a shutdown, Ray would start itself again
        return CLOSED if not ray.is_initialized() else "its Ray actor ended"


def _forward(messages: Any, end: "Connection[list[Message], None]") -> None:
    """Move an actor's messages into a pipe, until either ends or Ray is shut down."""
    with contextlib.suppress(RayError, OSError, ValueError):  # ValueError: Ray no longer knows the messages
        for message in messages:
            for one in ray.get(message):
                end.send(one)
    end.close()


class _Actor:
    """A process that paints. Each group of methods has one thread, so that orders stay in order."""

    def __init__(self, load: LoadModel) -> None:
        let_threads_sleep()
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(load,), daemon=True).start()

    def _run(self, load: LoadModel) -> None:
        try:
            carry_out(load, self._orders, self._messages.put)
        except BaseException:
            os._exit(1)  # an error of ours: the pool starts another actor

    @ray.method(concurrency_group="orders")
    def order(self, order: Order) -> None:
        """Take an order."""
        self._orders.put(order)

    @ray.method(concurrency_group="messages", num_returns="streaming")
    def messages(self) -> Any:
        """The messages of `worker.carry_out`, in lists: those that are there."""
        while True:
            there = [self._messages.get()]
            while not self._messages.empty():
                there.append(self._messages.get())
            yield there


_start_actor: Any = ray.remote  # its types know no concurrency groups
_start_actor = _start_actor(max_restarts=0, concurrency_groups={"orders": 1, "messages": 1})(_Actor)

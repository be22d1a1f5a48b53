"""Whose turn it is, what tasks share, and whose an error is; on networks that only record their calls."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kandinsky22.engine.scheduler import ALL, Call, Finished, Raised, Scheduler, Shared, Task, run
from kandinsky22.request.events import Notice, Progress

Log = list[tuple[str, Any]]


@dataclass(frozen=True)
class Network:
    """Equal to others of its name. The log gets (name, the items of a call), and (name, "released").

    fits: how many items memory has room for.
    """

    name: str
    log: Log = field(default_factory=list, compare=False)
    fits: int = field(default=ALL, compare=False)

    def release(self) -> None:
        self.log.append((self.name, "released"))

    def answer(self, items: Sequence[Any]) -> list[Any]:
        """Every item in upper case; "poison" raises, for all items, and "bad" is answered with an error."""
        self.log.append((self.name, [*items]))
        if len(items) > self.fits:
            raise MemoryError
        if any("poison" in item for item in items):
            raise KeyError("poison")
        return [Raised(ValueError(item)) if "bad" in item else item.upper() for item in items]

    def call(self, *items: Any, kind: str = "step", cost: float = 1.0, at_once: int = ALL) -> Call:
        """A call, of a new object that equals this one, as networks of a model are."""
        return Call(Network(self.name, self.log, self.fits), kind, items, self.answer, cost, at_once)


def steps(name: str, network: Network, n: int, **options: Any) -> Task:
    """A task of n calls; returns its name."""
    for _ in range(n):
        assert (yield network.call(name, **options)) == [name.upper()]
    return name


def scheduler(**options: Any) -> Scheduler[Any]:
    return Scheduler(lambda error: isinstance(error, MemoryError), **options)


def add_all(to: Scheduler[Any], tasks: dict[str, Task]) -> None:
    for name, task in tasks.items():
        to.add(name, task)


def finish(of: Scheduler[Any], most: int = 1000) -> list[tuple[Any, Any]]:
    """All events until no task is left, in at most so many steps."""
    events = []
    for _ in range(most):
        events += of.step()
        if not len(of):
            return events
    raise AssertionError(f"tasks are left after {most} steps")


def calls(log: Log) -> Log:
    """The log without what was released."""
    return [entry for entry in log if entry[1] != "released"]


@pytest.fixture
def network() -> Network:
    return Network("n")


def test_calls_of_one_network_and_kind_are_answered_together(network: Network) -> None:
    tasks = scheduler()
    add_all(tasks, {"a": steps("a", network, 2), "b": steps("b", network, 1), "c": steps("c", network, 1, kind="c")})
    assert finish(tasks) == [("b", Finished("b")), ("c", Finished("c")), ("a", Finished("a"))]
    assert calls(network.log) == [("n", ["a", "b"]), ("n", ["c"]), ("n", ["a"])]


def test_a_step_makes_one_call_and_a_finished_task_leaves_with_it(network: Network) -> None:
    tasks = scheduler()
    add_all(tasks, {"long": steps("long", network, 40), "short": steps("short", network, 2)})
    assert (tasks.step(), tasks.step(), len(tasks)) == ([], [("short", Finished("short"))], 1)
    assert len(calls(network.log)) == 2


def test_a_task_that_joins_takes_part_in_the_next_call(network: Network) -> None:
    tasks = scheduler()
    tasks.add("a", steps("a", network, 3))
    tasks.step()
    tasks.add("b", steps("b", network, 1))
    assert tasks.step() == [("b", Finished("b"))]
    assert network.log[1] == ("n", ["a", "b"])


def test_one_call_answers_the_oldest_as_far_as_it_can(network: Network) -> None:
    """An old task with many items has several calls; its neighbour fills up the last."""

    def many() -> Task:
        return (yield network.call(*"abcde", at_once=3))

    tasks = scheduler()
    add_all(tasks, {"many": many(), "one": steps("one", network, 1)})
    assert finish(tasks) == [("many", Finished([*"ABCDE"])), ("one", Finished("one"))]
    assert calls(network.log) == [("n", [*"abc"]), ("n", ["d", "e", "one"])]


def test_a_cheap_network_makes_many_calls_while_an_expensive_one_makes_one() -> None:
    log: Log = []
    cheap, costly = Network("cheap", log), Network("costly", log)
    tasks = scheduler()
    add_all(tasks, {"costly": steps("costly", costly, 3, cost=10), "cheap": steps("cheap", cheap, 40)})
    finish(tasks)
    order = [name for name, _ in calls(log)]
    assert order[:12] == ["costly", *["cheap"] * 10, "costly"] and order[12:23] == [*["cheap"] * 10, "costly"]


def test_a_group_that_appears_gets_no_arrears() -> None:
    log: Log = []
    tasks = scheduler()
    tasks.add("old", steps("old", Network("old", log), 20))
    for _ in range(10):
        tasks.step()
    tasks.add("new", steps("new", Network("new", log), 5))
    finish(tasks)
    assert [name for name, _ in calls(log)[10:16]] == ["old", "new"] * 3


def test_groups_that_come_and_go_do_not_starve_one_that_was_charged_more() -> None:
    log: Log = []
    tasks = scheduler()
    tasks.add("costly", steps("costly", Network("costly", log), 2, cost=5))
    tasks.add(0, steps("0", Network("a", log), 1))
    tasks.step()
    for number in range(1, 40):
        tasks.add(number, steps(str(number), Network("abc"[number % 3], log), 1))
        if ("costly", Finished("costly")) in tasks.step():
            return
    raise AssertionError("it was never called again")


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("one_network", [False, True])
def test_no_task_starves_however_many_join(seed: int, one_network: bool) -> None:
    """More tasks join at every step than can be carried out."""
    rng, log = random.Random(seed), Log()
    kinds = [(Network(name, log), kind, rng.uniform(1, 4)) for name in "abc" for kind in ("x", "y")]

    def task() -> Task:
        for _ in range(rng.randint(1, 4)):
            network, kind, cost = rng.choice(kinds)
            items = [""] * rng.randint(1, 3)
            yield network.call(*items, kind=kind, cost=cost, at_once=2)

    tasks = scheduler(one_network=one_network)
    first = set(range(5))
    for number in first:
        tasks.add(number, task())
    items_of_first, most_charged_to_a_call = 5 * 4 * 3, 2 * 4
    for number in range(5, 5 + items_of_first * len(kinds) * most_charged_to_a_call):
        first -= {key for key, outcome in tasks.step() if isinstance(outcome, Finished)}
        if not first:
            break
        tasks.add(number, task())
    assert not first
    tasks.close()


@pytest.mark.parametrize("seed", range(30))
def test_random_tasks_all_finish_with_the_answers_to_their_own_questions(seed: int) -> None:
    rng, log = random.Random(seed), Log()
    networks = [Network(name, log, fits=rng.choice([1, 2, ALL])) for name in "abc"]
    total = 0

    def shared(name: str) -> Callable[[], Task]:
        return lambda: steps(name, rng.choice(networks), 2)

    def task(name: str) -> Task:
        for _ in range(rng.randint(0, 5)):
            items = [f"{name} {rng.random()}" for _ in range(rng.randint(0, 3))]
            answers = yield rng.choice(networks).call(*items, kind=rng.choice("xy"), at_once=rng.choice([1, 2, ALL]))
            assert answers == [item.upper() for item in items]
            names = rng.sample("pqrs", rng.randint(0, 2))
            assert (yield Shared({other: shared(other) for other in names})) == {other: other for other in names}
        return name

    tasks, waiting, events = scheduler(one_network=bool(seed % 2)), [str(k) for k in range(20)], []
    while waiting or len(tasks):
        for _ in range(min(len(waiting), rng.randint(0, 3))):
            name = waiting.pop(0)
            tasks.add(name, task(name))
        events += tasks.step()
        total += 1
    outcomes = [(key, outcome) for key, outcome in events if not isinstance(outcome, Notice)]
    assert sorted(outcomes) == sorted((str(k), Finished(str(k))) for k in range(20))
    assert total <= sum(len(items) for _, items in calls(log)) + 20 * 11


def test_one_network_is_called_until_all_that_waited_for_it_have_gone_on() -> None:
    log: Log = []
    first, second = Network("first", log), Network("second", log)

    def both(name: str, n: int) -> Task:
        yield from steps(name, first, n)
        yield from steps(name, second, 1)

    tasks = scheduler(one_network=True)
    add_all(tasks, {"a": both("a", 1), "b": both("b", 3), "c": steps("c", first, 2, kind="other")})
    tasks.step()
    tasks.add("late", both("late", 9))
    finish(tasks)
    turns = [name for k, (name, _) in enumerate(log) if k == 0 or name != log[k - 1][0]]
    assert turns == ["first", "second", "first", "second"]  # the last for the one that came late
    assert [entry for entry in log if entry[1] == "released"] == [
        (name, "released") for name in ("first", "second", "first", "second")
    ]


def test_a_network_is_released_when_nobody_waits_for_it() -> None:
    log: Log = []
    first, second = Network("first", log), Network("second", log)

    def both() -> Task:
        yield from steps("a", first, 1)
        yield from steps("a", second, 1)

    tasks = scheduler()
    add_all(tasks, {"both": both(), "b": steps("b", first, 3)})
    finish(tasks)
    last_call = max(k for k, entry in enumerate(log) if entry == ("first", ["b"]))
    assert log.index(("first", "released")) == last_call + 1
    assert [entry[0] for entry in log if entry[1] == "released"].count("second") == 1


def test_removing_a_task_closes_it_before_the_next_call_and_releases_its_network(network: Network) -> None:
    closed = []

    def task() -> Task:
        try:
            yield from steps("a", network, 5)
        finally:
            closed.append("a")

    tasks = scheduler()
    tasks.add("a", task())
    tasks.step()
    tasks.remove("a")
    assert (closed, network.log, len(tasks)) == (["a"], [("n", ["a"]), ("n", "released")], 0)
    assert tasks.step() == []
    assert len(calls(network.log)) == 1


def test_a_task_that_was_removed_before_it_started_never_runs(network: Network) -> None:
    tasks = scheduler()
    add_all(tasks, {"a": steps("a", network, 1), "b": steps("b", network, 1)})
    tasks.remove("a")
    tasks.add("a", steps("c", network, 1))  # the key is free again
    assert finish(tasks) == [("b", Finished("b")), ("a", Finished("c"))]
    assert calls(network.log) == [("n", ["b", "c"])]


def test_a_key_in_use_is_refused(network: Network) -> None:
    tasks = scheduler()
    tasks.add("a", steps("a", network, 1))
    with pytest.raises(ValueError, match="'a' is already running"):
        tasks.add("a", steps("a", network, 1))


def recorded(name: str, log: list[str], task: Task) -> Callable[[], Task]:
    """Starts a task that records when it starts and is closed."""

    def start() -> Task:
        log.append(f"{name} starts")
        try:
            return (yield from task)
        finally:
            log.append(f"{name} ends")

    return start


def waits_for(**starts: Callable[[], Task]) -> Task:
    """A task that waits for shared ones; returns their results."""
    return (yield Shared(dict(starts)))


def test_a_shared_task_runs_once_for_all_that_wait_for_it(network: Network) -> None:
    log: list[str] = []
    starts = [recorded("text", log, steps("text", network, 3)) for _ in range(3)]
    tasks = scheduler()
    tasks.add("a", waits_for(text=starts[0]))
    tasks.step()
    tasks.add("b", waits_for(text=starts[1]))
    assert finish(tasks) == [("a", Finished({"text": "text"})), ("b", Finished({"text": "text"}))]
    assert log == ["text starts", "text ends"] and len(calls(network.log)) == 3
    tasks.add("c", waits_for(text=starts[2]))  # nobody waits for the first any more
    assert finish(tasks) == [("c", Finished({"text": "text"}))]
    assert len(calls(network.log)) == 6


def test_a_shared_task_is_closed_when_its_last_waiter_leaves(network: Network) -> None:
    log: list[str] = []
    tasks = scheduler()
    for key in "ab":
        tasks.add(key, waits_for(text=recorded("text", log, steps("text", network, 9))))
    tasks.step()
    tasks.remove("a")
    assert log == ["text starts"]
    tasks.step()
    tasks.remove("b")
    assert log == ["text starts", "text ends"]
    assert (tasks.step(), len(calls(network.log))) == ([], 2)


def test_an_error_of_a_shared_task_reaches_each_waiter_which_leaves_its_others(network: Network) -> None:
    log: list[str] = []

    def broken() -> Task:
        yield from steps("a", network, 1)
        raise KeyError("broken")

    tasks = scheduler()
    tasks.add("a", waits_for(broken=broken, text=recorded("text", log, steps("text", network, 9))))
    tasks.add("b", waits_for(broken=broken))
    tasks.add("c", waits_for(other=recorded("other", log, steps("other", network, 1))))
    outcomes = dict(finish(tasks))
    assert isinstance(outcomes["a"].error, KeyError) and isinstance(outcomes["b"].error, KeyError)
    assert outcomes["c"] == Finished({"other": "other"})
    assert "text ends" in log and len(calls(network.log)) == 1


def test_progress_of_shared_tasks_is_that_of_the_slowest(network: Network) -> None:
    def progressing(name: str, n: int) -> Callable[[], Task]:
        def task() -> Task:
            for i in range(n):
                yield network.call(name)
                yield Progress("prior", i + 1, n)

        return task

    tasks = scheduler()
    tasks.add("a", waits_for(fast=progressing("fast", 2), slow=progressing("slow", 4)))
    seen = [event for _, event in finish(tasks) if isinstance(event, Progress)]
    assert seen == [Progress("prior", i, 4) for i in (1, 2, 3, 4)]


def test_events_are_passed_on_in_order(network: Network) -> None:
    def task() -> Task:
        yield "first"
        yield network.call("a")
        yield "second"
        yield "third"

    tasks = scheduler()
    tasks.add("a", task())
    assert tasks.step() == [("a", "first"), ("a", "second"), ("a", "third"), ("a", Finished(None))]


def test_an_exception_of_a_task_is_its_own(network: Network) -> None:
    def broken() -> Task:
        yield network.call("broken")
        raise ZeroDivisionError

    tasks = scheduler()
    add_all(tasks, {"broken": broken(), "a": steps("a", network, 2)})
    ((key, outcome),) = tasks.step()
    assert key == "broken" and isinstance(outcome.error, ZeroDivisionError)
    assert finish(tasks) == [("a", Finished("a"))]


def test_the_task_whose_item_breaks_a_call_is_found(network: Network) -> None:
    def culprit() -> Task:
        return (yield network.call("fine", "poison", "never answered"))

    tasks = scheduler()
    add_all(tasks, {"a": steps("a", network, 2), "culprit": culprit(), "b": steps("b", network, 2)})
    outcomes = dict(finish(tasks))
    assert isinstance(outcomes.pop("culprit").error, KeyError)
    assert outcomes == {"a": Finished("a"), "b": Finished("b")}


def test_an_error_as_an_answer_is_thrown_once_into_the_task_that_asked(network: Network) -> None:
    def asks_twice() -> Task:
        with pytest.raises(ValueError, match="bad 1"):
            yield network.call("bad 1", "bad 2")
        return (yield network.call("it goes on"))

    tasks = scheduler()
    add_all(tasks, {"bad": asks_twice(), "a": steps("a", network, 1)})
    assert dict(finish(tasks)) == {"a": Finished("a"), "bad": Finished(["IT GOES ON"])}


def test_a_call_that_does_not_fit_into_memory_is_split_and_the_size_is_remembered() -> None:
    network = Network("n", fits=3)
    tasks = scheduler()
    add_all(tasks, {name: steps(name, network, 2) for name in "abcdefgh"})
    outcomes = finish(tasks)
    assert [key for key, outcome in outcomes if isinstance(outcome, Finished)] == [*"abcdefgh"]
    sizes = [len(items) for _, items in calls(network.log)]
    assert sizes[0] == 8 and sizes.count(8) == 1 and max(sizes[3:]) <= 4 and sum(s for s in sizes if s <= 3) == 16
    notices = {outcome.text for _, outcome in outcomes if isinstance(outcome, Notice)}
    assert "memory ran out, so at most 2 pictures are computed at once" in notices


def test_a_task_that_does_not_fit_into_memory_alone_fails_alone() -> None:
    log: Log = []
    none, enough = Network("none", log, fits=0), Network("enough", log)
    tasks = scheduler()
    add_all(tasks, {"large": steps("large", none, 1), "a": steps("a", enough, 3)})
    outcomes = dict(finish(tasks))
    assert isinstance(outcomes["large"].error, MemoryError) and outcomes["a"] == Finished("a")


def test_what_asks_nothing_is_answered_at_once() -> None:
    def task() -> Task:
        return (yield Call(Network("n"), "step", [], lambda _: [], 1.0)), (yield Shared({}))

    tasks = scheduler()
    tasks.add("a", task())
    assert tasks.step() == [("a", Finished(([], {})))]


def test_closing_closes_every_task_and_the_shared_ones(network: Network) -> None:
    log: list[str] = []
    tasks = scheduler()
    tasks.add("a", recorded("a", log, steps("a", network, 5))())
    tasks.add("b", waits_for(text=recorded("text", log, steps("text", network, 5))))
    tasks.step()
    tasks.close()
    assert sorted(log) == ["a ends", "a starts", "text ends", "text starts"]
    assert (len(tasks), tasks.step(), network.log[-1]) == (0, [], ("n", "released"))


def test_run_returns_the_value_of_a_task_and_raises_its_error(network: Network) -> None:
    assert run(scheduler(), steps("a", network, 3)) == "a"
    with pytest.raises(KeyError, match="poison"):
        run(scheduler(), steps("poison", network, 1))


def test_errors_keep_no_frames_of_the_call() -> None:
    """Frames hold tensors."""

    def fail(_: Sequence[Any]) -> Iterator[Any]:
        raise KeyError

    def task() -> Task:
        try:
            yield Call(Network("n"), "step", ["a"], fail, 1.0)
        except KeyError as error:
            return [frame.name for frame in __import__("traceback").extract_tb(error.__traceback__)]

    assert "fail" not in run(scheduler(), task())

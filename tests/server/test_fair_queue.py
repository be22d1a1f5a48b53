"""Fairness between owners, by cost and not by count."""

import pytest

from kandinsky22.server.fair_queue import FairQueue


def queue_of(*items: tuple[str, float]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for number, (owner, cost) in enumerate(items):
        queue.add(owner, number, cost, f"{owner}{number}")
    return queue


def test_an_owner_with_many_items_does_not_hold_up_others() -> None:
    queue = queue_of(*[("a", 1.0)] * 3, ("b", 1.0))
    assert queue.order() == [queue.take() for _ in range(4)] == ["a0", "b3", "a1", "a2"]


def test_cost_counts_and_not_the_number_of_items() -> None:
    queue = queue_of(("a", 4.0), ("a", 4.0), *[("b", 1.0)] * 5)
    assert queue.order() == ["a0", "b2", "b3", "b4", "b5", "a1", "b6"]


def test_a_newcomer_starts_level() -> None:
    queue = queue_of(*[("a", 1.0)] * 6)
    for _ in range(4):
        queue.take()
    queue.add("b", 9, 1.0, "b")
    queue.add("b", 10, 1.0, "b'")
    assert queue.order() == ["b", "a4", "b'", "a5"]


def test_an_owner_without_items_is_forgotten() -> None:
    queue = queue_of(("a", 100.0), ("b", 1.0))
    queue.take()
    queue.done("a")
    queue.add("a", 2, 1.0, "a again")
    queue.remove("b", "b1")
    assert len(queue) == queue.count("a") == 1 and queue.count("b") == 0 and queue.first() == "a again"


def test_an_empty_queue_has_no_next_item() -> None:
    with pytest.raises(IndexError):
        queue_of().take()

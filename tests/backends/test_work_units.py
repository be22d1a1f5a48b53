"""Work units: what is tried again, with whom, and what is given up."""

from pathlib import Path

import pytest

from kandinsky22 import text2img
from kandinsky22.backends.work_units import Failure, Finished, UnitPainter, WorkUnit
from tests.backends.fakes import FakeBackend, units_of


def unit_of(*prompts: str) -> WorkUnit[str]:
    return WorkUnit({prompt: text2img(prompt, seed=k) for k, prompt in enumerate(prompts)})


def test_a_unit_that_fails_is_tried_again_as_a_whole_and_then_request_by_request() -> None:
    unit = unit_of("a", "b")
    (second,), failures = unit.retry({"a": "no", "b": "no"})
    assert (second.requests, failures) == (unit.requests, [])
    third, failures = second.retry({"a": "no", "b": "no"})
    assert ([[*single.requests] for single in third], failures) == ([["a"], ["b"]], [])
    assert third[0].retry({"a": "never"}) == ([], [Failure("a", "never", 3)])


def test_a_request_that_fails_beside_others_is_tried_again_alone() -> None:
    (second,), failures = unit_of("a", "b", "c").retry({"b": "no"})
    assert ([*second.requests], second.tries, failures) == (["b"], 1, [])


@pytest.mark.parametrize("processes", [1, 3])
def test_every_request_has_one_outcome(tmp_path: Path, processes: int) -> None:
    painter = UnitPainter(FakeBackend(tmp_path), 3, processes)
    requests = dict(enumerate(text2img("poison" if k == 4 else "refused" if k == 7 else "ring") for k in range(10)))
    outcomes = {outcome.key: outcome for outcome in painter.paint(units_of(requests, 3))}
    assert [*sorted(outcomes)] == [*range(10)]
    assert outcomes[4] == Failure(4, "KeyError: 'poison'", 3)
    assert outcomes[7] == Failure(7, "the request is refused; ask for another", 3)
    assert sum(isinstance(outcome, Finished) for outcome in outcomes.values()) == 8


def test_units_are_read_as_they_are_painted(tmp_path: Path) -> None:
    units = units_of({k: text2img("ring", seed=k) for k in range(6)}, 1)
    outcomes = UnitPainter(FakeBackend(tmp_path)).paint(units)
    next(outcomes)
    outcomes.close()
    assert len(list(units)) == 5


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="from 1 up, got 0"):
            UnitPainter(FakeBackend(tmp_path), *numbers)

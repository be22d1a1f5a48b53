"""Values found by the content of a picture: computed once, in whichever order, run or folder it comes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky22.training.content_cache import CachedRows, load_or_compute


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], tuple[CachedRows, str]]:
    """Loads the values of one-letter contents, which are their code points; also returns what was computed."""

    def values(contents: str) -> tuple[CachedRows, str]:
        computed: list[str] = []

        def compute(rows: Sequence[int]) -> Tensor:
            computed.extend(contents[row] for row in rows)
            return torch.tensor([[float(ord(contents[row]))] for row in rows])

        return load_or_compute(tmp_path / "latents", "f", [*contents], compute), "".join(computed)

    return values


def text_of(rows: CachedRows) -> str:
    """The contents whose values these are."""
    return "".join(chr(int(value)) for value in rows[:].flatten())


def test_only_contents_that_no_run_has_met_are_computed(load: Callable[[str], tuple[CachedRows, str]]) -> None:
    rows, computed = load("abc")
    assert (text_of(rows), computed) == ("abc", "abc")
    rows, computed = load("dcxa")
    assert (text_of(rows), computed) == ("dcxa", "dx")
    rows, computed = load("xxab")
    assert (text_of(rows), computed) == ("xxab", "") and len(rows) == 4
    assert rows[torch.tensor([3, 0])].flatten().tolist() == [ord("b"), ord("x")]


def test_equal_pictures_are_computed_once(load: Callable[[str], tuple[CachedRows, str]]) -> None:
    rows, computed = load("aabba")
    assert (text_of(rows), computed) == ("aabba", "ab")


def test_an_interrupted_computation_goes_on(tmp_path: Path) -> None:
    contents = [str(number) for number in range(40)]

    def interrupted(rows: Sequence[int]) -> Tensor:
        if rows[0] >= 16:
            raise KeyboardInterrupt
        return torch.tensor(rows)[:, None].float()

    with pytest.raises(KeyboardInterrupt):
        load_or_compute(tmp_path, "f", contents, interrupted)
    rows = load_or_compute(tmp_path, "f", contents, lambda rows: torch.tensor(rows)[:, None].float())
    assert rows[:].flatten().tolist() == [*range(40)]


def test_values_of_another_network_are_refused(tmp_path: Path) -> None:
    load_or_compute(tmp_path, "f", ["a"], lambda rows: torch.zeros(len(rows), 1))
    with pytest.raises(ValueError, match="was computed with fingerprint f"):
        load_or_compute(tmp_path, "g", ["a"], lambda rows: torch.zeros(len(rows), 1))

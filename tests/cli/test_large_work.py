"""Work that takes far longer than a usual picture is estimated, and asked about."""

from dataclasses import replace
from pathlib import Path

import pytest

from kandinsky22 import Kandinsky, Request, text2img
from kandinsky22.cli import large_work
from kandinsky22.cli.app import run
from kandinsky22.engine import cost


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


@pytest.fixture
def request_of(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A usual picture, on a machine that makes a million operations a second."""
    monkeypatch.setattr(cost, "rate", lambda *_: 1e6)
    return kandinsky.resolve(text2img("a red circle", seed=1, model="tiny-model"))


def test_usual_work_and_what_was_asked_for_with_yes_need_no_question(kandinsky: Kandinsky, request_of: Request) -> None:
    large_work.confirm(kandinsky, request_of)
    large_work.confirm(kandinsky, request_of, frames=2000, yes=True)


def test_large_work_is_refused_with_an_estimate_where_nobody_can_be_asked(
    kandinsky: Kandinsky, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    for request, frames in ((request_of, 2000), (replace(request_of, width=64 * 60), 1)):
        with pytest.raises(ValueError, match=r"this takes about \d+ \w+, and \d+ times .*; ask for less, or add --yes"):
            large_work.confirm(kandinsky, request, frames=frames)


@pytest.mark.parametrize(("answer", "paints"), [("y\n", True), ("\n", False), ("", False)])
def test_large_work_is_asked_about_in_a_terminal(
    kandinsky: Kandinsky,
    request_of: Request,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    paints: bool,
) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: answer)
    if paints:
        large_work.confirm(kandinsky, request_of, frames=2000)
    else:
        with pytest.raises(ValueError, match="nothing was painted"):
            large_work.confirm(kandinsky, request_of, frames=2000)
    assert capsys.readouterr().err.endswith("; go on? [y/N] ")


def test_work_that_takes_little_time_needs_no_question(
    kandinsky: Kandinsky, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "rate", lambda *_: 1e18)
    large_work.confirm(kandinsky, request_of, frames=2000)


def test_the_command_refuses_before_it_paints(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "rate", lambda *_: 1e6)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    for command in (["a red circle", "-n", "200"], ["film", "a", "b", "--frames", "2000"]):
        assert run([*command, "--model", str(tiny_model)]) == 2
        assert "add --yes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

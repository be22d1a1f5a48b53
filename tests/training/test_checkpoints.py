"""Checkpoints of a run that were damaged, or come from someone else: refused in one sentence, or resumed from."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky22.training import checkpoints
from kandinsky22.training.checkpoint_reader import FILE
from kandinsky22.training.loop import Training
from kandinsky22.training.run import METRICS, resume, run
from tests.hostile.corpus import WRONG_JSON, endless_metadata
from tests.training.known import RECIPE, line_fit

ENDLESS = endless_metadata()


def training() -> Training:
    return Training(*line_fit(), RECIPE, steps=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two steps with a checkpoint."""
    lines = run(training(), tmp_path, every=2)
    for _ in range(2):
        next(lines)
    return tmp_path


@pytest.fixture
def last(folder: Path) -> Path:
    """The folder of the run's checkpoint."""
    return next((folder / checkpoints.FOLDER).iterdir())


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        resume(training(), folder)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_a_run_is_resumed_with_its_weights(folder: Path) -> None:
    first, second = training(), training()
    assert resume(first, folder) and first.step == 2
    second.advance(), second.advance()
    assert all(torch.equal(one, second.tensors()[name]) for name, one in first.tensors().items())


@pytest.mark.parametrize(
    "change",
    [
        {"relative_path": "../../secret"},
        {"relative_path": "/etc/passwd"},
        {"relative_path": 3},
        {"offset": -1},
        {"length": 10**12},
        {"transform_descriptors": ["zstd"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_metadata_that_names_other_places_is_refused(folder: Path, last: Path, change: dict[str, Any]) -> None:
    metadata = pickle.loads((last / FILE).read_bytes())
    vars(next(iter(metadata.storage_data.values()))).update(change)
    (last / FILE).write_bytes(pickle.dumps(metadata))
    assert refusal(folder).startswith(f"{last} is not of this network, or damaged (")


def test_metadata_of_other_classes_is_refused_with_their_name(folder: Path, last: Path) -> None:
    for foreign, name in ((Path.cwd, "builtins.getattr"), (print, "builtins.print"), (torch.nn.Linear, "Linear")):
        metadata = pickle.loads((last / FILE).read_bytes())
        metadata.planner_data = foreign
        (last / FILE).write_bytes(pickle.dumps(metadata))
        message = refusal(folder)
        assert name in message and "does not describe tensors" in message
        metadata.planner_data = None
        (last / FILE).write_bytes(pickle.dumps(metadata))
    assert resume(training(), folder)


def test_damaged_metadata_is_refused_without_a_traceback(
    folder: Path, last: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (last / FILE).read_bytes()
    for damaged in (b"", content[:-20], content[100:], b"text", pickle.dumps({}), pickle.dumps([1])):
        (last / FILE).write_bytes(damaged)
        assert "its metadata" in refusal(folder)
    (last / FILE).unlink()
    assert "No such file" in refusal(folder) and not caplog.records


@pytest.mark.parametrize("kind", ENDLESS)
def test_metadata_that_would_take_gigabytes_or_years_is_refused(folder: Path, last: Path, kind: str) -> None:
    (last / FILE).write_bytes(ENDLESS[kind])
    assert "its metadata" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"step": -1},
        {"step": True},
        {"steps": 1.5},
        {"steps": None},
        {"learnt_from": []},
        {"learnt_from": None},
        {"settings": "x"},
    ],
    ids=str,
)
def test_a_state_of_other_types_is_refused_with_its_file(folder: Path, last: Path, change: dict[str, Any]) -> None:
    path = last / checkpoints.STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert str(path) in refusal(folder)
    with pytest.raises(ValueError, match="is not the state of a run"):
        checkpoints.settings(folder)


@pytest.mark.parametrize("text", WRONG_JSON, ids=range(len(WRONG_JSON)))
def test_a_state_that_is_no_json_object_is_refused_with_its_file(folder: Path, last: Path, text: bytes) -> None:
    (last / checkpoints.STATE).write_bytes(text)
    assert str(last / checkpoints.STATE) in refusal(folder)


def test_metrics_of_other_values_are_refused_with_their_file(folder: Path) -> None:
    for line in ('{"loss": 1}', '{"step": "x"}', '{"step": }'):
        (folder / METRICS).write_text(line + "\n")
        assert str(folder / METRICS) in refusal(folder)


def test_a_finishing_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted, resumed = (Training(*line_fit(), RECIPE, steps=100) for _ in range(2))
    for _ in range(20):
        uninterrupted.advance()
    uninterrupted.finish()
    uninterrupted.advance()
    checkpoints.save(uninterrupted, tmp_path)
    assert checkpoints.load(resumed, tmp_path) and (resumed.step, resumed.steps) == (21, 22)
    assert [line.loss for line in resumed] == [line.loss for line in uninterrupted]
    assert torch.equal(resumed.network.weight, uninterrupted.network.weight)


def test_a_checkpoint_of_an_earlier_version_has_no_schedule_of_its_own(tmp_path: Path) -> None:
    training = Training(*line_fit(), RECIPE, steps=4)
    training.advance()
    checkpoints.save(training, tmp_path)
    state = json.loads((tmp_path / "checkpoints" / "00000001" / "state.json").read_text())
    assert state.keys() == {"step", "steps", "learnt_from", "settings"}
    assert checkpoints.last_state(tmp_path)["start"] == 0


def test_an_earlier_checkpoint_is_loaded_by_its_step(tmp_path: Path) -> None:
    training = Training(*line_fit(), RECIPE, steps=4)
    for _ in range(2):
        training.advance()
        checkpoints.save(training, tmp_path)
    other = Training(*line_fit(), RECIPE, steps=4)
    assert checkpoints.load(other, tmp_path, 1) and other.step == 1
    with pytest.raises(ValueError, match=r"has no checkpoint of step 3; those of steps 1, 2 are there"):
        checkpoints.load(other, tmp_path, 3)

"""`kandinsky22 train`: invalid arguments are refused with one sentence before anything is read, and the picture world
needs no things."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kandinsky22.training import mixture
from kandinsky22.training.checkpoints import settings
from kandinsky22.training.cli import main
from kandinsky22.training.run import read_metrics
from tests.compositions.tiny_things import tiny_things
from tests.training.test_mixture import write_things
from tests.training.test_model_trainer import SHORT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movqq"], "invalid choice: 'movqq'"),
        ([], "required: network"),
        (["movq", "--steps", "0"], "whole number from 1 up"),
        (["movq", "--minutes", "-1"], "above 0"),
        (["movq", "--steps", "1", "--minutes", "1"], "not allowed with"),
        (
            ["clip", "--min-snr", "5"],
            "--min-snr does not apply to clip; leave it out (it is for prior, decoder, inpaint, controlnet)",
        ),
        (["movq", "--cond-dropout", "0.2"], "--cond-dropout does not apply to movq; leave it out (it is for prior"),
        (
            ["prior", "--predict", "epsilon"],
            "--predict does not apply to prior; leave it out (it is for decoder, inpaint, controlnet",
        ),
        (
            ["linear-prior", "--tensorboard"],
            "--tensorboard does not apply to linear-prior; leave it out (it is for all networks but linear-prior",
        ),
        (["linear-prior", "--every", "250"], "--every does not apply to linear-prior"),
        (["linear-prior", "--relaunch", "2"], "--relaunch does not apply to linear-prior"),
        (["movq-decoder", "--from-scratch"], "--from-scratch does not apply to movq-decoder"),
        (
            ["decoder", "--depth-model", "x"],
            "--depth-model does not apply to decoder; leave it out (it is for controlnet",
        ),
        (
            ["clip", "--accumulate", "2"],
            "--accumulate does not apply to clip; leave it out (it is for all networks but clip, linear-prior",
        ),
        (["clip", "--accumulate", "2", "--plan"], "--accumulate does not apply to clip"),
        (["decoder", "--accumulate", "9", "--batch", "4"], "a batch of 4 cannot be cut into 9 parts"),
        (["decoder", "--processes", "3", "--batch", "2"], "a batch of 2 cannot be cut into 3 parts"),
        (["clip", "--processes", "3", "--batch", "16", "--plan"], "use a --batch that 3 divides, not 16"),
        (["movq", "--device", "foo"], "networks cannot be trained on 'foo'; use cpu"),
        (["movq", "--device", "mps"], "networks cannot be trained on 'mps'; use cpu"),
    ],
)
def test_invalid_arguments_are_refused_with_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of the box recipe, at a small size."""
    monkeypatch.setattr("kandinsky22.training.cli.BOX", replace(SHORT, things=0.5, movq_pictures=16))
    monkeypatch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    monkeypatch.setattr(mixture, "CHUNK", 8)
    return tmp_path / "run"


def train_movq(folder: Path, *options: str) -> None:
    """Train MoVQ to the second step, with a checkpoint after each."""
    main(["movq", "--folder", str(folder), "--every", "1", *options])


def undo_last_step(folder: Path) -> None:
    """Leave what a run interrupted after its first step would have left."""
    shutil.rmtree(folder / "movq" / "checkpoints" / "00000002")
    (folder / "movq" / "added").unlink()


def test_training_without_things_learns_from_shapes_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_movq(folder, "--steps", "2")
    things = folder / "things"
    sentence = f"without things: {things} has no things; download them with: python runs/fetch_things.py {things}"
    assert capsys.readouterr().out.count(sentence) == 1
    assert [*folder.glob("compositions-*.npy")] and settings(folder / "movq")["things"] is False


def test_training_with_things_learns_from_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_things(tiny_things(), folder / "things")
    train_movq(folder, "--steps", "2")
    assert "shapes alone" not in capsys.readouterr().out
    assert not [*folder.glob("compositions-*.npy")] and settings(folder / "movq")["things"] is True


def test_a_resumed_run_without_things_stays_without_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_movq(folder, "--steps", "2")
    undo_last_step(folder)
    write_things(tiny_things(), folder / "things")
    capsys.readouterr()
    train_movq(folder)
    assert "shapes alone, without things: this run was started without things" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(folder / "movq")] == [0, 1, 2]
    assert settings(folder / "movq")["things"] is False


def test_a_resumed_run_refuses_missing_things(folder: Path) -> None:
    write_things(tiny_things(), folder / "things")
    train_movq(folder, "--steps", "2")
    undo_last_step(folder)
    shutil.rmtree(folder / "things")
    with pytest.raises(ValueError, match=r"was started on pictures with things, and .*fetch_things\.py") as error:
        train_movq(folder)
    assert "\n" not in str(error.value)

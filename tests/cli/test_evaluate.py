"""`kandinsky22 evaluate`: the whole way on a small random model, and what is said of bad input before anything is painted."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.cli.app import run
from kandinsky22.cli.evaluate import RESIZES
from kandinsky22.evaluation import features
from kandinsky22.evaluation.resize import WAYS

HERE = ["--processes", "1", "--threads", "1", "--batch", "4", "--device", "cpu"]
QUICK = ["--steps", "1", "--prior-num-inference-steps", "1", *HERE]


class Colours:
    """Features that need no weights."""

    name, fingerprint, dim, resize = "colours", "1", 3, "not at all"

    def __init__(self, path: Path, resize: str = "clean", device: str = "cpu") -> None:
        self.path = path

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        rows = [np.asarray(picture.convert("RGB"), np.float32).mean((0, 1)) / 255 for picture in pictures]
        return torch.from_numpy(np.stack(rows))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text("id,caption\n" + "".join(f"{i},a red circle number {i}\n" for i in range(6)), "utf-8")
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray((rng.random((64, 64, 3)) * rng.random(3) * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def test_the_cards_evaluation_from_a_command(
    tiny_model: Path, captions: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(features, "InceptionFeatures", Colours)
    out = tmp_path / "out"
    command = [
        "evaluate",
        "coco30k",
        "--model",
        str(tiny_model),
        "--captions",
        str(captions),
        "--out",
        str(out),
        *QUICK,
    ]
    command += ["--inception", "weights.pth", "--kid-size", "4", "--reference"]
    assert run([*command, str(real), "--shard", "1/2"]) == 0
    said = capsys.readouterr().out
    assert "the same command without --shard writes the report" in said
    assert re.search(r"4 pictures to paint, 4 calls .* that are free; the first pack is timed", said)
    assert re.search(r"0 pictures to paint, 0 calls .* that are free, about 0:00:00", said)
    assert not (out / "report.json").exists() and len([*(out / "pictures").iterdir()]) == 4
    assert run([*command, str(real)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    report, protocol = (json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("report", "protocol"))
    assert report["fid"] > 0 and report["pictures"] == 6
    assert protocol["run"]["request"]["decoder"]["steps"] == 1 and protocol["run"]["captions"]["count"] == 6

    statistics = tmp_path / "real.safetensors"
    assert run(["evaluate", "stats", str(real), "--inception", "weights.pth", "--output", str(statistics)]) == 0
    assert run([*command, str(statistics)]) == 0
    assert json.loads((out / "report.json").read_text("utf-8"))["fid"] == pytest.approx(report["fid"], rel=1e-9)

    (real / "0.png").write_bytes(b"no picture")
    assert run(["evaluate", "stats", str(real), "--inception", "weights.pth", "--output", str(statistics)]) == 2
    assert "1 of 6 pictures cannot be read (0.png)" in capsys.readouterr().err
    assert run([*command, str(real)]) == 2  # before anything else is done
    assert "1 of 6 pictures cannot be read (0.png)" in capsys.readouterr().err
    changed = [*command, str(statistics), "--guidance-scale", "7"]
    assert run(changed) == 2
    assert "was begun with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["nothing"], "there is no evaluation nothing; there are coco30k, world, sweep, stats"),
        (["coco30k", "--out", "x"], "needs --captions"),
        (["world"], "needs --out"),
        (["world", "more", "--out", "x"], "takes options only, got 'more'"),
        (["world", "--out", "x", "--count", "0"], "'0' is no whole number from 1 up"),
        (["stats", "x"], "evaluate stats needs a folder, --output, and either --inception or --clip"),
        (["world", "--out", "x", "--seed", "3"], "there is no option --seed"),
        (["stats", "x", "--clip", "y", "-o", "z.npz"], "writes a file that ends in .safetensors"),
        (["stats", "x", "--clip", "y", "-o", "z.safetensors", "--resize", "clean"], "--resize is for Inception"),
        (["sweep", "--out", "x", "--samplers", "eulr", "--processes", "1"], "sampler must be one of"),
    ],
)
def test_bad_input_is_one_sentence(
    typed: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", *typed]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_too_few_captions_are_refused_before_anything_is_painted(
    captions: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", Colours)
    monkeypatch.setattr(Colours, "dim", 6)
    command = [
        "evaluate",
        "coco30k",
        "--captions",
        str(captions),
        "--reference",
        str(real),
        "--inception",
        "weights.pth",
    ]
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert (
        "FID needs more captions than Inception has features (6), and there are 6; give more" in capsys.readouterr().err
    )
    monkeypatch.setattr(Colours, "dim", 3)
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert "KID's subsets are of 2 to 6 of the captions, got 1000; give another --kid-size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_from_a_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "sweep", "--model", str(tiny_model), "--out", str(tmp_path), "--samplers", "ddim"]
    assert run([*command, "--numbers", "1,2", "--scenes", "2", "--seeds", "2", *HERE]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 cells; where it is not known yet how long they take, two packs are timed\n")
    assert re.search(r"\n0 pictures to paint, 0 calls .*, about 0:00:00\n", said)  # of so few, two packs are all
    assert re.search(
        r"\n8 pictures to paint, (8|16) calls of the decoder's network, about .*, about 0:\d\d:\d\d\n", said
    )
    assert "linear-prior is left out" in said and "\nguidance: " in said
    report, protocol = (json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in ("report", "protocol"))
    assert len(report["cells"]) == 2 and len(report["around"]) == 5 and report["guidance_scale"] in (1, 2, 3, 4, 6)
    assert [*protocol["cells"]][:2] == ["ddim-1", "ddim-2"] and len(protocol["cells"]) == 6
    assert str(tiny_model) not in json.dumps(protocol)


def test_the_ways_to_resize_are_those_there_are() -> None:
    assert tuple(WAYS) == RESIZES

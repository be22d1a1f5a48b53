"""`kandinsky22 evaluate`: every evaluation on a small random model, and errors that come before anything is painted."""

import hashlib
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
from kandinsky22.evaluation import features, reference
from kandinsky22.evaluation.resize import RESIZINGS
from tests.models_on_disk import write_tiny_model

ONE_PROCESS = ["--processes", "1", "--threads", "1", "--batch", "4", "--device", "cpu"]
QUICK = ["--steps", "1", "--prior-num-inference-steps", "1", *ONE_PROCESS]


class ColourFeatures:
    """Features without weights: the mean colour. Counts pictures of all instances in `seen`."""

    name, fingerprint, dim, resize = "colours", "1", 3, "not at all"
    seen = 0

    def __init__(self, path: Path, resize: str = "clean", device: str = "cpu") -> None:
        self.path = path

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        ColourFeatures.seen += len(pictures)
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


def coco30k(model: Path, captions: Path, out: Path, reference: Path) -> list[str]:
    """The command with a small subset for KID."""
    places = ["--model", model, "--captions", captions, "--out", out, "--reference", reference]
    return ["evaluate", "coco30k", *map(str, places), *QUICK, "--inception", "weights.pth", "--kid-size", "4"]


def test_coco30k_writes_a_report_and_refuses_other_settings(
    tiny_model: Path,
    captions: Path,
    real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", ColourFeatures)
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
    output = capsys.readouterr().out
    assert "the same command without --shard writes the report" in output
    assert re.search(r"4 pictures to paint, 4 calls .* that are free; the first work unit is timed", output)
    assert re.search(r"0 pictures to paint, 0 calls .* that are free, about 0:00:00", output)
    assert not (out / "report.json").exists() and len([*(out / "pictures").iterdir()]) == 4
    assert run([*command, str(real)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    report, protocol = (json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("report", "protocol"))
    assert report["fid"] > 0 and report["pictures"] == 6
    assert protocol["run"]["request"]["decoder"]["steps"] == 1 and protocol["run"]["captions"]["count"] == 6
    unet = tiny_model / "decoder" / "unet" / "diffusion_pytorch_model.safetensors"
    assert protocol["run"]["weights_sha256"]["unet"] == hashlib.sha256(unet.read_bytes()).hexdigest()
    assert protocol["comparison"] == {"any_size": False, "kid": {"subsets": 100, "size": 4, "seed": 0}}

    statistics = tmp_path / "real.safetensors"
    assert run(["evaluate", "stats", str(real), "--inception", "weights.pth", "--output", str(statistics)]) == 0
    assert run([*command, str(statistics)]) == 0
    assert json.loads((out / "report.json").read_text("utf-8"))["fid"] == pytest.approx(report["fid"], rel=1e-9)

    (real / "0.png").write_bytes(b"no picture")
    assert run(["evaluate", "stats", str(real), "--inception", "weights.pth", "--output", str(statistics)]) == 2
    assert "1 of 6 pictures cannot be read (0.png)" in capsys.readouterr().err
    assert run([*command, str(real)]) == 2  # before anything is painted
    assert "1 of 6 pictures cannot be read (0.png)" in capsys.readouterr().err
    for changed in (["--guidance-scale", "7"], ["--seed", "1"], ["--dtype", "bfloat16"], ["--batch", "2"]):
        assert run([*command, str(statistics), *changed]) == 2
        assert "was created with" in capsys.readouterr().err
    other = tmp_path / "elsewhere" / tiny_model.name
    write_tiny_model(other, seed=1)
    assert run([*command, str(statistics), "--model", str(other)]) == 2
    assert "was created with weights." in capsys.readouterr().err
    assert run([*command, str(statistics), "--model", str(tmp_path / "gone" / tiny_model.name)]) == 0
    assert "its weights were not compared with those of the run" in (out / "report.html").read_text("utf-8")


def test_shards_of_coco30k_measure_their_own_pictures_and_not_the_reference(
    tiny_model: Path,
    captions: Path,
    real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", ColourFeatures)
    command = coco30k(tiny_model, captions, tmp_path / "out", real)
    ColourFeatures.seen = 0
    assert run([*command, "--shard", "1/2"]) == run([*command, "--shard", "2/2"]) == 0
    assert ColourFeatures.seen == 6 and not [*(tmp_path / "out").glob("real-pictures*")]
    assert run(command) == 0
    assert ColourFeatures.seen == 6 + 6  # the reference's

    parts = [tmp_path / f"part-{i}.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        measuring = ["evaluate", "stats", str(real), "--inception", "weights.pth", "--shard", f"{i}/2"]
        assert run([*measuring, "--output", str(part)]) == 0
    complete = tmp_path / "complete.safetensors"
    assert run(["evaluate", "stats", *map(str, parts), "--output", str(complete)]) == 0
    assert "6 pictures by colours" in capsys.readouterr().out and reference.load(complete).count == 6


def test_coco30k_refuses_other_sizes_before_anything_is_written(
    tiny_model: Path,
    captions: Path,
    real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", ColourFeatures)
    command = coco30k(tiny_model, captions, tmp_path / "out", real)
    assert run([*command, "--size", "128"]) == 2
    assert "the reference's pictures are all 64x64 and the others all 128x128" in capsys.readouterr().err
    assert run(command) == 0  # the folder is still free


def test_retry_paints_failed_captions_of_a_complete_run(
    tiny_model: Path,
    captions: Path,
    real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", ColourFeatures)
    command = coco30k(tiny_model, captions, tmp_path / "out", real)
    assert run(command) == 0
    (tmp_path / "out" / "pictures" / "3.png").unlink()
    record = {"id": "3", "error": "poison", "tries": 3}
    (tmp_path / "out" / "failed-1-of-1.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    assert run(command) == 0 and json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["pictures"] == 5
    assert run([*command, "--retry"]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["pictures"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no evaluation nothing; there are coco30k, world, sweep, speed, stats"),
        (["coco30k", "--out", "x"], "needs --captions"),
        (["world"], "needs --out"),
        (["world", "more", "--out", "x"], "takes options only, got 'more'"),
        (["world", "--out", "x", "--count", "0"], "'0' is not a whole number from 1 up"),
        (["stats", "x"], "evaluate stats needs folders, --output, and either --inception or --clip"),
        (["stats", "a.safetensors", "--clip", "y", "-o", "z.safetensors"], "merged as they are; leave out --clip"),
        (["stats", "x", "a.safetensors", "-o", "z.safetensors"], "needs folders, --output, and either"),
        (["world", "--out", "x", "--seed", "3"], "there is no option --seed"),
        (["stats", "x", "--clip", "y", "-o", "z.npz"], "writes a file whose name ends in .safetensors"),
        (["stats", "x", "--clip", "y", "-o", "z.safetensors", "--resize", "clean"], "--resize is for Inception"),
        (["sweep", "--out", "x", "--samplers", "eulr", "--processes", "1"], "sampler must be one of"),
        (["speed", "--out", "x", "--intervals", "0.8"], "guidance_interval must be two rising numbers from 0"),
        (["speed", "--out", "x", "--intervals", "low-high"], "'low-high' are not intervals; write them like 0-0.8"),
        (["speed", "--out", "x", "--only", "ddpm-7"], "there is no cell ddpm-7; there are exact, "),
        (["speed", "--out", "x", "--reuse", "0"], "'0' is not a whole number from 1 up"),
        (["speed", "--out", "x", "--guidance-interval", "0,1"], "there is no option --guidance-interval"),
    ],
)
def test_bad_arguments_give_a_one_line_error_and_write_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_coco30k_refuses_too_few_captions_before_anything_is_painted(
    captions: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "InceptionFeatures", ColourFeatures)
    monkeypatch.setattr(ColourFeatures, "dim", 6)
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
    monkeypatch.setattr(ColourFeatures, "dim", 3)
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert "KID's subsets are of 2 to 6 of the captions, got 1000; give another --kid-size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sweep_writes_a_report_and_retries_failed_captions(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "sweep", "--model", str(tiny_model), "--out", str(tmp_path), "--samplers", "ddim"]
    assert run([*command, "--numbers", "1,2", "--scenes", "2", "--seeds", "2", *ONE_PROCESS]) == 0
    output = capsys.readouterr().out
    assert output.startswith("2 cells; if their time is not known yet, two work units are timed first\n")
    # the two timed units are all there is
    assert re.search(r"\n0 pictures to paint, 0 calls .*, about 0:00:00\n", output)
    assert re.search(
        r"\n8 pictures to paint, (8|16) calls of the decoder's network, about .*, about 0:\d\d:\d\d\n", output
    )
    assert "linear-prior is left out" in output and "\nguidance: " in output
    report, protocol = (json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in ("report", "protocol"))
    assert len(report["cells"]) == 2 and len(report["around"]) == 5 and report["guidance_scale"] in (1, 2, 3, 4, 6)
    assert [*protocol["cells"]][:2] == ["ddim-1", "ddim-2"] and len(protocol["cells"]) == 6
    assert str(tiny_model) not in json.dumps(protocol)
    (tmp_path / "ddim-1" / "pictures" / "0001-0.png").unlink()
    record = {"id": "0001-0", "error": "poison", "tries": 3}
    (tmp_path / "ddim-1" / "failed-1-of-1.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    command += ["--numbers", "1,2", "--scenes", "2", "--seeds", "2", *ONE_PROCESS]
    for retry, lost in (([], ["0001-0"]), (["--retry"], [])):
        assert run([*command, *retry]) == 0
        assert json.loads((tmp_path / "protocol.json").read_text("utf-8"))["failed"]["ddim-1"] == lost


def test_the_command_offers_every_resizing() -> None:
    assert tuple(RESIZINGS) == RESIZES

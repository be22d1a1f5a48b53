"""`kandinsky22 batch`: formats, failing lines, resuming, shards, and the same bytes however it is painted."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kandinsky22 import img2img, text2img
from kandinsky22.backends.fake import DEFAULTS, Fake
from kandinsky22.backends.run_folder import seed_of
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.cli import batch
from kandinsky22.cli.app import run
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Request

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds; a program that takes longer hangs


class RetrainedFake(Fake):
    """The fake with other weights."""

    def describe(self, request: Request) -> dict[str, Any]:
        return {**super().describe(request), "weights": {"fake": "1"}}


def install(monkeypatch: pytest.MonkeyPatch, backend: Fake) -> None:
    """Replace every model by a fake one."""

    @contextmanager
    def start_painter(options: Mapping[str, Any], requests: Sequence[Request] = ()) -> Iterator[UnitPainter]:
        yield UnitPainter(backend, batch=options.get("batch", 8))

    monkeypatch.setattr(batch, "start_painter", start_painter)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder, and a fake in the place of every model."""
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, Fake())
    return tmp_path


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def pictures(folder: Path) -> dict[str, str]:
    """The hashes of the pictures in a folder, by name."""
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def request(path: str) -> Request:
    return read_recipe(path).request


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.txt", "a ring\n\na star\r\n"),
        ("r.jsonl", '"a ring"\n\n{"prompt": "a star"}\n'),
        ("r.csv", "prompt,seed\na ring,\n,\na star,\n"),
    ],
)
def test_each_format_gives_one_picture_a_line(fake: Path, name: str, text: str) -> None:
    Path(name).write_text(text, "utf-8")
    assert run(["batch", name, "-o", "out"]) == 0
    numbers = ("00002", "00004") if name == "r.csv" else ("00001", "00003")
    assert sorted(pictures(Path("out"))) == [*numbers]
    for number, prompt in zip(numbers, ("a ring", "a star"), strict=True):
        seed = seed_of(0, number)
        assert request(f"out/{number}.png") == text2img(prompt, seed=seed).resolved(DEFAULTS)


def test_sizes_are_width_x_height_on_the_command_line_and_in_a_line(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.jsonl").write_text(lines("a ring", {"prompt": "a star", "size": "64x192"}, {"prompt": "a", "size": "1,2"}))
    assert run(["batch", "r.jsonl", "-o", "out", "--size", "192x64"]) != 0
    sizes = [(request(f"out/{n}.png").width, request(f"out/{n}.png").height) for n in ("00001", "00002")]
    assert sizes == [(192, 64), (64, 192)]
    assert "size: '1,2' is not a size; write width x height, such as 1x2" in "".join(capsys.readouterr())


def test_lines_give_options_names_and_tasks(fake: Path) -> None:
    (fake / "sub").mkdir()
    Image.new("RGB", (64, 64), "red").save("sub/cat.png")
    stored = img2img("a ring", image="sub/cat.png", strength=0.25, seed=5)
    options = {"prompt": "a ring", "negative_prompt": "a star", "guidance_interval": [0.1, 0.9], "name": "ring.png"}
    Path("sub/r.jsonl").write_text(
        lines(
            {**options, "num_images": 2, "seed": 7, "height": 128},
            {"task": "img2img", "prompt": "a ring", "image": "cat.png", "strength": 0.25, "seed": 5},
            {"task": "interpolate", "images_and_prompts": ["a ring", "cat.png"], "weights": [1, 2], "seed": 1},
            {**json.loads(stored.to_json()), "name": "stored"},
        )
    )
    assert run(["batch", "sub/r.jsonl", "-o", "out", "--steps", "9", "--seed", "4"]) == 0
    assert sorted(pictures(Path("out"))) == ["00002", "00003", "ring-1", "ring-2", "stored"]
    first, second = request("out/ring-1.png"), request("out/ring-2.png")
    assert (first.seed, second.seed, first.height, first.decoder.steps) == (7, 8, 128, 9)
    assert first.decoder.guidance_interval == (0.1, 0.9) and first.texts == ("a ring", "a star")
    assert request("out/stored.png") == stored.resolved(DEFAULTS)  # takes no options from the command line
    assert request("out/00002.png").start == stored.start
    assert request("out/00003.png").condition.weights == (1, 2)  # type: ignore[union-attr]
    Path("r.csv").write_text('task,images_and_prompts,"weights",paste_back\ninterpolate,a ring|a star,"1,2",\n')
    assert run(["batch", "r.csv", "-o", "csv"]) == 0
    assert request("csv/00002.png").texts == ("a ring", "a star")


def test_lines_that_are_no_requests_are_listed_and_the_others_are_painted(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: dict[str, str] = {
        '{"prompt": "a", "height": "tall"}': "height: 'tall' is not a whole number",
        '{"prompt": "a", "height": 7}': "height must be a whole number from 64 up",
        '{"prompt": "a", "colour": 1}': "text2img has no option 'colour'",
        '{"task": "sing"}': "there is no task 'sing'",
        '{"task": "img2img", "prompt": "a"}': "img2img needs 'image'",
        '{"task": "img2img", "prompt": "a", "image": "gone.png"}': "gone.png does not exist",
        '{"prompt": {"text": "a"}}': 'prompt cannot be {"text": "a"}',
        '{"prompt": "a", "name": "../a"}': "cannot name a file",
        '{"prompt": "a", "name": "00012"}': "",
        '{"prompt": "a"': "delimiter",
        "[1]": "a request is a prompt or an object with options, got [1]",
        '"a ring"': "line 9 has the same name, '00012'",
        '{"condition": {"picture": {"name": "gone.png", "height": 64, "width": 64, "sha256": "0"}}}': "put it there",
        '{"condition": 5}': "",
    }
    Path("r.jsonl").write_text("\n".join(bad))
    assert run(["batch", "r.jsonl", "-o", "out", "-q"]) == 1
    output = capsys.readouterr()
    errors = output.err.splitlines()
    numbers = [number for number in range(1, 15) if number != 9]
    assert [line.partition(": ")[0] for line in errors[:-1]] == [f"r.jsonl, line {number}" for number in numbers]
    assert all(list(bad.values())[number - 1] in line for number, line in zip(numbers, errors, strict=False))
    assert errors[-1] == "13 of 14 lines failed" and output.out == ""
    assert [*pictures(Path("out"))] == ["00012"]


def test_a_line_that_fails_costs_no_other_its_picture(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.txt").write_text("a ring\n" + "fail\n" * 12 + "a star\n")
    assert run(["batch", "r.txt", "-o", "out", "--batch", "3"]) == 1
    output = capsys.readouterr()
    assert sorted(pictures(Path("out"))) == ["00001", "00014"]
    assert "2 of 14 pictures are in out; 2 of them painted now" in output.out
    assert "r.txt, line 2: it was asked to fail" in output.err and "12 of 14 lines failed" in output.err
    records = [json.loads(line) for line in Path("out/failed-1-of-1.jsonl").read_text().splitlines()]
    assert {record["id"] for record in records} == {f"{k:05}" for k in range(2, 14)}
    assert run(["batch", "r.txt", "-o", "out", "--batch", "3"]) == 1  # nothing is tried again
    assert Path("out/failed-1-of-1.jsonl").read_text().count("\n") == 12
    assert run(["batch", "r.txt", "-o", "out", "--batch", "3", "--retry"]) == 1
    assert Path("out/failed-1-of-1.jsonl").read_text().count("\n") == 24


def test_a_run_refuses_another_file_batch_size_options_and_weights(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.txt").write_text("a ring\na star\n")
    Path("other.txt").write_text("a ring\na cross\n")
    assert run(["batch", "r.txt", "-o", "out"]) == run(["batch", "r.txt", "-o", "out"]) == 0
    before = pictures(Path("out"))
    for arguments, name in (
        (["other.txt"], "file.sha256"),
        (["r.txt", "--batch", "2"], "batch 8, and now it is 2"),
        (["r.txt", "--steps", "9"], "defaults.num_inference_steps nothing, and now it is 9"),
        (["r.txt", "--seed", "1"], "seed 0, and now it is 1"),
    ):
        assert run(["batch", *arguments, "-o", "out"]) == 2
        assert f"out was created with {name}" in capsys.readouterr().err
    install(monkeypatch, RetrainedFake())
    assert run(["batch", "r.txt", "-o", "out"]) == 2
    assert 'weights.decoder.fake "0", and now it is "1"; give another folder' in capsys.readouterr().err
    assert pictures(Path("out")) == before


def test_shards_divide_the_work_units_of_one_folder(fake: Path) -> None:
    Path("r.txt").write_text("".join(f"{k} rings\n" for k in range(10)))
    command = ["batch", "r.txt", "--batch", "3", "-q", "-o"]
    assert run([*command, "alone"]) == 0
    assert run([*command, "out", "--shard", "2/2"]) == 0
    assert sorted(pictures(Path("out"))) == ["00004", "00005", "00006", "00010"]
    assert run([*command, "out", "--shard", "1/2"]) == 0
    assert pictures(Path("out")) == pictures(Path("alone"))


def test_a_picture_that_is_missing_is_painted_again_with_its_work_unit(fake: Path) -> None:
    Path("r.jsonl").write_text(lines("a ring", {"prompt": "a star", "num_images": 3}, "a cross"))
    assert run(["batch", "r.jsonl", "-o", "out", "--batch", "2"]) == 0
    before = pictures(Path("out"))
    Path("out/00002-2.png").unlink()
    assert run(["batch", "r.jsonl", "-o", "out", "--batch", "2"]) == 0
    records = [json.loads(line) for line in Path("out/log-1-of-1.jsonl").read_text().splitlines()]
    assert pictures(Path("out")) == before == {record["id"]: record["sha256"] for record in records}
    assert len(records) == 5 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out"], "takes one file of requests, got 0"),
        (["r.txt"], "needs --output"),
        (["gone.txt", "-o", "out"], "cannot read gone.txt: No such file"),
        (["r.txt", "-o", "out", "--shard", "3/2"], "there is no shard 3 of 2"),
        (["r.txt", "-o", "out", "--batch", "0"], "'0' is not a whole number from 1 up"),
        (["r.md", "-o", "out"], "requests are read from .jsonl, .csv, .txt files, got 'r.md'"),
        (["empty.txt", "-o", "out"], "empty.txt holds no requests"),
        (["latin.txt", "-o", "out"], "latin.txt is not UTF-8"),
        (["torn.csv", "-o", "out"], "torn.csv, line 2, cannot be read"),
    ],
)
def test_a_bad_command_gives_one_sentence_and_writes_nothing(
    fake: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in {
        "r.txt": b"a ring\n",
        "r.md": b"a ring\n",
        "empty.txt": b" \n\n",
        "latin.txt": b"caf\xe9\n",
        "torn.csv": b'prompt\n"a ring',
    }.items():
        Path(name).write_bytes(content)
    assert run(["batch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("out").exists()


def test_a_killed_run_of_two_processes_ends_with_the_bytes_of_one(tiny_model: Path, tmp_path: Path) -> None:
    """kill -9 of the command when its first picture is there; its processes end with it."""
    file = tmp_path / "r.jsonl"
    file.write_text(lines(*(f"{k} red circles" for k in range(10)), {"prompt": "a star", "num_images": 2}))
    command = ["batch", str(file), "--model", str(tiny_model), "--batch", "2", "--threads", "1", "-q"]
    assert run([*command, "-o", str(tmp_path / "one"), "--processes", "1"]) == 0
    out = tmp_path / "two"
    program = [sys.executable, "-m", "kandinsky22", *command, "-o", str(out), "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(program, env=environment) as started:
        end = time.monotonic() + TIMEOUT
        while not pictures(out) and started.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        started.kill()
    assert 0 < len(pictures(out)) < 12
    subprocess.run(program, env=environment, check=True, timeout=TIMEOUT)
    assert len(pictures(out)) == 12 and pictures(out) == pictures(tmp_path / "one")

"""A file from a stranger gives no orders: neither to `replay`, nor to the terminal on which its texts are printed."""

import ast
import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from kandinsky22.cli.app import run
from kandinsky22.cli.evaluation_progress import progress_reporter
from kandinsky22.cli.terminal import Terminal
from kandinsky22.console import echo, printable, text_column
from kandinsky22.files import MAX_DEPTH
from kandinsky22.request import Picture
from kandinsky22.request.events import Notice, Started
from kandinsky22.request.tasks import text2img
from tests.hostile.pictures import CONTROLS, png_of_size, write_recipe
from tests.models_on_disk import write_tiny_model

Capture = pytest.CaptureFixture[str]
SRC = Path(__file__).parents[2] / "src" / "kandinsky22"
MARKUP = "holiday[/b].png"  # a file in a folder, which rich reads as the end of a tag
FEW_STEPS = {"prior": {"steps": 1}, "decoder": {"steps": 1}}
AUDITED = """
import sys
events = []
sys.addaudithook(lambda name, arguments: events.append((name, str(arguments[:1]))))
from kandinsky22.cli.app import run
status = run(sys.argv[1:])
print(status, sum(name.startswith("socket.getaddrinfo") or name == "socket.connect" for name, _ in events),
      sum(name == "open" and "passwd" in file for name, file in events))
"""


def assert_no_controls(text: str) -> None:
    """Raises `AssertionError` for anything but printable characters and the ends of lines."""
    assert printable(text.replace("\n", "")) == text.replace("\n", ""), ascii(text)


def audited(*arguments: str) -> tuple[list[int], str]:
    """Exit status, connections, and files named passwd that were opened by a command in its own process; its stderr."""
    done = subprocess.run([sys.executable, "-c", AUDITED, *arguments], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.splitlines()[-1].split()], done.stderr


def test_replay_fetches_no_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    hostile = write_recipe(tmp_path / "hostile.png", {"model": "kandinsky-2.2"})
    (status, connections, _), err = audited("replay", str(hostile))
    assert (status, connections) == (2, 0) and len(err.splitlines()) == 1
    assert "kandinsky-2.2 painted the picture and is not on this machine; allow fetching it: --model kandinsky-2" in err


@pytest.mark.parametrize("model", ["/etc/passwd", "~/secret", "../model", "model", "owner/repository", "\x1b[2J"])
def test_replay_opens_no_folder_that_a_picture_names(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Not even where there is one of that name."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model")
    write_recipe(tmp_path / "hostile.png", {"model": model})
    assert run(["replay", "hostile.png"]) == 2
    err = capsys.readouterr().err
    assert "pass its folder with --model" in err and len(err.splitlines()) == 1
    assert_no_controls(err)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "passwd", "..\\passwd", "a/passwd.png", "\x00"])
def test_replay_opens_no_path_that_a_picture_names(name: str, tmp_path: Path) -> None:
    """Files of these names are there, in the folder of the picture too."""
    (tmp_path / "a").mkdir()
    for path in ("passwd", "a/passwd.png"):
        (tmp_path / path).write_bytes(png_of_size(64, 64))
    picture = Picture.of(tmp_path / "passwd").to_dict() | {"name": name}
    hostile = write_recipe(tmp_path / "hostile.png", {"condition": {"picture": picture}})
    (status, connections, opened), err = audited("replay", str(hostile))
    assert (status, connections, opened) == (2, 0, 0)
    assert "pass it with --picture FILE" in err and len(err.splitlines()) == 1


def test_replay_paints_from_a_picture_beside_the_file(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "cat.png").write_bytes(png_of_size(64, 64))
    condition = {"picture": Picture.of(tmp_path / "cat.png").to_dict()}
    mine = write_recipe(tmp_path / "mine.png", {"condition": condition, **FEW_STEPS})
    assert run(["replay", str(mine), "--model", str(tiny_model), "-o", str(tmp_path / "out"), "-q"]) in (0, 1)
    assert "mine.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "made_by",
    [
        {"batch": {"index": 0, "of": 5000}},
        {"batch": {"index": True, "of": 10**18}},
        {"threads": True, "dtype": CONTROLS, "device": CONTROLS},
        {CONTROLS: CONTROLS, "weights": {CONTROLS: {CONTROLS: [CONTROLS]}}},
    ],
)
def test_replay_is_not_controlled_by_made_by(
    made_by: dict[str, Any], tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A batch that no request may have is painted alone, and what is strange is printed as a difference."""
    hostile = write_recipe(tmp_path / "hostile.png", FEW_STEPS, made_by)
    assert run(["replay", str(hostile), "--model", str(tiny_model), "-o", str(tmp_path / "out"), "-q"]) == 0
    out, err = capsys.readouterr()
    assert " then, " in out
    assert_no_controls(out + err)


def test_replay_refuses_a_request_of_another_size(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    hostile = write_recipe(tmp_path / "hostile.png", {"height": 8192, "width": 8192})
    assert run(["replay", str(hostile), "--model", str(tiny_model)]) == 2
    assert "has another size than its request" in capsys.readouterr().err


def test_show_prints_no_control_characters(tmp_path: Path, capsys: Capture) -> None:
    """Of prompts, names of pictures, models, and the keys and values of `made_by`."""
    picture = {"sha256": CONTROLS, "height": 64, "width": 64, "name": CONTROLS}
    request = {"condition": {"prompt": CONTROLS}, "hint": {"picture": picture}, "model": CONTROLS}
    hostile = write_recipe(tmp_path / "hostile.png", request, {CONTROLS: {CONTROLS: CONTROLS}})
    for command in (["show"], ["show", "--json"]):
        assert run([*command, str(hostile)]) == 0
        out, err = capsys.readouterr()
        assert_no_controls(out + err)
        assert "owned" in out
    assert json.loads(out)["made_by"] == {CONTROLS: {CONTROLS: CONTROLS}}


def test_words_prints_no_control_characters(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    path = model / "decoder" / "kandinsky22.json"
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(values | {"words": {CONTROLS: [CONTROLS]}, "examples": [CONTROLS]}), "utf-8")
    assert run(["words", "--model", str(model)]) == 0
    out, err = capsys.readouterr()
    assert_no_controls(out + err)
    assert "owned" in out


@pytest.mark.parametrize("name", [f"a{CONTROLS}.png", MARKUP])
def test_names_of_files_print_no_control_characters(name: str, tmp_path: Path, capsys: Capture) -> None:
    """In the messages of every command that reads a picture, and in the names of what is written."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no picture")
    path = str(tmp_path / name)
    for command in (["show"], ["replay"], ["variations"], ["embed"], ["depth"], ["img2img", "x", "--image"]):
        assert run([*command, path]) == 2
        out, err = capsys.readouterr()
        assert name[:1] in err and len(err.splitlines()) == 1
        assert_no_controls(out + err)


def test_options_of_any_text_print_no_control_characters(capsys: Capture) -> None:
    for option in ("--model", "--device", "--dtype", "--sampler", "--speed", "--steps", "--aspect", f"--{CONTROLS}"):
        assert run(["x", option, CONTROLS]) == 2
        assert_no_controls(capsys.readouterr().err)


def test_a_painting_is_announced_without_control_characters() -> None:
    """In a terminal, with markup that is none of ours."""
    request = text2img(f"a[/b] {CONTROLS}", seed=1, height=64, width=64, num_inference_steps=1)
    written = StringIO()
    console = Console(file=written, width=200, force_terminal=False)
    with Terminal(console) as terminal:
        terminal.show(Started(request, process=1))
        terminal.show(Notice(f"b[/b] {CONTROLS}"))
    assert_no_controls(written.getvalue())
    assert "a[/b]" in written.getvalue() and "b[/b]" in written.getvalue()


def test_progress_bars_show_names_as_they_are() -> None:
    """Neither markup nor control characters of a name are carried out."""
    written = StringIO()
    with Progress(text_column("{task.description}"), console=Console(file=written, width=200)) as bars:
        bars.add_task(MARKUP, total=1)
        bars.add_task(CONTROLS, total=1)
    assert MARKUP in written.getvalue()
    assert_no_controls(written.getvalue())


def test_progress_of_an_evaluation_takes_any_name() -> None:
    with progress_reporter() as report:
        report(f"{MARKUP}{CONTROLS}", 1, 1)


def test_training_reports_broken_pictures_without_control_characters(tmp_path: Path) -> None:
    """The real command, with pictures of hostile names; in a process of its own, whose console is a pipe."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.png").write_bytes(png_of_size(128, 128))
        (photos / f"{i}.txt").write_text("a picture")
    for name in (f"a{CONTROLS}.png", MARKUP):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"broken")
        (photos / name).with_suffix(".txt").write_text("a caption")
    command = ["train", "movq", "--folder", str(tmp_path / "run"), "--data", str(photos), "--device", "cpu"]
    command += ["--steps", "1", "--batch", "1"]
    done = subprocess.run([sys.executable, "-m", "kandinsky22", *command], capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "2 broken" in " ".join(out.split()) and MARKUP in out and "owned" in out, (out, err)
    assert_no_controls(out + err)


def test_echo_escapes_control_characters(capsys: Capture) -> None:
    echo(CONTROLS)
    echo(CONTROLS, error=True, start="\r", end="")
    out, err = capsys.readouterr()
    assert out == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x7f\\u202e\\r\\n\n" and err == "\r" + out[:-1]


def test_only_echo_prints() -> None:
    """So that nothing is printed unescaped."""
    printing = [
        path.name
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == ["console.py"]


def test_no_column_of_progress_bars_reads_markup() -> None:
    """Only terminal.py uses rich's own column, for the names of our stages."""
    importing = [
        path.name
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn"
    ]
    assert importing == ["terminal.py"]


def test_the_deepest_recipe_is_shown(tmp_path: Path, capsys: Capture) -> None:
    for depth, status in ((MAX_DEPTH - 2, 0), (MAX_DEPTH - 1, 2)):
        nested: Any = "x"
        for _ in range(depth):
            nested = {"a": nested}
        recipe = write_recipe(tmp_path / "deep.png", made_by={"a": nested})
        assert run(["show", "--json", str(recipe)]) == status == run(["show", str(recipe)])
    assert capsys.readouterr().err.count("it is nested too deeply") == 2

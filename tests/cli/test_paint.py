"""What a task prints and writes, on a fake backend: lines, previews, file names, and errors."""

import errno
import io
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from rich.console import Console

from kandinsky22.backends.fake import DEFAULTS
from kandinsky22.cli import terminal
from kandinsky22.cli.app import run
from kandinsky22.cli.terminal import HalfBlocks, Terminal
from kandinsky22.imaging.images import Painting, read_recipe, sheet
from kandinsky22.request.events import Progress, stream
from kandinsky22.request.tasks import text2img
from tests.cli.fake_backend import FakeBackend, files

ARGUMENTS = ["three red circles", "--seed", "7", "-n", "2"]
PATHS = ["out/three-red-circles-7.png", "out/three-red-circles-8.png"]
SHEET = "out/three-red-circles-7-sheet.png"


def test_plain_lines_are_printed_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeBackend(notices=("a notice",)).install(monkeypatch, tmp_path)
    assert run(ARGUMENTS) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == PATHS
    assert err.splitlines() == [
        'painting "three red circles", 64x64, seeds 7 to 8',
        "a notice",
        "prior: 2 steps",
        "decoder: 2 steps",
        "painted in 0.0 s",
    ]
    assert files(tmp_path) == sorted(PATHS)


def test_quiet_prints_only_the_paths(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ARGUMENTS, "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == PATHS


def test_saved_pictures_contain_their_requests(backend: FakeBackend) -> None:
    assert run(ARGUMENTS) == 0
    request = text2img("three red circles", seed=7, num_images=2).resolved(DEFAULTS)
    for k in range(2):
        assert read_recipe(PATHS[k]).request == request.for_image(k)


@pytest.mark.parametrize(
    ("typed", "terminal", "expected"),
    [
        ([], True, True),
        ([], False, False),
        (["--sheet"], False, True),
        (["--no-sheet"], True, False),
        (["-q"], True, False),
        (["-o", "cat.png"], True, False),
        (["-n", "1"], True, False),
    ],
)
def test_a_sheet_is_written_where_it_helps_or_is_asked_for(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, typed: list[str], terminal: bool, expected: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert run([*ARGUMENTS, *typed]) == 0
    assert any("sheet" in str(path) for path in Path().rglob("*.png")) == expected


def test_a_sheet_contains_the_request_of_all_its_pictures(backend: FakeBackend) -> None:
    assert run([*ARGUMENTS, "--sheet"]) == 0
    recipe = read_recipe(SHEET)
    assert recipe.request == text2img("three red circles", seed=7, num_images=2).resolved(DEFAULTS)
    assert recipe.layout == {"kind": "sheet", "pictures": 2}


@pytest.mark.parametrize("name", ["cat.JPG", "cat.webp"])
def test_other_formats_contain_the_request_and_their_name_stays(backend: FakeBackend, name: str) -> None:
    assert run(["a star", "--seed", "7", "-q", "-o", name]) == 0
    assert read_recipe(name).request == text2img("a star", seed=7).resolved(DEFAULTS)


def test_a_picture_is_written_to_standard_output(
    backend: FakeBackend, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(["a star", "--seed", "7", "-o", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert Painting.from_png(out).request == text2img("a star", seed=7).resolved(DEFAULTS)
    assert b"painted in" in err and files(tmp_path) == []
    assert run([*ARGUMENTS, "-o", "-"]) == 2
    assert b"writes one picture, and there are 2" in capfdbinary.readouterr().err


def test_a_name_that_is_taken_by_another_picture_is_reported(
    backend: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    for prompt in ("a star", "a circle"):
        assert run([prompt, "--seed", "7", "-q", "-o", "cat.png"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["cat.png", "cat-2.png"]
    assert err == "cat.png is another picture, which stays; this one is cat-2.png\n"


def test_other_pictures_are_never_overwritten(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a star!", "--seed", "7", "-q"]) == run(["a star!", "--seed", "7", "-q"]) == 0
    path = "out/a-star-7.png"
    assert capsys.readouterr().out.splitlines() == [path] * 2
    before = Path(path).read_bytes()
    assert run(["a star?", "--seed", "7", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/a-star-7-2.png"]
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        (["a", "-o", "deep/er"], ["deep/er/a-7.png"]),
        (["a", "-o", "cat.png"], ["cat.png"]),
        (["a", "-o", "some/cat.PNG", "-n", "2"], ["some/cat-7.PNG", "some/cat-8.PNG"]),
        (["a", "--size", "512"], ["out/a-7.png"]),
        (["///"], ["out/picture-7.png"]),
        (["Красный круг, 画"], ["out/красный-круг-画-7.png"]),
        (["画" * 300], [f"out/{'画' * 40}-7.png"]),
    ],
)
def test_file_names_contain_prompt_and_seed(
    backend: FakeBackend, capsys: pytest.CaptureFixture[str], typed: list[str], written: list[str]
) -> None:
    assert run([*typed, "--seed", "7", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == written


def test_contact_sheet_shows_pictures_enlarged_side_by_side() -> None:
    page = sheet([Image.new("RGB", (64, 64), color) for color in ("red", "blue")], ["seed 1", "seed 2"])
    assert page.width == 2 * 512 + 3 * 24
    assert (page.getpixel((24 + 256, 200)), page.getpixel((2 * 24 + 512 + 256, 200))) == ((255, 0, 0), (0, 0, 255))
    assert sum(page.crop((0, 24 + 512, page.width, page.height)).convert("L").histogram()[:200]) > 100  # the labels
    assert sheet([Image.new("RGB", (1024, 512))] * 9, ["a"] * 9).width < 2200


def test_interrupt_prints_one_line_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeBackend(error=KeyboardInterrupt()).install(monkeypatch, tmp_path)
    assert run(ARGUMENTS) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "kandinsky22: stopped; the files written so far are complete"
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory."),
    ],
)
def test_out_of_memory_error_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    FakeBackend(error=error).install(monkeypatch, tmp_path)
    assert run(ARGUMENTS) == 2
    assert "ask for fewer or smaller pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bug", [KeyError("x"), RuntimeError("shapes do not match"), TypeError("x"), ZeroDivisionError()]
)
def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bug: Exception) -> None:
    FakeBackend(error=bug).install(monkeypatch, tmp_path)
    with pytest.raises(type(bug)):
        run(ARGUMENTS)


def test_full_disk_leaves_existing_files_unchanged(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["three red circles", "--seed", "7"]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    capsys.readouterr()

    def save(_: Image.Image, file: Any, *__: Any, **___: Any) -> None:
        Path(file).write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    assert run(ARGUMENTS) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; choose another place with --output" in last
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_long_run_prints_the_remaining_time_after_three_seconds_and_every_ten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 4))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    view = terminal.display()
    for i in range(1, 11):
        view.show(Progress("decoder", i, 10))
    assert capsys.readouterr().err.splitlines() == [
        "decoder: step 2 of 10, about 32 s left",
        "decoder: step 5 of 10, about 20 s left",
        "decoder: step 8 of 10, about 8 s left",
        "decoder: 10 steps",
    ]


def console(color: Literal["standard", "truecolor"] = "truecolor") -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=color, width=80, height=40, _environ={})


def printed(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_half_blocks_have_the_colours_of_the_pixels() -> None:
    image = Image.new("RGB", (2, 3))
    pixels = [(10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120), (130, 140, 150), (160, 170, 180)]
    for i, pixel in enumerate(pixels):
        image.putpixel((i % 2, i // 2), pixel)
    output = console()
    output.print(HalfBlocks([image]))
    rows = printed(output).splitlines()
    assert rows[0].count("▀") == rows[1].count("▀") == 2 and len(rows) == 2
    assert "38;2;10;20;30;48;2;70;80;90" in rows[0] and "38;2;40;50;60;48;2;100;110;120" in rows[0]
    assert "38;2;130;140;150m" in rows[1] and "48;2" not in rows[1]


def test_half_blocks_fit_the_terminal_and_are_never_enlarged() -> None:
    for count, size in ((1, (64, 64)), (1, (512, 512)), (3, (512, 256)), (9, (64, 640))):
        output = console()
        output.print(HalfBlocks([Image.new("RGB", size)] * count))
        rows = [line.count("▀") + line.count("  ") for line in printed(output).splitlines()]
        assert max(rows) <= 80 and len(rows) <= 32
    assert printed(output).splitlines()[0].count("▀") < 64


def test_terminal_shows_previews_and_pictures_and_escapes_control_characters() -> None:
    output = console()
    with Terminal(output) as view:
        request = text2img("a \x1b[31mstar", seed=7, num_images=2)
        for event in stream(FakeBackend(notices=("a \x1b[2Jnotice",)), request, view.preview):
            view.show(event)
    text = printed(output)
    assert 'painting "a \\x1b[31mstar", 64x64, seeds 7 to 8' in text  # control characters of the prompt are escaped
    assert "a \\x1b[2Jnotice" in text
    assert "38;2;7;49;90" in text and "38;2;8;56;90" in text  # both pictures remain
    assert text.rindex("▀") > text.rindex("decoder")


def test_terminal_without_colours_shows_only_bars() -> None:
    output = console("standard")
    with Terminal(output) as view:
        assert view.preview is None
        for event in stream(FakeBackend(), text2img("a star", seed=7), view.preview):
            view.show(event)
    assert "▀" not in printed(output) and "decoder" in printed(output)

"""Picture files from outside: decoders that run programs are never reached, and special files are never waited for."""

import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from kandinsky22 import pipelines
from kandinsky22.cli.app import run
from kandinsky22.evaluation.reference import find_pictures, sizes_of
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request.limits import MAX_PIXELS
from kandinsky22.request.picture import Picture
from kandinsky22.request.picture_file import FORMATS, WEB_FORMATS, open_picture, read_picture
from kandinsky22.training.photos import decoded_size, read_sources
from kandinsky22.training.sources import Source
from tests.hostile.pictures import EPS, png_header, png_of_size, special_files

SRC = Path(__file__).parents[2] / "src" / "kandinsky22"
READERS: dict[str, Callable[[Path], object]] = {
    "a request": Picture.of,
    "bytes": lambda path: Picture.of(path.read_bytes()),
    "a pipeline": lambda path: pipelines.load_image(str(path)),
    "a recipe": read_recipe,
    "an evaluation": lambda path: sizes_of({path.name: path}),
}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a fake Ghostscript, first on the PATH, would create."""
    marker = tmp_path / "ghostscript-ran"
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("gs", "gswin32c", "gswin64c", "djpeg"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return marker


def test_the_marker_shows_that_pillow_alone_runs_ghostscript(marker: Path) -> None:
    """So the tests below would notice it. In a process of its own, since Pillow remembers whether there is one."""
    code = f"import io; from PIL import Image; Image.open(io.BytesIO({EPS!r})).load()"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert marker.exists()


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_an_eps_named_png_starts_no_program(reader: Callable[[Path], object], marker: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(EPS)
    with pytest.raises(ValueError, match=r"cannot (read|be read)|pictures cannot be read"):
        reader(tmp_path / "cat.png")
    assert not marker.exists()


def test_training_starts_no_program_for_an_eps_named_png(marker: Path, tmp_path: Path) -> None:
    assert decoded_size(EPS) is None and not marker.exists()


def test_only_one_module_opens_pictures() -> None:
    users = [path.name for path in SRC.rglob("*.py") if "Image.open(" in path.read_text("utf-8")]
    assert users == ["picture_file.py"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_format_is_read(kind: str) -> None:
    file = BytesIO()
    Image.new("RGB", (32, 16), (200, 100, 50)).save(file, kind)
    assert read_picture(file.getvalue()).size == (32, 16)
    assert Picture.of(file.getvalue()).rgb.size == (32, 16)


def test_callers_may_allow_fewer_formats() -> None:
    file = BytesIO()
    Image.new("RGB", (32, 16)).save(file, "GIF")
    with pytest.raises(ValueError, match="these bytes: it is not a complete picture"):
        read_picture(file.getvalue(), formats=WEB_FORMATS)


@pytest.mark.parametrize("reader", ["a request", "a pipeline", "a recipe", "an evaluation"])
def test_pipes_and_devices_are_refused_at_once(reader: str, tmp_path: Path) -> None:
    for path in special_files(tmp_path):
        with pytest.raises(ValueError, match=r"a pipe or a device|pictures cannot be read"):
            READERS[reader](path)


def test_training_skips_pipes_and_devices(tmp_path: Path) -> None:
    """As pictures, as captions, and as a tar."""
    for i in range(3):
        (tmp_path / f"good-{i}.png").write_bytes(png_of_size(64, 64))
        (tmp_path / f"good-{i}.txt").write_text("a picture")
    for path in special_files(tmp_path):
        path.with_suffix(".txt").write_text("a caption")
        path.with_suffix(".tar").symlink_to(path)
    (tmp_path / "good-0.txt").unlink()
    (tmp_path / "good-0.txt").symlink_to("/dev/zero")
    *_, report = read_sources([Source(tmp_path)], 64)
    assert (report.total, report.used) == (5, 2)
    assert report.skipped == {"broken": 2, "without a readable caption": 1} and len(report.damaged) == 2


def test_training_refuses_metadata_that_is_a_pipe(tmp_path: Path) -> None:
    pipe, _ = special_files(tmp_path)
    pipe.rename(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"metadata.jsonl cannot be read"):
        read_sources([Source(tmp_path)], 64)


def test_evaluation_counts_a_picture_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(13_000, 13_000))
    with pytest.raises(ValueError, match="1 of 1 pictures cannot be read"):
        sizes_of(find_pictures(tmp_path), decode=False)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((13_000, 13_000), "has at most 8192x8192 pixels; make it smaller"),
        ((60_000, 60_000), f"more than {MAX_PIXELS} pixels"),  # Pillow refuses these itself
        ((1, 300_000), "one side is at most 64 times the other; crop it"),
    ],
)
@pytest.mark.parametrize("option", ["variations", "image", "mask", "hint"])
def test_sizes_are_refused_on_the_header(
    size: tuple[int, int], reason: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a model is loaded: its name is wrong, which is no error yet."""
    (tmp_path / "large.png").write_bytes(png_header(*size))
    (tmp_path / "small.png").write_bytes(png_of_size(64, 64))
    large, small = str(tmp_path / "large.png"), str(tmp_path / "small.png")
    command: Sequence[str] = {
        "variations": ["variations", large],
        "image": ["img2img", "a cat", "--image", large],
        "mask": ["inpaint", "a cat", "--image", small, "--mask-image", large],
        "hint": ["controlnet", "a cat", "--hint", large],
    }[option]
    assert run([*command, "--model", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "large.png" in err and reason in err and len(err.splitlines()) == 1


def test_a_large_jpeg_is_decoded_at_half_its_size(tmp_path: Path) -> None:
    """The header of a small JPEG is patched to 100 megapixels; what its decoder is told shows in the size."""
    file = BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (8700).to_bytes(2, "big") + (11_600).to_bytes(2, "big")
    with open_picture(bytes(data)) as image:
        assert image.size == (5800, 4350)


def test_orientation_and_digest_of_a_file_and_of_its_image_are_equal(tmp_path: Path) -> None:
    image = Image.effect_noise((600, 301), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as opened:
        assert Picture.of(opened) == Picture.of(tmp_path / "photo.png")
    assert (Picture.of(tmp_path / "photo.png").height, Picture.of(tmp_path / "photo.png").width) == (600, 301)


def test_damaged_pictures_are_refused_in_one_sentence_and_nothing_is_printed_beside_it(tmp_path: Path) -> None:
    """libavif's decoder raises RuntimeError, and Pillow logs what is wrong with a TIFF."""
    path = tmp_path / "damaged"
    damaged = []
    for kind, start in (("AVIF", -200), ("TIFF", 0)):
        Image.linear_gradient("L").convert("RGB").save(path, kind)
        content = bytearray(path.read_bytes())
        if kind == "AVIF":
            content[start:] = bytes(-start)
        else:
            at = content.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
            content[at + 8 : at + 10] = struct.pack("<H", 802)
        damaged.append(bytes(content))
    for content in damaged:
        path.write_bytes(content)
        code = "import sys; from kandinsky22.cli.app import main; main()"
        command = [sys.executable, "-c", code, "variations", str(path), "--model", "nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (
            done.returncode == 2 and done.stderr == f"kandinsky22: cannot read {path}: it is not a complete picture\n"
        )

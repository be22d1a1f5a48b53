"""Numbers and headers that ask for too much are refused at once; what is accepted needs the memory that is stated."""

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22 import pipelines
from kandinsky22.cli.app import run
from kandinsky22.imaging.masks import feathered
from kandinsky22.request import Embedding, interpolation, limits
from kandinsky22.request.picture import Picture
from kandinsky22.request.request import Request
from kandinsky22.request.tasks import inpaint, interpolate, outpaint, text2img
from tests.hostile import refusals
from tests.hostile.pictures import png_header, png_of_size

MEBIBYTE = 2**20
READING = 1200 * MEBIBYTE  # docs/security.md: of reading a picture
PER_PIXEL = 48  # docs/security.md: bytes of a repainted picture's pixel, beside the networks

MEASURE = """
import resource, sys
import numpy, PIL.Image
from kandinsky22.cli.app import run
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""


def bytes_of(code: str, *arguments: str) -> int:
    """The peak memory of code above that of its imports, measured in a process of its own. The code prints it last."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.fixture
def cat(tmp_path: Path) -> str:
    (tmp_path / "cat.png").write_bytes(png_of_size(64, 64))
    return str(tmp_path / "cat.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x", "--width", "100000"], "width must be at most 65536, got 100000"),
        (["x", "--width", "99999999999999999999"], "width must be at most 65536"),
        (["x", "--size", "9000x9000"], "the picture to paint is 9000x9000, and it has at most 8192x8192 pixels"),
        (["x", "--size", "64x65000"], "one side is at most 64 times the other"),
        (["x", "--steps", "1000000000"], "steps must be a whole number from 1 to 1000"),
        (["x", "--seed", "9" * 20], "seed must be a whole number from 0"),
        (["x", "--seed", "9" * 5000], "is too large; give a number of fewer digits"),
        (["x", "--guidance-scale", "9" * 400], "guidance_scale must be 0 or more"),
        (["x", "--aspect", "9" * 9000], "aspect must be width:height"),
        (["x", "-n", "1000000000"], "num_images must be at most 256, got 1000000000"),
        (["x" * 200_000], "the characters of a prompt must be at most 100000"),
        (
            ["outpaint", "x", "--image", "CAT", "--right", "10000000"],
            "the picture with what is added to it is 10000064x64",
        ),
        (["outpaint", "x", "--image", "CAT", "--right", "9000", "--top", "9000"], "has at most 8192x8192 pixels"),
        (["inpaint", "x", "--image", "CAT", "--mask-image", "CAT", "--feather", "10000000"], "feather must be at most"),
        (["interpolate", *["x"] * 1000], "the parts of a mix must be at most 64"),
        (["strip", "a", "b", "--frames", "1000000000"], "frames must be at most 2048, got 1000000000"),
        (["film", "a", "b", "--frames", "1000000000"], "frames must be at most 2048, got 1000000000"),
        (["film", "a", "b", "--frames", "9" * 5000], "is too large; give a number of fewer digits"),
        (["doctor", "--size", "100000x100000"], "height must be at most 65536"),
    ],
)
def test_commands_are_refused_in_one_sentence_before_the_model_is_looked_for(
    arguments: Sequence[str], sentence: str, cat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*(cat if word == "CAT" else word for word in arguments), "--model", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.splitlines()) == 1 and len(err) < 3000


def test_refused_commands_need_no_memory(tmp_path: Path, cat: str) -> None:
    (tmp_path / "large.png").write_bytes(png_header(13_000, 13_000))
    (tmp_path / "long.png").write_bytes(png_header(1, 300_000))
    code = """
cat, large, long = sys.argv[1:]
model = ["--model", "nowhere"]
run(["img2img", "x", "--image", cat, "--strength", "7", *model])
before = peak()
for command in (
    ["variations", large], ["variations", long], ["outpaint", "x", "--image", cat, "--right", "10000000"],
    ["inpaint", "x", "--image", cat, "--mask-image", cat, "--feather", "10000000"],
    ["x", "-n", "1000000000"], ["x", "--size", "60000x60000"], ["film", "a", "b", "--frames", "1000000000"],
):
    assert run([*command, *model]) == 2
print(peak() - before)
"""
    assert bytes_of(code, cat, str(tmp_path / "large.png"), str(tmp_path / "long.png")) < 20 * MEBIBYTE


def test_refusals_of_what_asks_for_gigabytes_need_neither_memory_nor_time() -> None:
    measured = refusals.measure(*refusals.CASES)
    assert measured.bytes < 20 * MEBIBYTE and measured.seconds < 30
    refused = [message for message in measured.messages if message]
    assert len(refused) == 10 and all(len(message) < 500 and "\n" not in message for message in refused)


def write_progressive(path: Path) -> None:
    """A JPEG whose decoder keeps the coefficients of the whole picture. Black, so that it is a small file."""
    file = BytesIO()
    Image.new("RGB", (8192, 8192)).save(file, "JPEG", progressive=True, subsampling=0)
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize("kind", ["16 bits", "progressive"])
def test_the_largest_pictures_need_the_memory_that_is_stated(kind: str, tmp_path: Path) -> None:
    if kind == "16 bits":
        (tmp_path / "large").write_bytes(png_of_size(8192, 8192, bits=16, colour=0))
    else:
        write_progressive(tmp_path / "large")
    code = """
from kandinsky22.request.picture import Picture
before = peak()
assert Picture.of(sys.argv[1]).rgb.size == (8192, 8192)
print(peak() - before)
"""
    assert bytes_of(code, str(tmp_path / "large")) < 1.5 * READING


def test_repainting_needs_the_memory_that_is_stated() -> None:
    code = """
from kandinsky22.imaging.canvas import Canvas
from kandinsky22.request import Defaults, Sampling
from kandinsky22.request.tasks import outpaint
sampling = Sampling(sampler="ddim", steps=1, guidance_scale=1)
image = PIL.Image.new("RGB", (2048, 3000))
request = outpaint("x", image=image, right=1024, feather=16, seed=1)
request = request.resolved(Defaults(height=128, width=128, prior=sampling, decoder=sampling))
before = peak()
canvas = Canvas.of(request, (128, 128))
canvas.cut(PIL.Image.new("RGB", canvas.size[::-1]))
print(peak() - before)
"""
    assert bytes_of(code) < 1.5 * PER_PIXEL * 3072 * 3008


def test_arrays_are_refused_by_their_shape() -> None:
    """Arrays of one number that claim to be large, which a conversion would lay out."""
    one = np.zeros(1, np.float32)
    for shape, reason in (((20_000, 20_000), "at most 8192x8192"), ((1, 300_000), "64 times the other")):
        with pytest.raises(ValueError, match=reason):
            Picture.of(np.broadcast_to(one, shape))


def test_references_to_pictures_are_refused_by_their_size() -> None:
    for height, width in ((10**9, 10**9), (0, 5), (-3, 5)):
        with pytest.raises(ValueError, match=r"has at most|64 times|has no pixels"):
            Picture.from_dict({"sha256": "0" * 32, "height": height, "width": width})


def test_requests_from_json_have_the_same_limits() -> None:
    plain = text2img("x", seed=1).to_json()
    for value in ('"num_images": 5000', '"height": 1e9', '"height": 100000', '"seed": ' + "9" * 4000):
        with pytest.raises(ValueError, match="must be"):
            Request.from_json(plain[:-1] + f", {value}}}")


def test_what_is_possible_stays_possible() -> None:
    """The largest of each limit is no error."""
    image = Image.new("L", (64, 64))
    side = round(limits.MAX_PIXELS**0.5)
    text2img("x", height=side, width=side, num_images=limits.MAX_IMAGES)
    text2img("x", height=limits.MAX_SIDE // limits.MAX_ASPECT, width=limits.MAX_SIDE)
    text2img("x" * limits.MAX_PROMPT)
    outpaint("x", image=image, right=side // 2, bottom=side // 2)
    inpaint("x", image=image, mask_image=image, feather=limits.MAX_FEATHER)
    interpolate(["x"] * limits.MAX_PARTS)
    ends = [Embedding.of([1.0, 2.0], "a"), Embedding.of([2.0, 1.0], "a")]
    assert len(interpolation.embeddings(ends, limits.MAX_FRAMES)) == limits.MAX_FRAMES


def test_interpolations_have_a_limit() -> None:
    ends = [Embedding.of([1.0, 2.0], "a"), Embedding.of([2.0, 1.0], "a")]
    with pytest.raises(ValueError, match="frames must be at most 2048"):
        interpolation.embeddings(ends, 10**9)


def test_pipelines_have_the_same_limits(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(13_000, 13_000))
    with pytest.raises(ValueError, match="at most 8192x8192 pixels"):
        pipelines.load_image(str(tmp_path / "large.png"))


def test_feathers_wider_than_an_area_are_those_of_the_area() -> None:
    """The deepest point is found after as many steps as the area is deep, so more change nothing."""
    area = np.zeros((40, 60), np.float32)
    area[10:30, 5:50] = 1
    area[3, 3] = 1
    assert (feathered(area, 256) == feathered(area, 100)).all()
    assert feathered(area, 256)[3, 3] == 1

"""Small inputs that ask for gigabytes or minutes: the memory and time that their refusal takes.

python -m tests.hostile.refusals      # the table of docs/security.md, each in a process of its own
"""

import contextlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kandinsky22.checkpoints.locate import part_folders
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.checkpoints.weight_files import tensor_shapes
from kandinsky22.cli.app import run
from kandinsky22.evaluation import captions, reference
from kandinsky22.imaging import infotext
from kandinsky22.pipelines import KandinskyV22PriorPipeline
from kandinsky22.request import Picture
from kandinsky22.training import checkpoints
from kandinsky22.training.loop import Training
from kandinsky22.training.run import run as train
from kandinsky22.training.sources import find_pictures
from tests.hostile.corpus import array_header, compressed, endless_metadata, npz, pickled
from tests.hostile.pictures import png_header, png_of_size, write_recipe
from tests.models_on_disk import write_tiny_model
from tests.training.known import RECIPE, line_fit

MEBIBYTE = 2**20
PRIOR_CONFIG, UNET_CONFIG = "prior/text_encoder/config.json", "decoder/unet/config.json"


class Case(NamedTuple):
    """Something that is refused: `write` makes a valid input and a hostile one in a folder, `use` uses either."""

    write: Callable[[Path, bool], object]
    use: Callable[[Path], object]


def command(*line: str) -> Callable[[Path], None]:
    """Runs a command line, in which CAT is a picture and FOLDER the folder."""

    def use(folder: Path) -> None:
        words = [word.replace("CAT", str(folder / "cat.png")).replace("FOLDER", str(folder)) for word in line]
        number = "10" if folder.name == "valid" else "1000000000"
        with contextlib.redirect_stderr(io.StringIO()):
            assert run([*(word.replace("NUMBER", number) for word in words), "--model", "nowhere"]) == 2

    return use


def picture(folder: Path, hostile: bool, content: bytes = b"") -> None:
    (folder / "cat.png").write_bytes(content if hostile else png_of_size(64, 64))


def model(name: str, change: Mapping[str, Any]) -> Callable[[Path, bool], None]:
    """Writes a model, in one of whose JSON files values are changed."""

    def write(folder: Path, hostile: bool) -> None:
        write_tiny_model(folder / "model")
        if hostile:
            path = folder / "model" / name
            path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


def read_model(folder: Path) -> None:
    stored = StoredModel(part_folders(str(folder / "model")))
    stored.prior.image_processor()


def write_bin(folder: Path, hostile: bool) -> None:
    (folder / "model.bin").write_bytes(pickled(torch.zeros(1).expand(2**31) if hostile else torch.zeros(4)))


def write_npz(folder: Path, hostile: bool) -> None:
    numbers = np.zeros((20_000, 20_000) if hostile else (2, 2))
    valid = io.BytesIO()
    np.savez(valid, mu=np.zeros(2), sigma=np.eye(2))
    zeros = array_header(numbers.shape) + bytes(8 * 2**20)
    (folder / "statistics.npz").write_bytes(npz(mu=zeros, sigma=zeros) if hostile else valid.getvalue())


def write_folder(folder: Path, hostile: bool) -> None:
    (folder / "a.png").write_bytes(png_of_size(8, 8))
    if hostile:
        for name in ("a.txt", "a.json", "b.png"):
            (folder / name).symlink_to("/dev/zero")
        for name in ("c.png", "c.txt"):
            os.mkfifo(folder / name)
    else:
        (folder / "a.txt").write_text("a ring")


def read_folder(folder: Path) -> None:
    for found in find_pictures(folder).pictures:
        found.describe()
        with contextlib.suppress(ValueError):
            Picture.of(found.picture.read(2**20))


def write_pipe(folder: Path, hostile: bool) -> None:
    path = folder / "captions.txt"
    os.mkfifo(path) if hostile else path.write_text("a ring\n")


def write_run(folder: Path, hostile: bool) -> None:
    for _ in train(Training(*line_fit(width=1000), RECIPE, steps=1), folder, every=1):
        pass
    if hostile:  # every tensor is one archive, which unpacks to 256 MiB
        packed = compressed(pickled(torch.zeros(2**26)))
        (shard,) = folder.glob("checkpoints/*/*.distcp")
        shard.write_bytes(packed)
        described = pickle.loads((shard.parent / ".metadata").read_bytes())
        for place in described.storage_data.values():
            place.offset, place.length = 0, len(packed)
        (shard.parent / ".metadata").write_bytes(pickle.dumps(described))


def write_metadata(folder: Path, hostile: bool) -> None:
    write_run(folder, False)
    if hostile:
        (path,) = folder.glob("checkpoints/*/.metadata")
        path.write_bytes(endless_metadata()["a number of 2^28 for an object"])


def resume(folder: Path) -> None:
    checkpoints.load(Training(*line_fit(width=1000), RECIPE, steps=1), folder)


def paint_many(folder: Path) -> None:
    pipeline = KandinskyV22PriorPipeline.from_pretrained(folder / "model" / "prior")
    pipeline("a ring", num_images_per_prompt=1 if folder.name == "valid" else 10**9, num_inference_steps=1)


CASES: Mapping[str, Case] = {
    "`outpaint --right 1000000000`": Case(picture, command("outpaint", "x", "--image", "CAT", "--right", "NUMBER")),
    "`inpaint --feather 1000000000`": Case(
        picture, command("inpaint", "x", "--image", "CAT", "--mask-image", "CAT", "--feather", "NUMBER")
    ),
    "`strip --frames 1000000000`": Case(picture, command("strip", "a", "b", "--frames", "NUMBER")),
    "a PNG of 13000 x 13000": Case(
        lambda folder, hostile: picture(folder, hostile, png_header(13_000, 13_000)), command("variations", "CAT")
    ),
    "a PNG of 1 x 300000": Case(
        lambda folder, hostile: picture(folder, hostile, png_header(1, 300_000)), command("variations", "CAT")
    ),
    "a picture painted in a batch of 5000 (`replay`)": Case(
        lambda folder, hostile: write_recipe(
            folder / "cat.png", made_by={"batch": {"index": 0, "of": 5000 if hostile else 1}}
        ),
        command("replay", "CAT"),
    ),
    "a configuration with `num_hidden_layers` 10^9": Case(
        model(PRIOR_CONFIG, {"num_hidden_layers": 10**9}), read_model
    ),
    "with `num_train_timesteps` 10^9": Case(
        model("decoder/scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}), read_model
    ),
    "with `sample_size` 10^9": Case(model(UNET_CONFIG, {"sample_size": 10**9}), read_model),
    "with `size` 10^9 of CLIP's pictures": Case(
        model("prior/image_processor/preprocessor_config.json", {"size": 10**9}), read_model
    ),
    "a `.bin` of 1 kB with stride 0": Case(write_bin, lambda folder: tensor_shapes(folder / "model.bin")),
    "an `.npz` that declares 20000 x 20000": Case(write_npz, lambda folder: reference.load(folder / "statistics.npz")),
    "a compressed shard of a checkpoint": Case(write_run, resume),
    "metadata of a checkpoint that numbers an object 2^28": Case(write_metadata, resume),
    "a data folder with /dev/zero and pipes": Case(write_folder, read_folder),
    "a pipe as a file of captions": Case(write_pipe, lambda folder: captions.read(folder / "captions.txt")),
    "a picture's parameters with a name of 10^5 letters": Case(
        lambda folder, hostile: (folder / "text").write_text("Steps: 1, " + "a" * (100_000 if hostile else 10)),
        lambda folder: infotext.parse((folder / "text").read_text()),
    ),
    "a pipeline's `num_images_per_prompt` 10^9": Case(model(UNET_CONFIG, {}), paint_many),
}


class Measured(NamedTuple):
    """What refusals took together, and their messages; "" for one that a command printed, or for files left out."""

    bytes: int
    seconds: float
    messages: list[str]


def measure(*names: str) -> Measured:
    """Use valid inputs and then hostile ones, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            for kind in ("valid", "hostile"):
                place = Path(folder) / str(number) / kind
                place.mkdir(parents=True)
                CASES[name].write(place, kind == "hostile")
        line = [sys.executable, "-m", "tests.hostile.refusals", folder, *names]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def use_all(folder: Path, names: Sequence[str]) -> Measured:
    """What using the hostile inputs takes after the valid ones were used, in this process."""
    torch.set_num_threads(1)
    for number, name in enumerate(names):
        CASES[name].use(folder / str(number) / "valid")
    before, start, messages = peak(), time.process_time(), []
    for number, name in enumerate(names):
        try:
            CASES[name].use(folder / str(number) / "hostile")
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return Measured(peak() - before, time.process_time() - start, messages)


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(use_all(Path(sys.argv[1]), sys.argv[2:])._asdict()))
    else:
        print("| what | MB | seconds of a core |\n|---|---|---|")
        for case in CASES:
            measured = measure(case)
            print(f"| {case} | {measured.bytes / 1e6:.1f} | {measured.seconds:.2f} |", flush=True)

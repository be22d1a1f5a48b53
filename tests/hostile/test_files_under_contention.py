"""Several processes and threads write to one folder: every picture is there afterwards, and each is whole."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22.arrays import write_rows
from kandinsky22.checkpoints import single_file
from kandinsky22.checkpoints.json_files import write_json
from kandinsky22.cli import output
from kandinsky22.evaluation import reference, report
from kandinsky22.files import numbered, write_first_free
from kandinsky22.imaging.images import Painting, read_recipe, save_film, save_image
from kandinsky22.request import Embedding, Request, Text
from kandinsky22.training import run
from kandinsky22.training.metrics import Metrics, StepMetrics
from tests.hostile.paint_program import PICTURES, paint

ROOT = Path(__file__).parents[2]
PROCESSES = 4


def colour(path: Path) -> Any:
    with Image.open(path) as image:
        return image.getpixel((0, 0))


def assert_nothing_is_lost(folder: Path, paths: list[Path]) -> None:
    count = PROCESSES * PICTURES
    assert len(set(paths)) == count and sorted(paths) == sorted(folder.iterdir())
    colours = {read_recipe(path).request.decoder.guidance_scale: colour(path) for path in paths}
    assert colours == {1 + p + k / 100: (p, k, 0) for p in range(PROCESSES) for k in range(PICTURES)}


def own_namespace() -> list[str]:
    """What runs a program with the process id 1, as a container does, where this system allows it."""
    command = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    allowed = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if allowed else []


def test_processes_that_paint_one_prompt_and_seed_lose_no_picture(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}
    command = [*own_namespace(), sys.executable, "-m", "tests.hostile.paint_program", str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    paths: list[Path] = []
    with ExitStack() as ended:
        painters = [ended.enter_context(subprocess.Popen([*command, str(n)], **pipes)) for n in range(PROCESSES)]
        for painter in painters:
            assert painter.stdin is not None
            painter.stdin.write("go\n")
            painter.stdin.flush()
        for painter in painters:
            printed, _ = painter.communicate()
            assert painter.returncode == 0
            paths += map(Path, printed.splitlines())
    assert_nothing_is_lost(tmp_path, paths)


def test_threads_that_paint_one_prompt_and_seed_lose_no_picture(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(paint, tmp_path, p, k) for k in range(PICTURES) for p in range(PROCESSES)]
        paths = [job.result() for job in jobs]
    assert_nothing_is_lost(tmp_path, paths)


def test_threads_that_paint_the_same_picture_write_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: paint(tmp_path, 0, 0), range(16)))
    assert set(paths) == set(tmp_path.iterdir()) and len(set(paths)) == 1


def test_threads_that_save_embeddings_sheets_and_films_overwrite_none(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(8)]

    def save(k: int) -> list[Path]:
        embedding = Embedding.of([float(k)], "encoder")
        return [
            write_first_free(numbered(tmp_path / "a.safetensors"), lambda path: embedding.save(path, exclusive=True)),
            output.save_new_image(frames[k], tmp_path / "sheet.png"),
            write_first_free(
                numbered(tmp_path / "film.gif"),
                lambda path: save_film(frames[k:], path, fps=10, loop=True, exclusive=True),
            ),
        ]

    with ThreadPoolExecutor(8) as pool:
        paths = [path for saved in pool.map(save, range(8)) for path in saved]
    assert len(set(paths)) == 24 and set(paths) == set(tmp_path.iterdir())
    assert {Embedding.load(path).vector[0] for path in paths if path.suffix == ".safetensors"} == set(range(8))


# A full disk: the system refuses to write more than some bytes to a file.


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def statistics() -> reference.Statistics:
    source = reference.Source("network", "weights", "clean")
    return reference.Statistics.of(source, [str(k) for k in range(100)], torch.ones(100, 8), [(64, 64)])


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.png": lambda path: Painting(noise(), Request(condition=Text("a")), {}).save(path),
    "sheet.png": lambda path: save_image(noise(), path),
    "film.gif": lambda path: save_film([noise(), noise().rotate(90)], path, fps=10, loop=True),
    "film.apng": lambda path: save_film([noise(), noise().rotate(90)], path, fps=10, loop=True),
    "a.safetensors": lambda path: Embedding.of(np.ones(1000), "encoder").save(path),
    "a.json": lambda path: write_json(path, {"a": "b" * 2000}),
    "statistics.safetensors": lambda path: reference.save(path, statistics()),
    "a.npy": lambda path: write_rows(path, (3, 1000), np.ones((3, 1000), np.uint8)),
    "metrics.jsonl": lambda path: run.write_metrics(
        path.parent, *(Metrics(step=k, steps=500, measured=StepMetrics(0.5)) for k in range(500))
    ),
    "report.html": lambda path: report.write(
        path.parent, report.Report(title="a", summary="", values={}, protocol={"a": "b" * 2000})
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with limit_file_size(1000), pytest.raises((ValueError, OSError)) as error:
        WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"
    assert re.search("(?i)file too large|error", str(error.value)) and "\n" not in str(error.value)
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("target", ["model.safetensors", "model"])
def test_a_conversion_on_a_full_disk_leaves_nothing(target: str, tiny_model: Path, tmp_path: Path) -> None:
    with limit_file_size(20_000), pytest.raises((ValueError, OSError)) as error:
        single_file.convert([str(tiny_model)], tmp_path / target)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_two_conversions_to_one_name_are_one_and_a_refusal(tiny_model: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "model.safetensors", tmp_path / "model"):

        def convert_meanwhile(done: int, total: int, target: Path = target) -> None:
            with suppress(ValueError):
                single_file.convert([str(tiny_model)], target)

        with pytest.raises(ValueError, match="already exists"):
            single_file.convert([str(tiny_model)], target, progress=convert_meanwhile)
        assert single_file.read_model([str(target)]).bytes == single_file.read_model([str(tiny_model)]).bytes
    assert len(list(tmp_path.iterdir())) == 2

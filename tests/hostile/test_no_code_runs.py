"""No file that is read runs code: each is replaced in turn by a pickle that would create a marker file."""

import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kandinsky22 import Embedding, text2img
from kandinsky22.backends import run_state
from kandinsky22.backends.fake import DEFAULTS
from kandinsky22.checkpoints import tensor_cache
from kandinsky22.checkpoints.locate import part_folders
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.checkpoints.safetensors_file import read_header
from kandinsky22.checkpoints.weight_files import tensor_shapes
from kandinsky22.evaluation import inception, reference
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.manifest import Run
from kandinsky22.training import checkpoints, run
from kandinsky22.training.loop import Training
from tests.backends.fakes import MADE_BY
from tests.hostile.corpus import planted_files, planted_metadata, planted_pickle
from tests.training.known import RECIPE, line_fit

CPU = torch.device("cpu")
KINDS = ("pickle", "torch", "npy", "npz")
Use = Callable[[Path], object]


def train(folder: Path) -> None:
    for _ in run.run(Training(*line_fit(), RECIPE, steps=4), folder, every=2):
        pass


def resume(folder: Path) -> None:
    run.resume(Training(*line_fit(), RECIPE, steps=4), folder)
    checkpoints.settings(folder)


def evaluate(folder: Path) -> None:
    template = text2img("", seed=0).resolved(DEFAULTS)
    Run.create_or_open(folder, Captions((Captioned("a", "a ring"),), "abc"), template, MADE_BY, batch=1)
    for name in ("log-1-of-1.jsonl", "failed-1-of-1.jsonl"):
        (folder / name).write_text('{"id": "a"}\n')


def read_evaluation(folder: Path) -> None:
    opened = Run.open(folder)
    run_state.logged(opened)
    run_state.failed(opened)


def read_model(folder: Path) -> None:
    model = StoredModel(part_folders(str(folder)))
    decoders = [model.decoder(kind) for kind in model.folders if kind != "prior"]
    networks = [model.prior.image_encoder, *model.prior.networks.values()]
    for network in networks + [one for decoder in decoders for one in decoder.networks.values()]:
        network.load(torch.float32, CPU)
    model.prior.image_processor()
    model.prior.zero_image_embed()


def with_each_file_replaced(original: Path, copy: Path, content: bytes) -> Iterator[Path]:
    """A copy of a folder for every file in it, with the content of that file replaced."""
    for path in sorted(path for path in original.rglob("*") if path.is_file()):
        target = copy / path.relative_to(original)
        target.write_bytes(content)
        yield target
        shutil.copy2(path, target)


def test_the_planted_pickle_runs_code_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(planted_pickle(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(("write", "use"), [(train, resume), (evaluate, read_evaluation)])
def test_no_file_of_a_run_or_an_evaluation_runs_code(tmp_path: Path, write: Use, use: Use) -> None:
    original, copy, marker = (tmp_path / name for name in ("original", "copy", "marker"))
    write(original)
    shutil.copytree(original, copy)
    count = 0
    for path in with_each_file_replaced(original, copy, planted_pickle(marker)):
        with contextlib.suppress(ValueError):
            use(copy)
        assert not marker.exists(), path
        count += 1
    assert count >= 4
    use(copy)


def test_no_file_of_a_model_runs_code(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    copy, marker = tmp_path / "copy", tmp_path / "marker"
    original = shutil.copytree(tiny_model, tmp_path / "original", ignore=shutil.ignore_patterns("*-inpaint", "*-depth"))
    shutil.copytree(original, copy)
    for path in with_each_file_replaced(original, copy, planted_pickle(marker)):
        with contextlib.suppress(ValueError):
            read_model(copy)
        assert not marker.exists(), path
    read_model(copy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("model.bin", tensor_shapes),
        ("model.safetensors", tensor_shapes),
        ("model.safetensors", read_header),
        ("model.safetensors.index.json", tensor_shapes),
        ("inception.pth", inception.load),
        ("inception.safetensors", inception.load),
        ("statistics.npz", reference.load),
        ("statistics.safetensors", reference.load),
        ("cat.safetensors", Embedding.load),
    ],
)
def test_no_format_that_is_read_runs_code(tmp_path: Path, name: str, use: Use, kind: str) -> None:
    (tmp_path / name).write_bytes(planted_files(tmp_path / "marker")[kind])
    with pytest.raises(ValueError, match=name):
        use(tmp_path / name)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_cache_runs_no_code(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(planted_files(tmp_path / "marker")[kind])
    assert tensor_cache.read(tmp_path / "a") is None
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["alone", "within", "as bytes"])
def test_metadata_of_a_checkpoint_runs_no_code(tmp_path: Path, kind: str) -> None:
    """ "as bytes" describes a pickle among the shards, which torch's own reader would unpickle."""
    train(tmp_path)
    path = sorted(tmp_path.glob("checkpoints/*/.metadata"))[-1]
    marker = tmp_path / "marker"
    path.write_bytes(planted_metadata(marker, pickle.loads(path.read_bytes()))[kind])
    for shard in path.parent.glob("*.distcp"):
        shard.write_bytes(planted_files(marker)["torch"] * 40)
    with pytest.raises(ValueError, match="is not of this network, or damaged"):
        resume(tmp_path)
    assert not marker.exists()

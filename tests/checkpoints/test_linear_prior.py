"""The linear prior's folder: what it holds, and what is said of one that will not do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models_on_disk import randomise

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.linear_prior import WEIGHTS, save, stored
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig

E, D = 6, 4
CPU = torch.device("cpu")


@pytest.fixture
def prior() -> LinearPrior:
    network = LinearPrior(LinearPriorConfig(text_dim=E, embedding_dim=D))
    randomise(network)
    return network


def test_a_file_holds_it_and_whose_embeddings_it_gives(tmp_path: Path, prior: LinearPrior) -> None:
    save(tmp_path / "here", prior, "text", "vision")
    x = torch.randn(5, E)
    for known in ((), ("text",), ("text", "vision")):
        again = stored(tmp_path / "here", *known).load(torch.float32, CPU)
        assert torch.equal(again(x), prior(x)) and again.config == prior.config
    assert torch.allclose(prior(x), x @ prior.weight.T + prior.bias)
    for other in (("def",), ("text", "def")):
        with pytest.raises(
            CheckpointError, match=f"fitted to the CLIP text vision, and this model's is {' '.join(other)}; fit"
        ):
            stored(tmp_path / "here", *other)


def _half(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _other_size(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace(f'"text_dim": {E}', '"text_dim": 7'), encoding="utf-8")


@pytest.mark.parametrize(("harm", "says"), [(_half, "damaged"), (_other_size, "misshapen weight")])
def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, prior: LinearPrior, harm: Callable[[Path], None], says: str
) -> None:
    with pytest.raises(CheckpointError, match="has no linear prior; fit one with: kandinsky22 train linear-prior"):
        stored(tmp_path / "nowhere")
    save(tmp_path, prior, "abc")
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        stored(tmp_path)

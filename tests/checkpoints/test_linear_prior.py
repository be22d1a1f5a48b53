"""The linear prior's folder: what is saved is loaded, and folders that do not fit are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models_on_disk import randomise

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.linear_prior import WEIGHTS, save, stored_linear_prior
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig

E, D = 6, 4
CPU = torch.device("cpu")


@pytest.fixture
def prior() -> LinearPrior:
    network = LinearPrior(LinearPriorConfig(text_dim=E, embedding_dim=D))
    randomise(network)
    return network


def test_a_saved_linear_prior_is_loaded_for_the_clip_it_was_fitted_to(tmp_path: Path, prior: LinearPrior) -> None:
    save(tmp_path / "prior", prior, "text", "vision")
    x = torch.randn(5, E)
    for known in ((), ("text",), ("text", "vision")):
        loaded = stored_linear_prior(tmp_path / "prior", *known).load(torch.float32, CPU)
        assert torch.equal(loaded(x), prior(x)) and loaded.config == prior.config
    assert torch.allclose(prior(x), x @ prior.weight.T + prior.bias)
    for other in (("def",), ("text", "def")):
        with pytest.raises(
            CheckpointError, match=f"fitted to the CLIP text vision, and this model's is {' '.join(other)}; fit"
        ):
            stored_linear_prior(tmp_path / "prior", *other)


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def change_size(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace(f'"text_dim": {E}', '"text_dim": 7'), encoding="utf-8")


@pytest.mark.parametrize(("damage", "message"), [(truncate, "damaged"), (change_size, "misshapen weight")])
def test_a_missing_or_damaged_folder_is_refused(
    tmp_path: Path, prior: LinearPrior, damage: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match="has no linear prior; fit one with: kandinsky22 train linear-prior"):
        stored_linear_prior(tmp_path / "nowhere")
    save(tmp_path, prior, "abc")
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        stored_linear_prior(tmp_path)

"""A pipeline's parts stand in for a model's folders, and its networks have the attributes that programs read."""

from pathlib import Path

import pytest
import torch

from kandinsky22.checkpoints import components
from kandinsky22.checkpoints.components import PriorParts
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.model import StoredPrior
from kandinsky22.checkpoints.part import KINDS, Part
from kandinsky22.engine.placement import Networks

CPU = torch.device("cpu")
NAMES = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")


@pytest.fixture
def parts(tiny_model: Path) -> dict[str, object]:
    """The parts of a prior's folder."""
    return components.read(tiny_model / "prior", NAMES)


@pytest.mark.parametrize("folder", ["decoder/unet", "decoder/movq", "prior/prior", "prior/text_encoder"])
def test_a_part_takes_the_same_memory_before_and_after_it_is_loaded(tiny_model: Path, folder: str) -> None:
    part = Part(Path(folder).name, tiny_model / folder)
    networks = Networks(CPU, torch.float32)
    before = networks.bytes_to_load([part])
    part.load(torch.float32, CPU)
    assert before == networks.bytes_to_load([part]) >= 4 * part.elements


def test_each_network_has_the_dtype_of_its_weights(tiny_model: Path) -> None:
    for name, folder in {"unet": "decoder", "movq": "decoder", "prior": "prior", "text_encoder": "prior"}.items():
        network = Part(name, tiny_model / folder / name).load(torch.float32, CPU)
        assert isinstance(network, KINDS[name].network) and network.dtype == torch.float32
        assert network.to(torch.bfloat16).dtype == torch.bfloat16


def test_the_parts_of_a_prior_describe_the_same_embeddings_as_its_folder(
    tiny_model: Path, parts: dict[str, object]
) -> None:
    from_parts, stored = PriorParts(**parts), StoredPrior(tiny_model / "prior")  # type: ignore[arg-type]
    assert from_parts.space == stored.space
    assert torch.equal(from_parts.zero_image_embed(), stored.zero_image_embed())
    with pytest.raises(CheckpointError, match=r"a pipeline has no linear prior; load the model with"):
        _ = from_parts.linear_prior


def test_a_network_that_was_passed_in_has_no_fingerprint(parts: dict[str, object]) -> None:
    part = parts["prior"]
    assert isinstance(part, Part)
    with pytest.raises(CheckpointError, match="has no fingerprint; save it, and load its folder"):
        _ = Part.of("prior", part.load(torch.float32, CPU)).fingerprint

"""The table of published files, the names of weight files, and where a model is looked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.catalog import BOX, DECODER, DEPTH, INPAINT, PARTS, PRIOR
from kandinsky22.checkpoints.weight_names import choose_weights

MODEL = "kandinsky-2.2"
UNET, MOVQ = "unet/diffusion_pytorch_model.safetensors", "movq/diffusion_pytorch_model.safetensors"
SIZES = {  # spec, section 0: also what names, shapes and dtypes of the tensors give
    (PRIOR, "prior/diffusion_pytorch_model.safetensors"): 4_104_940_968,
    (PRIOR, "text_encoder/model.safetensors"): 2_778_702_976,
    (PRIOR, "image_encoder/model.safetensors"): 3_689_912_664,
    (DECODER, UNET): 5_012_309_584,
    (INPAINT, UNET): 5_012_378_704,
    (DEPTH, UNET): 5_013_798_992,
    **{(part, MOVQ): 271_380_364 for part in (DECODER, INPAINT, DEPTH)},
}
TOTALS = {PRIOR: 10_574_950_175, DECODER: 5_283_692_840, INPAINT: 5_283_761_968, DEPTH: 5_285_182_263}
"""Of the manifests, without the model cards. A wrong digit in a size would show here."""


def test_the_published_files_are_those_of_the_manifests() -> None:
    repositories = catalog.published()[MODEL]
    assert tuple(repositories) == PARTS
    files = {(part, file.path): file for part, repository in repositories.items() for file in repository.files}
    assert {place: files[place].bytes for place in SIZES} == SIZES
    assert {p: sum(file.bytes for file in r.files) for p, r in repositories.items()} == TOTALS
    assert len({files[part, MOVQ].sha256 for part in (DECODER, INPAINT, DEPTH)}) == 1
    assert len({files[part, UNET].sha256 for part in (DECODER, INPAINT, DEPTH)}) == 3
    for part, repository in repositories.items():
        assert re.fullmatch(r"[0-9a-f]{40}", repository.revision)
        assert repository.name == f"kandinsky-community/kandinsky-2-2-{part}"
        assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "") for file in repository.files)
        assert not any(file.path.endswith(".bin") for file in repository.files)


P, B = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
P16, B16 = "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin"
SHARDED = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
SHARDED_16 = ["model.fp16-00001-of-00002.safetensors", "model-00002-of-00002.fp16.safetensors"]  # both forms exist
INDEX, INDEX_16 = "model.safetensors.index.json", "model.safetensors.index.fp16.json"


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        ([B16, B, P16, P, "config.json"], None, [P]),
        ([B16, B, P16], None, [P16]),
        ([B16, B], None, [B]),
        ([B16], None, [B16]),
        ([B16, B, P16, P], "fp16", [P16]),
        ([B16, B, P], "fp16", [B16]),
        ([B, P], "fp16", [P]),
        (["pytorch_model.bin", "model.safetensors"], None, ["model.safetensors"]),
        (["pytorch_model.bin", "config.json"], None, ["pytorch_model.bin"]),
        ([*SHARDED, INDEX], None, [INDEX, *SHARDED]),
        ([*SHARDED, INDEX, *SHARDED_16, INDEX_16], "fp16", [INDEX_16, *sorted(SHARDED_16)]),
        ([*SHARDED, INDEX, "model.safetensors"], None, ["model.safetensors"]),
        (SHARDED, None, []),
        (["pytorch_model.bin", *SHARDED], None, ["pytorch_model.bin"]),
        (["config.json", "kandinsky.ckpt", "zero_image_embed.safetensors", "my_model.safetensors"], None, []),
    ],
)
def test_one_copy_of_the_weights_is_chosen(names: list[str], variant: str | None, chosen: list[str]) -> None:
    assert choose_weights(names, variant) == chosen
    assert choose_weights(reversed(names), variant) == chosen


def test_part_folders_are_the_ones_that_a_model_has(tiny_model: Path, tmp_path: Path) -> None:
    assert locate.part_folders(str(tiny_model)) == {part: tiny_model / part for part in PARTS}
    assert locate.part_folders(BOX).keys() >= {PRIOR, DECODER}
    with pytest.raises(ValueError, match="has no decoder/ folder; a model is a folder with prior/ and decoder/ in it"):
        locate.part_folders(str(tmp_path))
    with pytest.raises(ValueError, match="there is no model 'nowhere'"):
        locate.part_folders("nowhere")


def test_a_folder_is_preferred_to_the_published_model_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the folder that the suggested `hf download` makes is found under the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL / DECODER).mkdir(parents=True)
    assert locate.part_folders(MODEL) == {DECODER: Path(MODEL, DECODER)}


def test_a_published_image_encoder_is_identified_before_it_is_fetched(tmp_path: Path) -> None:
    """The hub's cache names a folder by its commit, whose files are all known."""
    prior = catalog.published()[MODEL][PRIOR]
    encoder_id = catalog.published_encoder_id(tmp_path / "snapshots" / prior.revision)
    assert encoder_id and any(file.sha256.startswith(encoder_id) for file in prior.files if file.sha256)
    assert catalog.published_encoder_id(tmp_path / catalog.published()[MODEL][DECODER].revision) is None
    assert catalog.published_encoder_id(tmp_path) is None


def test_looking_for_weights_imports_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys; from kandinsky22.checkpoints import catalog, locate, safetensors_file, single_file, verify\n"
        "locate.part_folders('box'); catalog.published(); assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

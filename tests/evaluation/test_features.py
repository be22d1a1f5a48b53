"""Feature networks: CLIP against transformers, preprocessing, identification, and folders that are refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints.json_files import CheckpointError, write_json
from kandinsky22.checkpoints.model import StoredPrior
from kandinsky22.checkpoints.tokenizer import save_tokenizer
from kandinsky22.evaluation import inception
from kandinsky22.evaluation.features import ClipFeatures, Features, InceptionFeatures, without_tf32
from kandinsky22.evaluation.resize import clean, legacy
from kandinsky22.models.tokenizer import learn
from tests.evaluation.test_inception import Weights, empty_weights, shapes
from tests.models_on_disk import randomise

__all__ = ["empty_weights", "shapes"]  # fixtures
torch.set_num_threads(1)
CAPTIONS = ["a red circle", "two blue stars and a much longer caption than there is room for in this little tower"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def picture(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 2e-5 * theirs.abs().max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.CLIPModel]:
    """A small random CLIP saved by transformers, with tokenizer and preprocessor files in the published format."""
    folder = tmp_path_factory.mktemp("clip") / "little-clip"
    tokenizer = learn(CAPTIONS, 600, 16)
    text = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": len(tokenizer.vocab), "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**text, "hidden_size": 36, "num_attention_heads": 3, "image_size": 32, "patch_size": 8},
        projection_dim=20,
    )
    model = transformers.CLIPModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer)
    write_json(
        folder / "preprocessor_config.json",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD},
    )
    return folder, model


@pytest.fixture
def copied(saved: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "clip"))


@torch.no_grad()
def test_clip_from_a_folder_equals_transformers(saved: tuple[Path, transformers.CLIPModel]) -> None:
    folder, model = saved
    clip: Features = ClipFeatures.of_folder(folder)
    images = [picture(), picture(64, 64, seed=1), picture(32, 90, seed=2)]
    squares = [
        image.crop(box) for image, box in zip(images, [(5, 0, 45, 40), (0, 0, 64, 64), (0, 29, 32, 61)], strict=True)
    ]
    pixels = np.stack([np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)) for square in squares]) / 255
    pixel_values = torch.from_numpy(((pixels - MEAN) / STD).transpose(0, 3, 1, 2).copy()).float()
    ours = clip(images)
    assert ours.shape == (3, clip.dim) == (3, 20)
    assert ours.dtype == torch.float32
    assert close(ours, model.get_image_features(pixel_values).pooler_output)

    assert isinstance(clip, ClipFeatures)
    ids = learn(CAPTIONS, 600, 16)(CAPTIONS).ids
    assert close(clip.texts(CAPTIONS), model.get_text_features(ids).pooler_output)


def test_clip_is_identified_by_folder_weights_and_resizing(saved: tuple[Path, Any]) -> None:
    clip = ClipFeatures.of_folder(saved[0])
    assert clip.name == "little-clip"
    assert clip.fingerprint == hashlib.sha256((saved[0] / "model.safetensors").read_bytes()).hexdigest()
    assert clip.resize == "centre crop, CLIP's bicubic to 32"


def test_clip_from_a_folder_accepts_older_config_files(copied: Path) -> None:
    """Keys that are null or unknown, keys left out for transformers' defaults, and a `_dict` that takes precedence."""
    expected = ClipFeatures.of_folder(copied)([picture()])
    config = json.loads((copied / "config.json").read_text())
    vision = config["vision_config"]
    for key in ("hidden_act", "layer_norm_eps", "num_channels", "architectures"):
        vision.pop(key, None)
    config["text_config"] = config["text_config"] | {"architectures": None, "num_hidden_layers": 99}
    config["text_config_dict"] = {"num_hidden_layers": 2}
    config["vision_config_dict"] = None
    write_json(copied / "config.json", config)
    assert torch.equal(ClipFeatures.of_folder(copied)([picture()]), expected)


def test_clip_from_a_folder_accepts_pickled_weights(copied: Path) -> None:
    from safetensors.torch import load_file

    expected = ClipFeatures.of_folder(copied)([picture()])
    values = load_file(copied / "model.safetensors")
    torch.save(values | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert close(ClipFeatures.of_folder(copied)([picture()]), expected)


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / name, json.loads((folder / name).read_text()) | values)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (
        change_json("config.json", model_type="siglip"),
        "model_type is 'siglip', not 'clip'; name a CLIP's folder",
    ),
    "another width": (change_json("config.json", projection_dim=24), r"misshapen \w+_projection.weight"),
    "no configuration": (remove("config.json"), "config.json is missing"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "no vocabulary": (remove("vocab.json"), "vocab.json is missing"),
    "no preprocessor": (remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
    "cut short": (cut, "is damaged or incomplete"),
    "another CLIP's preprocessor": (
        change_json("preprocessor_config.json", size=64, crop_size=64),
        "are not of one CLIP: one has 64 pixels per side and config.json 32",
    ),
    "another CLIP's tokenizer": (
        lambda folder: save_tokenizer(folder, learn(CAPTIONS, 520, 16)),
        r"are not of one CLIP: one has 520 tokens and config.json \d+",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_clip_from_a_folder_refuses_files_that_are_missing_or_do_not_fit(
    change: Callable[[Path], None], message: str, copied: Path
) -> None:
    change(copied)
    with pytest.raises(CheckpointError, match=message):
        ClipFeatures.of_folder(copied)


def test_clip_of_a_model_equals_its_own_towers(tiny_model: Path) -> None:
    stored = StoredPrior(tiny_model / "prior")
    clip = ClipFeatures.of_model(stored)
    square = picture(40, 40)
    cpu = torch.device("cpu")
    with torch.no_grad():
        image_embeds = stored.image_encoder.load(torch.float32, cpu)(stored.image_processor()([square]))
        text_embeds = stored.text_encoder.load(torch.float32, cpu)(stored.tokenizer(["a red circle"]).ids).embed
    assert torch.equal(clip([square]), image_embeds)
    assert close(clip.texts(["a red circle"]), text_embeds)
    assert clip.dim == image_embeds.shape[1]
    assert clip.fingerprint == f"{stored.image_encoder.fingerprint}+{stored.text_encoder.fingerprint}"


@pytest.fixture(scope="module")
def inception_file(empty_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(empty_weights, path)
    return path


@pytest.mark.parametrize(
    ("resize", "crop", "expected"),
    [
        ("clean", True, lambda p: (clean(p.crop((5, 0, 45, 40)), 299) - 128) / 128),
        ("clean", False, lambda p: (clean(p, 299) - 128) / 128),
        ("legacy", True, lambda p: legacy(p.crop((5, 0, 45, 40)), 299) / 255 * 2 - 1),
    ],
)
def test_inception_pixels_are_prepared_as_in_each_project(
    resize: str,
    crop: bool,
    expected: Callable[[Image.Image], Tensor],
    inception_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs: list[Tensor] = []
    features: Features = InceptionFeatures(inception_file, resize, crop=crop)

    def forward(network: Any, pixels: Tensor) -> Tensor:
        inputs.append(pixels)
        return torch.zeros(len(pixels), 2048)

    monkeypatch.setattr(inception.Inception, "forward", forward)
    assert features([picture(), picture(seed=1)]).shape == (2, features.dim)
    assert (inputs[0] - torch.stack([expected(picture()), expected(picture(seed=1))])).abs().max() < 1e-6
    assert features.resize == ("centre crop, " if crop else "") + f"{resize} to 299"
    assert (features.name, len(features.fingerprint)) == ("inception-2015", 64)


def test_inception_refuses_an_unknown_resizing(inception_file: Path) -> None:
    with pytest.raises(ValueError, match="resize must be one of clean, rounded, legacy, got 'lanczos'"):
        InceptionFeatures(inception_file, "lanczos")


def test_without_tf32_switches_it_off_and_restores_the_settings() -> None:
    """On CUDA torch may use TF32, and does for convolutions by default; the settings are restored afterwards."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, True
    try:
        with without_tf32():
            assert not torch.backends.cudnn.allow_tf32 and not products.allow_tf32
        assert torch.backends.cudnn.allow_tf32 and products.allow_tf32
    finally:
        products.allow_tf32 = before

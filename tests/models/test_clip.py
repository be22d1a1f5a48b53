"""The CLIP towers and their image processor, against transformers and the published tensor names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig

DATA = Path(__file__).parents[1] / "data"
# The values of the published text_encoder, image_encoder and preprocessor files, with some keys that are not read.
TEXT = {
    "architectures": ["CLIPTextModelWithProjection"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "pad_token_id": 1,
    "projection_dim": 1280,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1664,
    "image_size": 224,
    "intermediate_size": 8192,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 48,
    "patch_size": 14,
    "projection_dim": 1280,
    "torch_dtype": "float16",
}
PROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 40,
}
SMALL_TEXT = {**TEXT, **SMALL, "vocab_size": 99, "max_position_embeddings": 16}
SMALL_VISION = {**VISION, **SMALL, "image_size": 24, "patch_size": 6}
END = 98


def randomised(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


def nearly_equal(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 2e-5 * theirs.abs().max())


def padded_prompts() -> Tensor:
    """Four rows of ids that end at different positions and are padded from there; the last fills the context."""
    ids = torch.randint(0, END, (4, 16), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((1, 5, 9, 15)):
        ids[row, end:] = END
    return ids


def text_towers(values: dict[str, Any]) -> tuple[CLIPText, nn.Module]:
    ours = randomised(CLIPText(CLIPTextConfig.from_dict(values)))
    config = transformers.CLIPTextConfig.from_dict(json.loads(json.dumps(ours.config.to_dict())))
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("text_encoder", lambda: CLIPText(CLIPTextConfig.from_dict(TEXT))),
        ("image_encoder", lambda: CLIPVision(CLIPVisionConfig.from_dict(VISION))),
    ],
)
def test_full_size_towers_have_the_published_tensors_on_the_meta_device(name: str, build: Any) -> None:
    with torch.device("meta"):
        network = build()
    published = dict(line.split("\t") for line in (DATA / f"keys_{name}.txt").read_text().splitlines())
    assert {key: "x".join(map(str, value.shape)) for key, value in network.state_dict().items()} == published
    assert all(value.is_meta for value in network.state_dict().values())


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "quick_gelu"}, {"eos_token_id": END}])
def test_text_features_equal_those_of_transformers(changes: dict[str, Any]) -> None:
    ours, theirs = text_towers({**SMALL_TEXT, **changes})
    with torch.no_grad():
        features, reference = ours(padded_prompts()), theirs(padded_prompts())
    assert nearly_equal(features.embed, reference.text_embeds)
    assert nearly_equal(features.hidden, reference.last_hidden_state)


def test_cutting_the_padding_leaves_the_text_features_unchanged() -> None:
    network = randomised(CLIPText(CLIPTextConfig.from_dict(SMALL_TEXT)))
    with torch.no_grad():
        full, shortened = network(padded_prompts()[:2]), network(padded_prompts()[:2, :6])
    assert shortened.hidden.shape == (2, 6, 48)
    assert nearly_equal(shortened.embed, full.embed)
    assert nearly_equal(shortened.hidden, full.hidden[:, :6])


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    network = CLIPText(CLIPTextConfig.from_dict(SMALL_TEXT))
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        network(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "quick_gelu"}, {"image_size": 26}])
def test_image_embeddings_equal_those_of_transformers(changes: dict[str, Any]) -> None:
    ours = randomised(CLIPVision(CLIPVisionConfig.from_dict({**SMALL_VISION, **changes})))
    config = transformers.CLIPVisionConfig.from_dict(json.loads(json.dumps(ours.config.to_dict())))
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    side = ours.config.image_size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    pixels[2] = 0  # the pipelines' negative image
    with torch.no_grad():
        assert nearly_equal(ours(pixels), theirs(pixels).image_embeds)


def test_pixels_of_another_size_are_refused() -> None:
    network = CLIPVision(CLIPVisionConfig.from_dict(SMALL_VISION))
    with pytest.raises(ValueError, match=r"\[B, 3, 24, 24\], got \[1, 3, 24, 30\]"):
        network(torch.zeros(1, 3, 24, 30))


def test_gradients_reach_every_parameter() -> None:
    text, vision = CLIPText(CLIPTextConfig.from_dict(SMALL_TEXT)), CLIPVision(CLIPVisionConfig.from_dict(SMALL_VISION))
    (text(padded_prompts()).embed.square().sum() + vision(torch.randn(2, 3, 24, 24)).square().sum()).backward()
    assert all(p.grad is not None for network in (text, vision) for p in network.parameters())


def test_configs_round_trip_the_published_values() -> None:
    """Through our config classes in both directions, and through the files that transformers writes."""
    for published, ours, theirs in (
        (TEXT, CLIPTextConfig, transformers.CLIPTextConfig),
        (VISION, CLIPVisionConfig, transformers.CLIPVisionConfig),
    ):
        config = ours.from_dict(published)
        foreign = {"attention_dropout", "torch_dtype"}
        assert config.to_dict() == {key: value for key, value in published.items() if key not in foreign}
        assert ours.from_dict(config.to_dict()) == config
        assert ours.from_dict(json.loads(theirs.from_dict(config.to_dict()).to_json_string())) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu' or 'quick_gelu', got 'relu'"),
        ({"num_attention_heads": 7}, "must be a multiple of num_attention_heads, got 48 and 7"),
        ({"eos_token_id": 50}, "eos_token_id must be 2 or the largest id, 98, got 50"),
        ({"model_type": "clip_vision_model"}, "model_type is 'clip_vision_model'"),
    ],
)
def test_an_unsupported_text_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPTextConfig.from_dict({**SMALL_TEXT, **changes})


def test_a_config_without_a_required_key_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks image_size"):
        CLIPVisionConfig.from_dict({key: value for key, value in VISION.items() if key != "image_size"})


def varied_pictures() -> list[Image.Image]:
    """Landscape and portrait, grey, three kinds of transparency; larger than, smaller than and equal to the crop."""
    rng = np.random.default_rng(3)

    def noise(height: int, width: int, *channels: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, *channels), dtype=np.uint8))

    palette = noise(70, 41, 3).quantize(16)
    palette.info["transparency"] = 3
    sizes = [noise(*size, 3) for size in ((61, 97), (97, 61), (40, 40), (16, 23), (45, 40), (41, 300))]
    return [*sizes, noise(50, 83), noise(83, 50, 4), noise(45, 70, 2), palette, noise(64, 48).convert("1")]


@pytest.mark.parametrize("sides", [(40, 40), (45, 40), (40, 31)])
def test_processed_pixels_equal_those_of_transformers(sides: tuple[int, int]) -> None:
    values = {**PROCESSOR, "size": sides[0], "crop_size": sides[1]}
    ours = CLIPImageProcessor.from_dict(values)
    theirs = CLIPImageProcessorPil.from_dict(json.loads(json.dumps(ours.to_dict())))
    batch = ours(varied_pictures())
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    for pixels, picture in zip(batch, varied_pictures(), strict=True):
        expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_image_processor_round_trips_the_published_file() -> None:
    processor = CLIPImageProcessor.from_dict(PROCESSOR)
    written = json.loads(json.dumps(processor.to_dict()))
    assert written == {**PROCESSOR, "do_rescale": True, "rescale_factor": 1 / 255}
    newer = json.loads(CLIPImageProcessorPil.from_dict(written).to_json_string())
    assert newer["size"] == {"shortest_edge": 224}
    assert newer["crop_size"] == {"height": 224, "width": 224}
    assert CLIPImageProcessor.from_dict(newer) == processor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is"),
        ({"size": {"height": 224, "width": 224}}, "needs a shorter edge"),
        ({"crop_size": {"height": 224, "width": 200}}, "a square within it"),
        ({"crop_size": 225}, "size 224 and crop_size 225"),
    ],
)
def test_an_unsupported_image_processor_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPImageProcessor.from_dict({**PROCESSOR, **changes})

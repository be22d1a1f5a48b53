"""Previews of latents: like what MoVQ decodes, small, and stored with the MoVQ that they are for."""

import io
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from kandinsky22 import Kandinsky, Request, text2img
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.engine.preview import LatentPreview
from kandinsky22.engine.stages import DecoderStage
from kandinsky22.request.events import Preview

WEIGHT = torch.arange(15.0).reshape(5, 3) / 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latent-preview"


@torch.inference_mode()
def correlation(kandinsky: Kandinsky, request: Request) -> float:
    """Of the preview's colours with the decoded picture's, averaged to cells, for a finished request."""
    request = kandinsky.resolve(request)
    latents = kandinsky.sample(request, kandinsky.embed(request), kandinsky.start_state(request))
    decoder = kandinsky.decoder(DECODER)
    pixels = F.avg_pool2d(decoder.decode(latents), decoder.stored.movq.config.factor)[0]
    preview = decoder.load_latent_preview().pixels(latents[0])
    assert preview.shape == pixels.shape
    return float(torch.corrcoef(torch.stack([preview.flatten(), pixels.flatten()]))[0, 1])


def test_previews_of_the_box_look_like_its_pictures(cache: Path) -> None:
    box = Kandinsky.load()
    for k, prompt in enumerate(("a red circle", "two blue stars over a green square", "a white ring on black")):
        options = {"seed": k, "num_inference_steps": 10, "prior_num_inference_steps": 5}
        assert correlation(box, text2img(prompt, **options)) >= 0.9  # type: ignore[arg-type]


def test_a_map_is_found_again_by_the_fingerprint_of_its_movq(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "map.safetensors"
    LatentPreview(WEIGHT).write(path, "abc")
    found = LatentPreview.read(path, "abc", 4)
    assert found is not None and torch.equal(found.weight, WEIGHT)
    assert LatentPreview.read(path, "another", 4) is None


def test_a_missing_or_broken_file_is_no_map(tmp_path: Path) -> None:
    assert LatentPreview.read(tmp_path / "missing.safetensors", "abc", 4) is None
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    assert LatentPreview.read(tmp_path / "broken.safetensors", "abc", 4) is None
    for number, wrong in enumerate((WEIGHT[:, :2].clone(), WEIGHT[:3].clone(), WEIGHT.half(), WEIGHT * math.inf)):
        LatentPreview(wrong).write(tmp_path / f"{number}.safetensors", "abc")
        assert LatentPreview.read(tmp_path / f"{number}.safetensors", "abc", 4) is None
    save_file({"other": WEIGHT}, tmp_path / "other.safetensors")
    assert LatentPreview.read(tmp_path / "other.safetensors", "abc", 4) is None


def test_pixels_are_the_linear_map_of_each_cell() -> None:
    z = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    colours = LatentPreview(WEIGHT).pixels(z)
    for row in range(2):
        for column in range(3):
            expected = torch.cat([z[:, row, column], torch.ones(1)]) @ WEIGHT
            assert torch.allclose(colours[:, row, column], expected, atol=1e-6)


@pytest.mark.parametrize(("side", "size"), [(100, (12, 6)), (12, (12, 6)), (6, (6, 3))])
def test_a_png_has_a_pixel_per_cell_and_at_most_the_wanted_side(side: int, size: tuple[int, int]) -> None:
    z = torch.full((4, 6, 12), 100.0)
    z[:, :, 6:] *= -1  # far out of range on both sides
    with Image.open(io.BytesIO(LatentPreview(WEIGHT).png(z, side)), formats=("PNG",)) as image:
        assert image.size == size
        assert (image.getpixel((0, 0)), image.getpixel((size[0] - 1, 0))) == ((255,) * 3, (0,) * 3)


def test_a_map_is_fitted_once_for_a_movq(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cached on this machine; another process reads it."""
    stage = Kandinsky.load(tiny_model).decoder(DECODER)
    fitted = stage.load_latent_preview()
    assert [path.stem for path in cache.iterdir()] == [stage.stored.movq.fingerprint]
    monkeypatch.setattr(LatentPreview, "fit", lambda _: pytest.fail("it was fitted again"))
    assert stage.load_latent_preview() is fitted
    again = Kandinsky.load(tiny_model).decoder(DECODER).load_latent_preview()
    assert torch.equal(again.weight, fitted.weight)


def test_a_cache_that_cannot_be_written_only_costs_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(LatentPreview, "fit", classmethod(lambda cls, movq: cls(WEIGHT)))
    assert torch.equal(Kandinsky.load(tiny_model).decoder(DECODER).load_latent_preview().weight, WEIGHT)


def test_nothing_is_fitted_unless_previews_are_asked_for(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(DecoderStage, "load_latent_preview", lambda self: asked.append(self) or LatentPreview(WEIGHT))
    kandinsky = Kandinsky.load(tiny_model)
    request = text2img("a ring", seed=1, num_inference_steps=2, prior_num_inference_steps=2)
    list(kandinsky.stream(request))
    assert asked == []
    list(kandinsky.stream(request, Preview()))
    assert asked

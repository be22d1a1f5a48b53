"""Arguments of pipelines: what is accepted, and what is refused before any network runs."""

import http.server
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22 import pipelines
from kandinsky22.pipelines import (
    AutoPipelineForImage2Image,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    switches,
)
from kandinsky22.pipelines.pixels import repaint_mask
from tests.models_on_disk import DIM
from tests.pipelines.inputs import FEW, embeds, photo, randn, record_networks, seeded, upper_half

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("decoder", {"prompt": "a ring"}, "only the prior takes a prompt"),
    ("decoder", {"generator": [seeded()] * 3, "num_images_per_prompt": 2}, r"1 embeddings, 2 images of each"),
    ("decoder", {"image_embeds": None}, "image_embeds must be given"),
    ("decoder", {"image_embeds": randn(1, DIM + 1)}, r"image_embeds must be \[1, 32\], got \[1, 33\]"),
    ("decoder", {"image_embeds": "a ring"}, "image_embeds must be a tensor"),
    ("decoder", {"negative_image_embeds": randn(2, DIM)}, "negative_image_embeds must be"),
    ("decoder", {"negative_image_embeds": None}, "unless guidance_scale is 1"),
    ("decoder", {"height": 0}, "height must be a whole number"),
    ("decoder", {"width": 64.0}, "width must be a whole number"),
    ("decoder", {"num_inference_steps": 1000}, "ask for fewer steps"),
    ("decoder", {"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 up"),
    ("decoder", {"num_inference_steps": 2.5}, "whole number"),
    ("decoder", {"guidance_scale": "high"}, "guidance_scale must be a number"),
    ("decoder", {"num_images_per_prompt": 0}, "from 1 up"),
    ("decoder", {"latents": randn(1, 4, 8, 16)}, r"latents must be \[1, 4, 8, 8\]"),
    ("decoder", {"generator": [seeded(), seeded()]}, "2 generators for 1 rows"),
    ("decoder", {"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent"),
    ("decoder", {"callback_on_step_end_tensor_inputs": ["mask_image"]}, "not for mask_image"),
    ("img2img", {"image": None}, "image must be given"),
    ("img2img", {"image": "photo.png"}, "a picture must be"),
    ("img2img", {"image": []}, "empty"),
    ("img2img", {"image": randn(1, 5, 64, 64).sigmoid()}, "a picture must be"),
    ("img2img", {"image": randn(1, 3, 64, 64) * 9}, r"must lie in \[-1, 1\]"),
    ("img2img", {"image": randn(1, 4, 8, 16)}, "latents to start from"),
    ("img2img", {"image": [photo(), photo(), photo()]}, "image must be one for all or 1, got 3"),
    ("img2img", {"strength": 0.0}, r"strength must be in \(0, 1\]"),
    ("img2img", {"strength": 1.5}, r"strength must be in \(0, 1\]"),
    ("img2img", {"strength": 0.3}, "leaves none of 2 steps"),
    ("inpaint", {"mask_image": None}, "mask_image must be given"),
    ("inpaint", {"mask_image": np.zeros((64, 64, 3), np.float32)}, "mask's array must be"),
    ("inpaint", {"mask_image": torch.full((64, 64), 255.0)}, r"mask_image must lie in \[0, 1\]"),
    ("inpaint", {"mask_image": [upper_half()] * 3}, "got 3"),
    ("inpaint", {"image": np.zeros((64, 64, 3), np.float32)}, "whole numbers from 0 to 255"),
    ("depth", {"hint": None}, "hint must be given"),
    ("depth", {"hint": randn(1, 3, 32, 32).sigmoid()}, r"hint must be \[B, 3, 64, 64\], got \[3, 32, 32\]; resize it"),
    ("depth", {"hint": randn(3, 3, 64, 64).sigmoid()}, "hint must be one for all or 1, got 3"),
    ("depth", {"hint": photo()}, "hint must be a tensor"),
    ("depth", {"output_type": "latent"}, "output_type must be one of pil, np, pt, got"),
    ("prior", {"prompt": None}, "need as many negative prompts|1 prompts|0 prompts"),
    ("prior", {"prompt": 3}, "a prompt must be a text"),
    ("prior", {"prompt": ("a", "b")}, "a prompt must be a text"),
    ("prior", {"negative_prompt": ["a", "b"]}, "1 prompts need as many negative prompts"),
    ("prior", {"negative_prompt": "a", "generator": [seeded()] * 3}, "1 prompts, 1 negative prompts, 1 of each"),
    ("prior", {"latents": randn(2, DIM)}, r"latents must be \[1, 32\]"),
    ("prior", {"output_type": "pil"}, "output_type must be one of pt, np"),
    ("prior", {"generator": 5}, "generator must be a torch.Generator, got 5"),
    ("decoder", {"generator": 5}, "generator must be a torch.Generator, got 5"),
    ("decoder", {"generator": [None]}, "generator must be a torch.Generator, got None"),
    ("decoder", {"num_images_per_prompt": True}, "whole number from 1 up, got True"),
    ("decoder", {"guidance_scale": True}, "guidance_scale must be a number, got True"),
    ("decoder", {"guidance_scale": float("nan")}, "guidance_scale must be a number, got nan"),
    ("decoder", {"height": np.float32(64)}, "height must be a whole number"),
    ("decoder", {"callback_steps": 0.5}, "callback_steps must be a whole number"),
    ("decoder", {"latents": np.zeros((1, 4, 8, 8))}, "latents must be .*, a tensor; got ndarray"),
    ("decoder", {"latents": torch.full((1, 4, 8, 8), torch.nan)}, "latents must be finite"),
    ("decoder", {"image_embeds": torch.full((1, DIM), torch.inf)}, "image_embeds must be finite"),
    ("decoder", {"image_embeds": torch.zeros(0, DIM)}, "image_embeds must be finite numbers, at least one"),
    ("img2img", {"strength": "half"}, "strength must be a number"),
    ("img2img", {"image": torch.zeros(0, 3, 64, 64)}, "has no pixels"),
    ("img2img", {"image": torch.zeros(1, 3, 0, 64)}, "has no pixels"),
    ("img2img", {"image": Image.new("RGB", (0, 0))}, "has no pixels"),
    ("img2img", {"image": np.zeros((0, 64, 3), np.uint8)}, "has no pixels"),
    ("img2img", {"image": torch.full((1, 4, 8, 8), torch.nan)}, "latents to start from must be finite"),
    ("inpaint", {"mask_image": []}, "the list of masks is empty"),
    ("inpaint", {"mask_image": torch.zeros(0, 64, 64)}, "has no pixels"),
    ("inpaint", {"mask_image": np.zeros((0, 64), np.float32)}, "has no pixels"),
    ("inpaint", {"mask_image": Image.new("L", (0, 0))}, "has no pixels"),
    ("inpaint", {"mask_image": upper_half() * -3}, r"mask_image must lie in \[0, 1\], got -3 to"),
    ("inpaint", {"mask_image": upper_half() * np.nan}, "mask_image must lie in"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), torch.nan)}, "hint must be finite"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), 255.0)}, r"hint must lie in \[0, 1\], .*divide by 255"),
    ("depth", {"hint": torch.full((1, 3, 64, 64), -0.5)}, r"hint must lie in \[0, 1\]"),
    ("depth", {"hint": torch.zeros(0, 3, 64, 64)}, "hint must be finite numbers, at least one"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), REFUSED, ids=range(len(REFUSED)))
def test_wrong_arguments_are_refused_before_any_network_runs(
    name: str, wrong: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    right: dict[str, Any] = {**embeds(), **FEW} if name != "prior" else {"prompt": "a ring", "num_inference_steps": 2}
    right |= {"image": photo(), "strength": 0.5} if name == "img2img" else {}
    right |= {"image": photo(), "mask_image": upper_half()} if name == "inpaint" else {}
    right |= {"hint": randn(1, 3, 64, 64).sigmoid()} if name == "depth" else {}
    pipe = request.getfixturevalue(name)
    with record_networks() as ran:
        with pytest.raises(ValueError, match=message):
            pipe(**right | wrong)
        assert ran == []
        pipe(**right)
        assert ran != []


def test_combined_pipelines_check_the_decoders_arguments_before_the_prior_runs(tiny_model: Path) -> None:
    pipe = AutoPipelineForImage2Image.from_pretrained(tiny_model / "decoder")
    with record_networks() as ran:
        for wrong in ({"strength": 2}, {"output_type": "jpg"}, {"image": [photo()] * 3}, {"height": -1}):
            with pytest.raises(ValueError):
                pipe(**{"prompt": "a ring", "image": photo(), **FEW, "prior_num_inference_steps": 2} | wrong)
        assert ran == []


def test_interpolate_refuses_before_any_network_runs(prior: KandinskyV22PriorPipeline) -> None:
    with record_networks() as ran:
        with pytest.raises(ValueError, match="2 images_and_prompts need as many weights, got 1"):
            prior.interpolate(["a", "b"], [1.0])
        with pytest.raises(ValueError, match="texts, PIL pictures and tensors"):
            prior.interpolate(["a", 3], [1.0, 1.0])
        for parts, weights, message in (
            ([], [], "at least one text or picture"),
            ("a", [1.0], "must be a list"),
            (["a"], 1.0, "need as many weights, got 1.0"),
            (["a"], ["x"], "each of weights must be a number, got 'x'"),
            (["a"], [float("nan")], "each of weights must be a number, got nan"),
            (["a"], [True], "each of weights must be a number, got True"),
            ([randn(3, 32, 32)], [1.0], r"pixels \[1, 3, S, S\]"),
            ([torch.full((1, 3, 32, 32), torch.nan)], [1.0], "finite"),
            (["a", randn(2, 3, 32, 32)], [1.0, 1.0], "one picture each"),
        ):
            with pytest.raises(ValueError, match=message):
                prior.interpolate(parts, weights)
        assert ran == []


def test_emb2emb_refuses_images_that_it_cannot_start_from(tiny_model: Path) -> None:
    pipe = KandinskyV22PriorEmb2EmbPipeline.from_pretrained(tiny_model / "prior")
    with record_networks() as ran:
        for image in (
            [],
            torch.zeros(0, DIM),
            torch.full((1, DIM), torch.nan),
            randn(1, DIM + 1),
            Image.new("L", (0, 0)),
        ):
            with pytest.raises(ValueError, match="image"):
                pipe("a ring", image, strength=0.5)
        assert ran == []


def test_numpy_numbers_give_the_same_result_as_pythons(
    prior: KandinskyV22PriorPipeline, img2img: KandinskyV22Img2ImgPipeline
) -> None:
    """Bit for bit: 0.5, 1.5 and the like are the same numbers in float32."""
    integer: Any
    real: Any
    results = []
    for integer, real in ((int, float), (np.int64, np.float32), (np.uint8, np.float64)):
        few = {"num_inference_steps": integer(2), "num_images_per_prompt": integer(2), "guidance_scale": real(1.5)}
        mixed = prior.interpolate(["a ring", photo()], [real(0.5), real(0.25)], generator=seeded(), **few)
        out = img2img(
            **embeds(),
            **few,
            image=photo(),
            strength=real(0.5),
            height=integer(64),
            width=integer(64),
            output_type="np",
            callback_steps=integer(1),
            generator=seeded(),
        )
        results.append((mixed.image_embeds.numpy(), out.images))
    for other in results[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(results[0], other, strict=True))
    weights = np.array([0.5, 0.25])
    again = prior.interpolate(["a ring", photo()], weights, 2, 2, seeded(), guidance_scale=1.5)  # type: ignore[arg-type]
    assert np.array_equal(again.image_embeds.numpy(), results[0][0])


def test_a_hint_slightly_outside_its_range_is_accepted(depth: KandinskyV22ControlnetPipeline) -> None:
    """Resizing with a bicubic filter overshoots [0, 1] a little."""
    assert depth(**embeds(), **FEW, hint=torch.full((1, 3, 64, 64), 1.005)).images.shape == (1, 64, 64, 3)


def test_unknown_keyword_arguments_are_refused(decoder: KandinskyV22Pipeline) -> None:
    """diffusers accepts any keyword and ignores it."""
    with pytest.raises(TypeError, match="eta"):
        decoder(**embeds(), **FEW, eta=0.5)


def test_switches_that_change_nothing_are_accepted_and_say_so_once(decoder: KandinskyV22Pipeline) -> None:
    switches.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="enable_attention_slicing changes nothing here") as caught:
        decoder.enable_attention_slicing("max")
        decoder.enable_attention_slicing()
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="set_default_attn_processor changes nothing here"):
        decoder.unet.set_default_attn_processor()


def test_unsupported_methods_name_the_alternative(decoder: KandinskyV22Pipeline) -> None:
    with pytest.raises(AttributeError, match=r"paint with kandinsky22.Kandinsky and its loras=\[...\]"):
        decoder.load_lora_weights("lora")
    assert not hasattr(decoder, "nothing") and not hasattr(decoder.unet, "nothing")


def test_a_prompt_as_the_first_argument_of_a_decoder_is_refused(decoder: KandinskyV22Pipeline) -> None:
    for prompt in ("a ring", ["a ring", "a star"]):
        with pytest.raises(ValueError, match="only the prior takes a prompt"):
            decoder(prompt)


def test_masks_are_not_modified(inpaint: KandinskyV22InpaintPipeline) -> None:
    grey = torch.linspace(0, 1, 64).repeat(64, 1)
    for mask in (grey.clone(), grey.numpy().copy()):
        inpaint(**embeds(), **FEW, image=randn(1, 3, 64, 64).tanh(), mask_image=mask)
        assert np.array_equal(np.asarray(mask), grey.numpy())


def test_a_prompt_that_is_too_long_gives_a_warning(prior: KandinskyV22PriorPipeline) -> None:
    with pytest.warns(UserWarning, match="does not see: .*ring"):
        prior("a ring beside " * 30, num_inference_steps=2)


def test_load_image_downloads_an_address() -> None:
    written = io.BytesIO()
    photo().save(written, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(written.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        image = pipelines.load_image(f"http://127.0.0.1:{server.server_port}/photo.png")
    assert image.tobytes() == photo().tobytes()
    for wrong in ("nowhere.png", 3):
        with pytest.raises(ValueError, match=r"there is no picture|a picture is a file"):
            pipelines.load_image(wrong)


def test_load_image_names_the_file_or_address_that_it_cannot_read(tmp_path: Path) -> None:
    """A file that is no picture, a truncated picture, and addresses without a server."""
    photo().save(tmp_path / "photo.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "photo.png").read_bytes()[:2000])
    (tmp_path / "t1.py").write_text("print()")
    for file in ("half.png", "t1.py"):
        with pytest.raises(ValueError, match=f"cannot read .*{file}: it is not a complete picture"):
            pipelines.load_image(str(tmp_path / file))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port  # nothing listens on it once the server is closed
    with pytest.raises(ValueError, match="lacks a slash; it starts with https://"):
        pipelines.load_image("https:/example.org/photo.png")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(ValueError, match=r"photo\.heic is a HEIC picture, which is not read; save it as JPEG or PNG"):
        pipelines.load_image(tmp_path / "photo.heic")
    for address in (f"http://127.0.0.1:{port}/photo.png", "http://"):
        with pytest.raises(ValueError, match="cannot fetch http"):
            pipelines.load_image(address)


def test_a_uint8_mask_is_white_except_for_zero() -> None:
    """As in diffusers, whose threshold of one half all other values pass."""
    mask = np.array([[0, 1], [128, 255]], np.uint8)
    assert repaint_mask(mask, 2, 2).flatten().tolist() == [0, 1, 1, 1]

"""The contract between ComfyUI and its nodes, with stand-ins for the modules of it that nodes call."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.integrations import comfyui as comfyui_nodes
from kandinsky22.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from kandinsky22.integrations.comfyui.sockets import picture
from kandinsky22.request.task_schema import all_tasks, parameters
from kandinsky22.request.tasks import controlnet, inpaint

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
PRIOR: dict[str, Any] = {"prior_num_inference_steps": 2}
PRIMITIVES = {"IMAGE", "MASK", "LATENT", "STRING", "INT", "FLOAT", "BOOLEAN"}


class InterruptedRunError(Exception):
    """What ComfyUI raises in a node that is interrupted."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """ComfyUI's modules as far as nodes call them; `steps` are the reported ones, `interrupted` stops the next."""
    host, utils, management = (ModuleType(name) for name in ("folder_paths", "comfy.utils", "comfy.model_management"))
    steps: list[tuple[int, int, Any]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            assert total > 0

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            steps.append((value, total, preview))

    def throw() -> None:
        if vars(host)["interrupted"]:
            raise InterruptedRunError

    vars(host).update(
        steps=steps, interrupted=False, get_output_directory=lambda: tmp_path, get_input_directory=lambda: tmp_path
    )
    vars(utils)["ProgressBar"] = ProgressBar
    vars(management)["throw_exception_if_processing_interrupted"] = throw
    for module in (host, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return host


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def node(name: str, /, **values: Any) -> Any:
    """The outputs of a node, called as ComfyUI calls it; omitted inputs have to be optional."""
    kind: Any = NODE_CLASS_MAPPINGS[f"Kandinsky22_{name}"]
    inputs = kind.INPUT_TYPES()
    assert inputs["required"].keys() <= values.keys() <= {**inputs["required"], **inputs.get("optional", {})}.keys()
    with torch.inference_mode():
        return getattr(kind(), kind.FUNCTION)(**values)


def pixels(model: Kandinsky, request: Any) -> np.ndarray:
    return np.stack([np.asarray(painting.image) for painting in model(request)])


def levels(image: torch.Tensor) -> np.ndarray:
    return (image.numpy() * 255).round().astype(np.uint8)


def test_every_node_has_what_comfyui_reads() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(kind, kind.FUNCTION)) and kind.__doc__
        assert kind.RETURN_TYPES or vars(kind)["OUTPUT_NODE"]
        for group in vars(kind)["INPUT_TYPES"].__get__(None, kind)().values():
            for name, (socket, options) in group.items():
                assert isinstance(socket, list) or socket in PRIMITIVES or socket.startswith("KANDINSKY22_"), name
                assert options["tooltip"]
                assert json.dumps([socket, options]), "ComfyUI sends it to the browser"


def test_every_task_with_a_prompt_is_a_node_with_its_options() -> None:
    for name, task in all_tasks().items():
        if name != "interpolate":
            inputs = vars(NODE_CLASS_MAPPINGS[f"Kandinsky22_{name}"])["INPUT_TYPES"].__get__(None, object)()
            assert {*inputs["required"], *inputs["optional"]} == {*parameters(task), "model", "seed"}


def test_text2img_gives_the_pixels_of_the_request_and_reports_steps(comfy: ModuleType, model: Kandinsky) -> None:
    (image,) = node("text2img", model=model, prompt="a red circle", seed=5, **SMALL, **PRIOR)
    expected = pixels(model, text2img("a red circle", seed=5, model=model.name, **SMALL, **PRIOR))
    assert np.array_equal(levels(image), expected)
    assert [step[:2] for step in vars(comfy)["steps"]] == [(1, 2), (2, 2)]
    assert all(preview[0] == "JPEG" for _, _, preview in vars(comfy)["steps"])


def test_prior_and_decoder_give_the_pixels_of_text2img(comfy: ModuleType, model: Kandinsky) -> None:
    embedding, negative = node("Prior", model=model, prompt="a star", negative_prompt="blue", seed=5, **PRIOR)
    (image,) = node("Decode", model=model, embedding=embedding, negative=negative, seed=5, **SMALL)
    request = text2img("a star", negative_prompt="blue", seed=5, model=model.name, **SMALL, **PRIOR)
    assert np.abs(levels(image).astype(int) - pixels(model, request)).max() <= 1


def test_inpaint_repaints_where_the_mask_is_one(comfy: ModuleType, model: Kandinsky) -> None:
    image, mask = torch.full((1, 64, 64, 3), 0.25), torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    (painted,) = node("inpaint", model=model, prompt="a star", image=image, mask_image=mask, seed=2, **SMALL, **PRIOR)
    sources = {"image": picture(image), "mask_image": picture(mask, mask=True)}
    expected = pixels(model, inpaint("a star", **sources, seed=2, model=model.name, **SMALL, **PRIOR))
    assert np.array_equal(levels(painted), expected)
    assert (levels(painted)[:, :, 33:] == 64).all()


def test_controlnet_with_a_picture_gives_the_pixels_of_the_request(comfy: ModuleType, model: Kandinsky) -> None:
    hint, image = torch.rand(1, 64, 64, 3), torch.rand(1, 64, 64, 3)
    (painted,) = node("controlnet", model=model, prompt="a star", hint=hint, image=image, seed=2, **SMALL, **PRIOR)
    sources = {"hint": picture(hint), "image": picture(image)}
    expected = pixels(model, controlnet("a star", **sources, seed=2, model=model.name, **SMALL, **PRIOR))
    assert np.array_equal(levels(painted), expected)


def test_an_interrupt_ends_the_painting(comfy: ModuleType, model: Kandinsky) -> None:
    vars(comfy)["interrupted"] = True
    with pytest.raises(InterruptedRunError):
        node("text2img", model=model, prompt="a star", seed=1, **SMALL, **PRIOR)


def test_embeddings_mix_subtract_and_survive_a_file(comfy: ModuleType, model: Kandinsky) -> None:
    (first,) = node("EncodePicture", model=model, image=torch.zeros(1, 64, 64, 3))
    (second,) = node("EncodePicture", model=model, image=torch.ones(1, 64, 64, 3))
    (blend,) = node("Mix", mode="sum", embedding_1=first, weight_1=1.0, embedding_2=second, weight_2=1.0)
    (back,) = node("Subtract", embedding=blend, other=second, weight=1.0)
    assert np.allclose(back.vector, first.vector, atol=1e-5)
    (between,) = node("Mix", mode="slerp", embedding_1=first, embedding_2=second)
    assert np.allclose(between.vector, first.slerp(second, 0.5).vector)
    node("SaveEmbedding", embedding=blend, name="blend.safetensors")
    (loaded,) = node("LoadEmbedding", name="blend.safetensors")
    assert np.array_equal(loaded.vector, blend.vector)
    with pytest.raises(ValueError, match="without folders"):
        node("LoadEmbedding", name="../blend.safetensors")


def test_latents_have_the_shape_of_comfyui_and_decode_to_the_size(comfy: ModuleType, model: Kandinsky) -> None:
    (latents,) = node("EncodeLatents", model=model, image=torch.rand(2, 64, 64, 3))
    assert latents["samples"].ndim == 4 and latents["samples"].shape[:2] == (2, 4)
    (image,) = node("DecodeLatents", model=model, samples=latents)
    assert image.shape == (2, 64, 64, 3)


def test_a_batch_of_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        picture(torch.zeros(2, 8, 8, 3))


@pytest.mark.parametrize("workflow", ["mix", "inpaint", "depth_img2img"])
def test_example_workflow_uses_nodes_and_inputs_that_exist(workflow: str) -> None:
    graph = json.loads(
        (Path(comfyui_nodes.__file__).parent / "example_workflows" / f"{workflow}.json").read_text("utf-8")
    )
    for step in graph.values():
        if step["class_type"].startswith("Kandinsky22_"):
            inputs = vars(NODE_CLASS_MAPPINGS[step["class_type"]])["INPUT_TYPES"].__get__(None, object)()
            given = step["inputs"].keys()
            assert inputs["required"].keys() <= given <= {*inputs["required"], *inputs.get("optional", {})}

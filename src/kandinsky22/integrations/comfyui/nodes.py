"""The nodes: one for each task, made from its parameters, and those for embeddings and latents."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.console import echo
from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.imaging.pixels import to_image, to_pixels
from kandinsky22.integrations.comfyui.sockets import (
    EMBEDDING,
    MODEL,
    Inputs,
    arguments_of,
    image_tensor,
    inputs_of,
    picture,
    seed_input,
)
from kandinsky22.request import Embedding, Request, Start, Text
from kandinsky22.request.embedding import mix, slerp
from kandinsky22.request.events import Notice, Preview, Progress, Result
from kandinsky22.request.picture_file import read_picture
from kandinsky22.request.task_schema import Task, all_tasks, parameters
from kandinsky22.request.tasks import PRIOR_STRENGTH, text2img, variations

CATEGORY = "Kandinsky 2.2"
MAX_PARTS = 6  # of a mix
TASKS = {
    name: task
    for name, task in all_tasks().items()
    if all(parameter.kind != "parts" for parameter in parameters(task).values())  # a mix is a node of its own
}


def paint(model: Kandinsky, request: Request) -> Tensor:
    """The pictures of a request as an IMAGE, with ComfyUI's progress, previews and interrupt."""
    utils, management = import_module("comfy.utils"), import_module("comfy.model_management")
    bar = None
    events = model.stream(request, Preview())
    try:
        for event in events:
            management.throw_exception_if_processing_interrupted()
            match event:
                case Notice(text):
                    echo(text, error=True)
                case Progress("decoder", i, n, small):
                    bar = bar or utils.ProgressBar(n)
                    shown = read_picture(small, name="a preview", formats=("PNG",)) if small else None
                    bar.update_absolute(i, n, None if shown is None else ("JPEG", shown.convert("RGB"), 256))
                case Result(pictures, _, _):
                    return image_tensor([painting.image for painting in pictures])
    finally:
        events.close()
    raise AssertionError("a stream ends with its result")


def options_of(*names: str, stage: str = "") -> Inputs:
    """Inputs of the common options with these names, or of a stage by its prefix."""
    found = parameters(text2img)
    chosen = {name: found[name] for name in found if name in names or (stage and name.startswith(stage))}
    return inputs_of(chosen)["optional"]


DECODER_OPTIONS = (
    "height",
    "width",
    "num_images",
    "num_inference_steps",
    "guidance_scale",
    "sampler",
    "speed",
    "guidance_interval",
    "reuse",
    "variation_seed",
    "variation_strength",
)
PRIOR_OPTIONS = ("prior", "prior_num_inference_steps", "prior_guidance_scale", "prior_sampler")


class Node:
    """What ComfyUI expects of a node: its inputs, its outputs, and the name of the method that runs it."""

    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES: tuple[str, ...] = ()
    RETURN_NAMES: tuple[str, ...] = ()


class LoadModel(Node):
    """Load a model: the one in the box, a published one, or a folder."""

    RETURN_TYPES = (MODEL,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        return {
            "required": {"model": ("STRING", {"default": "box", "tooltip": parameters(text2img)["model"].help})},
            "optional": {
                "device": (["auto", "cuda", "mps", "cpu"], {"default": "auto", "tooltip": "where to compute"}),
                "dtype": (["auto", "float32", "float16", "bfloat16"], {"default": "auto", "tooltip": "of the weights"}),
                "placement": (
                    ["auto", "keep", "offload", "sequential"],
                    {"default": "auto", "tooltip": "keep networks loaded, or unload each when its stage is done"},
                ),
            },
        }

    def run(self, model: str, device: str = "auto", dtype: str = "auto", placement: Any = "auto") -> tuple[Kandinsky]:
        """The model."""
        place = None if placement == "auto" else placement
        return (Kandinsky.load(model, device=device, dtype=dtype, placement=place),)


class Prior(Node):
    """The image embeddings of a prompt and a negative prompt; with an image, the prior starts from its embedding."""

    RETURN_TYPES, RETURN_NAMES = (EMBEDDING, EMBEDDING), ("embedding", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        prompt = inputs_of({"prompt": parameters(text2img)["prompt"]})["required"]
        tooltip = "how much of the image's embedding is changed"
        strength = ("FLOAT", {"default": PRIOR_STRENGTH, "min": 0.01, "max": 1.0, "step": 0.01, "tooltip": tooltip})
        image = ("IMAGE", {"tooltip": "the picture whose embedding the prior starts from"})
        options = options_of("negative_prompt", *PRIOR_OPTIONS)
        return {
            "required": {"model": (MODEL, {"tooltip": "the model"}), **prompt, "seed": seed_input()},
            "optional": {"image": image, "strength": strength, **options},
        }

    def run(
        self, model: Kandinsky, prompt: str, seed: int, image: Any = None, strength: float = 0.85, **options: Any
    ) -> tuple[Embedding, Embedding | None]:
        """The embedding of the prompt, and of the negative prompt if there is one."""
        given = arguments_of(parameters(text2img), options) | {"seed": seed, "model": model.name}
        request = model.resolve(text2img(prompt, **given))
        if image is not None:
            request = _with(request, condition=Text(prompt, picture(image), strength))
        embedding = model.embedding(request)
        if request.negative is None:
            return embedding, None
        unguided = {"condition": request.negative, "negative": None}
        prior = request.prior if request.prior.linear else _with(request.prior, guidance_scale=1.0)
        return embedding, model.embedding(_with(request, prior=prior, **unguided))


class EncodePicture(Node):
    """The CLIP embedding of a picture."""

    RETURN_TYPES = (EMBEDDING,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        return {"required": {"model": (MODEL, {"tooltip": "the model"}), "image": ("IMAGE", {"tooltip": "a picture"})}}

    def run(self, model: Kandinsky, image: Any) -> tuple[Embedding]:
        """The embedding."""
        return (model.embedding(model.resolve(variations(image=picture(image), seed=0, model=model.name))),)


class Mix(Node):
    """The weighted sum of embeddings, or the spherical interpolation of two; unconnected inputs are left out."""

    RETURN_TYPES = (EMBEDDING,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        optional: Inputs = {}
        for k in range(1, MAX_PARTS + 1):
            optional[f"embedding_{k}"] = (EMBEDDING, {"tooltip": "a part of the blend"})
            optional[f"weight_{k}"] = (
                "FLOAT",
                {"default": 0.5, "min": -4.0, "max": 4.0, "step": 0.01, "tooltip": "its weight; not normalised"},
            )
        mode = (["sum", "slerp"], {"default": "sum", "tooltip": "slerp: the second weight over the sum of both"})
        return {"required": {"mode": mode}, "optional": optional}

    def run(self, mode: str, **values: Any) -> tuple[Embedding]:
        """The blend."""
        found = [k for k in range(1, MAX_PARTS + 1) if values.get(f"embedding_{k}") is not None]
        embeddings, weights = [values[f"embedding_{k}"] for k in found], [values.get(f"weight_{k}", 0.5) for k in found]
        if not found:
            raise ValueError("a mix needs at least one embedding; connect embedding_1")
        if mode == "sum":
            return (mix(embeddings, weights),)
        if len(found) != 2 or sum(weights) == 0:
            raise ValueError(f"slerp takes two embeddings with a sum of weights other than 0, got {len(found)}")
        return (slerp(embeddings[0], embeddings[1], weights[1] / sum(weights)),)


class Subtract(Node):
    """One embedding less another."""

    RETURN_TYPES = (EMBEDDING,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        weight = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.01, "tooltip": "how much is subtracted"}
        embeddings: Inputs = {
            "embedding": (EMBEDDING, {"tooltip": "from which is subtracted"}),
            "other": (EMBEDDING, {"tooltip": "what is subtracted"}),
        }
        return {"required": {**embeddings, "weight": ("FLOAT", weight)}}

    def run(self, embedding: Embedding, other: Embedding, weight: float) -> tuple[Embedding]:
        """The difference."""
        return (embedding.subtract(other, weight),)


class SaveEmbedding(Node):
    """Save an embedding in ComfyUI's output folder."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        name = {"default": "embedding.safetensors", "tooltip": "the name of the file"}
        return {"required": {"embedding": (EMBEDDING, {"tooltip": "what is saved"}), "name": ("STRING", name)}}

    def run(self, embedding: Embedding, name: str) -> tuple[()]:
        """Writes the file."""
        embedding.save(_file("get_output_directory", name))
        return ()


class LoadEmbedding(Node):
    """Load an embedding from ComfyUI's input folder."""

    RETURN_TYPES = (EMBEDDING,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        name = {"default": "embedding.safetensors", "tooltip": "the name of the file"}
        return {"required": {"name": ("STRING", name)}}

    def run(self, name: str) -> tuple[Embedding]:
        """The embedding."""
        return (Embedding.load(_file("get_input_directory", name)),)


class Decode(Node):
    """Pictures of an embedding: from noise or a picture, and with a depth picture to follow if there is one."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        strength = {"default": 0.5, "min": 0.01, "max": 1.0, "step": 0.01, "tooltip": "how much of it is changed"}
        optional: Inputs = {
            "negative": (EMBEDDING, {"tooltip": "what to avoid; without it, the empty picture"}),
            "image": ("IMAGE", {"tooltip": "the picture to start from"}),
            "strength": ("FLOAT", strength),
            "hint": ("IMAGE", {"tooltip": "a depth picture to follow, in which near is bright"}),
        }
        required: Inputs = {
            "model": (MODEL, {"tooltip": "the model"}),
            "embedding": (EMBEDDING, {"tooltip": "what to paint"}),
            "seed": seed_input(),
        }
        return {"required": required, "optional": optional | options_of(*DECODER_OPTIONS)}

    def run(
        self,
        model: Kandinsky,
        embedding: Embedding,
        seed: int,
        negative: Embedding | None = None,
        image: Any = None,
        strength: float = 0.5,
        hint: Any = None,
        **options: Any,
    ) -> tuple[Tensor]:
        """The pictures."""
        given = arguments_of(parameters(text2img), options) | {"seed": seed, "model": model.name}
        start = None if image is None else Start(picture(image), strength)
        guide = None if hint is None else picture(hint)
        request = _with(text2img("", **given), condition=embedding, negative=negative, start=start, hint=guide)
        return (paint(model, request),)


class EncodeLatents(Node):
    """The MoVQ latents of pictures, whose sides are multiples of 64."""

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        return {"required": {"model": (MODEL, {"tooltip": "the model"}), "image": ("IMAGE", {"tooltip": "pictures"})}}

    def run(self, model: Kandinsky, image: Tensor) -> tuple[dict[str, Tensor]]:
        """The latents."""
        height, width = image.shape[1:3]
        if height % 64 or width % 64:
            raise ValueError(f"the sides of a picture must be multiples of 64, got {width}x{height}; resize it")
        with torch.inference_mode():
            pixels = to_pixels(image[..., :3].cpu().numpy()[0]) if len(image) == 1 else _stack(image)
            return ({"samples": _first_decoder(model).encode(pixels).cpu()},)


class DecodeLatents(Node):
    """The pictures of MoVQ latents."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        """The inputs."""
        latents: Inputs = {"samples": ("LATENT", {"tooltip": "of MoVQ"})}
        return {"required": {"model": (MODEL, {"tooltip": "the model"}), **latents}}

    def run(self, model: Kandinsky, samples: dict[str, Tensor]) -> tuple[Tensor]:
        """The pictures."""
        with torch.inference_mode():
            pixels = _first_decoder(model).decode(samples["samples"])
        images: list[Image.Image] = [to_image(one) for one in pixels]
        return (image_tensor(images),)


def task_node(name: str, task: Task) -> type[Node]:
    """The node of a task: its parameters, with the model and the pictures as sockets."""
    found = parameters(task)
    model: Inputs = {"model": (MODEL, {"tooltip": "the model"})}

    def input_types(cls: type[Node]) -> dict[str, Inputs]:
        inputs = inputs_of(found)
        return inputs | {"required": model | inputs["required"] | {"seed": seed_input()}}

    def run(self: Node, model: Kandinsky, seed: int, **values: Any) -> tuple[Tensor]:
        return (paint(model, task(**arguments_of(found, values), seed=seed, model=model.name)),)

    summary = (task.__doc__ or "").partition("\n")[0]
    members = {"INPUT_TYPES": classmethod(input_types), "run": run, "RETURN_TYPES": ("IMAGE",), "__doc__": summary}
    return type(name.capitalize(), (Node,), members)


def _with(value: Any, **changes: Any) -> Any:
    return replace(value, **changes)


def _first_decoder(model: Kandinsky) -> Any:
    return model.decoder(model.stored.first.kind)


def _stack(image: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(to_pixels(one[..., :3].cpu().numpy())) for one in image])


def _file(folder: str, name: str) -> Path:
    """A file in one of ComfyUI's folders. Raises `ValueError` for a name that leads out of it."""
    if not name or Path(name).name != name:
        raise ValueError(f"give the name of a file without folders, got {name!r}")
    find: Callable[[], str] = getattr(import_module("folder_paths"), folder)
    return Path(find()) / name


_NODES: dict[str, tuple[type[Node], str]] = {
    "LoadModel": (LoadModel, "load model"),
    "Prior": (Prior, "prior"),
    "EncodePicture": (EncodePicture, "encode picture"),
    "Mix": (Mix, "mix"),
    "Subtract": (Subtract, "subtract"),
    "SaveEmbedding": (SaveEmbedding, "save embedding"),
    "LoadEmbedding": (LoadEmbedding, "load embedding"),
    "Decode": (Decode, "decoder"),
    "EncodeLatents": (EncodeLatents, "MoVQ encode"),
    "DecodeLatents": (DecodeLatents, "MoVQ decode"),
    **{name: (task_node(name, task), name) for name, task in TASKS.items()},
}
NODE_CLASS_MAPPINGS = {f"Kandinsky22_{name}": node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {f"Kandinsky22_{name}": f"Kandinsky 2.2 {title}" for name, (_, title) in _NODES.items()}
"""The tables that ComfyUI reads."""

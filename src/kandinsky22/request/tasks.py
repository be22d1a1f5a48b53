"""The tasks, as pure functions that turn a user's options into a `Request`. Imports no torch.

Every public function here is a task. `task_schema` reads its parameters from the signature, in which `**options` stands
for `CommonOptions`, and their help texts from `HELP`. Parameter names are those of the model card.
"""

import inspect
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, Unpack

from kandinsky22.request.embedding import Embedding
from kandinsky22.request.lora import LoRA
from kandinsky22.request.parts import LINEAR, SAMPLERS, Condition, Mask, Mix, Part, Sampling, Start, Text
from kandinsky22.request.picture import Picture, Source
from kandinsky22.request.request import Request
from kandinsky22.request.sizes import MIN_SIDE

START_STRENGTH, PRIOR_STRENGTH = 0.5, 0.85  # defaults of controlnet with an image, as on the model card
PRIORS = ("diffusion", LINEAR)
_SAMPLERS = ", ".join(SAMPLERS)
HELP = {
    "prompt": "what to paint, in words",
    "negative_prompt": "what to avoid, in words",
    "image": "the picture to start from",
    "strength": "how much of the image is changed, above 0 up to 1",
    "images_and_prompts": "texts, pictures and saved embeddings to blend",
    "weights": "the weight of each (default: all equal)",
    "mask_image": "a mask of the part to repaint: where it is white",
    "mask_mode": "the colour of the mask that is repainted: white or black",
    "feather": "width in pixels of the blend between new and old",
    "paste_back": "copy the pixels that are not repainted from the picture, exactly",
    "crop": "paint an enlarged window around the mask: yes or no (default: if the mask is small)",
    "left": "pixels to add on the left",
    "right": "pixels to add on the right",
    "top": "pixels to add at the top",
    "bottom": "pixels to add at the bottom",
    "hint": "a depth picture to follow, in which near is bright",
    "prior_strength": "how much the prior changes the image's embedding, above 0 up to 1",
    "height": f"height in pixels, from {MIN_SIDE} up",
    "width": f"width in pixels, from {MIN_SIDE} up",
    "aspect": "width:height, such as 16:9, at the area of the size",
    "num_images": "number of pictures; each uses the next seed",
    "seed": "seed of the random numbers; the same seed gives the same picture",
    "prior_seed": "a seed for the prior only, the same for all pictures",
    "variation_seed": "another seed, towards whose noise the noise is rotated",
    "variation_strength": "how far the noise is rotated: 0 not at all, 1 fully",
    "num_inference_steps": "number of steps of the decoder",
    "guidance_scale": "guidance scale of the decoder, 1 is off",
    "sampler": f"sampler of the decoder: {_SAMPLERS}",
    "prior": "what turns a text into an image embedding: the diffusion prior, or a much faster linear map",
    "prior_num_inference_steps": "number of steps of the prior",
    "prior_guidance_scale": "guidance scale of the prior, 1 is off",
    "prior_sampler": f"sampler of the prior: {_SAMPLERS}",
    "speed": "trade exactness of the picture for time; other options given take precedence",
    "guidance_interval": "noise levels with decoder guidance, from 0 (the picture) to 1 (noise), such as 0.2,0.8",
    "reuse": "compute the U-Net's deeper levels only at every N-th call; 1 is each call",
    "loras": "low-rank adapters: files, each with its scale after a colon (without one: 1)",
    "model": "the model in the box, a published one, or a folder",
}
"""One line of help for each parameter."""


class CommonOptions(TypedDict, total=False):
    """The options of every task; what is left out or None is the model's own choice."""

    negative_prompt: str | None
    height: int | None
    width: int | None
    aspect: str | None
    num_images: int
    seed: int | None
    prior_seed: int | None
    variation_seed: int | None
    variation_strength: float
    num_inference_steps: int | None
    guidance_scale: float | None
    sampler: str | None
    prior: Literal["diffusion", "linear"]
    prior_num_inference_steps: int | None
    prior_guidance_scale: float | None
    prior_sampler: str | None
    speed: Literal["exact", "fast", "turbo"]
    guidance_interval: tuple[float, float] | None
    reuse: int | None
    loras: Sequence[LoRA | str | PathLike[str]] | None
    model: str


def text2img(prompt: str, **options: Unpack[CommonOptions]) -> Request:
    """Pictures of a prompt."""
    return _request(Text(prompt), options)


def img2img(prompt: str, *, image: Source, strength: float = 0.3, **options: Unpack[CommonOptions]) -> Request:
    """A picture repainted to follow a prompt.

    The higher the strength, the less of the picture is preserved.
    """
    return _request(Text(prompt), options, start=Start(Picture.of(image), strength))


def interpolate(
    images_and_prompts: Sequence[Source | Text | Embedding],
    *,
    weights: Sequence[float] | None = None,
    **options: Unpack[CommonOptions],
) -> Request:
    """A blend of texts, pictures and saved embeddings.

    A string is a text; the file of a picture is a `Path`. The weights are not normalised; without them all are 1 / n.
    """
    if isinstance(images_and_prompts, str | bytes | PathLike) or not isinstance(images_and_prompts, Iterable):
        raise ValueError("interpolate takes a list of texts and pictures; put a single one into a list too")
    parts = tuple(_part(part) for part in images_and_prompts)
    if not parts:
        raise ValueError("interpolate needs at least one text, picture or embedding")
    if weights is not None and not isinstance(weights, Iterable):
        raise ValueError(f"weights must be a list with one number for each part, got {weights!r}")
    if weights is None:
        weights = [1 / len(parts)] * len(parts)
    return _request(Mix(parts, tuple(weights)), options)


def variations(*, image: Source, **options: Unpack[CommonOptions]) -> Request:
    """Pictures similar to a picture, painted from its CLIP embedding."""
    return _request(Picture.of(image), options)


def inpaint(
    prompt: str,
    *,
    image: Source,
    mask_image: Source,
    mask_mode: Literal["white", "black"] = "white",
    feather: int = 0,
    paste_back: bool = True,
    crop: bool | None = None,
    **options: Unpack[CommonOptions],
) -> Request:
    """A part of a picture repainted; the rest keeps its pixels."""
    mask = Mask(
        image=Picture.of(image),
        area=Picture.of(mask_image, mask=True),
        repaint=mask_mode,
        feather=feather,
        paste_back=paste_back,
        crop=crop,
    )
    return _request(Text(prompt), options, mask=mask)


def outpaint(
    prompt: str,
    *,
    image: Source,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    feather: int = 0,
    paste_back: bool = True,
    **options: Unpack[CommonOptions],
) -> Request:
    """A picture extended beyond its edges.

    If no side is given, it is extended by a quarter of its longer side on all four.
    """
    picture = Picture.of(image)
    pad = (top, right, bottom, left)
    if not any(pad):
        pad = (max(picture.height, picture.width) // 4 or 1,) * 4
    mask = Mask(image=picture, pad=pad, feather=feather, paste_back=paste_back, crop=False)
    return _request(Text(prompt), options, mask=mask)


def controlnet(
    prompt: str,
    *,
    hint: Source,
    image: Source | None = None,
    strength: float | None = None,
    prior_strength: float | None = None,
    **options: Unpack[CommonOptions],
) -> Request:
    """A picture that follows a depth picture.

    With an image, the prior starts from its embedding and the decoder from its latents, which preserves more of it.
    """
    if image is None:
        if strength is not None or prior_strength is not None:
            raise ValueError(
                "strength and prior_strength apply to the image to start from; give an image, or leave them out"
            )
        return _request(Text(prompt), options, hint=Picture.of(hint))
    picture = Picture.of(image)
    text = Text(prompt, picture, PRIOR_STRENGTH if prior_strength is None else prior_strength)
    start = Start(picture, START_STRENGTH if strength is None else strength)
    return _request(text, options, start=start, hint=Picture.of(hint))


def _request(condition: Condition, options: CommonOptions, **request_fields: Any) -> Request:
    """A request with this condition, these options, and other fields of `Request`.

    An empty negative prompt counts as none, which is the embedding of an empty picture; that of the empty text tints.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - CommonOptions.__annotations__.keys():
        raise ValueError(
            f"there is no option {sorted(unknown)[0]}; the options are {', '.join(CommonOptions.__annotations__)}"
        )
    prior = given.pop("prior", PRIORS[0])
    if prior not in PRIORS:
        raise ValueError(f"prior must be {' or '.join(PRIORS)}, got {prior!r}")
    if prior == LINEAR:
        if "prior_sampler" in given:
            raise ValueError("the linear prior has no sampler; leave out prior_sampler, or prior='linear'")
        given["prior_sampler"] = LINEAR
    loras = given.pop("loras", ())
    if isinstance(loras, str | bytes | PathLike | LoRA) or not isinstance(loras, Iterable):
        raise ValueError("loras must be a list of files: ['style.safetensors:0.8']; put a single one into a list too")
    negative = Text(given.pop("negative_prompt", ""))  # type: ignore[arg-type]  # Text checks its type
    return Request(
        condition=condition,
        negative=negative if negative.prompt.strip() else None,
        prior=_sampling(given, "prior_"),
        decoder=_sampling(given, ""),
        loras=tuple(map(LoRA.of, loras)),
        **request_fields,
        **given,  # type: ignore[arg-type]
    )


def _sampling(options: dict[str, Any], prefix: str) -> Sampling:
    """The sampling of the stage whose options have this prefix; they are removed from `options`."""
    names = {
        "sampler": "sampler",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance_scale",
        "guidance_interval": "guidance_interval",
        "reuse": "reuse",
    }
    return Sampling(**{field: options.pop(prefix + name) for name, field in names.items() if prefix + name in options})


def _part(part: Source | Text | Embedding) -> Part:
    if isinstance(part, Text | Embedding):
        return part
    return Text(part) if isinstance(part, str) else Picture.of(part)


def _list_options() -> None:
    """Add the options of each task to its docstring, for `help`."""
    for name, task in list(globals().items()):
        if inspect.isfunction(task) and task.__module__ == __name__ and not name.startswith("_"):
            own = [parameter for parameter in inspect.signature(task).parameters if parameter in HELP]
            lines = [f"    {option}: {HELP[option]}" for option in (*own, *CommonOptions.__annotations__)]
            summary = inspect.cleandoc(task.__doc__ or "")
            task.__doc__ = "\n".join([summary, "", "Options, None or left out for the model's own choice:", *lines])


_list_options()

"""The tasks, as pure functions from what a user says to a `Request`. Imports no torch.

Every public function here is a task: the edges make a command, a route or a form of it from its signature, in which `**how`
stands for the options of `How`, and take what each parameter means from `MEANINGS`. The names are the model card's.
"""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, Unpack

from kandinsky22.request.embedding import Embedding
from kandinsky22.request.parts import LINEAR, SAMPLERS, Condition, Mask, Mix, Part, Sampling, Start, Text
from kandinsky22.request.picture import Picture, Source
from kandinsky22.request.request import Request
from kandinsky22.request.sizes import SMALLEST

FROM_PICTURE, FROM_PRIOR = 0.5, 0.85  # controlnet's strengths with an image, as on the model card
PRIORS = ("diffusion", LINEAR)
_SAMPLERS = ", ".join(SAMPLERS)
MEANINGS = {
    "prompt": "what to paint, in words",
    "negative_prompt": "what to keep away from",
    "image": "the picture to begin with",
    "strength": "how much of the image is painted anew, above 0 up to 1",
    "images_and_prompts": "texts, pictures and saved embeddings to blend",
    "weights": "how much of each; the same of all if not said",
    "mask_image": "which part of the picture to repaint: where it is white",
    "mask_mode": "the colour that is repainted: white or black",
    "feather": "pixels over which new and old blend",
    "paste_back": "keep the pixels of the picture that are not repainted, exactly",
    "crop": "paint an enlarged window around the mask: yes or no (default: where the mask is small)",
    "left": "pixels to add at the left",
    "right": "pixels to add at the right",
    "top": "pixels to add at the top",
    "bottom": "pixels to add at the bottom",
    "hint": "a depth picture to follow, near is bright",
    "prior_strength": "how far the prior goes from the image's own embedding, above 0 up to 1",
    "height": f"height in pixels, from {SMALLEST} up",
    "width": f"width in pixels, from {SMALLEST} up",
    "aspect": "width:height such as 16:9, at the area of the size",
    "num_images": "how many pictures; each has the next seed",
    "seed": "where chance starts; a seed paints the same picture again",
    "prior_seed": "a seed for the prior alone, the same for all pictures",
    "variation_seed": "another seed, whose noise is turned to",
    "variation_strength": "how far it is turned to: 0 not at all, 1 wholly",
    "num_inference_steps": "steps of the decoder",
    "guidance_scale": "how closely the decoder follows the prior, 1 is off",
    "sampler": f"sampler of the decoder: {_SAMPLERS}",
    "prior": "what makes an embedding of a text: the diffusion prior, or a linear one, in no time",
    "prior_num_inference_steps": "steps of the prior",
    "prior_guidance_scale": "how closely the prior follows the prompt, 1 is off",
    "prior_sampler": f"sampler of the prior: {_SAMPLERS}",
    "speed": "how much of a picture's exactness may go for time; what is said beside it goes before",
    "guidance_interval": "where the decoder is guided, from 0 (the picture) to 1 (noise), such as 0.2,0.8",
    "reuse": "compute the U-Net's deeper levels at every how many calls; 1 is at each",
    "model": "the model in the box, a published one, or a folder",
}
"""What each parameter means, in one line."""


class How(TypedDict, total=False):
    """What every task can be told; what is left out, or None, is the model's own choice."""

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
    model: str


def text2img(prompt: str, **how: Unpack[How]) -> Request:
    """Pictures of a prompt."""
    return _request(Text(prompt), how)


def img2img(prompt: str, *, image: Source, strength: float = 0.3, **how: Unpack[How]) -> Request:
    """A picture painted anew after a prompt.

    The higher the strength, the less of the picture stays.
    """
    return _request(Text(prompt), how, start=Start(Picture.of(image), strength))


def interpolate(
    images_and_prompts: Sequence[Source | Text | Embedding],
    *,
    weights: Sequence[float] | None = None,
    **how: Unpack[How],
) -> Request:
    """A blend of texts, pictures and saved embeddings.

    A string is a text; a picture's file is a `Path`. The weights are taken as they are, and are equal if not given.
    """
    if isinstance(images_and_prompts, str | bytes | PathLike) or not isinstance(images_and_prompts, Iterable):
        raise ValueError("interpolate takes a list of texts and pictures; put even one into a list")
    mixed = tuple(_part(part) for part in images_and_prompts)
    if not mixed:
        raise ValueError("interpolate needs at least one text, picture or embedding")
    if weights is not None and not isinstance(weights, Iterable):
        raise ValueError(f"weights are a list, one for each part, got {weights!r}")
    if weights is None:
        weights = [1 / len(mixed)] * len(mixed)
    return _request(Mix(mixed, tuple(weights)), how)


def variations(*, image: Source, **how: Unpack[How]) -> Request:
    """Pictures like a picture, painted from its own embedding."""
    return _request(Picture.of(image), how)


def inpaint(
    prompt: str,
    *,
    image: Source,
    mask_image: Source,
    mask_mode: Literal["white", "black"] = "white",
    feather: int = 0,
    paste_back: bool = True,
    crop: bool | None = None,
    **how: Unpack[How],
) -> Request:
    """A part of a picture painted anew; the rest keeps its pixels."""
    mask = Mask(
        image=Picture.of(image),
        area=Picture.of(mask_image, mask=True),
        repaint=mask_mode,
        feather=feather,
        paste_back=paste_back,
        crop=crop,
    )
    return _request(Text(prompt), how, mask=mask)


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
    **how: Unpack[How],
) -> Request:
    """A picture extended beyond its edges.

    Without sides, by a quarter of its longer side all around.
    """
    picture = Picture.of(image)
    pad = (top, right, bottom, left)
    if not any(pad):
        pad = (max(picture.height, picture.width) // 4 or 1,) * 4
    mask = Mask(image=picture, pad=pad, feather=feather, paste_back=paste_back, crop=False)
    return _request(Text(prompt), how, mask=mask)


def controlnet(
    prompt: str,
    *,
    hint: Source,
    image: Source | None = None,
    strength: float | None = None,
    prior_strength: float | None = None,
    **how: Unpack[How],
) -> Request:
    """A picture that follows a depth picture.

    With an image it keeps more of that: the prior starts from its embedding, and the decoder from its latents.
    """
    if image is None:
        if strength is not None or prior_strength is not None:
            raise ValueError(
                "strength and prior_strength are of the image to begin with; give an image, or leave them out"
            )
        return _request(Text(prompt), how, hint=Picture.of(hint))
    picture = Picture.of(image)
    text = Text(prompt, picture, FROM_PRIOR if prior_strength is None else prior_strength)
    start = Start(picture, FROM_PICTURE if strength is None else strength)
    return _request(text, how, start=start, hint=Picture.of(hint))


def _request(condition: Condition, how: How, **columns: Any) -> Request:
    """A request of what to paint and how.

    An empty negative prompt is none at all: it stands for the empty picture, not for the empty text, whose embedding tints.
    """
    said = {name: value for name, value in how.items() if value is not None}
    if unknown := said.keys() - How.__annotations__.keys():
        raise ValueError(f"there is no option {sorted(unknown)[0]}; there are {', '.join(How.__annotations__)}")
    prior = said.pop("prior", PRIORS[0])
    if prior not in PRIORS:
        raise ValueError(f"prior must be {' or '.join(PRIORS)}, got {prior!r}")
    if prior == LINEAR:
        if "prior_sampler" in said:
            raise ValueError("the linear prior is not sampled; leave out prior_sampler, or prior='linear'")
        said["prior_sampler"] = LINEAR
    negative = Text(said.pop("negative_prompt", ""))  # type: ignore[arg-type]  # Text refuses what is no text
    return Request(
        condition=condition,
        negative=negative if negative.prompt.strip() else None,
        prior=_sampling(said, "prior_"),
        decoder=_sampling(said, ""),
        **columns,
        **said,  # type: ignore[arg-type]
    )


def _sampling(said: dict[str, Any], stage: str) -> Sampling:
    """A stage's part of what was said, taken out of it."""
    names = {
        "sampler": "sampler",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance_scale",
        "guidance_interval": "guidance_interval",
        "reuse": "reuse",
    }
    return Sampling(**{field: said.pop(stage + name) for name, field in names.items() if stage + name in said})


def _part(part: Source | Text | Embedding) -> Part:
    if isinstance(part, Text | Embedding):
        return part
    return Text(part) if isinstance(part, str) else Picture.of(part)

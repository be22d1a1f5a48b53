"""Where weights are: the model in the box, a folder, and the published repositories; and what their files are called.

Imports no torch, and no hub.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache as once
from pathlib import Path
from typing import NamedTuple

BOX = "box"
PRIOR, DECODER, INPAINT, DEPTH = "prior", "decoder", "decoder-inpaint", "controlnet-depth"
PARTS = (PRIOR, DECODER, INPAINT, DEPTH)
"""The pipelines' folders inside a model's folder: `decoder` paints, and the last two are decoders for one task each."""
IMAGE_ENCODER = "image_encoder"  # a network of the prior's folder that many tasks can do without, so fetched apart

# What is done with the published weights when nothing is said; their folders do not say it. The steps are those of the
# model card's examples (the pipelines' own default is 100 for the decoder). Sizes follow from the networks.
PUBLISHED_STEPS = {PRIOR: 25, DECODER: 50}
PUBLISHED_GUIDANCE = 4.0

PRIOR_INDEX = {
    "_class_name": "KandinskyV22PriorPipeline",
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
    "prior": ["diffusers", "PriorTransformer"],
    "scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
DECODER_INDEX = {
    "_class_name": "KandinskyV22Pipeline",
    "movq": ["diffusers", "VQModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
"""The `model_index.json` of each pipeline: which class of which library diffusers loads each part with."""
CLASSES = {
    DECODER: "KandinskyV22Pipeline",
    INPAINT: "KandinskyV22InpaintPipeline",
    DEPTH: "KandinskyV22ControlnetPipeline",
}


def decoder_index(part: str) -> dict[str, object]:
    """The `model_index.json` of a decoder of one kind."""
    return {**DECODER_INDEX, "_class_name": CLASSES[part]}


WEIGHTS_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[a-z]\w*))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(?:\.(?P<variant_of_shard>(?!safetensors|bin)[a-z]\w*))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<variant_of_index>\w+))?\.json)?"
)


class File(NamedTuple):
    """A file of a repository. sha256: None where nobody told."""

    path: str
    bytes: int
    sha256: str | None


class Repository(NamedTuple):
    """A repository on the hub at one commit, and those of its files that are of use."""

    name: str
    revision: str
    files: tuple[File, ...] = ()


@once
def published() -> Mapping[str, Mapping[str, Repository]]:
    """The published models: by name, then by part.

    Commits, sizes and SHA-256 are those of the manifests of kurtvalcorza/kandinsky-{generation,inpainting,
    controlnet-depth}-pipeline (2026-10); the sizes of the weights agree with what their tensors' names and shapes give. The
    depth decoder's commit is the one with safetensors (pull request 5 of its repository): `main` has only pickled files,
    of the same tensors by that source's comparison.
    """
    listed = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return {
        model: {
            part: Repository(of["repository"], of["revision"], tuple(File(p, *rest) for p, rest in of["files"].items()))
            for part, of in parts.items()
        }
        for model, parts in listed.items()
    }


def parts(model: str) -> dict[str, Path]:
    """The folder of each part of a model that is on this machine; of a published one, in the hub's cache.

    Raises `ValueError` saying where it was looked for, and how to get it.
    """
    if is_remote(model):
        from kandinsky22.checkpoints import hub

        if found := hub.cached_parts(model):
            return found
    folder = locate(model)
    found = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if not found:
        raise ValueError(f"{folder} has no {DECODER}/ folder; a model is a folder with {PRIOR}/ and {DECODER}/ in it")
    return found


def locate(model: str) -> Path:
    """The folder of a model, with `decoder/` and `prior/` in it. Raises `ValueError` saying where it was looked for."""
    if model == BOX:
        return Path(__file__).parents[1] / "weights"
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"{model} is one file; unpack it once with `kandinsky22 convert {model} FOLDER` and pass FOLDER"
        )
    if model in published():
        raise ValueError(f"the weights of {model} are not here; fetch them once with {by_hand(model)}")
    raise ValueError(f"there is no model {model!r}: it is '{BOX}', or a folder with {DECODER}/ and {PRIOR}/ in it")


def by_hand(model: str, wanted: Iterable[str] = (PRIOR, DECODER)) -> str:
    """What to type, where a hub can be reached, for a folder of a published model; and how to use that folder."""
    repositories = published()[model]
    typed = [
        f'`hf download {repositories[part].name} --revision {repositories[part].revision} --exclude "*.bin" '
        f"--local-dir {model}/{part}`"
        for part in dict.fromkeys(PRIOR if part == IMAGE_ENCODER else part for part in wanted)
    ]
    return f"{' and '.join(typed)}, and pass that folder with --model {model}"


def weights(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Of a folder's file names, those of one copy of the network's weights; none, if there are none.

    The first is the one to open: the file itself, or the index of several, which follow. Never two formats or variants of
    the same: `variant` (such as "fp16") if there is one, else safetensors before pickled, plain before variants.
    """
    copies: dict[tuple[str, str, bool], list[str]] = {}
    for name in names:
        if found := WEIGHTS_NAME.fullmatch(name):
            said = found["variant"] or found["variant_of_shard"] or found["variant_of_index"] or ""
            copies.setdefault((said, found["kind"], bool(found["shard"] or found["index"])), []).append(name)
    several = {key for key, files in copies.items() if key[2] and not any(name.endswith(".json") for name in files)}
    whole = [key for key in copies if key not in several]  # shards without an index are nothing
    if not whole:
        return []

    def rank(copy: tuple[str, str, bool]) -> tuple[bool, bool, bool, bool, str, bool]:
        said, kind, sharded = copy
        return said != (variant or said), kind != "safetensors", said != "", said != "fp16", said, sharded

    return sorted(copies[min(whole, key=rank)], key=lambda name: (not name.endswith(".json"), name))


def is_remote(model: str) -> bool:
    """Whether a name means a published model, and not a folder of that name."""
    return model in published() and not Path(model).is_dir()


def encoder_of(model: str) -> str:
    """What names the image encoder of a published model; see `published_encoder`."""
    files = published()[model][PRIOR].files
    return next(str(file.sha256)[:12] for file in files if file.path == f"{IMAGE_ENCODER}/model.safetensors")


def published_encoder(prior: Path) -> str | None:
    """What names the image encoder of a published prior in the hub's cache, fetched or not: its SHA-256's beginning.

    None for any other folder. What an encoder gives for a fixed picture can so be kept, and found again without it.
    """
    models = (model for model, parts in published().items() if parts[PRIOR].revision == prior.name)
    return next(map(encoder_of, models), None)


def cache() -> Path:
    """The user's cache for what is computed once; `KANDINSKY22_CACHE` moves it."""
    if chosen := os.environ.get("KANDINSKY22_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kandinsky22"

"""The published models: their repositories and files, and how their folders are laid out. Imports no torch."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

BOX = "box"  # the name of the small model in this package
PRIOR, DECODER, INPAINT, DEPTH = "prior", "decoder", "decoder-inpaint", "controlnet-depth"
PARTS = (PRIOR, DECODER, INPAINT, DEPTH)
"""The pipelines' folders in a model's folder; the last three are decoders, two of them for one task each."""
IMAGE_ENCODER = (
    "image_encoder"  # a network of the prior's folder that many tasks do not need, so it is fetched separately
)

# Default settings for the published weights; their folders do not state them. The steps are those of the model card's
# examples (the pipelines' own default is 100 for the decoder). Sizes follow from the networks.
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
"""The `model_index.json` of each pipeline: the library and class that diffusers loads each part with."""
PIPELINE_CLASSES = {
    DECODER: "KandinskyV22Pipeline",
    INPAINT: "KandinskyV22InpaintPipeline",
    DEPTH: "KandinskyV22ControlnetPipeline",
}


def decoder_index(part: str) -> dict[str, object]:
    """The `model_index.json` of a decoder's folder: one of `PARTS` other than the prior."""
    return {**DECODER_INDEX, "_class_name": PIPELINE_CLASSES[part]}


class File(NamedTuple):
    """A file of a repository. sha256: None where it is not published."""

    path: str
    bytes: int
    sha256: str | None


class Repository(NamedTuple):
    """A repository on the hub at one commit, and those of its files that are used."""

    name: str
    revision: str
    files: tuple[File, ...] = ()


@cache
def published() -> Mapping[str, Mapping[str, Repository]]:
    """The published models: repositories by model, then by part.

    Commits, sizes and SHA-256 are those of the manifests of kurtvalcorza/kandinsky-{generation,inpainting,
    controlnet-depth}-pipeline (2026-10); the sizes of the weights agree with what their tensors' names and shapes give.
    The depth decoder's commit is the one with safetensors (pull request 5 of its repository): `main` has only pickled
    files, of the same tensors by that source's comparison.
    """
    models = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return {
        model: {
            part: Repository(of["repository"], of["revision"], tuple(File(p, *rest) for p, rest in of["files"].items()))
            for part, of in parts.items()
        }
        for model, parts in models.items()
    }


def is_remote(model: str) -> bool:
    """Whether a name is that of a published model, and there is no folder of that name."""
    return model in published() and not Path(model).is_dir()


def download_commands(model: str, parts: Iterable[str] = (PRIOR, DECODER)) -> str:
    """The commands that download a published model where a hub can be reached, and how to use the folder."""
    repositories = published()[model]
    commands = [
        f'`hf download {repositories[part].name} --revision {repositories[part].revision} --exclude "*.bin" '
        f"--local-dir {model}/{part}`"
        for part in dict.fromkeys(PRIOR if part == IMAGE_ENCODER else part for part in parts)
    ]
    return f"{' and '.join(commands)}, and pass that folder with --model {model}"


def image_encoder_id(model: str) -> str:
    """What identifies the image encoder of a published model: the beginning of its SHA-256."""
    files = published()[model][PRIOR].files
    return next(str(file.sha256)[:12] for file in files if file.path == f"{IMAGE_ENCODER}/model.safetensors")


def published_encoder_id(prior: Path) -> str | None:
    """`image_encoder_id` for the folder of a published prior in the hub's cache, whether its encoder is there or not.

    None for any other folder. With it, what the encoder computes for a fixed picture can be cached and looked up
    without the encoder.
    """
    models = (model for model, parts in published().items() if parts[PRIOR].revision == prior.name)
    return next(map(image_encoder_id, models), None)

"""Where weights are: the model in the box, a folder, and the published repositories."""

from pathlib import Path

BOX = "box"
PUBLISHED = {
    "kandinsky-2.2": ("kandinsky-community/kandinsky-2-2-decoder", "kandinsky-community/kandinsky-2-2-prior"),
}
DECODER, PRIOR = "decoder", "prior"  # the two pipelines' folders inside a model's folder

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


def locate(model: str) -> Path:
    """The folder of a model, with `decoder/` and `prior/` in it. Raises `ValueError` saying where it was looked for."""
    if model == BOX:
        return Path(__file__).parents[1] / "weights"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model in PUBLISHED:
        fetch = "; ".join(
            f"hf download {repo} --local-dir kandinsky-2.2/{part}"
            for repo, part in zip(PUBLISHED[model], (DECODER, PRIOR), strict=True)
        )
        raise ValueError(f"the weights of {model} are not here; fetch them once with `{fetch}` and pass that folder")
    raise ValueError(f"there is no model {model!r}: it is '{BOX}', or a folder with {DECODER}/ and {PRIOR}/ in it")

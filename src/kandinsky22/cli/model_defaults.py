"""What a model on this machine does where an option is left out, for help texts. Imports no torch."""

from dataclasses import fields

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.json_files import read_json
from kandinsky22.checkpoints.metadata import read_metadata
from kandinsky22.files import expand
from kandinsky22.request import Sampling

OPTIONS = {"steps": "num_inference_steps", "sampler": "sampler", "guidance_scale": "guidance_scale"}


def model_defaults(model: str) -> dict[str, str]:
    """The model's own values by option; {} if it is not on this machine or cannot be read."""
    if expand(model).is_file():  # one file, which has no folders until it is unpacked
        return {}
    try:
        folder = locate.part_folders(model)[catalog.DECODER]
        stages = read_metadata(folder).defaults
        latents = read_json(folder / "unet" / "config.json")["sample_size"]
        levels = len(read_json(folder / "movq" / "config.json")["block_out_channels"])
        side = str(latents * 2 ** (levels - 1))
    except (ValueError, OSError, KeyError, TypeError):  # loading the model reports what is wrong with it
        return {}
    defaults = {"height": side, "width": side, "size": f"{side}x{side}"}
    for stage, prefix in ((catalog.PRIOR, "prior_"), (catalog.DECODER, "")):
        published = Sampling(steps=catalog.PUBLISHED_STEPS[stage], guidance_scale=catalog.PUBLISHED_GUIDANCE)
        sampling = stages.get(stage, Sampling()).with_defaults(published)
        for f in fields(sampling):
            value = getattr(sampling, f.name)
            if f.name in OPTIONS and value is not None:
                defaults[prefix + OPTIONS[f.name]] = f"{value:g}" if isinstance(value, float) else str(value)
    return defaults

"""diffusers' Kandinsky 2.2 pipelines, with its class names, arguments, defaults and results.

Code written for diffusers needs only another import. `prior.py`, `decoder.py` and `combined.py` declare the classes and
the signatures of their calls, `pipeline.py` what they have in common; `views.py` has the parts as programs call them,
`attributes.py` and `switches.py` what programs read and set; `arguments.py` and `pixels.py` check and convert what is
passed in, before any network runs; `runs.py` prepares the samplers, with random draws in diffusers' order, so that the
same `torch.Generator` gives the same picture. Where diffusers has a bug that is not reproduced, the docstring of the
class names it, and docs/diffusers.md lists every decision. Arguments that are not supported are refused, naming the
alternative here.
"""

from kandinsky22.checkpoints.schedulers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from kandinsky22.pipelines.auto import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
)
from kandinsky22.pipelines.combined import (
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22InpaintCombinedPipeline,
)
from kandinsky22.pipelines.decoder import (
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
)
from kandinsky22.pipelines.outputs import ImagePipelineOutput, KandinskyPriorPipelineOutput
from kandinsky22.pipelines.pipeline import DiffusionPipeline
from kandinsky22.pipelines.pixels import load_image
from kandinsky22.pipelines.prior import KandinskyV22PriorEmb2EmbPipeline, KandinskyV22PriorPipeline

__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "DDIMScheduler",
    "DDPMScheduler",
    "DiffusionPipeline",
    "ImagePipelineOutput",
    "KandinskyPriorPipelineOutput",
    "KandinskyV22CombinedPipeline",
    "KandinskyV22ControlnetImg2ImgPipeline",
    "KandinskyV22ControlnetPipeline",
    "KandinskyV22Img2ImgCombinedPipeline",
    "KandinskyV22Img2ImgPipeline",
    "KandinskyV22InpaintCombinedPipeline",
    "KandinskyV22InpaintPipeline",
    "KandinskyV22Pipeline",
    "KandinskyV22PriorEmb2EmbPipeline",
    "KandinskyV22PriorPipeline",
    "UnCLIPScheduler",
    "load_image",
]

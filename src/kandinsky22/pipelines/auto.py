"""The AutoPipeline classes: the combined pipeline of a task."""

from typing import Any, ClassVar

from kandinsky22.pipelines.combined import (
    CombinedPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22InpaintCombinedPipeline,
)
from kandinsky22.pipelines.pipeline import DiffusionPipeline


class AutoPipeline:
    """What the AutoPipeline classes have in common."""

    PIPELINE: ClassVar[type[CombinedPipeline]]

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: Any, **kwargs: Any) -> CombinedPipeline:
        """The pipeline of a decoder and its prior; see `DiffusionPipeline.from_pretrained`."""
        return cls.PIPELINE.from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any) -> CombinedPipeline:
        """The pipeline that shares another's parts; see `DiffusionPipeline.from_pipe`."""
        return cls.PIPELINE.from_pipe(pipeline, **parts)


class AutoPipelineForText2Image(AutoPipeline):
    """Loads a `KandinskyV22CombinedPipeline`."""

    PIPELINE = KandinskyV22CombinedPipeline


class AutoPipelineForImage2Image(AutoPipeline):
    """Loads a `KandinskyV22Img2ImgCombinedPipeline`."""

    PIPELINE = KandinskyV22Img2ImgCombinedPipeline


class AutoPipelineForInpainting(AutoPipeline):
    """Loads a `KandinskyV22InpaintCombinedPipeline`."""

    PIPELINE = KandinskyV22InpaintCombinedPipeline

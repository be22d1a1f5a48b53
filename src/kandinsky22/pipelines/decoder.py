"""The pipelines of the decoders: image embeddings become pictures."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.components import DecoderParts
from kandinsky22.engine.stages import DecoderStage, Embeds
from kandinsky22.imaging.pixels import to_image
from kandinsky22.pipelines import pixels
from kandinsky22.pipelines.arguments import as_batch, computed_size
from kandinsky22.pipelines.outputs import ImagePipelineOutput
from kandinsky22.pipelines.pipeline import DiffusionPipeline, calls_run
from kandinsky22.pipelines.runs import DecoderCall, decoder_run


class DecoderPipeline(DiffusionPipeline):
    """What the pipelines of the decoders have in common.

    Sides are rounded up to multiples of 64, as diffusers rounds them for text to image. Guidance of 1 or less works
    with several images per prompt, where diffusers fails. Raises `CheckpointError` for the U-Net of another task.
    """

    PARTS = ("unet", "scheduler", "movq")
    OUTPUT_TYPES: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "latent")
    CALLBACK_TENSORS: ClassVar[tuple[str, ...]] = ("latents", "image_embeds", "negative_image_embeds")
    KIND: ClassVar[str] = catalog.DECODER
    UNIT_RANGE: ClassVar[bool] = False
    """Whether tensors of pictures, given and returned, are in [0, 1] instead of [-1, 1]."""

    def __init__(self, unet: Any, scheduler: Any, movq: Any) -> None:
        super().__init__({"unet": unet, "scheduler": scheduler, "movq": movq})
        DecoderParts(self.KIND, **self.parts)  # raises where the U-Net is another task's

    @property
    def stage(self) -> DecoderStage:
        """The engine's stage for these parts."""
        networks = self.networks
        self._stage = self._stage or DecoderStage(DecoderParts(self.KIND, **self.parts), networks)
        stage: DecoderStage = self._stage
        return stage

    @property
    def movq_scale_factor(self) -> int:
        """Pixels per cell of the latents, along each side."""
        factor: int = DecoderParts(self.KIND, **self.parts).movq.config.factor
        return factor

    def run(
        self, *, image_embeds: Any, negative_image_embeds: Any, output_type: str, **arguments: Any
    ) -> ImagePipelineOutput:
        negative = None
        if negative_image_embeds is not None:
            negative = as_batch("negative_image_embeds", negative_image_embeds)
        embeds = Embeds(as_batch("image_embeds", image_embeds), negative)
        return self.paint(self.decoder_call(embeds, output_type=output_type, **arguments), embeds, output_type)

    def decoder_call(
        self,
        embeds: Embeds | int,
        *,
        height: Any,
        width: Any,
        image: Any = None,
        mask_image: Any = None,
        hint: Any = None,
        noise_per_row: bool = False,
        **options: Any,
    ) -> DecoderCall:
        """The checked arguments of a call, for embeddings or for a number of embeddings that are still to be sampled.

        options: see `stage_options`. Raises `ValueError` for wrong arguments.
        """
        height, width = computed_size(height, width)
        start = inpaint = None
        if mask_image is not None:
            image = pixels.to_pixels(image, height, width, unit_range=self.UNIT_RANGE)
            inpaint = image, pixels.repaint_mask(mask_image, height, width)
        elif image is not None:
            channels = self.stage.stored.movq.config.latent_channels
            start = pixels.to_pixels(image, height, width, unit_range=self.UNIT_RANGE, latent_channels=channels)
        if hint is not None:
            hint = as_batch("hint", hint)
            pixels.check_unit_range(hint, "hint")
        call = DecoderCall(
            height=height,
            width=width,
            count=embeds if isinstance(embeds, int) else len(embeds.image),
            start=start,
            noise_per_row=noise_per_row,
            inpaint=inpaint,
            hint=hint,
            options=self.stage_options(**options),
        )
        num_timesteps = call.check(self.stage, None if isinstance(embeds, int) else embeds)
        self._guidance_scale, self._num_timesteps = call.options.guidance_scale, num_timesteps
        return call

    def paint(self, call: DecoderCall, embeds: Embeds, output_type: str) -> ImagePipelineOutput:
        """Sample latents for the embeddings and decode them."""
        run, final_constraint = decoder_run(self.stage, call, embeds)
        latents = final_constraint(self.run_with_progress(self.stage.sample(run)), -1)
        dtype = self.networks.weight_dtype
        if output_type == "latent":
            return ImagePipelineOutput(latents.to(dtype))
        decoded = self.stage.decode(latents)
        if output_type == "pt":
            return ImagePipelineOutput((pixels.to_unit_range(decoded) if self.UNIT_RANGE else decoded).to(dtype))
        if output_type == "np":
            return ImagePipelineOutput(pixels.to_arrays(decoded))
        return ImagePipelineOutput([to_image(image) for image in decoded])


class KandinskyV22Pipeline(DecoderPipeline):
    """Image embeddings to pictures.

    Sides are rounded up to multiples of 64. Guidance of 1 or less works with several images per prompt.
    """

    @calls_run
    def __call__(
        self,
        image_embeds: Any,
        negative_image_embeds: Any,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Any = None,
        callback_steps: int = 1,
    ) -> Any:
        """Paint pictures. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22Img2ImgPipeline(DecoderPipeline):
    """Pictures that start from an image, noised to `strength`.

    Not reproduced: pictures that are not square come out height x width, where diffusers swaps the sides; PIL pictures
    of any mode are taken, and latents; a strength that leaves no step is refused.
    """

    UNIT_RANGE = True

    @calls_run
    def __call__(
        self,
        image_embeds: Any,
        image: Any,
        negative_image_embeds: Any,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        strength: float = 0.3,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Any = None,
        callback_steps: int = 1,
    ) -> Any:
        """Paint pictures from `image`. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22InpaintPipeline(DecoderPipeline):
    """Pictures in which the region where the mask is white is repainted.

    Not reproduced: each picture of a batch keeps its own known region, where diffusers keeps the first's; masks that
    are passed in are not modified; sides that are no multiples of 64 and arrays of another size work.
    """

    KIND = catalog.INPAINT
    CALLBACK_TENSORS = (*DecoderPipeline.CALLBACK_TENSORS, "masked_image", "mask_image")

    @calls_run
    def __call__(
        self,
        image_embeds: Any,
        image: Any,
        mask_image: Any,
        negative_image_embeds: Any,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Any = None,
        callback_steps: int = 1,
    ) -> Any:
        """Repaint `image` where `mask_image` is white. Raises `ValueError` for wrong arguments, before any network."""


class KandinskyV22ControlnetPipeline(DecoderPipeline):
    """Pictures that follow a depth hint [B, 3, H, W] in [0, 1], of the rounded size; one hint serves all embeddings."""

    KIND = catalog.DEPTH
    OUTPUT_TYPES = ("pil", "np", "pt")

    @calls_run
    def __call__(
        self,
        image_embeds: Any,
        negative_image_embeds: Any,
        hint: Any,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback: Any = None,
        callback_steps: int = 1,
        return_dict: bool = True,
    ) -> Any:
        """Paint pictures that follow `hint`. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22ControlnetImg2ImgPipeline(DecoderPipeline):
    """Pictures that start from an image and follow a depth hint.

    Not reproduced: what `KandinskyV22Img2ImgPipeline` names.
    """

    KIND = catalog.DEPTH
    OUTPUT_TYPES = ("pil", "np", "pt")
    UNIT_RANGE = True

    @calls_run
    def __call__(
        self,
        image_embeds: Any,
        image: Any,
        negative_image_embeds: Any,
        hint: Any,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        strength: float = 0.3,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pil",
        callback: Any = None,
        callback_steps: int = 1,
        return_dict: bool = True,
    ) -> Any:
        """Paint from `image`, following `hint`. Raises `ValueError` for wrong arguments before any network runs."""

"""The pipelines with a prior and a decoder: prompts become pictures in one call."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from kandinsky22.checkpoints.components import PREFIX
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.engine.stages import Embeds
from kandinsky22.pipelines.arguments import one_per_row
from kandinsky22.pipelines.decoder import (
    DecoderPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
)
from kandinsky22.pipelines.outputs import ImagePipelineOutput
from kandinsky22.pipelines.pipeline import DiffusionPipeline, calls_run
from kandinsky22.pipelines.prior import KandinskyV22PriorPipeline


class CombinedPipeline(DiffusionPipeline):
    """What the combined pipelines have in common: `prior_pipe`, whose parts are called prior_..., and `decoder_pipe`.

    The same generator draws for the prior and then for the decoder.
    """

    PARTS = (*DecoderPipeline.PARTS, *(PREFIX + name for name in KandinskyV22PriorPipeline.PARTS))
    DECODER: ClassVar[type[DecoderPipeline]]
    _load_connected_pipes = True

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        movq: Any,
        prior_prior: Any,
        prior_image_encoder: Any,
        prior_text_encoder: Any,
        prior_tokenizer: Any,
        prior_scheduler: Any,
        prior_image_processor: Any,
    ) -> None:
        super().__init__({})  # its two pipelines have the parts
        self.prior_pipe = KandinskyV22PriorPipeline(
            prior_prior,
            prior_image_encoder,
            prior_text_encoder,
            prior_tokenizer,
            prior_scheduler,
            prior_image_processor,
        )
        self.decoder_pipe = self.DECODER(unet, scheduler, movq)
        self._check_fit()

    @property
    def parts(self) -> dict[str, Any]:
        return self.decoder_pipe.parts | {PREFIX + name: part for name, part in self.prior_pipe.parts.items()}

    def part(self, name: str) -> Any:
        return self._owner(name).part(name.removeprefix(PREFIX))

    def replace_part(self, name: str, value: Any) -> None:
        self._owner(name).replace_part(name.removeprefix(PREFIX), value)

    def place(self, *args: Any, **kwargs: Any) -> None:
        super().place(*args, **kwargs)
        for pipe in (self.prior_pipe, self.decoder_pipe):
            pipe.place(*args, **kwargs)

    def set_progress_bar_config(self, **config: Any) -> None:
        for pipe in (self.prior_pipe, self.decoder_pipe):
            pipe.set_progress_bar_config(**config)

    def run(
        self,
        *,
        prompt: Any,
        negative_prompt: Any,
        num_images_per_prompt: Any,
        generator: Any,
        latents: Any,
        output_type: str,
        prior_num_inference_steps: Any,
        prior_guidance_scale: Any,
        prior_callback_on_step_end: Any,
        prior_callback_on_step_end_tensor_inputs: Any,
        image: Any = None,
        mask_image: Any = None,
        **decoder_arguments: Any,
    ) -> ImagePipelineOutput:
        self._check_fit()
        prior_call = self.prior_pipe.prior_call(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            num_inference_steps=prior_num_inference_steps,
            guidance_scale=prior_guidance_scale,
            generator=generator,
            latents=latents,
            callback_on_step_end=prior_callback_on_step_end,
            callback_on_step_end_tensor_inputs=prior_callback_on_step_end_tensor_inputs,
        )
        count = prior_call.images
        if isinstance(generator, list | tuple) and len(generator) == prior_call.rows:
            generator = generator[:count]  # the prior's rows for negative prompts have no picture
        decoder_call = self.decoder_pipe.decoder_call(
            count,
            image=one_per_row(image, count),
            mask_image=one_per_row(mask_image, count),
            noise_per_row=not isinstance(image, Tensor),
            generator=generator,
            output_type=output_type,
            **decoder_arguments,
        )
        embeds = self.prior_pipe.output(self.prior_pipe.sample(prior_call))
        return self.decoder_pipe.paint(decoder_call, Embeds(*embeds.to_tuple()), output_type)

    def _check_fit(self) -> None:
        """Raises `CheckpointError` where the decoder cannot take the prior's embeddings."""
        unet, prior = self.parts["unet"], self.parts[PREFIX + "prior"]
        if unet is None or prior is None:
            return
        takes, makes = unet.config.encoder_hid_dim, prior.config.embedding_dim
        if takes != makes:
            raise CheckpointError(
                f"the prior makes embeddings of {makes} numbers and the decoder takes {takes}: they are not of one "
                "model; load both from one model's folders"
            )

    def _owner(self, name: str) -> DiffusionPipeline:
        return self.prior_pipe if name.startswith(PREFIX) else self.decoder_pipe


class KandinskyV22CombinedPipeline(CombinedPipeline):
    """The prior and a decoder: prompts to pictures. It has its decoder's differences from diffusers, and some more.

    Not reproduced: of several pictures, each goes with its own prompt, where diffusers assigns them in turn; the
    progress bar does not turn on offloading; no warning of arguments that nobody gave.
    """

    DECODER = KandinskyV22Pipeline

    @calls_run
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        height: int = 512,
        width: int = 512,
        prior_guidance_scale: float = 4.0,
        prior_num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback: Any = None,
        callback_steps: int = 1,
        return_dict: bool = True,
        prior_callback_on_step_end: Any = None,
        prior_callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Paint prompts. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22Img2ImgCombinedPipeline(CombinedPipeline):
    """The prior and image to image; see `KandinskyV22CombinedPipeline` and `KandinskyV22Img2ImgPipeline`."""

    DECODER = KandinskyV22Img2ImgPipeline

    @calls_run
    def __call__(
        self,
        prompt: str | list[str],
        image: Any,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        strength: float = 0.3,
        num_images_per_prompt: int = 1,
        height: int = 512,
        width: int = 512,
        prior_guidance_scale: float = 4.0,
        prior_num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback: Any = None,
        callback_steps: int = 1,
        return_dict: bool = True,
        prior_callback_on_step_end: Any = None,
        prior_callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Paint prompts from `image`. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22InpaintCombinedPipeline(CombinedPipeline):
    """The prior and inpainting; see `KandinskyV22CombinedPipeline` and `KandinskyV22InpaintPipeline`."""

    DECODER = KandinskyV22InpaintPipeline

    @calls_run
    def __call__(
        self,
        prompt: str | list[str],
        image: Any,
        mask_image: Any,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        height: int = 512,
        width: int = 512,
        prior_guidance_scale: float = 4.0,
        prior_num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prior_callback_on_step_end: Any = None,
        prior_callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Any = None,
        callback_steps: int = 1,
    ) -> Any:
        """Repaint `image` where `mask_image` is white. Raises `ValueError` for wrong arguments, before any network."""

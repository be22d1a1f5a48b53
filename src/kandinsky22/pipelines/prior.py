"""The pipelines of the prior: prompts become CLIP image embeddings."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints.components import PriorParts
from kandinsky22.console import printable
from kandinsky22.engine.runs import draw_noise_only, repeat_rows, weighted_sum
from kandinsky22.engine.stages import Embeds, PriorStage
from kandinsky22.pipelines.arguments import interpolation_weights, prior_images, prompt_list
from kandinsky22.pipelines.outputs import KandinskyPriorPipelineOutput
from kandinsky22.pipelines.pipeline import DiffusionPipeline, calls_run
from kandinsky22.pipelines.pixels import eight_bit
from kandinsky22.pipelines.runs import PriorCall, prior_run


class PriorPipeline(DiffusionPipeline):
    """What both pipelines of the prior have in common.

    Raises `CheckpointError` for parts that do not fit each other.
    """

    PARTS = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    OUTPUT_TYPES = ("pt", "np")
    CALLBACK_TENSORS: ClassVar[tuple[str, ...]] = (
        "latents",
        "prompt_embeds",
        "text_encoder_hidden_states",
        "text_mask",
    )

    def __init__(
        self, prior: Any, image_encoder: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, image_processor: Any
    ) -> None:
        parts = (prior, image_encoder, text_encoder, tokenizer, scheduler, image_processor)
        super().__init__(dict(zip(self.PARTS, parts, strict=True)))
        PriorParts(**self.parts)  # raises where they do not fit each other

    @property
    def stage(self) -> PriorStage:
        """The engine's stage for these parts."""
        networks = self.networks
        self._stage = self._stage or PriorStage(PriorParts(**self.parts), networks)
        stage: PriorStage = self._stage
        return stage

    def get_zero_embed(self, batch_size: int = 1, device: Any = None) -> Tensor:
        """The embedding of the all-zero picture, the default negative one, [batch_size, D]."""
        embed = self.stage.zero_image_embed.to(device, self.networks.weight_dtype)
        return embed.repeat(batch_size, 1)

    def run(self, *, output_type: str, **arguments: Any) -> KandinskyPriorPipelineOutput:
        return self.output(self.sample(self.prior_call(output_type=output_type, **arguments)), output_type)

    @torch.no_grad()
    def interpolate(
        self,
        images_and_prompts: Sequence[Any],
        weights: Sequence[float],
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        negative_prior_prompt: Any = None,
        negative_prompt: Any = "",
        guidance_scale: float = 4.0,
        device: Any = None,
    ) -> KandinskyPriorPipelineOutput:
        """A weighted sum of the embeddings of prompts, PIL pictures, and pixels [1, 3, S, S] from CLIP's processor.

        Where diffusers runs the prior for an embedding that it then does not use, only the noise is drawn.
        """
        weights = interpolation_weights(images_and_prompts, weights)

        def prior_call(prompt: Any) -> PriorCall:
            return self.prior_call(
                prompt=prompt,
                negative_prompt=negative_prior_prompt,
                num_images_per_prompt=num_images_per_prompt,
                num_inference_steps=num_inference_steps,
                generator=generator,
                latents=latents,
                guidance_scale=guidance_scale,
            )

        negative = prior_call(negative_prompt)
        items = [prior_call(item) if isinstance(item, str) else item for item in images_and_prompts]
        repeats = negative.options.images_per_prompt
        image = weighted_sum([self.item_embeds(item, repeats) for item in items], weights)
        if negative_prompt != "":
            return self.output(Embeds(image, self.sample(negative).image))
        if negative.negative_prompts:
            return self.output(Embeds(image, self.sample(negative).negative))
        draw_noise_only(prior_run(self.stage, negative))
        self.stage.networks.release(self.stage.stored.prior)
        return self.output(Embeds(image, None))

    def prior_call(
        self,
        *,
        prompt: Any,
        negative_prompt: Any,
        image: Any = None,
        output_type: str = "pt",
        **options: Any,
    ) -> PriorCall:
        """The checked arguments of a call. options: see `stage_options`. Raises `ValueError` for wrong ones."""
        start = None if image is None else prior_images(image)
        call = PriorCall(
            prompts=prompt_list(prompt),
            negative_prompts=prompt_list(negative_prompt),
            start=start,
            options=self.stage_options(output_type=output_type, **options),
        )
        num_timesteps = call.check(self.stage)
        if not call.negative_prompts:  # the image encoder makes the negative embedding
            PriorParts(**self.parts).check_has("image_encoder")
        self._guidance_scale, self._num_timesteps = call.options.guidance_scale, num_timesteps
        for dropped in filter(None, self.stage.tokenizer([*call.prompts, *call.negative_prompts]).dropped):
            text = f"the prompt is too long for this model; it does not see: {printable(dropped)}"
            warnings.warn(text, stacklevel=5)
        return call

    def sample(self, call: PriorCall) -> Embeds:
        """The sampled embeddings; negative ones only if there are negative prompts."""
        embeds = self.run_with_progress(self.stage.sample(prior_run(self.stage, call)))
        return Embeds(embeds[: call.images], embeds[call.images :] if call.negative_prompts else None)

    def item_embeds(self, item: PriorCall | Image.Image | Tensor, repeats: int) -> Tensor:
        """The embeddings of one item of `interpolate`: sampled for a prompt's call, encoded for a picture or pixels."""
        if isinstance(item, PriorCall):
            return self.sample(item).image
        encoded = (
            self.stage.encode_pixels(item) if isinstance(item, Tensor) else self.stage.encode_images([eight_bit(item)])
        )
        return repeat_rows(encoded, repeats)

    def output(self, embeds: Embeds, output_type: str = "pt") -> KandinskyPriorPipelineOutput:
        """The call's output; where there are no negative embeddings, the zero-image embedding."""
        image, negative = embeds
        negative = self.stage.zero_image_embed.repeat(len(image), 1) if negative is None else negative
        both = [part.to(self.networks.weight_dtype) for part in (image, negative)]
        if output_type == "np":  # numpy has no bfloat16
            arrays = (part.float() if part.dtype == torch.bfloat16 else part for part in both)
            return KandinskyPriorPipelineOutput(*(part.cpu().numpy() for part in arrays))
        return KandinskyPriorPipelineOutput(*both)


class KandinskyV22PriorPipeline(PriorPipeline):
    """The prior: a prompt becomes CLIP image embeddings, positive and negative."""

    @calls_run
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        guidance_scale: float = 4.0,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Sample embeddings for prompts. Raises `ValueError` for wrong arguments, before any network runs."""


class KandinskyV22PriorEmb2EmbPipeline(PriorPipeline):
    """The prior, started from an image: PIL, pixels [B, 3, S, S] from CLIP's processor, or an embedding [B, D].

    As in diffusers the embedding is noised as it is, though the prior works on normalised ones;
    `kandinsky22.controlnet` normalises it. Not reproduced: `interpolate` takes prompts too, on which diffusers fails,
    and returns the zero-image embedding as the negative, where diffusers returns noise from no generator.
    """

    @calls_run
    def __call__(
        self,
        prompt: str | list[str],
        image: Any,
        strength: float = 0.3,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        generator: Any = None,
        guidance_scale: float = 4.0,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        """Sample embeddings that start from `image`, noised to `strength`. Raises `ValueError` as the prior does."""

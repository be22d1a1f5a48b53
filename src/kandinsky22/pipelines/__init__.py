"""A door for code written against diffusers: its Kandinsky 2.2 classes, with its arguments, defaults and results.

It translates. Everything is checked before any network runs; what is computed, `runs.py` and `pixels.py` compute, and
one `torch.Generator` draws for all rows in diffusers' order, so that the same generator gives its picture. A bug that
is not reproduced is named in the docstring of the class that would have it, and docs/diffusers.md lists every decision.
What is not supported is refused, and the way to have it here is named.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.components import PREFIX, DecoderParts, PriorParts
from kandinsky22.checkpoints.schedulers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from kandinsky22.engine.runs import draw_noise_only, repeat_rows, weighted_sum
from kandinsky22.engine.stages import DecoderStage, Embeds, PriorStage
from kandinsky22.imaging.pixels import to_image
from kandinsky22.pipelines import pixels
from kandinsky22.pipelines.arguments import canvas, dealt, joined, mixture, texts, to_start_from
from kandinsky22.pipelines.pipeline import (
    Assembly,
    ImagePipelineOutput,
    Joint,
    KandinskyPriorPipelineOutput,
    Output,
    signature_of,
)
from kandinsky22.pipelines.pixels import load_image
from kandinsky22.pipelines.runs import Canvas, Told, Words, decoder_run, prior_run

SIZE, LED = "height=512 width=512", "num_inference_steps=100 guidance_scale=4.0"
ONE = "num_images_per_prompt=1"
MADE, FROM = f"{ONE} generator=None", f"{ONE} generator=None latents=None"
TOLD = "callback_on_step_end=None callback_on_step_end_tensor_inputs=('latents',)"
TOLD_OF_BOTH = f"prior_callback_on_step_end=None prior_callback_on_step_end_tensor_inputs=('latents',) {TOLD}"
OLD = "callback=None callback_steps=1"
OUT, OUT_OLD = "output_type='pil' return_dict=True", f"output_type='pil' {OLD} return_dict=True"
BOTH = f"{SIZE} prior_guidance_scale=4.0 prior_num_inference_steps=25 generator=None latents=None"
JOINT = f"{LED} {ONE} {BOTH}"
ARGUMENTS = {
    "Prior": "prompt negative_prompt=None num_images_per_prompt=1 num_inference_steps=25 generator=None latents=None "
    f"guidance_scale=4.0 output_type='pt' return_dict=True {TOLD}",
    "PriorEmb2Emb": "prompt image strength=0.3 negative_prompt=None num_images_per_prompt=1 num_inference_steps=25 "
    "generator=None guidance_scale=4.0 output_type='pt' return_dict=True",
    "": f"image_embeds negative_image_embeds {SIZE} {LED} {FROM} {OUT} {TOLD} {OLD}",
    "Img2Img": f"image_embeds image negative_image_embeds {SIZE} {LED} strength=0.3 {MADE} {OUT} {TOLD} {OLD}",
    "Inpaint": f"image_embeds image mask_image negative_image_embeds {SIZE} {LED} {FROM} {OUT} {TOLD} {OLD}",
    "Controlnet": f"image_embeds negative_image_embeds hint {SIZE} {LED} {FROM} {OUT_OLD}",
    "ControlnetImg2Img": f"image_embeds image negative_image_embeds hint {SIZE} {LED} strength=0.3 {MADE} {OUT_OLD}",
    "Combined": f"prompt negative_prompt=None {JOINT} {OUT_OLD} {TOLD_OF_BOTH}",
    "Img2ImgCombined": f"prompt image negative_prompt=None {LED} strength=0.3 {ONE} {BOTH} {OUT_OLD} {TOLD_OF_BOTH}",
    "InpaintCombined": f"prompt image mask_image negative_prompt=None {JOINT} {OUT} {TOLD_OF_BOTH} {OLD}",
}
"""What each class is called with, in diffusers' order and with its defaults; callbacks that it takes unnamed come
last."""
ABSENT: dict[str, Any] = dict.fromkeys(word.partition("=")[0] for row in ARGUMENTS.values() for word in row.split())
NEEDED = ("image", "mask_image", "hint", "image_embeds")  # where a class takes them
ONLY_THE_PRIOR = (
    "only the prior takes a prompt: give it to KandinskyV22PriorPipeline and pass on what that returns, pipe(**prior_out), or "
    "use a Combined class, which has both networks"
)


def _called_with(row: str) -> Callable[..., Any]:
    """`__call__` for a class with these arguments."""
    signature = signature_of(row)

    @torch.no_grad()
    def __call__(self: "_Pipeline", *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if "prompt" in kwargs and "prompt" not in signature.parameters:
            raise ValueError(ONLY_THE_PRIOR)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        said = SimpleNamespace(**{**ABSENT, **bound.arguments})
        if missing := [name for name in NEEDED if name in bound.arguments and bound.arguments[name] is None]:
            raise ValueError(f"{' and '.join(missing)} must be given")
        out = self.run(said)
        return out if said.return_dict else out.to_tuple()

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    __call__.__doc__ = "Run it. Raises `ValueError` for what cannot be done, before any network runs."
    return __call__


class _Pipeline(Assembly):
    """A pipeline that is called with the arguments of its row of `ARGUMENTS`."""

    TENSORS: ClassVar[tuple[str, ...]] = ("latents",)  # for callbacks to look at
    OUTPUTS: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "latent")

    def __init_subclass__(cls) -> None:
        row = ARGUMENTS.get(cls.__name__.removeprefix("KandinskyV22").removesuffix("Pipeline"))
        if row is not None:
            cls.__call__ = _called_with(row)  # type: ignore[method-assign]  # each class has its own arguments

    def run(self, a: SimpleNamespace) -> Output:
        """Do what the arguments say, those that the class does not take being None."""
        raise NotImplementedError

    def _how(self, a: SimpleNamespace) -> dict[str, Any]:
        """What both stages are told. Raises `ValueError`."""
        wanted = tuple(a.callback_on_step_end_tensor_inputs or ())
        if a.output_type not in self.OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(self.OUTPUTS)}, got {a.output_type!r}")
        if wrong := [name for name in wanted if name not in self.TENSORS]:
            raise ValueError(f"a callback can ask for {', '.join(self.TENSORS)}, not for {', '.join(wrong)}")
        return {
            "steps": a.num_inference_steps,
            "guidance": a.guidance_scale,
            "sampler": self.scheduler.sampler,
            "generator": a.generator,
            "latents": a.latents,
            "each": a.num_images_per_prompt,
            "told": Told(self, a.callback_on_step_end, wanted, a.callback, a.callback_steps or 1),
        }


class KandinskyV22PriorPipeline(_Pipeline):
    """The prior: a prompt becomes CLIP image embeddings, those to paint and those to keep away from."""

    PARTS = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    TENSORS = ("latents", "prompt_embeds", "text_encoder_hidden_states", "text_mask")
    OUTPUTS = ("pt", "np")

    def __init__(
        self, prior: Any, image_encoder: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, image_processor: Any
    ) -> None:
        given = (prior, image_encoder, text_encoder, tokenizer, scheduler, image_processor)
        super().__init__(dict(zip(self.PARTS, given, strict=True)))
        PriorParts(**self.parts)  # raises where they do not fit each other

    @cached_property
    def stage(self) -> PriorStage:
        """What does the work."""
        return PriorStage(PriorParts(**self.parts), self.networks)

    def run(self, a: SimpleNamespace) -> KandinskyPriorPipelineOutput:
        return self.out(self.embeds(self.asked(a)), a.output_type)

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
        """A weighted sum of the embeddings of texts, PIL pictures, and pixels [1, 3, S, S] as CLIP sees them.

        Where diffusers runs the prior for an embedding that it then does not use, only the noise is drawn.
        """
        weights = mixture(images_and_prompts, weights)
        how = {
            **ABSENT,
            "num_images_per_prompt": num_images_per_prompt,
            "num_inference_steps": num_inference_steps,
            "generator": generator,
            "latents": latents,
            "guidance_scale": guidance_scale,
            "output_type": "pt",
            "negative_prompt": negative_prior_prompt,
        }

        def asked(prompt: Any) -> Words:
            return self.asked(SimpleNamespace(**how | {"prompt": prompt}))

        avoided = asked(negative_prompt)
        parts = [asked(one) if isinstance(one, str) else one for one in images_and_prompts]
        mixed = weighted_sum([self.embedding(part, avoided.each) for part in parts], weights)
        if negative_prompt != "":
            return self.out(Embeds(mixed, self.embeds(avoided).image))
        if avoided.negatives:
            return self.out(Embeds(mixed, self.embeds(avoided).negative))
        draw_noise_only(prior_run(self.stage, avoided))
        self.stage.networks.release(self.stage.stored.prior)
        return self.out(Embeds(mixed, None))

    def asked(self, a: SimpleNamespace) -> Words:
        """What is asked of the prior, checked."""
        begins = {} if a.image is None else {"start": to_start_from(a.image), "strength": a.strength}
        asked = Words(prompts=texts(a.prompt), negatives=texts(a.negative_prompt), **begins, **self._how(a))
        self.now(asked.guidance, asked.check(self.stage))
        for dropped in filter(None, self.stage.tokenizer([*asked.prompts, *asked.negatives]).dropped):
            warnings.warn(f"the prompt is too long for this model; it does not see: {dropped}", stacklevel=5)
        return asked

    def embeds(self, asked: Words) -> Embeds:
        """What the prior makes of it."""
        made = self.driven(self.stage.sample({0: prior_run(self.stage, asked)}))
        painted = len(asked.prompts) * asked.each
        return Embeds(made[:painted], made[painted:] if asked.negatives else None)

    def embedding(self, part: Words | Image.Image | Tensor, each: int) -> Tensor:
        """Of a text, a picture, or pixels, `each` times."""
        if isinstance(part, Words):
            return self.embeds(part).image
        return repeat_rows(
            self.stage.encode_pixels(part) if isinstance(part, Tensor) else self.stage.encode_images([part]), each
        )

    def out(self, embeds: Embeds, output_type: str = "pt") -> KandinskyPriorPipelineOutput:
        """As it is given back; where there are no negative embeddings, the empty picture's."""
        image, negative = embeds
        negative = self.stage.zero_image_embed.repeat(len(image), 1) if negative is None else negative
        both = [part.to(self.networks.weight_dtype) for part in (image, negative)]
        return KandinskyPriorPipelineOutput(*(part.cpu().numpy() if output_type == "np" else part for part in both))


class KandinskyV22PriorEmb2EmbPipeline(KandinskyV22PriorPipeline):
    """The prior, started from a picture: PIL, pixels [B, 3, S, S] as CLIP sees them, or its embedding [B, D].

    As in diffusers the embedding is noised as it is, though the prior works on normalised ones;
    `kandinsky22.controlnet` normalises it. Not reproduced: `interpolate` takes texts too, which diffusers' stumbles
    over, and keeps away from the empty picture, where diffusers' gives back noise from no generator.
    """


class _Decoder(_Pipeline):
    """A decoder: image embeddings become pictures. Sides are rounded up to multiples of 64, as diffusers rounds them
    for text to image. Guidance of 1 or less paints `num_images_per_prompt` pictures too, where diffusers fails."""

    PARTS = ("unet", "scheduler", "movq")
    TENSORS: ClassVar[tuple[str, ...]] = ("latents", "image_embeds", "negative_image_embeds")
    KIND: ClassVar[str] = catalog.DECODER
    UNIT: ClassVar[bool] = False  # whether tensors of pictures are in [0, 1], and not in [-1, 1]

    def __init__(self, unet: Any, scheduler: Any, movq: Any) -> None:
        super().__init__({"unet": unet, "scheduler": scheduler, "movq": movq})
        DecoderParts(self.KIND, **self.parts)  # raises where the U-Net is another task's

    @cached_property
    def stage(self) -> DecoderStage:
        """What does the work."""
        return DecoderStage(DecoderParts(self.KIND, **self.parts), self.networks)

    def run(self, a: SimpleNamespace) -> ImagePipelineOutput:
        negative = None if a.negative_image_embeds is None else joined("negative_image_embeds", a.negative_image_embeds)
        given = Embeds(joined("image_embeds", a.image_embeds), negative)
        return self.paint(self.asked(a, given), given, a.output_type)

    def asked(self, a: SimpleNamespace, embeds: Embeds | int, *, apart: bool = False) -> Canvas:
        """What is asked of the decoder, checked, for embeddings or for a number of those to come."""
        columns: dict[str, Any] = {}
        height, width = canvas(a.height, a.width)
        if a.mask_image is not None:
            image = pixels.pictures(a.image, height, width, unit=self.UNIT)
            columns["known"] = image, pixels.repainted(a.mask_image, height, width)
        elif a.image is not None:
            channels = self.stage.stored.movq.config.latent_channels
            image = pixels.pictures(a.image, height, width, unit=self.UNIT, latent_channels=channels)
            columns |= {"start": image, "strength": a.strength, "apart": apart}
        if a.hint is not None:
            columns["hint"] = joined("hint", a.hint)
            pixels.check_unit(columns["hint"], "hint")
        count = embeds if isinstance(embeds, int) else len(embeds.image)
        asked = Canvas(height=height, width=width, count=count, **columns, **self._how(a))
        self.now(asked.guidance, asked.check(self.stage, None if isinstance(embeds, int) else embeds))
        return asked

    def paint(self, asked: Canvas, embeds: Embeds, output_type: str) -> ImagePipelineOutput:
        """What was asked, led by embeddings."""
        run, held = decoder_run(self.stage, asked, embeds)
        latents = held(self.driven(self.stage.sample({0: run})), -1)
        if output_type == "latent":
            return ImagePipelineOutput(latents.to(self.networks.weight_dtype))
        made = self.stage.decode(latents)
        if output_type == "pt":
            return ImagePipelineOutput((pixels.in_unit(made) if self.UNIT else made).to(self.networks.weight_dtype))
        return ImagePipelineOutput(pixels.to_arrays(made) if output_type == "np" else [to_image(one) for one in made])


class KandinskyV22Pipeline(_Decoder):
    """Image embeddings to pictures; see `_Decoder`."""


class KandinskyV22Img2ImgPipeline(_Decoder):
    """A picture painted anew. Not reproduced: pictures that are not square come out height x width, where diffusers
    swaps the sides; PIL pictures of any mode are taken, and latents; a strength that leaves no step is refused."""

    UNIT = True


class KandinskyV22InpaintPipeline(_Decoder):
    """A part of a picture painted anew: where the mask is white. Not reproduced: each picture of a batch keeps its own
    known region, where diffusers keeps the first's; masks that are passed in are not changed; sides that are no
    multiples of 64 and arrays of another size work."""

    KIND, TENSORS = catalog.INPAINT, (*_Decoder.TENSORS, "masked_image", "mask_image")


class KandinskyV22ControlnetPipeline(_Decoder):
    """Pictures that follow a depth hint [B, 3, H, W] in [0, 1], on the sides rounded up; one hint serves all
    embeddings."""

    KIND, OUTPUTS = catalog.DEPTH, ("pil", "np", "pt")


class KandinskyV22ControlnetImg2ImgPipeline(KandinskyV22ControlnetPipeline):
    """A picture painted anew that follows a depth hint. Not reproduced: what `KandinskyV22Img2ImgPipeline` names."""

    UNIT = True


class KandinskyV22CombinedPipeline(Joint, _Pipeline):
    """The prior and a decoder, one generator going on from the one to the other. A decoder's exceptions are its own.

    Not reproduced: of several pictures, each goes with its own prompt, where diffusers deals them out in turn; the
    progress bar does not turn on offloading; no warning of arguments that nobody gave.
    """

    PARTS = (*_Decoder.PARTS, *(PREFIX + name for name in KandinskyV22PriorPipeline.PARTS))
    DECODER: ClassVar[type[_Decoder]] = KandinskyV22Pipeline

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
        self.prior_pipe = KandinskyV22PriorPipeline(
            prior_prior,
            prior_image_encoder,
            prior_text_encoder,
            prior_tokenizer,
            prior_scheduler,
            prior_image_processor,
        )
        self.decoder_pipe = self.DECODER(unet, scheduler, movq)
        self.place(self.decoder_pipe.device, self.decoder_pipe.dtype)

    def run(self, a: SimpleNamespace) -> ImagePipelineOutput:
        prior, decoder = SimpleNamespace(**vars(a)), SimpleNamespace(**vars(a))
        for name in vars(a):
            if name.startswith(PREFIX):  # the prior's own, in the place of the decoder's
                setattr(prior, name.removeprefix(PREFIX), getattr(a, name))
        prior.output_type, prior.image, prior.callback = "pt", None, None
        words = self.prior_pipe.asked(prior)
        total = len(words.prompts) * words.each
        decoder.num_images_per_prompt, decoder.latents = 1, None
        decoder.image, decoder.mask_image = dealt(a.image, total), dealt(a.mask_image, total)
        if isinstance(a.generator, list | tuple) and len(a.generator) == words.total:
            decoder.generator = a.generator[:total]
        canvas = self.decoder_pipe.asked(decoder, total, apart=not isinstance(a.image, Tensor))
        made = self.prior_pipe.out(self.prior_pipe.embeds(words))
        return self.decoder_pipe.paint(canvas, Embeds(*made.to_tuple()), a.output_type)


class KandinskyV22Img2ImgCombinedPipeline(KandinskyV22CombinedPipeline):
    """See `KandinskyV22CombinedPipeline` and `KandinskyV22Img2ImgPipeline`."""

    DECODER = KandinskyV22Img2ImgPipeline


class KandinskyV22InpaintCombinedPipeline(KandinskyV22CombinedPipeline):
    """See `KandinskyV22CombinedPipeline` and `KandinskyV22InpaintPipeline`."""

    DECODER = KandinskyV22InpaintPipeline


class _Auto:
    """A combined pipeline by its task."""

    COMBINED: ClassVar[type[KandinskyV22CombinedPipeline]]

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: Any, **how: Any) -> KandinskyV22CombinedPipeline:
        """The pipeline of a decoder's folder or repository and of the prior that it names; see
        `Assembly.from_pretrained`."""
        return cls.COMBINED.from_pretrained(pretrained_model_or_path, **how)

    @classmethod
    def from_pipe(cls, pipeline: Assembly, **parts: Any) -> KandinskyV22CombinedPipeline:
        """The pipeline made of another's parts, and of those given. Raises `ValueError` where some are missing."""
        return cls.COMBINED.made_of(pipeline, **parts)


class AutoPipelineForText2Image(_Auto):
    """`KandinskyV22CombinedPipeline`."""

    COMBINED = KandinskyV22CombinedPipeline


class AutoPipelineForImage2Image(_Auto):
    """`KandinskyV22Img2ImgCombinedPipeline`."""

    COMBINED = KandinskyV22Img2ImgCombinedPipeline


class AutoPipelineForInpainting(_Auto):
    """`KandinskyV22InpaintCombinedPipeline`."""

    COMBINED = KandinskyV22InpaintCombinedPipeline


__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "DDIMScheduler",
    "DDPMScheduler",
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

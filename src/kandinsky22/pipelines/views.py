"""Parts of a pipeline as programs written for diffusers call them.

A view of a network is an object of a subclass that shares the network's state: its parameters, modules and
configuration. Only its calls are those of diffusers and transformers; the engine calls the network itself.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kandinsky22.checkpoints.network import save
from kandinsky22.checkpoints.part import Part
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.models.unet import UNet, UNetCondition
from kandinsky22.pipelines.outputs import PartOutput
from kandinsky22.pipelines.switches import without_effect


class NetworkView(nn.Module):
    """What the views of networks have in common.

    native: the network. part: what it is of, if it belongs to a pipeline. compute_dtype: what its inputs are converted
    to.
    """

    __slots__ = ("compute_dtype", "native", "part")
    compute_dtype: torch.dtype
    native: Any
    part: Part | None
    SWITCHES: ClassVar[tuple[str, ...]] = (
        "set_attn_processor",
        "set_default_attn_processor",
        "set_attention_slice",
        "set_use_memory_efficient_attention_xformers",
        "enable_xformers_memory_efficient_attention",
        "disable_xformers_memory_efficient_attention",
        "fuse_qkv_projections",
        "enable_slicing",
        "disable_slicing",
        "enable_tiling",
        "disable_tiling",
    )

    @classmethod
    def of(cls, native: nn.Module, compute_dtype: torch.dtype, part: Part | None = None) -> Self:
        """The view of a network."""
        view = cls.__new__(cls)
        values = {"__dict__": native.__dict__, "native": native, "part": part, "compute_dtype": compute_dtype}
        for name, value in values.items():
            object.__setattr__(view, name, value)  # torch's own would add the network as a module
        return view

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.of(copy.deepcopy(self.native, memo), self.compute_dtype)

    def __getattr__(self, name: str) -> Any:
        return without_effect(name) if name in self.SWITCHES else super().__getattr__(name)

    def save_pretrained(self, save_directory: str | Path, **ignored: Any) -> None:
        """Write the network's folder, as safetensors."""
        file = "model" if isinstance(self.native, CLIPText | CLIPVision) else "diffusion_pytorch_model"
        save(Path(save_directory), self.native, dtype=self.native.dtype, name=file)

    def _cast(self, *inputs: Any) -> tuple[Any, ...]:
        device = next(self.parameters()).device
        return tuple(None if x is None else x.to(device, self.compute_dtype) for x in inputs)

    def _timesteps(self, timestep: Any, rows: int) -> Tensor:
        """Timesteps [rows]."""
        device = next(self.parameters()).device
        return torch.as_tensor(timestep, device=device).reshape(-1).long().expand(rows)


class UNet2DConditionModel(NetworkView, UNet):
    """The U-Net: `unet(sample, timestep, None, added_cond_kwargs={"image_embeds": ..., "hint": ...}).sample`."""

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Any = None,
        *native: Any,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> Any:
        """The prediction and the learned variance [B, out_channels, h, w] for latents [B, in_channels, h, w].

        Raises `ValueError` without image embeddings, and without a hint where the network needs one.
        """
        if isinstance(encoder_hidden_states, UNetCondition):  # the engine calls a compiled view
            return UNet.forward(self, sample, timestep, encoder_hidden_states, *native)
        added = dict(added_cond_kwargs or {})
        if "image_embeds" not in added or self.config.hinted != ("hint" in added):
            needed = "image_embeds and hint" if self.config.hinted else "image_embeds"
            raise ValueError(f"added_cond_kwargs must have {needed}, got {', '.join(added) or 'none'}")
        x, embeds, hint = self._cast(sample, added["image_embeds"], added.get("hint"))
        masked = x[:, 4:] if x.shape[1] > 4 else None
        condition = self.condition(embeds, hint=hint, masked=masked)
        output = UNet.forward(self, x[:, :4], self._timesteps(timestep, len(x)), condition).to(sample.dtype)
        return PartOutput(sample=output) if return_dict else (output,)


class VQModel(NetworkView, MoVQ):
    """MoVQ: `movq.encode(pixels).latents`, `movq.decode(latents, force_not_quantize=True).sample`."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:  # type: ignore[override]
        """Latents [B, 4, h, w] of pixels [B, 3, H, W] in [-1, 1]."""
        latents = MoVQ.encode(self, *self._cast(x)).to(x.dtype)
        return PartOutput(latents=latents) if return_dict else (latents,)

    def decode(  # type: ignore[override]
        self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True, **ignored: Any
    ) -> Any:
        """Pixels [B, 3, H, W] in about [-1, 1] of latents, quantised first unless `force_not_quantize`."""
        (z,) = self._cast(h)
        sample = MoVQ.decode(self, z if force_not_quantize else self.quantize(z)[0]).to(h.dtype)
        return PartOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Pixels [B, 3, H, W], through quantised latents."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)


class CLIPTextModelWithProjection(NetworkView, CLIPText):
    """CLIP's text tower: `text_encoder(input_ids).text_embeds`, `.last_hidden_state`."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True, **ignored: Any
    ) -> Any:
        """Embeddings [B, D] and states [B, L, D] of token ids [B, L]."""
        features = CLIPText.forward(self, input_ids.to(self.device))
        output = PartOutput(text_embeds=features.embed, last_hidden_state=features.hidden)
        return output if return_dict else output.to_tuple()


class CLIPVisionModelWithProjection(NetworkView, CLIPVision):
    """CLIP's vision tower: `image_encoder(pixel_values).image_embeds`."""

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, return_dict: bool = True, **ignored: Any
    ) -> Any:
        """Embeddings [B, D] of pixels [B, 3, S, S] as the image processor makes them."""
        embeds = CLIPVision.forward(self, *self._cast(pixel_values)).to(self.dtype)
        return PartOutput(image_embeds=embeds) if return_dict else (embeds,)


class PriorTransformerView(NetworkView, PriorTransformer):
    """The prior: `prior(x, timestep, text_embeds, text_states, mask).predicted_image_embedding`."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Any,
        proj_embedding: Any,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The predicted embeddings [B, D], normalised, for noisy ones. Raises `ValueError` without text states."""
        if isinstance(proj_embedding, Prefix):  # the engine calls a compiled view
            return PriorTransformer.forward(self, hidden_states, timestep, proj_embedding, encoder_hidden_states)
        if encoder_hidden_states is None:
            raise ValueError("encoder_hidden_states must be given; the text encoder returns them as last_hidden_state")
        x, embed, hidden = self._cast(hidden_states, proj_embedding, encoder_hidden_states)
        ones = torch.ones(hidden.shape[:2], dtype=torch.bool, device=x.device)
        mask = ones if attention_mask is None else attention_mask.to(x.device).bool()
        prefix = self.prefill(hidden, embed, mask)
        predicted = PriorTransformer.forward(self, x, self._timesteps(timestep, len(x)), prefix).to(hidden_states.dtype)
        return PartOutput(predicted_image_embedding=predicted) if return_dict else (predicted,)

    def post_process_latents(self, prior_latents: Tensor) -> Tensor:
        """Normalised embeddings [B, D] in CLIP's space."""
        return self.denormalised(prior_latents)


VIEWS: Mapping[type[nn.Module], type[NetworkView]] = {
    UNet: UNet2DConditionModel,
    MoVQ: VQModel,
    CLIPText: CLIPTextModelWithProjection,
    CLIPVision: CLIPVisionModelWithProjection,
    PriorTransformer: PriorTransformerView,
}
COMPILED_VIEWS = UNet2DConditionModel, PriorTransformerView  # the engine can call them, and so what they compile to


class _ObjectView:
    """A view of an object that is no network: its attributes, and the calls of transformers."""

    def __init__(self, native: Any) -> None:
        self.native = native

    def __getattr__(self, name: str) -> Any:
        if name == "native":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.native, name)


class CLIPTokenizerView(_ObjectView):
    """CLIP's tokenizer: `tokenizer(prompts, return_tensors="pt").input_ids`, `.attention_mask`."""

    native: Tokenizer

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **ignored: Any,
    ) -> PartOutput:
        """Token ids and the mask of real ones: lists, or int64 tensors [B, L] with `return_tensors="pt"`.

        padding: "max_length" to `max_length`, True or "longest" to the longest text. truncation: to `max_length`.
        Raises `ValueError` for tensors of texts of several lengths.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        limit = max_length or self.native.max_length
        rows = [self.native.token_ids(prompt) for prompt in prompts]
        if truncation:
            rows = [row if len(row) <= limit else [*row[: limit - 1], self.native.end] for row in rows]
        longest = limit if padding == "max_length" else max(map(len, rows), default=0) if padding else 0
        ids = [row + [self.native.end] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        if return_tensors is None:
            single = isinstance(text, str)
            return PartOutput(input_ids=ids[0] if single else ids, attention_mask=mask[0] if single else mask)
        if return_tensors != "pt" or len(set(map(len, ids))) > 1:
            raise ValueError("texts of several lengths make no tensor; pass padding='max_length' and truncation=True")
        return PartOutput(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))

    def encode(self, text: str, **ignored: Any) -> list[int]:
        """The ids of a text, start and end included."""
        return self.native.token_ids(text)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **ignored: Any) -> str:
        """The text of ids."""
        return self.native.text_of([int(i) for i in ids], special=not skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False, **ignored: Any) -> list[str]:
        """The texts of rows of ids."""
        return [self.decode(row, skip_special_tokens) for row in ids]

    def get_vocab(self) -> dict[str, int]:
        """The ids by token."""
        return dict(self.native.vocab)

    def __len__(self) -> int:
        return len(self.native.vocab)

    @property
    def model_max_length(self) -> int:
        """The most tokens of a text, start and end included."""
        return self.native.max_length

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self.native.vocab)

    @property
    def bos_token_id(self) -> int:
        """The id of the start."""
        return self.native.start

    @property
    def eos_token_id(self) -> int:
        """The id of the end, with which texts are padded too."""
        return self.native.end

    pad_token_id = eos_token_id


class CLIPImageProcessorView(_ObjectView):
    """CLIP's image processor: `image_processor(images, return_tensors="pt").pixel_values`."""

    native: CLIPImageProcessor

    def __call__(self, images: Any, return_tensors: str | None = None, **ignored: Any) -> PartOutput:
        """float32 [B, 3, S, S] of PIL pictures; without `return_tensors` a list of arrays."""
        pixels = self.native(list(images) if isinstance(images, list | tuple) else [images])
        return PartOutput(pixel_values=pixels if return_tensors == "pt" else list(pixels.numpy()))

    preprocess = __call__


def view_of_network(part: Part, network: nn.Module, compute_dtype: torch.dtype) -> Any:
    """The view of a part's network, the same for all pipelines; a compiled network is its own."""
    kind = next((view for native, view in VIEWS.items() if isinstance(network, native)), None)
    if kind is None or isinstance(network, NetworkView):
        return network
    if part.view is None or part.view.native is not network:
        part.view = kind.of(network, compute_dtype, part)
    part.view.compute_dtype = compute_dtype
    return part.view


def view_of(part: Any) -> Any:
    """The view of a part that is no network; a scheduler is its own."""
    if isinstance(part, Tokenizer):
        return CLIPTokenizerView(part)
    return CLIPImageProcessorView(part) if isinstance(part, CLIPImageProcessor) else part


def native_of(value: Any) -> Any:
    """The part that a value is a view of, or the value itself.

    A compiled U-Net or prior stays compiled; of other compiled views it is the network, which is not.
    """
    inner = getattr(value, "_orig_mod", value)
    if isinstance(inner, COMPILED_VIEWS) and inner is not value:
        return value
    if isinstance(inner, NetworkView):
        return inner.native if inner.part is None else inner.part
    return inner.native if isinstance(inner, _ObjectView) else value

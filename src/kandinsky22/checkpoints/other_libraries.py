"""Networks, tokenizers and image processors of diffusers and transformers, as this package's.

They are recognised by their attributes; neither library is imported.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kandinsky22.checkpoints.network import Uninitialised
from kandinsky22.checkpoints.tokenizer import MAX_LENGTH, tokenizer_of
from kandinsky22.checkpoints.weight_files import IGNORED
from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.models.config import Config
from kandinsky22.models.tokenizer import Tokenizer

N = TypeVar("N", bound=nn.Module)


def adopt_network(value: nn.Module, network: Callable[[Any], N], config: type[Config]) -> N:
    """A network with the parameters of another library's network of the same architecture.

    Parameters are shared, not copied: both networks change together. Raises `ValueError` where the configuration or the
    tensors are not those of this network.
    """
    name = type(value).__name__
    try:
        built = config.from_dict({**_to_dict(value.config), "architectures": [name]})
    except ValueError as error:
        raise ValueError(f"this {name} is no network of Kandinsky 2.2: {error}") from error
    with torch.device("meta"), Uninitialised():
        adopted = network(built)
    tensors: Mapping[str, Tensor] = value.state_dict(keep_vars=True)  # which keeps parameters what they are
    expected = {key: tuple(tensor.shape) for key, tensor in adopted.state_dict().items()}
    actual = {key: tuple(tensor.shape) for key, tensor in tensors.items() if not key.endswith(IGNORED)}
    if wrong := sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key)):
        raise ValueError(f"this {name} has other tensors than Kandinsky 2.2's network: {', '.join(wrong[:5])}")
    for key in expected:
        path, _, leaf = key.rpartition(".")
        tensor = tensors[key]
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        adopted.get_submodule(path).register_parameter(leaf, parameter)
    return adopted.eval()


def adopt_tokenizer(value: Any) -> Tokenizer:
    """The tokenizer with another library's vocabulary and merges. Raises `ValueError` where it is not CLIP's."""
    name, length = type(value).__name__, getattr(value, "model_max_length", 0)
    backend = getattr(value, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise ValueError(
            f"tokenizer must be CLIP's, of transformers from version 5 or of this package, got {name}; save it with "
            "save_pretrained, and pass the pipeline's folder to from_pretrained"
        )
    if not isinstance(length, int) or not 0 < length <= MAX_LENGTH:
        raise ValueError(f"the tokenizer's model_max_length must be a number of tokens, got {length}; set it to 77")
    try:
        return tokenizer_of(json.loads(backend.to_str()), length)
    except ValueError as error:
        raise ValueError(f"{name} is not CLIP's tokenizer: {error}") from error


def adopt_image_processor(value: Any) -> CLIPImageProcessor:
    """The processor with another library's settings. Raises `ValueError` where they are not supported."""
    try:
        settings = _to_dict(value)
        return CLIPImageProcessor.from_dict({**settings, "resample": int(settings.get("resample", 3))})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{type(value).__name__} is not CLIP's image processor: {error}") from error


def _to_dict(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if not hasattr(value, "to_dict"):
        raise ValueError(f"{type(value).__name__} has no settings")
    settings: Mapping[str, Any] = value.to_dict()
    return settings

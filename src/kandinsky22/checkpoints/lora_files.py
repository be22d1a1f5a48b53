"""Files of low-rank adapters (LoRA, DoRA), in the formats that are around: peft's, diffusers', the attention processors
of the published Kandinsky 2.2 scripts (which kubin also writes) and kohya's. peft's and diffusers' are also written.

A file is read within bounds that its header states, pickled ones as other weights are, and says nothing of shapes that
would not be checked against the network (`Adapter.mismatch`) before it is used.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetensors.torch import save_file
from torch import Tensor, nn

from kandinsky22.checkpoints.json_files import CheckpointError, read_json, write_json
from kandinsky22.checkpoints.safetensors_file import METADATA, read_header
from kandinsky22.checkpoints.weight_files import iter_tensors, tensor_shapes
from kandinsky22.files import atomic_folder, atomic_write, first_line, parse_json
from kandinsky22.models.lora import Adapter, LowRank
from kandinsky22.request.lora import CONFIG_FILE, LORA_FILES

UNET, PRIOR, TEXT_ENCODER = "unet", "prior", "text_encoder"
NETWORKS = {UNET: "a decoder", PRIOR: "the prior", TEXT_ENCODER: "the text encoder"}
"""The networks that adapters are for, by diffusers' prefix, and what messages call them."""
Written = Literal["diffusers", "peft"]
HEADER_KEY = "lora_adapter_metadata"  # of a header: peft's configuration, by diffusers
MAX_TENSORS, MAX_RANK, MAX_NUMBERS = 20_000, 4096, 1 << 30  # of a file; the published U-Net has 1.25 billion numbers
PEFT_TENSORS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}


class Format(NamedTuple):
    """A format's keys: `prefix + layer + "." + suffix`, in which prefixes name networks and suffixes tensors.

    layers: what layers are called after, where that is not the network's own name.
    """

    name: str
    prefixes: Mapping[str, str | None]
    tensors: Mapping[str, str]
    layers: Mapping[str, str] = {}


PREFIXES: Mapping[str, str | None] = {"unet.": UNET, "prior.": PRIOR, "text_encoder.": TEXT_ENCODER, "": None}
PROCESSORS = ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj")
FORMATS = (
    Format("peft", {"base_model.model.": None}, PEFT_TENSORS | {"lora_magnitude_vector.weight": "magnitude"}),
    Format(
        "diffusers",
        PREFIXES,
        PEFT_TENSORS
        | {"lora_magnitude_vector.weight": "magnitude", "alpha": "alpha"}
        | {"lora.down.weight": "a", "lora.up.weight": "b"}
        | {"lora_linear_layer.down.weight": "a", "lora_linear_layer.up.weight": "b"},
    ),
    Format(
        "attention processors",
        PREFIXES,
        {
            f"processor.{layer}_lora.{key}": f"{part} {layer}"
            for layer in PROCESSORS
            for key, part in (("down.weight", "a"), ("up.weight", "b"), ("alpha", "alpha"))
        },
        {"to_out": "to_out.0"},
    ),
    Format(
        "kohya",
        {"lora_unet_": UNET, "lora_prior_": PRIOR, "lora_te_": TEXT_ENCODER},
        {"lora_down.weight": "a", "lora_up.weight": "b", "alpha": "alpha", "dora_scale": "magnitude"},
    ),
)
ROOTS = {
    "down_blocks": UNET,
    "mid_block": UNET,
    "up_blocks": UNET,
    "conv_in": UNET,
    "conv_out": UNET,
    "add_embedding": UNET,
    "encoder_hid_proj": UNET,
    "transformer_blocks": PRIOR,
    "proj_in": PRIOR,
    "embedding_proj": PRIOR,
    "encoder_hidden_states_proj": PRIOR,
    "proj_to_clip_embeddings": PRIOR,
    "text_model": TEXT_ENCODER,
    "text_projection": TEXT_ENCODER,
}
"""The network of a layer by how its name begins; `time_embedding` is in two."""
OTHER_MODELS = {
    r"hada_|lokr_|\.oft_|on_input": "other adapters than LoRA (LoHa, LoKr, OFT or IA3)",
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux",
    r"joint_blocks|lora_te3": "Stable Diffusion 3",
    r"lora_te[12]_|text_encoder_2": "Stable Diffusion XL",
    r"attn2|input_blocks|(down|up|mid)_block\w*[._].*transformer_blocks": "Stable Diffusion",
}
"""What a file with such keys is for."""


@dataclass(frozen=True)
class LoRAFile:
    """The adapters in a file, by network (`NETWORKS`). Names of layers may have underscores for dots, as in kohya's."""

    path: Path
    format: str
    layers: Mapping[str, Mapping[str, LowRank]]

    def adapter(self, network: str, outline: nn.Module) -> Adapter | None:
        """The adapter for a network, None if the file has none. outline: the network, which may be on the meta device.

        Raises `CheckpointError` where it is for another model's.
        """
        if network not in self.layers:
            return None
        names = {name.replace(".", "_"): name for name, _ in outline.named_modules()}
        own = {names.get(key.replace(".", "_"), key): layer for key, layer in self.layers[network].items()}
        adapter = Adapter(own)
        if reason := adapter.mismatch(outline):
            raise CheckpointError(f"{self.path.name} is for {NETWORKS[network]} of another model: {reason}")
        return adapter

    @cached_property
    def ranks(self) -> list[int]:
        """The different ranks of its layers."""
        return sorted({layer.rank for layers in self.layers.values() for layer in layers.values()})


def find(path: Path) -> Path:
    """The file with the tensors: the path itself, or the one in a folder that peft or diffusers wrote.

    Raises `CheckpointError`.
    """
    if not path.is_dir():
        return path
    for name in LORA_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} has no LoRA: neither of {', '.join(LORA_FILES)}")


def read(path: Path) -> LoRAFile:
    """The adapters in a file or folder. Raises `CheckpointError` for what is no LoRA of a network of Kandinsky 2.2."""
    path = find(path)
    shapes = tensor_shapes(path)
    for pattern, model in OTHER_MODELS.items():
        if any(re.search(pattern, key) for key in shapes):
            raise CheckpointError(f"{path.name} is for {model}, not for Kandinsky 2.2; choose another file")
    if len(shapes) > MAX_TENSORS or sum(map(math.prod, shapes.values())) > MAX_NUMBERS:
        raise CheckpointError(f"{path.name} is too large for a LoRA: {len(shapes)} tensors")
    format, keys = _format_of(path, list(shapes))
    for key, shape in shapes.items():
        if keys[key].tensor in "ab" and (len(shape) not in (2, 4) or min(shape[:2]) < 1 or min(shape[:2]) > MAX_RANK):
            raise CheckpointError(f"{path.name} has {[*shape]} in {key:.200}, which is no low-rank matrix")
    try:
        tensors = {keys[name]: value.clone() for name, value in iter_tensors(path) if name in keys}
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({first_line(error)}); fetch it again") from error
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise CheckpointError(f"{path.name} has numbers that are not finite; it cannot be used")
    layers: dict[str, dict[str, LowRank]] = {}
    for part in tensors:
        if part.tensor == "a":
            found = _low_rank(path, part, tensors, _settings(path, part.network))
            layers.setdefault(part.network, {})[part.layer] = found
    paired = {(network, layer) for network, names in layers.items() for layer in names}
    if alone := next((key for key in tensors if (key.network, key.layer) not in paired), None):
        raise CheckpointError(f"{path.name} is incomplete: {alone.layer:.200} has only a part of its matrices")
    return LoRAFile(path, format, layers)


def write(path: Path, adapters: Mapping[str, Adapter], format: Written = "diffusers", dtype: Any = None) -> Path:
    """Write adapters by network: one file that diffusers reads, or a folder of peft's, which holds one network.

    dtype: of the tensors; None: theirs. Returns the file. Raises `ValueError` for an unknown format, for several
    networks in peft's and for a mixture of LoRA and DoRA.
    """
    if format not in get_args(Written):
        raise ValueError(f"a LoRA is written as {' or '.join(get_args(Written))}, got {format!r}")
    prefixes = {network: f"{network}." for network in adapters}
    if format == "peft":
        if len(adapters) != 1:
            raise ValueError("a file of peft holds one network's adapter; write several as diffusers'")
        prefixes = dict.fromkeys(adapters, "base_model.model.")
    tensors: dict[str, Tensor] = {}
    for network, adapter in adapters.items():
        for name, layer in adapter.layers.items():
            b = layer.b if layer.a.ndim == 2 else layer.b[:, :, None, None]
            values: dict[str, Tensor | None] = {"a": layer.a, "b": b, "magnitude": _magnitude(layer)}
            for suffix, part in PEFT_TENSORS.items():
                if (value := values[part]) is not None:
                    tensors[f"{prefixes[network]}{name}.{suffix}"] = (
                        value.detach().to("cpu", dtype).contiguous().clone()
                    )
    settings = {network: peft_settings(adapter) for network, adapter in adapters.items()}
    if format == "peft":
        with atomic_folder(path) as partial:
            save_file(tensors, partial / LORA_FILES[0], metadata={"format": "pt"})
            write_json(partial / CONFIG_FILE, next(iter(settings.values())))
        return path / LORA_FILES[0]
    header = {f"{network}.{key}": value for network, values in settings.items() for key, value in values.items()}
    with atomic_write(path) as file:
        # One entry: safetensors writes several in a random order, and the same adapters have the same bytes.
        save_file(tensors, file, metadata={HEADER_KEY: json.dumps(header, sort_keys=True)})
    return path


def peft_settings(adapter: Adapter) -> dict[str, Any]:
    """peft's configuration of an adapter: ranks, alphas and layers. Raises `ValueError` for LoRA beside DoRA."""
    layers = adapter.layers
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: layer.scaling * layer.rank for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    kinds = {layer.magnitude is not None for layer in layers.values()}
    if len(kinds) > 1:
        raise ValueError("some layers are DoRA and some LoRA, which peft has no configuration for")
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": kinds.pop(),
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
    }


class _Key(NamedTuple):
    """What a key of a file names: a network, a layer of it, and one of its tensors."""

    network: str
    layer: str
    tensor: str


def _format_of(path: Path, keys: list[str]) -> tuple[str, dict[str, _Key]]:
    """The format of a file with these keys, and what each names."""
    for format in FORMATS:
        parsed = {key: found for key in keys if (found := _parse(format, key)) is not None}
        if len(parsed) == len(keys) and parsed:
            roots = Counter(found.network for found in parsed.values() if found.network)
            if not roots:
                break
            most = roots.most_common(1)[0][0]  # of layers that several networks have
            return format.name, {key: found._replace(network=found.network or most) for key, found in parsed.items()}
    unknown = (key for key in keys if all(_parse(format, key) is None for format in FORMATS))
    raise CheckpointError(
        f"{path.name} is no LoRA for Kandinsky 2.2 in a known format; it has {next(unknown, 'no tensors'):.200}"
    )


def _parse(format: Format, key: str) -> _Key | None:
    """What a key names in a format, the network "" if its name is in several; None if it is not of this format."""
    prefix = next((prefix for prefix in format.prefixes if key.startswith(prefix)), None)
    suffix = max((suffix for suffix in format.tensors if key.endswith(f".{suffix}")), key=len, default=None)
    if prefix is None or suffix is None:
        return None
    layer = key[len(prefix) : -len(suffix) - 1]
    tensor, _, of_processor = format.tensors[suffix].partition(" ")
    if of_processor:
        layer = f"{layer}.{format.layers.get(of_processor, of_processor)}"
    root = next((network for root, network in ROOTS.items() if layer.startswith(root)), None)
    network = format.prefixes[prefix] or root or ("" if layer.startswith("time_embedding") else None)
    return None if network is None else _Key(network, layer, tensor)


def _low_rank(path: Path, key: _Key, tensors: Mapping[_Key, Tensor], settings: Mapping[str, Any]) -> LowRank:
    """The adapter of the layer whose first matrix a key names."""
    a, b = tensors[key], tensors.get(key._replace(tensor="b"))
    alpha, magnitude = (tensors.get(key._replace(tensor=name)) for name in ("alpha", "magnitude"))
    if b is None or (b.ndim == 4 and b.shape[2:] != (1, 1)):
        raise CheckpointError(f"{path.name} is incomplete or damaged: {key.layer:.200} has no second matrix of a LoRA")
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{path.name} is damaged: the alpha of {key.layer:.200} is no number")
    rank = len(a)
    value = float(alpha) if alpha is not None else _alpha(path, key.layer, rank, settings)
    divisor = math.sqrt(rank) if settings.get("use_rslora") is True else rank
    try:
        return LowRank(a, b.flatten(1), value / divisor, None if magnitude is None else magnitude.flatten())
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {key.layer:.200}: {error}") from error


def _alpha(path: Path, layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    """A layer's alpha by peft's settings, in which patterns match the ends of names; without any, its rank."""
    value, patterns = settings.get("lora_alpha"), settings.get("alpha_pattern")
    for pattern, alpha in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).removeprefix("^")
        if layer == plain or (plain == pattern and layer.endswith(f".{plain}")):
            value = alpha
    if value is None:
        return rank if settings.get("use_rslora") is not True else math.sqrt(rank)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{path.name}: the alpha of {layer:.200} is {value!r:.40}, and must be a number")
    return float(value)


def _settings(path: Path, network: str) -> Mapping[str, Any]:
    """peft's settings for a network: of the file beside it, else of the header; empty without any."""
    beside = path.with_name(CONFIG_FILE)
    if path.name in LORA_FILES and beside.is_file():
        return read_json(beside)
    if path.suffix != ".safetensors":
        return {}
    text = parse_json(read_header(path)[0]).get(METADATA, {}).get(HEADER_KEY)
    try:
        values = parse_json(text) if isinstance(text, str) else {}
    except ValueError as error:
        raise CheckpointError(f"{path.name}: its header's {HEADER_KEY} is no JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name}: its header's {HEADER_KEY} is no JSON object")
    own = {key.removeprefix(f"{network}."): value for key, value in values.items() if key.startswith(f"{network}.")}
    return own or {key: value for key, value in values.items() if "." not in key}


def _magnitude(layer: LowRank) -> Tensor | None:
    """DoRA's magnitudes in the shape of peft's: [out], of a convolution [1, out, 1, 1]."""
    if layer.magnitude is None or layer.a.ndim == 2:
        return layer.magnitude
    return layer.magnitude[None, :, None, None]

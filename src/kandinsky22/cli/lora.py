"""`kandinsky22 lora`: what is in a LoRA, several as one, and one from the difference of two models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.options import Parser, whole_number
from kandinsky22.console import echo
from kandinsky22.files import expand

if TYPE_CHECKING:
    from kandinsky22.models.lora import Adapter

RANK = 16
EXAMPLES = """examples:
  kandinsky22 lora info style.safetensors
  kandinsky22 lora merge style.safetensors:0.8 heart.safetensors both.safetensors
  kandinsky22 lora extract box runs/mine/model difference.safetensors --rank 16"""


def main(arguments: Sequence[str]) -> None:
    """Print what is in LoRAs, or write one."""
    parser = Parser(
        "kandinsky22 lora",
        "Print what is in LoRAs, write several as one, or write one from the difference of two models.",
        usage="kandinsky22 lora info FILE ...\n       kandinsky22 lora merge FILE[:SCALE] ... TARGET\n"
        "       kandinsky22 lora extract MODEL CHANGED-MODEL TARGET",
        epilog=EXAMPLES,
    )
    parser.option("rank", type=whole_number, metavar="N", help=f"of the layers that extract writes (default: {RANK})")
    parser.option(
        "format", choices=("diffusers", "peft"), help="a file of diffusers or a folder of peft (default: diffusers)"
    )
    options, words, _ = parser.parse(arguments)
    action, names = (words[0], words[1:]) if words else ("", [])
    least = {"info": 1, "merge": 2, "extract": 3}
    if action not in least or len(names) < least[action] or (action == "extract" and len(names) > 3):
        raise ValueError(f"`lora` takes info, merge or extract, and files; see {parser.prog} --help")
    if action == "info":
        for name in names:
            _print_info(name)
        return

    from kandinsky22.checkpoints import lora_files

    *sources, target = names
    rank = options.get("rank", RANK)
    if rank < 1:
        raise ValueError(f"--rank must be 1 or more, got {rank}")
    adapters = _combined(sources) if action == "merge" else _extracted(*sources, rank=rank)
    echo(lora_files.write(expand(target), adapters, options.get("format", "diffusers")))


def _print_info(name: str) -> None:
    """What a file is, line by line."""
    from kandinsky22.checkpoints import lora_files
    from kandinsky22.request import LoRA

    lora = LoRA.of(name)
    file = lora_files.read(lora.file)
    echo(f"{'file:':15} {file.path} ({file.path.stat().st_size / 1e6:.1f} MB, {lora.sha256[:8]})")
    echo(f"{'format:':15} {file.format}")
    for network, layers in file.layers.items():
        ranks = sorted({layer.rank for layer in layers.values()})
        alphas = sorted({round(layer.scaling * layer.rank, 4) for layer in layers.values()})
        kind = "DoRA" if any(layer.magnitude is not None for layer in layers.values()) else "LoRA"
        numbers = f"rank {', '.join(map(str, ranks))}, alpha {', '.join(f'{alpha:g}' for alpha in alphas)}"
        echo(f"{network + ':':15} {kind} of {len(layers)} layers of {lora_files.NETWORKS[network]}, {numbers}")


def _combined(names: Sequence[str]) -> "dict[str, Adapter]":
    """The sum of LoRAs, each at its scale, whose ranks add up. Raises `ValueError` for DoRA, which has no sum."""
    import torch

    from kandinsky22.checkpoints import lora_files
    from kandinsky22.models.lora import Adapter, LowRank
    from kandinsky22.request import LoRA

    found: dict[str, dict[str, list[LowRank]]] = {}
    for lora in map(LoRA.of, names):
        for network, layers in lora_files.read(lora.file).layers.items():
            scale = lora.scale if network == lora_files.UNET else lora.scale_of_prior
            for layer, low_rank in layers.items():
                if low_rank.magnitude is not None:
                    raise ValueError(f"{lora.name} is a DoRA, which cannot be added to others; paint with both instead")
                scaled = LowRank(low_rank.a.float(), low_rank.b.float() * (scale * low_rank.scaling))
                found.setdefault(network, {}).setdefault(layer, []).append(scaled)
    return {
        network: Adapter(
            {
                name: LowRank(torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts], dim=1))
                for name, parts in layers.items()
            }
        )
        for network, layers in found.items()
    }


def _extracted(before: str, after: str, *, rank: int) -> "dict[str, Adapter]":
    """The differences of two models' decoders and priors, approximated at a rank. Raises `ValueError` for none."""
    import torch
    from torch import nn

    from kandinsky22.checkpoints import catalog, locate, lora_files
    from kandinsky22.checkpoints.model import StoredModel
    from kandinsky22.models.lora import Adapter, extract

    def networks(model: str) -> dict[str, nn.Module]:
        folders: dict[str, Path] = locate.part_folders(model)
        stored = StoredModel({part: folders[part] for part in (catalog.PRIOR, catalog.DECODER) if part in folders})
        parts = {lora_files.UNET: stored.first.unet, **stored.prior.networks}
        return {name: part.load(torch.float32, torch.device("cpu")) for name, part in parts.items()}

    adapters = {}
    changed = networks(after)
    for network, plain in networks(before).items():
        layers = {}
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                old: Any = module.weight
                new: Any = changed[network].get_submodule(name).weight
                if new.shape != old.shape:
                    raise ValueError(f"{after} is of another size than {before}: their {network}s differ in {name}")
                if not torch.equal(new, old):
                    layers[name] = extract(old, new, rank)
        if layers:
            adapters[network] = Adapter(layers)
    if not adapters:
        raise ValueError(f"{before} and {after} have the same weights; there is nothing to extract")
    return adapters

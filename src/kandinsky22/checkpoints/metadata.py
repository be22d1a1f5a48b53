"""`kandinsky22.json`, beside a decoder's `model_index.json`: what the published files do not say. Imports no torch.

Default settings for sampling and, for a small model, its language. diffusers ignores the file, and a folder may lack
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.request import Sampling

FILE = "kandinsky22.json"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Default settings by stage ("prior", "decoder"), and the language of a model that knows only some words.

    words: phrases by kind; examples: whole prompts. Both are empty for a model without such limits. stale: networks
    that learnt from others than the model has, by name, with the names of those others.
    """

    defaults: Mapping[str, Sampling] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[str] = ()
    stale: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_metadata(decoder: Path | None) -> ModelMetadata:
    """The metadata in a decoder's folder; the defaults if it has none. Raises `CheckpointError` if it is invalid."""
    if decoder is None or not (path := decoder / FILE).exists():
        return ModelMetadata()
    values = read_json(path)
    try:
        defaults = {stage: Sampling(**settings) for stage, settings in values.get("defaults", {}).items()}
        words = {kind: tuple(map(str, phrases)) for kind, phrases in values.get("words", {}).items()}
        stale = {name: tuple(map(str, others)) for name, others in values.get("stale", {}).items()}
        return ModelMetadata(defaults, words, tuple(map(str, values.get("examples", ()))), stale)
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is invalid: {error}") from error


def stale_notice(stale: Mapping[str, Sequence[str]], model: Path) -> str | None:
    """A sentence on the networks of the model in a folder that must be trained again, with the command; None if there
    are none."""
    if not stale:
        return None
    others = " and ".join(sorted({other for names in stale.values() for other in names}))
    first, *further = stale
    then = f", then {', '.join(further)} likewise" if further else ""
    return (
        f"of this model, {', '.join(stale)} learnt from another {others} and no longer fit; train them again: "
        f"kandinsky22 train {first} --start-from {model} --data PICTURES --folder runs/new{then}"
    )

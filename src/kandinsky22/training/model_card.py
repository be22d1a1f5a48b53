"""What a trained model says of itself: which words it knows, what each network learnt from, and which ones no longer
fit. It replaces what the base model says, whose vocabulary and scores are not those of the trained one."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.json_files import read_json, write_json
from kandinsky22.checkpoints.metadata import FILE
from kandinsky22.compositions.languages import language_metadata
from kandinsky22.files import atomic_write
from kandinsky22.training.captions import draw_captions
from kandinsky22.training.context import TrainingContext
from kandinsky22.training.photos import Photos
from kandinsky22.training.precompute import TrainingData

CARD = "README.md"
EXAMPLES = 8  # captions that the metadata has as examples
WORDS_FROM = 20_000  # captions that the vocabulary is read from
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
Metadata = dict[str, Any]


def read(context: TrainingContext) -> Metadata:
    """The metadata of the model so far; empty if it has none."""
    path = context.model.path / catalog.DECODER / FILE
    return dict(read_json(path)) if path.exists() else {}


def write(
    context: TrainingContext,
    data: TrainingData,
    metadata: Metadata,
    *,
    network: str,
    steps: int,
    stale: Mapping[str, list[str]],
) -> None:
    """Write the metadata and the card of a model in which `network` was trained for `steps`.

    `stale` are the networks that learnt from others than the model now has, each with the names of those. Does nothing
    to a model without a decoder's folder, where the metadata would be.
    """
    folder = context.model.path / catalog.DECODER
    if not folder.is_dir():
        return
    first = not metadata.get("training")
    metadata.setdefault("defaults", context.recipe.defaults)
    language = _language(data, metadata) if first or data.has_captions else _language_of(metadata)
    metadata = {name: value for name, value in metadata.items() if name not in ("words", "examples", "stale")}
    metadata |= language
    metadata |= {"training": {**metadata.get("training", {}), network: _record(context, data, steps)}}
    metadata |= {"stale": dict(stale)} if stale else {}
    write_json(folder / FILE, metadata)
    with atomic_write(folder / CARD) as partial:
        partial.write_text(card(metadata), encoding="utf-8")


def card(metadata: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    rows = [_row(network, record) for network, record in metadata["training"].items()]
    stale = [
        f"- {network}, which learnt from another {' and '.join(of)}"
        for network, of in metadata.get("stale", {}).items()
    ]
    return "\n".join(
        [
            "# A model trained with `kandinsky22 train`",
            "",
            "| network | started from | learnt from | pictures | steps | their licences |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Networks that are not listed are those of the model that it started from, under its licence.",
            "What this model reaches was not measured; scores of the model that it started from are not its own.",
            *(["", "To be trained again, before it paints what prompts say:", "", *stale] if stale else []),
            "",
        ]
    )


def _row(network: str, record: Mapping[str, Any]) -> str:
    licences = ", ".join(f"{name} ({count:,})" for name, count in record["licences"].items()) or "not given"
    counts = f"{record['pictures']:,} | {record['steps']:,}"
    return f"| {network} | {record['base']} | {', '.join(record['data'])} | {counts} | {licences} |"


def _language(data: TrainingData, metadata: Mapping[str, Any]) -> Metadata:
    """The words and examples of what was learnt from: those of the picture world; for the user's pictures those of the
    captions, if the base model has a vocabulary, which is that of a small model."""
    if data.dataset is None:
        if data.num_things or "words" not in metadata:  # a base model does not know the things
            return language_metadata(data.things if data.num_things else None)
        return _language_of(metadata)
    if "words" not in metadata or not data.has_captions:
        return {}
    world: Metadata = language_metadata(data.things if data.recipe.things else None) if data.dataset.world else {}
    captions = draw_captions([pictures for pictures in data.sets if isinstance(pictures, Photos)], WORDS_FROM)
    counts = Counter(word for text in captions for word in WORD.findall(text.lower()))
    examples = [text for text in dict.fromkeys(captions) if text]
    return {
        "words": {**world.get("words", {}), "words": [word for word, _ in counts.most_common()]},
        "examples": examples[:: -(-len(examples) // EXAMPLES)],
    }


def _language_of(metadata: Mapping[str, Any]) -> Metadata:
    return {name: metadata[name] for name in ("words", "examples") if name in metadata}


def _record(context: TrainingContext, data: TrainingData, steps: int) -> Metadata:
    """What a network learnt from, without folders of this machine."""
    licences = Counter(
        photo.licence
        for pictures in data.sets
        if isinstance(pictures, Photos)
        for photo in pictures.photos
        if photo.licence
    )
    sources = [source.path.name for source in data.dataset.sources] if data.dataset is not None else []
    if data.dataset is None or data.dataset.world:
        sources.append("the picture world")
    return {
        "base": _base_name(context),
        "data": sources,
        "pictures": sum(len(pictures) for pictures in data.distinct_sets),
        "steps": steps,
        "licences": dict(licences.most_common()),
    }


def _base_name(context: TrainingContext) -> str:
    """The base model's name; of a folder its last part that says anything."""
    name = context.settings.get("start_from")
    if context.from_scratch or not context.base:
        return "nothing"
    path = Path(str(name or "a model"))
    return path.parent.name if path.name == "model" and path.parent.name else path.name

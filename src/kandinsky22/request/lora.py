"""A LoRA of a request, as a value: the fingerprint of its file, its name and how strongly it is applied.

In JSON, and so in saved pictures, only this reference is stored: no folder. Imports no torch.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from kandinsky22.files import expand, first_line, open_regular
from kandinsky22.request import limits

LORA_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
"""What peft and diffusers call the file in a folder, the preferred ones first."""
CONFIG_FILE = "adapter_config.json"  # peft's settings beside it, which contain its alpha
SUFFIXES = (".safetensors", ".bin")
DIGITS = 32  # of the SHA-256
CHUNK = 1 << 20
MAX_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class LoRA:
    """A LoRA and its scale; two are equal if their files have the same bytes and their scales are equal.

    scale: of its adapters for decoders. prior_scale: of those for the prior and the text encoder; None: the same. 0 is
    off, and computes exactly what there is without it. path: where its file is; None in a reference. Raises
    `ValueError` for scales that are no numbers from -100 to 100.
    """

    sha256: str
    scale: float = 1.0
    prior_scale: float | None = None
    name: str = field(default="", compare=False)
    path: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not isinstance(self.name, str):
            raise ValueError("a LoRA is made from a file: LoRA.of('style.safetensors', 0.8)")
        for name in ("scale", "prior_scale"):
            value = getattr(self, name)
            value = value.item() if hasattr(value, "item") else value
            if value is None and name == "prior_scale":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_SCALE:
                raise ValueError(f"the scale of a LoRA is a number from -{MAX_SCALE:g} to {MAX_SCALE:g}, got {value!r}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def of(cls, source: "LoRA | str | os.PathLike[str]", scale: float = 1.0, prior_scale: float | None = None) -> Self:
        """Create from a file, or a folder that peft or diffusers wrote; a name may end in its scale: `style.bin:0.8`.

        Raises `ValueError` for what is no file.
        """
        if isinstance(source, cls):
            return source
        if not isinstance(source, str | os.PathLike):
            raise ValueError(f"a LoRA is a file: 'style.safetensors:0.8', got {type(source).__name__}")
        text = os.fspath(source)
        before, colon, after = text.rpartition(":")
        if isinstance(source, str) and colon and (value := _number(after)) is not None:
            text, scale = before, value
        if not text.strip():
            raise ValueError("the name of the LoRA is empty; give a file, such as style.safetensors:0.8")
        path = expand(text)
        return cls(fingerprint(path), scale, prior_scale, path.stem if path.is_file() else path.name, path.resolve())

    @property
    def file(self) -> Path:
        """Where its file is. Raises `ValueError` for a reference without one."""
        if self.path is None:
            raise ValueError(
                f"the LoRA {self.name!r} ({self.sha256[:8]}) is part of this request, and a request holds no weights; "
                "pass its file"
            )
        return self.path

    @property
    def scale_of_prior(self) -> float:
        """The scale of its adapters for the prior and the text encoder."""
        return self.scale if self.prior_scale is None else self.prior_scale

    def for_prior(self) -> "LoRA":
        """The same with only what decides an embedding, by which it is cached."""
        return LoRA(self.sha256, self.scale_of_prior, path=self.path)

    def to_dict(self) -> dict[str, Any]:
        """The reference as JSON values, without where its file is."""
        values = {"name": self.name, "sha256": self.sha256, "scale": self.scale, "prior_scale": self.prior_scale}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A reference without a file. Raises `TypeError` and `ValueError` for any other mapping."""
        return cls(**{**values, "path": None})


def fingerprint(path: Path) -> str:
    """The first digits of the SHA-256 of a LoRA's file and peft's settings beside it. Raises `ValueError`."""
    weights = next((path / name for name in LORA_FILES if (path / name).is_file()), path) if path.is_dir() else path
    if weights.is_dir():
        raise ValueError(f"{path} has no LoRA: none of {', '.join(LORA_FILES)}")
    if weights.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no LoRA; give a .safetensors file, or a folder that peft or diffusers wrote")
    settings = weights.with_name(CONFIG_FILE)
    files = [weights, *([settings] if weights.name in LORA_FILES and settings.is_file() else [])]
    digest = hashlib.sha256()
    try:
        for file in files:
            with open_regular(file, limits.MAX_LORA_BYTES) as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a LoRA ({first_line(error)}); check the name of the file"
        ) from error
    return digest.hexdigest()[:DIGITS]


def to_loras(values: Any) -> tuple[LoRA, ...]:
    """LoRAs of a list of files and LoRAs, or of a single one. Raises `ValueError`."""
    if isinstance(values, str | os.PathLike | LoRA):
        values = (values,)
    if not isinstance(values, Iterable):
        raise ValueError(f"loras must be a list of files, such as ['style.safetensors:0.8'], got {values!r:.100}")
    listed = list(values)
    limits.check_count("the LoRAs of a request", len(listed), limits.MAX_LORAS)
    return tuple(map(LoRA.of, listed))


def in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """The LoRAs in a folder by name: its files, and the folders that peft or diffusers wrote."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.suffix in SUFFIXES:
            yield path.stem, path
        elif path.is_dir() and any((path / name).is_file() for name in LORA_FILES):
            yield path.name, path


def find_files(loras: Iterable[LoRA], folders: Iterable[Path]) -> tuple[LoRA, ...]:
    """The LoRAs with their files, which are looked for in folders by what they contain. Raises `ValueError`."""
    places = list(dict.fromkeys(folder.resolve() for folder in folders))
    return tuple(lora if lora.path is not None else replace(lora, path=_find_file(lora, places)) for lora in loras)


def _find_file(lora: LoRA, folders: list[Path]) -> Path:
    candidates = [(name, path) for folder in folders for name, path in in_folder(folder)]
    candidates.sort(key=lambda candidate: candidate[0] != lora.name)  # the one of its name first
    for _, path in candidates:
        try:
            if fingerprint(path) == lora.sha256:
                return path
        except ValueError:
            continue
    raise ValueError(
        f"the LoRA {lora.name!r} ({lora.sha256[:8]}) is not in {', '.join(map(str, folders)) or 'any folder'}; "
        "put its file there, or pass it with --lora FILE"
    )


def _number(text: str) -> float | None:
    """The number that a text is, None for any other text."""
    try:
        return float(text)
    except ValueError:
        return None

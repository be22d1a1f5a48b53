"""Network configurations as frozen values, read from and written to the published `config.json` files.

A configuration class holds only what differs between the networks we build; everything else in the published file
describes the one architecture there is, and is checked instead of stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, Self

import torch
from torch import nn


def _frozen(value: Any) -> Any:
    """JSON has lists, frozen values have tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


class Network(nn.Module):
    """Base of the published networks: adds the `dtype` and `device` that programs written for diffusers read."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device


class Config(Mapping[str, Any]):
    """Mixin of the frozen configuration dataclasses: `from_dict` and `to_dict` over the published key names.

    It is also the mapping that `to_dict` returns, which programs written for diffusers read.
    """

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def architecture(self) -> Mapping[str, Any]:
        """The published keys that describe the architecture itself, with the only values it is built with."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration in a published `config.json`; keys that do not concern the network are ignored.

        Raises `ValueError` naming the key when one is missing, or describes an architecture that is not this one.
        """
        known = fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        missing = [f.name for f in known if f.name not in values and f.default is MISSING]
        if missing:
            raise ValueError(f"{cls.__name__}: config.json lacks {', '.join(missing)}")
        config = cls(**{f.name: _frozen(values[f.name]) for f in known if f.name in values})
        for key, only in config.architecture().items():
            if not key.startswith("_") and key in values and _frozen(values[key]) != _frozen(only):
                raise ValueError(
                    f"{cls.__name__}: {key} is {values[key]!r}, but this network is only built with {only!r}; "
                    "the folder holds another model"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The whole published `config.json`, architecture keys included."""
        return {**self.architecture(), **asdict(self)}  # type: ignore[call-overload]  # every subclass is a dataclass

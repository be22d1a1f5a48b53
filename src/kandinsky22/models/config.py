"""Network configurations as frozen values, read from and written to the published `config.json` files.

A configuration class holds only what differs between the networks we build; everything else in the published file
describes the one architecture there is, and is checked instead of stored.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import torch
from torch import nn


def _frozen(value: Any) -> Any:
    """JSON has lists, frozen values have tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def has_type(value: Any, kind: Any) -> bool:
    """Whether a JSON value, its lists as tuples, is of an annotated type: a scalar, tuple, literal or union of them.

    A float may be written as a whole number, and must be finite; true and false are no numbers.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(has_type(value, one) for one in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        kinds = args[:1] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(has_type, value, kinds))
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    return value is None if kind is type(None) else type(value) is kind


def _is_sensible(value: Any) -> bool:
    """Whether a configuration's numbers are not negative, and its lists not empty."""
    if isinstance(value, tuple):
        return len(value) > 0 and all(map(_is_sensible, value))
    return isinstance(value, str) or value >= 0


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

        Raises `ValueError` naming the key when one is missing, of a wrong type, negative, or describes an architecture
        that is not this one.
        """
        known = fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        missing = [f.name for f in known if f.name not in values and f.default is MISSING]
        if missing:
            raise ValueError(f"{cls.__name__}: config.json lacks {', '.join(missing)}")
        chosen = {f.name: _frozen(values[f.name]) for f in known if f.name in values}
        for key, kind in get_type_hints(cls).items():
            if key in chosen and not (has_type(chosen[key], kind) and _is_sensible(chosen[key])):
                raise ValueError(f"{cls.__name__}: {key} cannot be {values[key]!r:.100}")
        config = cls(**chosen)
        for key, only in config.architecture().items():
            if not key.startswith("_") and key in values and _frozen(values[key]) != _frozen(only):
                raise ValueError(
                    f"{cls.__name__}: {key} is {values[key]!r:.100}, but this network is only built with {only!r}; "
                    "the folder holds another model"
                )
        return config

    @property
    def depth(self) -> int:
        """The largest number of layers that it gives one of the network's stacks (`num_layers`, `layers_per_block`)."""
        known = fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return max((getattr(self, f.name) for f in known if "layers" in f.name), default=0)

    def to_dict(self) -> dict[str, Any]:
        """The whole published `config.json`, architecture keys included."""
        return {**self.architecture(), **asdict(self)}  # type: ignore[call-overload]  # every subclass is a dataclass

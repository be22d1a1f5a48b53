"""The linear prior: one matrix from CLIP's embedding of a text to its embedding of a picture, in closed form
(Razzhigaev et al. 2023, arXiv:2310.03502, where it gave the best FID).

Ridge regression with an intercept, in float64, from sums over all rows. It gives the mean of all pictures that a text could
describe, where the diffusion prior draws one of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.checkpoints.about import write_json
from kandinsky22.checkpoints.store import WEIGHT_NAMES, Stored
from kandinsky22.files import whole
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.config import Config
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.prior import Told

FOLDER = "linear_prior"
WEIGHTS = f"{WEIGHT_NAMES[0]}.safetensors"
MADE_FOR = "encoder"
RIDGE = 1e-2  # within 1% of the best for 1,500 of the world's pictures, and for 200 far better than less


@dataclass(frozen=True, kw_only=True)
class LinearPriorConfig(Config):
    """Of how many numbers the embedding of a text is, and that of a picture."""

    text_dim: int
    embedding_dim: int

    def architecture(self) -> Mapping[str, Any]:
        return {"_class_name": "LinearPrior"}


class LinearPrior(nn.Module):
    """The map: weight [D, E], bias [D]."""

    def __init__(self, config: LinearPriorConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.embedding_dim, config.text_dim))
        self.bias = nn.Parameter(torch.zeros(config.embedding_dim))

    def forward(self, text_embeds: Tensor) -> Tensor:
        """CLIP's text embeddings [B, E], not L2-normalised (`TextFeatures.embed`) -> its image embeddings [B, D], not
        L2-normalised either."""
        return F.linear(text_embeds, self.weight, self.bias)


@dataclass(frozen=True)
class Moments:
    """What regression needs to know of weighted rows [n, K], float64: their total weight, their mean [K], and the weighted
    sum of their squared deviations [K, K]. Those of two sets of rows add up to those of both (Chan et al. 1979), and
    no digits are lost where the mean is large."""

    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, weight: float = 1.0) -> Self:
        """Of rows [n, K], n at least 1, that count `weight` each."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        deviations = rows - mean
        return cls(weight * len(rows), mean, weight * deviations.T @ deviations)

    def __add__(self, other: Self) -> Self:
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        between = self.weight * other.weight / weight * torch.outer(apart, apart)
        mean = self.mean + apart * (other.weight / weight)
        return type(self)(weight, mean, self.scatter + other.scatter + between)


class Solved(NamedTuple):
    """The best map, float64: weight [D, E], bias [D], and its mean squared error on the rows it was fitted to."""

    weight: Tensor
    bias: Tensor
    loss: float


def solved(moments: Moments, text_dim: int, ridge: float) -> Solved:
    """Ridge regression of the columns from `text_dim` on, from those before; `ridge` is in units of their mean variance.

    Where rows do not tell directions apart, and there is no ridge, the smallest map of the best ones.
    """
    scatter, eye = moments.scatter, torch.eye(text_dim, dtype=torch.float64)
    xx, xy = scatter[:text_dim, :text_dim], scatter[:text_dim, text_dim:]
    weight = (torch.linalg.pinv(xx + ridge * xx.trace() / text_dim * eye, hermitian=True) @ xy).T
    x, y = moments.mean.split([text_dim, len(moments.mean) - text_dim])
    error = torch.cat([-weight, torch.eye(len(y), dtype=torch.float64)], dim=1)  # of a row: this times its deviations
    loss = float((error @ scatter * error).sum()) / (moments.weight * len(y))
    return Solved(weight, y - weight @ x, loss)


@torch.no_grad()
def fitted(
    text: CLIPText, tokenizer: Tokenizer, told: Sequence[Told], held_out: Told,
    *, wordings: int = 1, ridge: float = RIDGE, batch: int = 256,
) -> tuple[LinearPrior, dict[str, float]]:  # fmt: skip
    """The linear prior of all pictures that are told of, on the CPU, each with `wordings` captions; `batch` are encoded at once.

    A set counts its `share`, however many its pictures. Also returns "loss", the mean squared error on the pictures it was
    fitted to, and that on held-out ones, "validation", with the mean "cosine" there.
    """
    rng = np.random.default_rng(0)
    moments = reduce(
        add,
        (
            Moments.of(torch.cat([x.double(), y.double()], dim=1), pictures.share / (wordings * len(pictures.embeds)))
            for pictures in told
            for _ in range(wordings)
            for x, y in _pairs(text, tokenizer, pictures, rng, batch)
        ),
    )
    config = LinearPriorConfig(text_dim=text.config.projection_dim, embedding_dim=held_out.embeds.shape[-1])
    weight, bias, loss = solved(moments, config.text_dim, ridge)
    prior = LinearPrior(config).requires_grad_(False)
    prior.load_state_dict({"weight": weight, "bias": bias})

    unseen = list(_pairs(text, tokenizer, held_out, np.random.default_rng(1), batch))
    given, truth = torch.cat([prior(x) for x, _ in unseen]), torch.cat([y for _, y in unseen])
    cosine = F.cosine_similarity(given, truth).mean()
    return prior, {"loss": loss, "validation": float(F.mse_loss(given, truth)), "cosine": float(cosine)}


def _pairs(
    text: CLIPText, tokenizer: Tokenizer, told: Told, rng: np.random.Generator, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Embeddings [n, E] of a caption and [n, D] of its picture, float32 on the CPU: every picture once."""
    device, count = next(text.parameters()).device, len(told.embeds)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        ids = tokenizer(told.captions(indices, rng)).trimmed().ids
        yield text(ids.to(device)).embed.float().cpu(), told.embeds[torch.from_numpy(indices)].float().cpu()


def save(folder: Path, prior: LinearPrior, encoder_fingerprint: str) -> None:
    """Write it as a network's folder, float32, with the fingerprint of the image encoder whose embeddings it gives."""
    write_json(folder / "config.json", prior.config.to_dict())
    tensors = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in prior.state_dict().items()}
    with whole(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt", MADE_FOR: encoder_fingerprint})


def load(folder: Path, encoder_fingerprint: str | None = None) -> LinearPrior:
    """The linear prior in a folder, for inference, float32 on the CPU.

    Raises `ValueError` where it is missing or damaged, or gives embeddings of another image encoder than the one named.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{folder} has no linear prior; train linear-prior first")
    prior = Stored(folder, LinearPrior, LinearPriorConfig).load(torch.float32, torch.device("cpu"))
    with safe_open(path, framework="pt") as file:
        encoder = (file.metadata() or {}).get(MADE_FOR)
    if encoder_fingerprint not in (None, encoder):
        raise ValueError(
            f"{folder} gives embeddings of the image encoder {encoder}, and this is {encoder_fingerprint}; "
            "train linear-prior again"
        )
    return prior

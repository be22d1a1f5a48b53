"""The linear prior in closed form: ridge regression with an intercept, in float64, from sums over all rows."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.models.clip import CLIPText
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.moments import Moments
from kandinsky22.training.prior import Told

RIDGE = 1e-2  # within 1% of the best for 1,500 of the world's pictures, and for 200 far better than less


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
    text: CLIPText,
    tokenizer: Tokenizer,
    told: Sequence[Told],
    held_out: Told,
    *,
    wordings: int = 1,
    ridge: float = RIDGE,
    batch: int = 256,
) -> tuple[LinearPrior, dict[str, float]]:
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings [n, E] of a caption and [n, D] of its picture, float32 on the CPU: every picture once."""
    device, count = next(text.parameters()).device, len(told.embeds)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        ids = tokenizer(told.captions(indices, rng)).trimmed().ids
        yield text(ids.to(device)).embed.float().cpu(), told.embeds[torch.from_numpy(indices)].float().cpu()

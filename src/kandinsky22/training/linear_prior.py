"""Fits the linear prior in closed form: ridge regression with an intercept, in float64, from moments accumulated
over batches."""

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
from kandinsky22.training.metrics import Metrics, StepMetrics, Validation
from kandinsky22.training.prior import CaptionedEmbeds

RIDGE = 1e-2  # within 1% of the best for 1,500 of the world's pictures, and for 200 far better than a smaller one


class Regression(NamedTuple):
    """A fitted map, float64: weight [D, E], bias [D], and its mean squared error on the rows it was fitted to."""

    weight: Tensor
    bias: Tensor
    loss: float


def ridge_regression(moments: Moments, text_dim: int, ridge: float) -> Regression:
    """Regression of the columns from `text_dim` on from those before, given the moments of all. `ridge` is in units of
    the mean variance of the latter.

    Without a ridge, and where rows leave directions undetermined, the map with the smallest norm among the best.
    """
    scatter, eye = moments.scatter, torch.eye(text_dim, dtype=torch.float64)
    xx, xy = scatter[:text_dim, :text_dim], scatter[:text_dim, text_dim:]
    weight = (torch.linalg.pinv(xx + ridge * xx.trace() / text_dim * eye, hermitian=True) @ xy).T
    x, y = moments.mean.split([text_dim, len(moments.mean) - text_dim])
    residual = torch.cat([-weight, torch.eye(len(y), dtype=torch.float64)], dim=1)  # times a row's deviations
    loss = float((residual @ scatter * residual).sum()) / (moments.weight * len(y))
    return Regression(weight, y - weight @ x, loss)


@torch.no_grad()
def fit(
    text: CLIPText,
    tokenizer: Tokenizer,
    sets: Sequence[CaptionedEmbeds],
    held_out: CaptionedEmbeds,
    *,
    captions_per_picture: int = 1,
    ridge: float = RIDGE,
    batch: int = 256,
) -> tuple[LinearPrior, Metrics]:
    """Fit the linear prior to all pictures; `batch` captions are encoded at once.

    A set has its `share` as weight, whatever its number of pictures. Returns the prior, on the CPU, and the metrics of
    its only step: the mean squared error on the pictures it was fitted to, that on held-out ones, and the mean
    "cosine" similarity there.
    """
    rng = np.random.default_rng(0)
    moments = reduce(
        add,
        (
            Moments.of(
                torch.cat([x.double(), y.double()], dim=1),
                pictures.share / (captions_per_picture * len(pictures.embeds)),
            )
            for pictures in sets
            for _ in range(captions_per_picture)
            for x, y in _pairs(text, tokenizer, pictures, rng, batch)
        ),
    )
    config = LinearPriorConfig(text_dim=text.config.projection_dim, embedding_dim=held_out.embeds.shape[-1])
    weight, bias, loss = ridge_regression(moments, config.text_dim, ridge)
    prior = LinearPrior(config).requires_grad_(False)
    prior.load_state_dict({"weight": weight, "bias": bias})

    validation = list(_pairs(text, tokenizer, held_out, np.random.default_rng(1), batch))
    predicted, truth = torch.cat([prior(x) for x, _ in validation]), torch.cat([y for _, y in validation])
    cosine = F.cosine_similarity(predicted, truth).mean()
    validated = Validation(float(F.mse_loss(predicted, truth)), {"cosine": float(cosine)})
    return prior, Metrics(step=1, steps=1, measured=StepMetrics(loss), validation=validated)


def _pairs(
    text: CLIPText, tokenizer: Tokenizer, pictures: CaptionedEmbeds, rng: np.random.Generator, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings of captions [n, E] and of their pictures [n, D], float32 on the CPU: every picture once."""
    device, count = next(text.parameters()).device, len(pictures.embeds)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        ids = tokenizer(pictures.captions(indices, rng)).trimmed().ids
        yield text(ids.to(device)).embed.float().cpu(), pictures.embeds[torch.from_numpy(indices)].float().cpu()

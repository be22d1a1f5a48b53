"""The linear prior: one matrix from CLIP's embedding of a text to its embedding of a picture (Razzhigaev et al. 2023,
arXiv:2310.03502, where it gave the best FID).

It gives the mean of all pictures that a text could describe, where the diffusion prior draws one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.config import Config


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
        """CLIP's text embeddings [B, E] (`TextFeatures.embed`) -> its image embeddings [B, D]; neither normalised."""
        return F.linear(text_embeds, self.weight, self.bias)

"""What the depth decoder learns beside painting: to follow a depth picture, through its hint block.

It grows from the plain decoder's weights: the channels that the hint enters by start at zero, so it begins by painting what
that one paints.
"""

import torch
from torch import Tensor

from kandinsky22.training.decoder import Bucket

FULL_RANGE = 0.5  # the share of hints stretched to black and white, as depth estimators give them


def hinted(bucket: Bucket, rows: Tensor, x0: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """`Beside` of the depth decoder: depth pictures [B, 3, H, W] in [0, 1], white is near."""
    assert bucket.depths is not None
    depth = bucket.depths[rows][:, None].float() / 255
    far, near = depth.amin(dim=(2, 3), keepdim=True), depth.amax(dim=(2, 3), keepdim=True)
    stretched = (depth - far) / (near - far).clamp(min=1 / 255)
    chosen = torch.rand(len(rows), 1, 1, 1, generator=draw) < FULL_RANGE
    return {"hint": torch.where(chosen, stretched, depth).expand(-1, 3, -1, -1)}

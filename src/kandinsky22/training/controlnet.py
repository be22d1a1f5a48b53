"""Training inputs of the depth decoder: depth pictures, which enter through the U-Net's hint block.

Training starts from the plain decoder's weights. The channels that the hint enters by start at zero, so at the first
step the network predicts what the plain decoder predicts.
"""

import torch
from torch import Tensor

from kandinsky22.training.decoder import Bucket

FULL_RANGE = 0.5  # the share of hints stretched from black to white, as depth estimators return them


def hint_inputs(bucket: Bucket, rows: Tensor, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """`ExtraInputs` of the depth decoder: depth pictures [B, 3, H, W] in [0, 1], white is near; or the pictures' own
    control pictures, as they are."""
    assert bucket.depths is not None
    hints = bucket.depths[rows].float() / 255
    if hints.ndim == 4:
        return {"hint": hints}
    depth = hints[:, None]
    far, near = depth.amin(dim=(2, 3), keepdim=True), depth.amax(dim=(2, 3), keepdim=True)
    stretched = (depth - far) / (near - far).clamp(min=1 / 255)
    stretch = torch.rand(len(rows), 1, 1, 1, generator=generator) < FULL_RANGE
    return {"hint": torch.where(stretch, stretched, depth).expand(-1, 3, -1, -1)}

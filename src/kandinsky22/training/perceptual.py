"""A perceptual distance like LPIPS (Zhang et al. 2018, arXiv:1801.03924).

The features are those of a CLIP vision tower in place of the paper's VGG. All channels have the same weight, as nothing
is fitted to human judgements.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.clip import CLIPImageProcessor, CLIPVision

DEPTHS = 4  # at most; depths of the tower whose features are compared


class Perceptual:
    """Mean squared distance of unit-length features, over the patches of a picture and several depths of a vision
    tower.

    Not a module, so that a module that holds it neither trains nor saves the tower. The tower is frozen, and is moved
    to the pictures' device.
    """

    def __init__(self, vision: CLIPVision, processor: CLIPImageProcessor) -> None:
        self.vision = vision.eval().requires_grad_(False)
        self.side = vision.config.image_size
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)
        inner = vision.vision_model
        layers = [*inner.get_submodule("encoder.layers").children()]
        # Features are taken before each group of layers. Not after the last: there CLIP trains the class token alone.
        size = -(-len(layers) // DEPTHS)
        groups = [nn.Sequential(*layers[i : i + size]) for i in range(0, len(layers) - size, size)]
        self.stages = [inner[:2], *groups]

    def __call__(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Two sets of pictures, [n, 3, H, W] in [-1, 1], of any size -> distances, float32 [n], from 0 (alike) to 4.

        Gradients reach `pictures` alone.
        """
        if next(self.vision.parameters()).device != pictures.device:
            self.vision.to(pictures.device)
        features = self._features(pictures)
        with torch.no_grad():
            target_features = self._features(targets)
        distances = [(a - b).square().sum(-1).mean(-1) for a, b in zip(features, target_features, strict=True)]
        return torch.stack(distances).mean(0)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Unit-length features of the patches at each depth, [n, patches, width] each. The class token is left out:
        it has no position in the picture."""
        pixels = F.interpolate(pictures.float(), (self.side, self.side), mode="bicubic", antialias=True)
        x = ((pixels + 1) / 2 - self.mean.to(pixels.device)) / self.std.to(pixels.device)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(F.normalize(x[:, 1:].float(), dim=-1))
        return features

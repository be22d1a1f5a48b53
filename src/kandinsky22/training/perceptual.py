"""How different two pictures look to a frozen network, as LPIPS compares them (Zhang et al. 2018, arXiv:1801.03924).

The network is a CLIP vision tower, of whichever model is at hand, in the place of the paper's VGG; nothing is fitted to
people's judgements, so every channel counts the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.clip import CLIPImageProcessor, CLIPVision

LOOKS = 4  # depths of the tower that are compared, at most


class Perceptual:
    """Mean squared distance of unit-length features, over the patches of a picture and several depths of the tower.

    Not a module: what holds it neither trains the tower nor saves it. The tower is frozen, and goes to the device of the
    pictures.
    """

    def __init__(self, vision: CLIPVision, processor: CLIPImageProcessor) -> None:
        self.vision = vision.eval().requires_grad_(False)
        self.side = vision.config.image_size
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)
        inner = vision.vision_model
        layers = [*inner.get_submodule("encoder.layers").children()]
        # Before each of as many stretches of layers; not at the top, where only the class token was ever taught.
        each = -(-len(layers) // LOOKS)
        stretches = [nn.Sequential(*layers[i : i + each]) for i in range(0, len(layers) - each, each)]
        self.stages = [inner[:2], *stretches]

    def __call__(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in [-1, 1], of any size, and as many others -> [n], float32, from 0 (alike) to 4.

        Gradients reach `pictures` alone.
        """
        if next(self.vision.parameters()).device != pictures.device:
            self.vision.to(pictures.device)
        features = self._features(pictures)
        with torch.no_grad():
            known = self._features(others)
        distances = [(a - b).square().sum(-1).mean(-1) for a, b in zip(features, known, strict=True)]
        return torch.stack(distances).mean(0)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Of every patch at every depth, [n, patches, width] each, of length one. The class token has no place: left out."""
        pixels = F.interpolate(pictures.float(), (self.side, self.side), mode="bicubic", antialias=True)
        x = ((pixels + 1) / 2 - self.mean.to(pixels.device)) / self.std.to(pixels.device)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(F.normalize(x[:, 1:].float(), dim=-1))
        return features

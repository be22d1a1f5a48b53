"""Compare resizing and Inception with the code of clean-fid and torch-fidelity, on random pictures and weights.

    pip download --no-deps --dest packages clean-fid==0.1.35 torch-fidelity==0.4.0
    for wheel in packages/*.whl; do unzip -qo $wheel -d packages; done
    python runs/compare_features.py packages

Both packages import torchvision, which is not needed here, so only the two modules are loaded, without the `__init__`
of their packages; their code is unchanged.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from kandinsky22.evaluation.features import InceptionFeatures
from kandinsky22.evaluation.inception import Inception
from kandinsky22.evaluation.resize import RESIZINGS

SIZES = ((768, 768), (256, 256), (480, 640), (299, 299), (64, 64), (613, 407))  # height, width
OURS = {"clean": "clean", "legacy": "legacy_pytorch"}


def main() -> None:
    """Compare, and print the largest differences."""
    resizing = module(Path(sys.argv[1]), "cleanfid", "resize")
    for ours, theirs in OURS.items():
        resize = resizing.build_resizer(theirs)
        apart = [
            np.abs(RESIZINGS[ours].resize(Image.fromarray(pixels), 299).permute(1, 2, 0).numpy() - resize(pixels)).max()
            for pixels in map(noise, SIZES)
        ]
        print(f"{ours} against clean-fid's {theirs}, {len(SIZES)} sizes: at most {max(apart):g} of 255 apart")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(weights(), path)
        extractor = module(Path(sys.argv[1]), "torch_fidelity", "feature_extractor_inceptionv3")
        network: Any = extractor.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        )
        pictures = [noise((299, 299), seed) for seed in range(4)]
        theirs = network(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))[0]
        ours = InceptionFeatures(path)(list(map(Image.fromarray, pictures)))
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    alive = float((theirs > 0).float().mean())
    print(f"2,048 features of 4 pictures against torch-fidelity's: relative difference at most {apart:g};")
    print(f"{alive:.0%} of the features are not 0")


def module(packages: Path, package: str, name: str) -> Any:
    """A module of a package, without importing the package."""
    sys.modules[package] = hollow = ModuleType(package)
    hollow.__path__ = [str(packages / package)]
    return importlib.import_module(f"{package}.{name}")


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def weights() -> dict[str, torch.Tensor]:
    """Random weights that preserve the scale of activations."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in Inception().state_dict().items()}
    drawn = {}
    for name, shape in wanted.items():
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(0)
        elif len(shape) > 1:
            drawn[name] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        else:
            positive = name.endswith(("bn.weight", "running_var"))
            drawn[name] = torch.rand(shape, generator=generator) + (0.5 if positive else -0.5)
    return drawn


if __name__ == "__main__":
    main()

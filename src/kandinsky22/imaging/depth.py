"""A picture's depth, as a hint for the depth ControlNet: the model card's recipe, by any depth checkpoint of
transformers.

The only module that uses transformers (the extra `depth`), and only within its functions. It fetches nothing: a
checkpoint is a folder, or one that is in the hub's cache already.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kandinsky22.files import expand
from kandinsky22.request import Picture
from kandinsky22.request.picture import Source

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

DEFAULT = "Intel/dpt-large"  # what the card's unnamed `pipeline("depth-estimation")` loads
MISSING = 0.1  # of a network's tensors: the published dpt-large lacks an unused layer's, an unrelated file nearly all
METRIC = {"depth_pro", "glpn", "tipsv2_dpt", "zoedepth"}  # model types that predict distance in metres, not nearness
IGNORED = {"_name_or_path", "transformers_version"}  # configuration keys that do not change what it computes
FLAT = 1e-5  # of the depth: a smaller range is only rounding
CLOSEST = 1e-3  # metres: smaller distances are clamped to this


def depth(picture: Source, *, model: str | os.PathLike[str] | None = None, device: str = "cpu") -> Picture:
    """The depth of a picture: grey, of the same size, the nearest 255 and the farthest 0.

    model: a folder, or the name of a checkpoint that has been fetched; None is `DEFAULT`. Networks that say distances
    in metres are turned to nearness, the reciprocal, which is what the card's network says and the ControlNet learnt
    from. A picture that is equally deep everywhere is 0. Raises `ValueError` where transformers, the checkpoint or the
    device is not there, and for a checkpoint that estimates no depth.
    """
    return load(model, device=device)(picture)


def load(model: str | os.PathLike[str] | None = None, *, device: str = "cpu") -> "Estimator":
    """The estimator that `depth` uses, for many pictures. Raises `ValueError` as `depth` does."""
    with _quiet():
        return _load(os.fspath(model or DEFAULT), _device(device))


class Estimator(NamedTuple):
    """A depth network of transformers, and what prepares pictures for it."""

    network: Any
    processor: Any
    device: "torch.device"

    def __call__(self, picture: Source) -> Picture:
        """The depth of a picture, as `depth` returns it."""
        image = Picture.of(picture).rgb
        with _quiet():
            return Picture.of(_grey(self.nearness(image)))

    @property
    def fingerprint(self) -> str:
        """Twelve letters that tell what it says of a picture: a hash of its numbers, its configuration and how pictures
        are prepared for it, wherever they lie."""
        import torch

        settings = [
            {k: v for k, v in part.to_dict().items() if k not in IGNORED}
            for part in (self.network.config, self.processor)
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12]

    @property
    def is_metric(self) -> bool:
        """Whether it predicts metres."""
        config = self.network.config
        return config.model_type in METRIC or getattr(config, "depth_estimation_type", None) == "metric"

    def nearness(self, image: "Image.Image") -> "NDArray[np.float32]":
        """How near each pixel is, float32 [H, W], in no particular unit."""
        import torch

        with torch.inference_mode():
            inputs = self.processor(images=image, return_tensors="pt").to(self.device)
            outputs = self.network(**inputs)
            size = (image.height, image.width)
            # the sizes have another name with ZoeDepth, but the same place
            found = self.processor.post_process_depth_estimation(outputs, [size])[0]["predicted_depth"]
            found = found.float().reshape(size)
            if not found.isfinite().all():
                raise ValueError("the depth checkpoint predicts values that are not finite; fetch it again")
            return (1 / found.clamp(min=CLOSEST) if self.is_metric else found).cpu().numpy()


def _load(model: str, device: "torch.device") -> Estimator:
    """The network and the processor of a checkpoint. Raises `ValueError`, one sentence."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder = _folder(model)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with torch.random.fork_rng(devices=[]):  # tensors that the file lacks are drawn
            network, report = AutoModelForDepthEstimation.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
        # Pillow everywhere: torchvision's resizing gives another hint where it happens to be installed
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    except Exception as error:  # the folder may hold anything, and its readers raise all kinds of errors
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{model} is no depth checkpoint that transformers can load: {reason}") from error
    missing = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if missing > MISSING * len(network.state_dict()):
        raise ValueError(f"{model} lacks {missing} of its network's tensors; fetch it again")
    return Estimator(network.to(device).eval(), processor, device)


def _folder(model: str) -> Path:
    """The folder of a checkpoint. Raises `ValueError` with three alternatives if there is none.

    The cache is searched here, because transformers, given a name, contacts the hub even with local_files_only.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = expand(model)
    if folder.is_dir():
        return folder
    with suppress(HFValidationError):  # a text that is no repository name is not in the cache either
        found = try_to_load_from_cache(model, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    raise ValueError(
        f"the depth checkpoint {model} is not here; fetch it once with `hf download {model}`, name a folder that "
        "holds one, or give the depth picture itself as hint"
    )


def _device(device: str) -> "torch.device":
    import torch

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"the device {device!r} cannot be used here; try cpu") from error
    return place


def _grey(nearness: "NDArray[np.float32]") -> "Image.Image":
    """Nearness scaled from its range to 0..255 and truncated, as transformers' depth pipeline does."""
    import numpy as np
    from PIL import Image

    least, most = nearness.min(), nearness.max()
    is_flat = most - least <= FLAT * max(abs(most), abs(least))
    scaled = np.zeros_like(nearness) if is_flat else (nearness - least) / (most - least)
    return Image.fromarray((scaled * 255).astype(np.uint8))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers meanwhile. Raises `ValueError` without transformers."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(
            "estimating depth needs transformers: pip install 'kandinsky22[depth]', "
            "or give the depth picture itself as hint"
        ) from error
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()

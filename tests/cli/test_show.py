"""What `kandinsky22 show` prints of a request."""

import numpy as np
import pytest

from kandinsky22.cli.show import summary
from kandinsky22.imaging.images import Recipe
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.tasks import controlnet, img2img, inpaint, outpaint, text2img

SAMPLING = Sampling(sampler="ddim", steps=4, guidance_scale=2.0)
DEFAULTS = Defaults(height=64, width=128, prior=SAMPLING, decoder=SAMPLING)
PICTURE = np.zeros((64, 64), np.uint8)


def shown(request: Request) -> dict[str, str]:
    return summary(Recipe(request.resolved(DEFAULTS), {}))


@pytest.mark.parametrize(
    ("request_", "lines"),
    [
        (text2img("a", seed=3), {"size": "128x64", "seed": "3"}),
        (text2img("a", seed=3, num_images=4), {"seed": "3, and the 3 after it"}),
        (text2img("a", prior_seed=4), {"prior seed": "4"}),
        (
            text2img("a", variation_seed=4, variation_strength=0.25),
            {"variation": "0.25 towards the noise of seed 4"},
        ),
        (img2img("a", image=PICTURE, strength=0.45), {"strength": "0.45"}),
        (controlnet("a", hint=PICTURE, image=PICTURE), {"strength": "0.5", "prior strength": "0.85"}),
        (
            inpaint("a", image=PICTURE, mask_image=PICTURE, mask_mode="black", feather=3, paste_back=False, crop=True),
            {"repainted": "where the mask is black", "feather": "3 pixels", "paste back": "no", "crop": "yes"},
        ),
        (outpaint("a", image=PICTURE, left=32, top=8), {"extended": "top 8, left 32", "paste back": "yes"}),
    ],
)
def test_everything_that_was_asked_is_shown(request_: Request, lines: dict[str, str]) -> None:
    assert shown(request_).items() >= lines.items()

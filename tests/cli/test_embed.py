"""`kandinsky22 embed` and `mix` on a small random model."""

import pytest

from kandinsky22.request import Embedding
from kandinsky22.request.embedding import mix
from tests.cli.workspace import FEW_PRIOR_STEPS, FEW_STEPS, size, succeed

pytestmark = pytest.mark.usefixtures("workspace")


def test_embed_saves_embeddings_that_mix_and_interpolate_read(capsys: pytest.CaptureFixture[str]) -> None:
    succeed("embed", "a red circle", "cat.png", *FEW_PRIOR_STEPS)
    assert capsys.readouterr().out.split() == ["out/a-red-circle.safetensors", "out/cat.safetensors"]
    text, cat = (Embedding.load(f"out/{name}.safetensors") for name in ("a-red-circle", "cat"))
    succeed(
        "mix", "out/a-red-circle.safetensors", "out/cat.safetensors", "--weights", "0.25,0.75", "-o", "both.safetensors"
    )
    assert Embedding.load("both.safetensors") == mix([text, cat], [0.25, 0.75])
    succeed("mix", "out/a-red-circle.safetensors", "out/cat.safetensors", "--slerp", "0.5", "-o", "half.safetensors")
    assert Embedding.load("half.safetensors") == text.slerp(cat, 0.5)
    succeed("interpolate", "both.safetensors", *FEW_STEPS, "-o", "both.png")
    assert size("both.png") == (64, 64)


def test_mix_accepts_negative_weights_without_an_equals_sign() -> None:
    succeed("embed", "a red circle", "a star", *FEW_PRIOR_STEPS)
    one, two = (Embedding.load(f"out/{name}.safetensors") for name in ("a-red-circle", "a-star"))
    succeed(
        "mix", "out/a-red-circle.safetensors", "out/a-star.safetensors", "--weights", "-0.5,1", "-o", "m.safetensors"
    )
    blend = Embedding.load("m.safetensors")
    assert blend == mix([one, two], [-0.5, 1])
    assert blend.made_by["weights"] == [-0.5, 1]

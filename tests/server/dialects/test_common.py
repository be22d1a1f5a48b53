"""What the dialects share."""

import pytest

from kandinsky22.request.parts import SAMPLERS
from kandinsky22.server.dialects import common
from kandinsky22.server.errors import ApiError


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_our_samplers_keep_their_names(sampler: str) -> None:
    assert common.sampler_of(sampler) == sampler


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("Euler a", "ddpm"),
        ("EulerAncestralDiscreteScheduler", "ddpm"),
        ("DPM++ 2M Karras", "dpmpp_2m"),
        ("DPM++ 2M SGM Uniform", "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("k_heun", "heun"),
        ("DDPMScheduler", "ddpm"),
        ("automatic", None),
        ("", None),
    ],
)
def test_other_programs_samplers_are_translated(name: str, sampler: str | None) -> None:
    assert common.sampler_of(name) == sampler


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="there are ddpm"):
        common.sampler_of("Restart")


@pytest.mark.parametrize("value", ["aGVsbG8=", "data:image/png;base64,aGVsbG8=", b"hello"])
def test_base64_and_data_urls_are_decoded(value: str | bytes) -> None:
    assert common.from_base64(value, "image") == b"hello"


@pytest.mark.parametrize("value", ["http://a/b.png", " HTTPS://a/b.png", "file:///etc/passwd", "ftp://a/b", "???"])
def test_urls_are_never_fetched(value: str) -> None:
    with pytest.raises(ApiError) as caught:
        common.from_base64(value, "image")
    assert (caught.value.kind, caught.value.parameter) == ("invalid", "image")

"""Noise: a seed always gives the same values, in any batch, in any order of the stages, in any process."""

import pytest
import torch

from kandinsky22.diffusion import Noise, SharedNoise


@pytest.mark.parametrize("shape", [(3,), (4, 6, 10), (1280,)])
def test_a_row_of_a_batch_is_what_its_seed_draws_alone(shape: tuple[int, ...]) -> None:
    batch = Noise([5, 6, 7], "decoder")
    for _ in range(3):
        batch_draw = batch.draw((3, *shape))
        assert batch_draw.shape == (3, *shape) and batch_draw.dtype == torch.float32
    alone = Noise([6], "decoder")
    for _ in range(3):
        draw = alone(torch.empty(1, *shape))
    assert torch.equal(batch_draw[1:2], draw)


def test_stages_and_seeds_do_not_share_a_stream() -> None:
    draws = [Noise([seed], stage).draw((1, 8)) for seed in (0, 1, -1, 2**63) for stage in ("prior", "decoder")]
    for k, draw in enumerate(draws):
        assert not any(torch.equal(draw, other) for other in draws[:k])


def test_the_noise_of_a_seed_has_its_recorded_values() -> None:
    first = Noise([0], "decoder").draw((1, 4))
    torch.testing.assert_close(
        first, torch.tensor([[-0.4701237, -0.4867071, -2.2590501, -0.0677138]]), atol=1e-6, rtol=0
    )


def test_other_dtypes_get_the_same_noise_rounded() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        like = torch.empty(2, 5, dtype=dtype)
        draw = Noise([1, 2], "prior")(like)
        assert draw.dtype == dtype and torch.equal(draw, Noise([1, 2], "prior").draw((2, 5)).to(dtype))


def test_noise_is_standard_normal_and_leaves_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    draw = Noise(range(4), "decoder").draw((4, 4, 64, 64))
    assert abs(draw.mean()) < 0.02 and abs(draw.std() - 1) < 0.02
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_keeps_the_order_of_height_and_width() -> None:
    assert Noise([1], "decoder").draw((1, 4, 6, 10)).shape == (1, 4, 6, 10)
    assert SharedNoise(torch.Generator()).draw((2, 4, 6, 10)).shape == (2, 4, 6, 10)


def test_noise_refuses_another_number_of_rows_than_seeds() -> None:
    with pytest.raises(ValueError, match="3 rows of noise need as many seeds, got 2"):
        Noise([1, 2], "decoder").draw((3, 4))


def test_shared_noise_refuses_another_number_of_generators_than_rows() -> None:
    for count in (0, 2, 4):
        with pytest.raises(ValueError, match=f"got {count} generators for 3 rows; pass one generator, or one for each"):
            SharedNoise([torch.Generator() for _ in range(count)]).draw((3, 4))


def test_shared_noise_without_a_generator_uses_the_global_one() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        draw = SharedNoise().draw((2, 4))
        torch.manual_seed(3)
        assert torch.equal(draw, torch.randn(2, 4))

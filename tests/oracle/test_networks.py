"""Each network against diffusers', with the same random weights."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.oracle.tiny import MOVQ, PRIOR, UNET, movqs, priors, unets

TOLERANCE = 2e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_unet_equals_diffusers_on_a_wide_picture() -> None:
    ours, theirs = unets()
    x, embeds, t = draw(3, 4, 8, 16), draw(3, 24, seed=1), torch.tensor([7, 500, 981])
    reference = theirs(x, t, None, added_cond_kwargs={"image_embeds": embeds}).sample
    assert error(ours(x, t, ours.condition(embeds)), reference) < TOLERANCE


def test_inpainting_unet_equals_diffusers() -> None:
    ours, theirs = unets(replace(UNET, in_channels=9))
    x, masked, embeds = draw(2, 4, 8, 8), draw(2, 5, 8, 8, seed=1), draw(2, 24, seed=2)
    t = torch.tensor([40, 41])
    reference = theirs(torch.cat([x, masked], 1), t, None, added_cond_kwargs={"image_embeds": embeds}).sample
    assert error(ours(x, t, ours.condition(embeds, masked=masked)), reference) < TOLERANCE


def test_depth_unet_equals_diffusers() -> None:
    ours, theirs = unets(replace(UNET, in_channels=8, addition_embed_type="image_hint"))
    x, hint, embeds, t = (
        draw(2, 4, 8, 16),
        draw(2, 3, 64, 128, seed=1).sigmoid(),
        draw(2, 24, seed=2),
        torch.tensor([3, 900]),
    )
    reference = theirs(x, t, None, added_cond_kwargs={"image_embeds": embeds, "hint": hint}).sample
    assert error(ours(x, t, ours.condition(embeds, hint=hint)), reference) < TOLERANCE


def test_movq_encodes_and_decodes_like_diffusers() -> None:
    ours, theirs = movqs()
    pictures = draw(2, 3, 64, 128).tanh()
    z = theirs.encode(pictures).latents
    assert error(ours.encode(pictures), z) < TOLERANCE
    assert error(ours.decode(z), theirs.decode(z, force_not_quantize=True).sample) < TOLERANCE


def test_movq_quantises_like_diffusers() -> None:
    ours, theirs = movqs()
    z = draw(2, 4, 8, 16)
    reference, _, (_, _, indices) = theirs.quantize(z)
    codes, ours_indices = ours.quantize(z)
    assert torch.equal(ours_indices.flatten(), indices)
    assert error(codes, reference) < TOLERANCE


def test_prior_with_a_prefix_of_padded_texts_equals_diffusers() -> None:
    ours, theirs = priors()
    hidden, embed, x = draw(3, 9, 24), draw(3, 24, seed=1), draw(3, 24, seed=2)
    mask = torch.arange(9)[None] < torch.tensor([[3], [7], [5]])
    t = torch.tensor([0, 374, 999])
    reference = theirs(x, t, embed, hidden, mask).predicted_image_embedding
    for length in (9, 7):  # the full context, and the longest text
        prefix = ours.prefill(hidden[:, :length], embed, mask[:, :length])
        assert error(ours(x, t, prefix), reference) < TOLERANCE
    assert error(ours.denormalised(x), theirs.post_process_latents(x)) < TOLERANCE


def test_conditions_and_prefixes_concatenate_and_split() -> None:
    unet, _ = unets(replace(UNET, in_channels=9))
    x, masked, embeds, t = draw(3, 4, 8, 8), draw(3, 5, 8, 8), draw(3, 24), torch.tensor([1, 2, 3])
    parts = [unet.condition(embeds[i : i + 1], masked=masked[i : i + 1]) for i in range(3)]
    together = unet(x, t, type(parts[0]).cat(parts))
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], parts[i]) for i in range(3)])
    assert error(together, alone) < TOLERANCE
    assert error(unet(x[1:], t[1:], type(parts[0]).cat(parts)[1:]), alone[1:]) < TOLERANCE

    prior, _ = priors()
    lengths = [2, 9, 5]
    hidden, embed, x = draw(3, 9, 24), draw(3, 24, seed=1), draw(3, 24, seed=2)
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    prefixes = [prior.prefill(hidden[i : i + 1], embed[i : i + 1], mask[i : i + 1]) for i in range(3)]
    together = prior(x, t, type(prefixes[0]).cat(prefixes))
    alone = torch.cat([prior(x[i : i + 1], t[i : i + 1], prefixes[i]) for i in range(3)])
    assert error(together, alone) < TOLERANCE


def test_tiny_configs_round_trip_through_their_dictionaries() -> None:
    for config in (PRIOR, UNET, MOVQ):
        assert type(config).from_dict(config.to_dict()) == config

"""The inpainting and the depth decoder learn from the masked latents and the hint."""

from dataclasses import replace

import pytest
import torch

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.unet import UNet
from kandinsky22.training import controlnet, decoder, inpaint
from kandinsky22.training.loop import Recipe, Training
from kandinsky22.training.recipes import BOX

CONDITIONS = {
    "hint": (controlnet.hint_inputs, {"in_channels": 8, "addition_embed_type": "image_hint"}),
    "masked": (inpaint.masked_inputs, {"in_channels": 9}),
}
PURE_NOISE = 999  # the last timestep, at which nothing of the picture is left in the noisy latents


@pytest.mark.parametrize("kind", CONDITIONS)
def test_decoder_learns_from_its_additional_condition(kind: str) -> None:
    """Pictures are light on one side, with depths to match, and have the same embedding.

    From pure noise only the condition tells the side, and the condition of another picture leads to that one. A network
    that ignores it has an error of 1 in both cases.
    """
    side = torch.ones(16, 1, 4, 4)
    side[..., :2] = -1
    side[::2] *= -1
    depths = ((side[:, 0] + 1) * 127.5).byte().repeat_interleave(8, 1).repeat_interleave(8, 2)
    bucket = decoder.Bucket(side.expand(-1, 4, -1, -1).contiguous(), torch.zeros(16, 8), depths)
    extra_inputs, config = CONDITIONS[kind]
    torch.manual_seed(0)
    small = replace(
        BOX.unet, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, encoder_hid_dim=8
    )
    unet = UNet(replace(small, **config))  # type: ignore[arg-type]
    recipe = Recipe(batch=16, learning_rate=3e-3, warmup=5, bfloat16=False, cond_dropout=0.0)
    schedule = NoiseSchedule.from_config(BOX.decoder_scheduler)
    objective = decoder.objective(unet, schedule, [bucket], torch.zeros(1, 8), recipe, extra_inputs)
    list(Training(unet, objective, recipe, steps=30))

    rows = objective.draw(10_000)
    rows["t"] = torch.full_like(rows["t"], PURE_NOISE)
    light = rows["x0"][:, 0, 0, 0]
    other = torch.stack([(light == -value).nonzero()[0, 0] for value in light])
    with torch.no_grad():
        matching = float(objective.loss(rows)[0].mean())
        swapped = float(objective.loss({**rows, kind: rows[kind][other]})[0].mean())
    assert matching < 0.5 and swapped > 2.0

"""What the two decoders that see more learn from it: pictures that a hint, or what is left of them, tells apart."""

from dataclasses import replace

import pytest
import torch

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.unet import UNet
from kandinsky22.training import controlnet, decoder, inpaint
from kandinsky22.training.loop import Recipe, Training
from kandinsky22.training.recipes import BOX

SEEN = {
    "hint": (controlnet.hint_inputs, {"in_channels": 8, "addition_embed_type": "image_hint"}),
    "masked": (inpaint.masked_inputs, {"in_channels": 9}),
}
NOISE_ALONE = 999  # the last timestep: nothing of the picture is left in the state


@pytest.mark.parametrize("kind", SEEN)
def test_what_is_seen_beside_the_state_is_learnt(kind: str) -> None:
    """Of pictures that are light on one side, with a depth to match and no embedding to tell them apart: from noise alone,
    whoever looks knows which side, and shown another picture's, paints that one. Who does not look errs by 1 in both cases."""
    side = torch.ones(16, 1, 4, 4)
    side[..., :2] = -1
    side[::2] *= -1
    depths = ((side[:, 0] + 1) * 127.5).byte().repeat_interleave(8, 1).repeat_interleave(8, 2)
    bucket = decoder.Bucket(side.expand(-1, 4, -1, -1).contiguous(), torch.zeros(16, 8), depths)
    beside, more = SEEN[kind]
    torch.manual_seed(0)
    small = replace(
        BOX.unet, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, encoder_hid_dim=8
    )
    unet = UNet(replace(small, **more))  # type: ignore[arg-type]
    recipe = Recipe(batch=16, learning_rate=3e-3, warmup=5, bfloat16=False, cond_dropout=0.0)
    schedule = NoiseSchedule.from_config(BOX.decoder_scheduler)
    objective = decoder.objective(unet, schedule, [bucket], torch.zeros(1, 8), recipe, beside)
    list(Training(unet, objective, recipe, steps=30))

    rows = objective.draw(10_000)
    rows["t"] = torch.full_like(rows["t"], NOISE_ALONE)
    light = rows["x0"][:, 0, 0, 0]
    other = torch.stack([(light == -value).nonzero()[0, 0] for value in light])
    with torch.no_grad():
        right = float(objective.loss(rows)[0].mean())
        wrong = float(objective.loss({**rows, kind: rows[kind][other]})[0].mean())
    assert right < 0.5 and wrong > 2.0

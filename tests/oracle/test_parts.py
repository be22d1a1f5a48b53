"""Parts of pipelines, called as programs call those of diffusers and transformers."""

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import pipelines
from tests.models_on_disk import DIM
from tests.oracle.pipeline_inputs import PROMPT, load
from tests.pipelines.inputs import photo, randn, seeded

TOLERANCE = 2e-5
PRIOR = "KandinskyV22PriorPipeline"
SCHEDULERS = ["DDPMScheduler", "DDIMScheduler", "UnCLIPScheduler"]


def both(name: str, model: Path) -> tuple[Any, Any]:
    return load(pipelines, name, model), load(diffusers, name, model)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert float((ours - theirs).abs().max()) < TOLERANCE * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize(("name", "channels"), [("", 4), ("Inpaint", 9), ("Controlnet", 4)])
def test_the_unet_is_called_with_added_conditions(name: str, channels: int, tiny_model: Path) -> None:
    ours, theirs = both(f"KandinskyV22{name}Pipeline", tiny_model)
    added = {"image_embeds": randn(2, DIM, seed=1)}
    added |= {"hint": randn(2, 3, 64, 64, seed=2).sigmoid()} if name == "Controlnet" else {}
    x = randn(2, channels, 8, 8)
    with torch.no_grad():
        mine, reference = (
            pipe.unet(sample=x, timestep=torch.tensor(40), encoder_hidden_states=None, added_cond_kwargs=added)
            for pipe in (ours, theirs)
        )
    assert_close(mine.sample, reference.sample)
    assert_close(mine[0], ours.unet(x, 40, None, added_cond_kwargs=added, return_dict=False)[0])
    assert ours.unet.config["in_channels"] == ours.unet.config.in_channels == theirs.unet.config.in_channels
    assert ours.unet.device == theirs.unet.device and ours.unet.dtype == theirs.unet.dtype
    assert dict(ours.unet.config)["addition_embed_type"] == theirs.unet.config.addition_embed_type
    with pytest.raises(ValueError, match="added_cond_kwargs must have image_embeds"):
        ours.unet(x, 40)


def test_movq_encodes_and_decodes(tiny_model: Path) -> None:
    ours, theirs = both("KandinskyV22Pipeline", tiny_model)
    pixels = randn(1, 3, 64, 64).tanh()
    with torch.no_grad():
        z = theirs.movq.encode(pixels).latents
        assert_close(ours.movq.encode(pixels).latents, z)
        assert_close(ours.movq.encode(pixels)["latents"], z)
        for arguments in ({"force_not_quantize": True}, {}):
            assert_close(ours.movq.decode(z, **arguments).sample, theirs.movq.decode(z, **arguments).sample)
    assert ours.movq.config.latent_channels == theirs.movq.config["latent_channels"]


def test_clip_and_the_prior_are_called(tiny_model: Path) -> None:
    ours, theirs = both(PRIOR, tiny_model)
    prompts = [PROMPT, "a ring"]
    length = {"padding": "max_length", "max_length": ours.tokenizer.model_max_length, "truncation": True}
    tokens, reference = (pipe.tokenizer(prompts, **length, return_tensors="pt") for pipe in (ours, theirs))
    assert torch.equal(tokens.input_ids, reference.input_ids)
    assert torch.equal(tokens["attention_mask"], reference["attention_mask"])
    x = randn(2, DIM)
    with torch.no_grad():
        text, text_reference = (pipe.text_encoder(tokens.input_ids) for pipe in (ours, theirs))
        assert_close(text.text_embeds, text_reference.text_embeds)
        assert_close(text.last_hidden_state, text_reference.last_hidden_state)
        predicted, predicted_reference = (
            pipe.prior(
                x,
                timestep=torch.tensor([500, 500]),
                proj_embedding=text.text_embeds,
                encoder_hidden_states=text.last_hidden_state,
                attention_mask=tokens.attention_mask.bool(),
            ).predicted_image_embedding
            for pipe in (ours, theirs)
        )
        assert_close(predicted, predicted_reference)
        assert_close(ours.prior.post_process_latents(x), theirs.prior.post_process_latents(x))


def test_the_tokenizer_is_called_with_the_lengths_of_transformers(tiny_model: Path) -> None:
    ours, theirs = (pipe.tokenizer for pipe in both(PRIOR, tiny_model))
    texts = [PROMPT, "a ring", "", "circle " * 40]
    for arguments in (
        {},
        {"padding": True},
        {"padding": "longest", "truncation": True},
        {"truncation": True, "max_length": 5},
    ):
        mine, reference = ours(texts, **arguments), theirs(texts, **arguments)
        assert mine.input_ids == reference["input_ids"] and mine["attention_mask"] == reference["attention_mask"]
    assert ours("a ring").input_ids == theirs("a ring")["input_ids"] == ours.encode("a ring")
    for skip in (True, False):
        ids = theirs(PROMPT)["input_ids"]
        mine, reference = (tokenizer.decode(ids, skip_special_tokens=skip) for tokenizer in (ours, theirs))
        assert mine.replace(" ", "") == reference.replace(" ", "")
    assert ours.batch_decode([ours.encode("a ring")], skip_special_tokens=True) == ["a ring"]
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == ours.vocab_size == len(theirs)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    with pytest.raises(ValueError, match="texts of several lengths make no tensor"):
        ours(texts, return_tensors="pt")


def test_pictures_are_encoded_by_processor_and_encoder(tiny_model: Path) -> None:
    ours, theirs = both(PRIOR, tiny_model)
    mine, reference = (
        pipe.image_processor([photo(), photo(seed=1)], return_tensors="pt").pixel_values for pipe in (ours, theirs)
    )
    assert_close(mine, reference)
    assert ours.image_processor(photo()).pixel_values[0].shape == mine.shape[1:]
    with torch.no_grad():
        assert_close(ours.image_encoder(mine).image_embeds, theirs.image_encoder(mine).image_embeds)
        assert_close(ours.get_zero_embed(2), theirs.get_zero_embed(2))
    moved = ours.image_processor(photo(), return_tensors="pt").to("cpu", torch.float16)
    assert moved.pixel_values.dtype == torch.float16


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_loop_over_a_scheduler_gives_the_same_states(name: str) -> None:
    ours, theirs = getattr(pipelines, name)(), getattr(diffusers, name)()
    states = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
        generator, x = seeded(), randn(2, 4, 8, 8) * scheduler.init_noise_sigma
        arguments = {} if name == "DDIMScheduler" else {"generator": generator}
        timesteps = scheduler.timesteps
        for i, t in enumerate(timesteps):
            if name == "UnCLIPScheduler":
                arguments["prev_timestep"] = None if i + 1 == len(timesteps) else timesteps[i + 1]
            output = torch.sin(scheduler.scale_model_input(x, t) if name == "DDIMScheduler" else x)
            x = scheduler.step(output, t, x, **arguments).prev_sample
        states.append(x)
        noised = scheduler.add_noise(randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), torch.tensor([3, 700]))
        states.append(noised)
    assert torch.equal(ours.timesteps, torch.as_tensor(theirs.timesteps))
    for mine, reference in zip(states[:2], states[2:], strict=True):
        assert_close(mine, reference)
    with pytest.raises(ValueError, match="dpmpp_2m needs the whole run"):
        ours.from_config(ours.config, sampler="dpmpp_2m").step(x, 3, x)


def test_a_loop_that_a_program_writes_itself_paints_the_same(tiny_model: Path) -> None:
    """The decoder's loop, from its parts alone."""

    def paint(pipe: Any) -> Tensor:
        embeds = torch.cat([randn(1, DIM, seed=2), randn(1, DIM, seed=1)])
        pipe.scheduler.set_timesteps(4, device=pipe._execution_device)
        generator = seeded()
        x = torch.randn(1, pipe.movq.config.latent_channels, 8, 8, generator=generator)
        with torch.no_grad():
            for t in pipe.progress_bar(pipe.scheduler.timesteps):
                added = {"image_embeds": embeds}
                both = pipe.unet(
                    sample=torch.cat([x] * 2),
                    timestep=t,
                    encoder_hidden_states=None,
                    added_cond_kwargs=added,
                    return_dict=False,
                )[0]
                uncond, cond = both.split(x.shape[1], dim=1)[0].chunk(2)
                x = pipe.scheduler.step(uncond + 4 * (cond - uncond), t, x, generator=generator, return_dict=False)[0]
            return pipe.movq.decode(x, force_not_quantize=True)["sample"]

    ours, theirs = (paint(pipe) for pipe in both("KandinskyV22Pipeline", tiny_model))
    assert float((ours - theirs).abs().max()) < 1e-4


def test_networks_are_modules_that_programs_copy_move_and_compile(tiny_model: Path, tmp_path: Path) -> None:
    pipe = pipelines.KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")
    unet = pipe.unet
    assert isinstance(unet, nn.Module) and pipe.unet is unet
    copied = copy.deepcopy(unet)  # as an average of weights is made
    with torch.no_grad():
        copied.conv_out.bias.add_(1.0)
    assert not torch.equal(copied.conv_out.bias, unet.conv_out.bias)
    pipe.unet = copied
    assert torch.equal(pipe.unet.conv_out.bias, copied.conv_out.bias)
    copied.save_pretrained(tmp_path)
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(again.conv_out.bias, copied.conv_out.bias)
    unet.train()
    added = {"image_embeds": randn(1, DIM)}
    unet.requires_grad_(True)(randn(1, 4, 8, 8), 5, None, added_cond_kwargs=added).sample.mean().backward()
    assert unet.conv_out.bias.grad is not None

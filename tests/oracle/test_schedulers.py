"""Schedules and samplers against diffusers' schedulers: defaults, tables, timesteps, noise and complete runs."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from kandinsky22.diffusion import (
    PUBLISHED_DEFAULTS,
    SAMPLERS,
    NoiseSchedule,
    Prediction,
    SharedNoise,
    interpret,
    sample,
    split_variance,
    start_at,
)
from tests.diffusion.toy import DECODER_CONFIG, PRIOR_CONFIG, randn

INPAINT_CONFIG = {**DECODER_CONFIG, "clip_sample": False}
CONFIGS: list[Mapping[str, object]] = [
    DECODER_CONFIG,
    INPAINT_CONFIG,
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"},
    {**DECODER_CONFIG, "timestep_spacing": "linspace"},
]
WEIGHTS = randn(8, 4, seed=5)

Network = Callable[[Tensor, int], Tensor]


def theirs(config: Mapping[str, object]) -> Any:
    classes = {kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler, UnCLIPScheduler)}
    return classes[str(config["_class_name"])].from_config(dict(config))


def network(channels: int) -> Network:
    """Any function of x [B, 4, ...] and t, with this many channels."""

    def forward(x: Tensor, t: int) -> Tensor:
        flat = torch.einsum("oc,bc...->bo...", WEIGHTS[:channels].to(x.dtype), x)
        return torch.sin(flat + int(t) / 300)

    return forward


def run(name: str, schedule: NoiseSchedule, x: Tensor, timesteps: tuple[int, ...], net: Network, seed: int) -> Tensor:
    def denoise(x: Tensor, t: int) -> Prediction:
        output, variance = split_variance(net(x, t), x)
        return interpret(output, x, t, schedule, variance)

    noise = SharedNoise(torch.Generator().manual_seed(seed))
    *_, last = sample(SAMPLERS[name](schedule, x, timesteps, noise), denoise)
    return last.x


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, UnCLIPScheduler])
def test_published_defaults_equal_those_of_the_diffusers_classes(kind: type) -> None:
    ours = PUBLISHED_DEFAULTS[kind.__name__]
    defaults = {key: p.default for key, p in inspect.signature(kind.__init__).parameters.items()}
    assert {key: ours[key] for key in ours.keys() & defaults.keys()} == {
        key: defaults[key] for key in ours.keys() & defaults.keys()
    }
    refused = {"thresholding", "trained_betas", "rescale_betas_zero_snr"}  # values other than the defaults are refused
    assert defaults.keys() - ours.keys() - refused <= {"self", "dynamic_thresholding_ratio", "sample_max_value"}


@pytest.mark.parametrize("config", [*CONFIGS, PRIOR_CONFIG])
def test_schedule_tables_equal_diffusers_bit_for_bit(config: Mapping[str, object]) -> None:
    ours, reference = NoiseSchedule.from_config(config), theirs(config)
    assert torch.equal(ours.betas, reference.betas)
    assert torch.equal(ours.alphas_cumprod, reference.alphas_cumprod)
    final = DDIMScheduler.from_config(dict(config)).final_alpha_cumprod if config is not PRIOR_CONFIG else 1.0
    assert ours.final_alpha_bar == final


@pytest.mark.parametrize("config", [*CONFIGS, PRIOR_CONFIG])
def test_timesteps_equal_diffusers_for_every_number_of_steps(config: Mapping[str, object]) -> None:
    ours, reference = NoiseSchedule.from_config(config), theirs(config)
    differ = []
    for steps in range(1 if ours.timestep_spacing != "linspace" else 2, ours.num_train_timesteps):
        reference.set_timesteps(steps)
        if ours.timesteps(steps) != tuple(reference.timesteps.tolist()):
            differ.append((steps, reference.timesteps.tolist()))
    # Rounding makes numpy.arange give some trailing runs one timestep too many, at t = -1; ours never has it.
    for steps, timesteps in differ:
        assert ours.timestep_spacing == "trailing" and timesteps == [*ours.timesteps(steps), -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [DECODER_CONFIG, PRIOR_CONFIG])
def test_add_noise_and_velocity_equal_diffusers_bit_for_bit(config: Mapping[str, object], dtype: torch.dtype) -> None:
    ours, reference = NoiseSchedule.from_config(config), theirs(config)
    x0, noise, t = randn(3, 4, 5, 7, dtype=dtype), randn(3, 4, 5, 7, seed=1, dtype=dtype), torch.tensor([0, 431, 999])
    assert torch.equal(ours.add_noise(x0, noise, t), reference.add_noise(x0, noise, t))
    one_t = reference.add_noise(x0, noise, torch.tensor([431]))
    assert torch.equal(ours.add_noise(x0, noise, 431), one_t)
    if hasattr(reference, "get_velocity"):
        assert torch.equal(ours.velocity(x0, noise, t), reference.get_velocity(x0, noise, t))


def ddpm_reference(config: Mapping[str, object], x: Tensor, steps: int, net: Network, seed: int, skip: int) -> Tensor:
    scheduler = DDPMScheduler.from_config(dict(config))
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps[skip:]:
        x = scheduler.step(net(x, t), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_ddpm_runs_equal_diffusers_bit_for_bit(kind: str, variance: str, dtype: torch.dtype) -> None:
    config = {**DECODER_CONFIG, "prediction_type": kind, "variance_type": variance}
    net = network(8 if variance == "learned_range" else 4)
    schedule, x = NoiseSchedule.from_config(config), randn(2, 4, 3, 5, dtype=dtype)
    reference = ddpm_reference(config, x, 12, net, 3, skip=0)
    assert torch.equal(run("ddpm", schedule, x, schedule.timesteps(12), net, 3), reference)


@pytest.mark.parametrize("config", [*CONFIGS[:4], CONFIGS[5]])
@pytest.mark.parametrize("steps", [5, 50])
def test_ddpm_runs_of_other_configs_equal_diffusers_bit_for_bit(config: Mapping[str, object], steps: int) -> None:
    schedule, x, net = NoiseSchedule.from_config(config), randn(1, 4, 3, 5), network(4)
    reference = ddpm_reference(config, x, steps, net, 3, skip=0)
    assert torch.equal(run("ddpm", schedule, x, schedule.timesteps(steps), net, 3), reference)


def test_an_image_to_image_run_equals_diffusers_bit_for_bit() -> None:
    schedule, x, net = NoiseSchedule.from_config(DECODER_CONFIG), randn(1, 4, 3, 5), network(4)
    reference = ddpm_reference(DECODER_CONFIG, x, 10, net, 3, skip=10 - int(10 * 0.3))
    assert torch.equal(run("ddpm", schedule, x, start_at(schedule.timesteps(10), 0.3), net, 3), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("steps", [2, 25, 80])  # 80 of 80: each step is one timestep, with the beta of the table
@pytest.mark.parametrize("changes", [{}, {"prediction_type": "epsilon"}, {"variance_type": "learned_range"}])
def test_unclip_runs_equal_diffusers_bit_for_bit(changes: dict[str, object], steps: int, dtype: torch.dtype) -> None:
    config: dict[str, Any] = {**PRIOR_CONFIG, "num_train_timesteps": 80 if steps == 80 else 1000, **changes}
    schedule, scheduler = NoiseSchedule.from_config(config), UnCLIPScheduler.from_config(config)
    net = network(8 if schedule.variance_type == "learned_range" else 4)
    start = x = randn(2, 4, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    scheduler.set_timesteps(steps)
    for k, t in enumerate(scheduler.timesteps):
        following = scheduler.timesteps[k + 1] if k + 1 < steps else None
        x = scheduler.step(net(x, t), t, x, prev_timestep=following, generator=generator).prev_sample
    assert torch.equal(run("unclip", schedule, start, schedule.timesteps(steps), net, 3), x)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_runs_equal_diffusers_bit_for_bit(kind: str, to_one: bool, steps: int) -> None:
    config = {**DECODER_CONFIG, "prediction_type": kind, "set_alpha_to_one": to_one}
    schedule, scheduler, net = NoiseSchedule.from_config(config), DDIMScheduler.from_config(config), network(4)
    start = x = randn(2, 4, 3, 5)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), int(t), x).prev_sample
    assert torch.equal(run("ddim", schedule, start, schedule.timesteps(steps), net, 3), x)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("euler", EulerDiscreteScheduler),
        ("dpmpp_2m", DPMSolverMultistepScheduler),
        ("unipc", UniPCMultistepScheduler),
    ],
)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [INPAINT_CONFIG, {**PRIOR_CONFIG, "clip_sample": False}])
@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_solver_runs_nearly_equal_diffusers(
    name: str, solver: Any, config: Mapping[str, object], kind: str, steps: int
) -> None:
    config = {"beta_schedule": "squaredcos_cap_v2", **config, "prediction_type": kind}
    schedule, net, start = NoiseSchedule.from_config(config), network(4), randn(2, 4, 3, 5)
    keys = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    settings = {key: config[key] for key in keys if key in config}
    # Leading spacing avoids the end of the cosine schedule, where x0 from eps is only rounding error.
    scheduler = solver(**settings, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    x = start / scheduler.scale_model_input(torch.ones(()), scheduler.timesteps[0])  # Euler's state is divided by alpha
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    ours = run(name, schedule, start, tuple(int(t) for t in scheduler.timesteps), net, 3)
    torch.testing.assert_close(ours, x, atol=5e-6 * float(x.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5, 7)])
@pytest.mark.parametrize("count", [None, 1, 3])
def test_shared_noise_equals_randn_tensor_of_diffusers(
    count: int | None, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    def generators() -> Any:
        if count is None:
            return torch.Generator().manual_seed(7)
        return [torch.Generator().manual_seed(7 + k) for k in range(count)]

    ours, reference = SharedNoise(generators()), generators()
    for _ in range(2):
        expected = randn_tensor(shape, generator=reference, device=torch.device("cpu"), dtype=dtype)
        assert torch.equal(ours(torch.empty(shape, dtype=dtype)), expected)


def test_a_run_leaves_the_generator_in_the_state_of_diffusers() -> None:
    ours, reference, x = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3), randn(1, 4, 3, 5)
    schedule, net = NoiseSchedule.from_config(DECODER_CONFIG), network(4)
    list(
        sample(
            SAMPLERS["ddpm"](schedule, x, schedule.timesteps(5), SharedNoise(ours)),
            lambda x, t: interpret(net(x, t), x, t, schedule),
        )
    )
    for _ in range(5):
        torch.randn(1, 4, 3, 5, generator=reference)
    assert np.array_equal(ours.get_state().numpy(), reference.get_state().numpy())

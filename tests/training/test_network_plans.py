"""`--plan`: the training of every network can be planned."""

from dataclasses import replace
from functools import cache

import pytest

from kandinsky22.training.cli import main
from kandinsky22.training.network_plans import plan_of
from kandinsky22.training.plan import Plan
from kandinsky22.training.recipes import BOX, PUBLISHED
from kandinsky22.training.registry import ITERATIVE

PLANNED = [*ITERATIVE]


@cache
def box_plan(network: str) -> Plan:
    """The plan of a network of the shipped model, on two processes."""
    return plan_of(BOX, network, None, 2)


@pytest.mark.parametrize("network", PLANNED)
def test_every_network_of_the_shipped_model_is_planned(network: str) -> None:
    plan = box_plan(network)
    assert plan.steps == BOX.steps[network]
    assert plan.rows * 2 == BOX.runs[network].batch
    assert plan.operations > 2 * plan.parameters and plan.activations > 0


def test_sampling_memory_includes_a_second_copy_of_the_network() -> None:
    """Networks that only sample grids use (MoVQ, for the U-Nets) are not part of the step's memory; those that the
    loss uses (the text encoder, for the prior) are."""
    for network in PLANNED:
        plan = box_plan(network)
        assert plan.sample_grid.memory > 4 * plan.parameters and plan.sample_grids == -(-plan.steps // 250), network
        assert plan.sampling_memory == plan.weights + plan.moments + plan.ema + plan.frozen + plan.sample_grid.memory
    assert box_plan("decoder").frozen == box_plan("movq").frozen == box_plan("clip").frozen == 0
    assert 0 < box_plan("prior").frozen < 4 * box_plan("clip").parameters
    plain = box_plan("decoder").sample_grid
    assert (
        box_plan("inpaint").sample_grid.operations > plain.operations
        and box_plan("controlnet").sample_grid.operations > plain.operations
    )


def test_training_movqs_decoder_alone_needs_fewer_gradients() -> None:
    movq, decoder = box_plan("movq"), box_plan("movq-decoder")
    assert decoder.parameters == movq.parameters
    assert decoder.gradients < movq.gradients
    assert decoder.activations < movq.activations


def test_perceptual_and_adversarial_terms_are_planned() -> None:
    """The published MoVQ's terms, with the networks of the shipped model."""
    recipe = replace(BOX, terms=PUBLISHED.terms)
    plan, plain = plan_of(recipe, "movq", None, 2), box_plan("movq")
    assert plan.parameters > plain.parameters  # the discriminator
    assert plan.frozen > 0 and plan.operations > plain.operations


def test_the_plan_option_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main(["decoder", "--start-from", "box", "--steps", "7", "--batch", "6", "--plan"])
    text = capsys.readouterr().out
    assert "7 steps of 6 rows on 1 x H100 SXM" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["linear-prior", "--plan"], "--plan does not apply to linear-prior"),
        (["decoder", "--plan", "GTX 9"], "no figures for 'GTX 9'"),
    ],
)
def test_what_cannot_be_planned_is_one_error_message(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(arguments)

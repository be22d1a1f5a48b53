"""What `--plan` counts: every network can be planned, and those of the box are counted as they are."""

from dataclasses import replace
from functools import cache

import pytest

from kandinsky22.training.cli import main
from kandinsky22.training.plan import Plan
from kandinsky22.training.planning import plan_of
from kandinsky22.training.recipes import BOX, NETWORKS, PUBLISHED

PLANNED = [network for network in NETWORKS if network != "linear-prior"]


@cache
def planned(network: str) -> Plan:
    """A network of the box, on two processes."""
    return plan_of(BOX, network, None, 2)


@pytest.mark.parametrize("network", PLANNED)
def test_every_network_of_the_box_is_planned(network: str) -> None:
    plan = planned(network)
    assert plan.steps == BOX.steps[network]
    assert plan.rows * 2 == BOX.runs[network].batch
    assert plan.operations > 2 * plan.parameters and plan.activations > 0


def test_the_copy_that_sheets_are_drawn_with_is_there_only_then() -> None:
    """And what it is drawn with: MoVQ for painters. What the loss uses is there all the while: the text encoder for the prior."""
    for network in PLANNED:
        plan = planned(network)
        assert plan.sheet.memory > 4 * plan.parameters and plan.sheets == -(-plan.steps // 250), network
        assert plan.drawing == plan.weights + plan.moments + plan.average + plan.frozen + plan.sheet.memory
    assert planned("decoder").frozen == planned("movq").frozen == planned("clip").frozen == 0
    assert 0 < planned("prior").frozen < 4 * planned("clip").parameters
    plain = planned("decoder").sheet
    assert (
        planned("inpaint").sheet.operations > plain.operations
        and planned("controlnet").sheet.operations > plain.operations
    )


def test_movqs_decoder_needs_gradients_of_itself_alone() -> None:
    whole, decoder = planned("movq"), planned("movq-decoder")
    assert decoder.parameters == whole.parameters
    assert decoder.gradients < whole.gradients
    assert decoder.activations < whole.activations


def test_terms_that_look_at_the_step_and_at_features_are_planned() -> None:
    """The published MoVQ's, with the networks of the box."""
    recipe = replace(BOX, terms=PUBLISHED.terms)
    plan, plain = plan_of(recipe, "movq", None, 2), planned("movq")
    assert plan.parameters > plain.parameters  # the discriminator
    assert plan.frozen > 0 and plan.operations > plain.operations


def test_a_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["decoder", "--start-from", "box", "--steps", "7", "--batch", "6", "--plan"])
    said = capsys.readouterr().out
    assert "7 steps of 6 rows on 1 x H100 SXM" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["linear-prior", "--plan"], "--plan means nothing to linear-prior"),
        (["decoder", "--plan", "GTX 9"], "no figures for 'GTX 9'"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(arguments)

"""`kandinsky22 train`: what is wrong is said in one sentence before anything is read."""

import pytest

from kandinsky22.training.cli import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["movqq"], "invalid choice: 'movqq'"),
        ([], "required: network"),
        (["movq", "--steps", "0"], "whole number from 1 up"),
        (["movq", "--minutes", "-1"], "above 0"),
        (["movq", "--steps", "1", "--minutes", "1"], "not allowed with"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        main(arguments)
    assert "\n" not in str(refused.value)

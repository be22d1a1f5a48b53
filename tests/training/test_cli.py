"""`kandinsky22 train`: invalid arguments are refused with one sentence before anything is read."""

import re
from pathlib import Path

import pytest

from kandinsky22.training.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movqq"], "invalid choice: 'movqq'"),
        ([], "required: network"),
        (["movq", "--steps", "0"], "whole number from 1 up"),
        (["movq", "--minutes", "-1"], "above 0"),
        (["movq", "--steps", "1", "--minutes", "1"], "not allowed with"),
        (
            ["clip", "--min-snr", "5"],
            "--min-snr does not apply to clip; leave it out (it is for prior, decoder, inpaint, controlnet)",
        ),
        (["movq", "--cond-dropout", "0.2"], "--cond-dropout does not apply to movq; leave it out (it is for prior"),
        (
            ["prior", "--predict", "epsilon"],
            "--predict does not apply to prior; leave it out (it is for decoder, inpaint, controlnet",
        ),
        (
            ["linear-prior", "--tensorboard"],
            "--tensorboard does not apply to linear-prior; leave it out (it is for all networks but linear-prior",
        ),
        (["linear-prior", "--every", "250"], "--every does not apply to linear-prior"),
        (["linear-prior", "--relaunch", "2"], "--relaunch does not apply to linear-prior"),
        (["movq-decoder", "--from-scratch"], "--from-scratch does not apply to movq-decoder"),
        (
            ["decoder", "--depth-model", "x"],
            "--depth-model does not apply to decoder; leave it out (it is for controlnet",
        ),
        (
            ["clip", "--accumulate", "2"],
            "--accumulate does not apply to clip; leave it out (it is for all networks but clip, linear-prior",
        ),
        (["clip", "--accumulate", "2", "--plan"], "--accumulate does not apply to clip"),
        (["decoder", "--accumulate", "9", "--batch", "4"], "a batch of 4 cannot be cut into 9 parts"),
        (["decoder", "--processes", "3", "--batch", "2"], "a batch of 2 cannot be cut into 3 parts"),
        (["clip", "--processes", "3", "--batch", "16", "--plan"], "use a --batch that 3 divides, not 16"),
        (["movq", "--device", "foo"], "networks cannot be trained on 'foo'; use cpu"),
        (["movq", "--device", "mps"], "networks cannot be trained on 'mps'; use cpu"),
    ],
)
def test_invalid_arguments_are_refused_with_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]

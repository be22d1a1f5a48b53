"""`kandinsky22 train`: what is wrong is said in one sentence before anything is read."""

from pathlib import Path

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
        (
            ["clip", "--min-snr", "5"],
            "--min-snr means nothing to clip, and is for prior, decoder, inpaint, controlnet; leave",
        ),
        (["movq", "--untold", "0.2"], "--untold means nothing to movq, and is for prior"),
        (
            ["prior", "--predict", "epsilon"],
            "--predict means nothing to prior, and is for decoder, inpaint, controlnet",
        ),
        (
            ["linear-prior", "--tensorboard"],
            "--tensorboard means nothing to linear-prior, and is for all but linear-prior",
        ),
        (["linear-prior", "--every", "250"], "--every means nothing to linear-prior"),
        (["linear-prior", "--relaunch", "2"], "--relaunch means nothing to linear-prior"),
        (["movq-decoder", "--anew"], "--anew means nothing to movq-decoder"),
        (["decoder", "--depth-model", "x"], "--depth-model means nothing to decoder, and is for controlnet"),
        (["clip", "--accumulate", "2"], "--accumulate means nothing to clip, and is for all but clip, linear-prior"),
        (["clip", "--accumulate", "2", "--plan"], "--accumulate means nothing to clip"),
        (["decoder", "--accumulate", "9", "--batch", "4"], "a batch of 4 cannot be cut into 9 parts"),
        (["decoder", "--processes", "3", "--batch", "2"], "a batch of 2 cannot be cut into 3 parts"),
        (["clip", "--processes", "3", "--batch", "16", "--plan"], "use a --batch that 3 divides, not 16"),
        (["movq", "--device", "foo"], "networks cannot be trained on 'foo'; use cpu"),
        (["movq", "--device", "mps"], "networks cannot be trained on 'mps'; use cpu"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence) as refused:
        main(arguments)
    assert "\n" not in str(refused.value)
    assert not [*tmp_path.iterdir()]

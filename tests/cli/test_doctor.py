"""`kandinsky22 doctor`: its report on models, memory, time and kernels; it downloads and writes nothing."""

from pathlib import Path

import pytest
import torch

from kandinsky22.acceleration import kernels
from kandinsky22.checkpoints import full_size
from kandinsky22.cli.app import run
from kandinsky22.engine import cost


def test_report_lists_local_models_and_what_would_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost, "rate", lambda *_: 1e12)
    assert run(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "box: here, with weights for prior, decoder" in report
    assert "kandinsky-2.2: not here yet; fetching kandinsky-2.2: 15.9 GB in 19 files" in report
    assert "a picture of 512x512" in report and "88.1 TFLOP" in report and "about 88.1 s" in report
    assert list(tmp_path.iterdir()) == []


def test_report_states_the_size_and_dtype_of_a_picture_and_refuses_a_missing_folder(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--model", str(tiny_model), "--size", "128x64", "--dtype", "float32"]) == 0
    assert "a picture of 128x64 in float32" in capsys.readouterr().out
    assert run(["doctor", "--model", "nowhere"]) == 2


def test_counted_operations_match_the_specification() -> None:
    """GFLOP at 512 x 512, counted from the published configurations: U-Net 856.1 with its conditioning, MoVQ 1999.5,
    prior 164.6, text encoder 97.9.

    This implementation encodes the text once, and its last block computes only keys and values of the 78 text tokens.
    """
    configs = full_size.TEXT_ENCODER, full_size.PRIOR, full_size.UNET, full_size.MOVQ
    work = cost.work(*configs, height=512, width=500)
    assert work.decoder_step / 1e9 == pytest.approx(856.1, rel=0.01)
    assert work.decode / 1e9 == pytest.approx(1999.5, rel=0.01)
    saved = 78 * 2 * 10 * 2048**2 / 1e9  # the queries, the output and the MLP of those tokens
    assert (work.text + work.prior_step) / 1e9 == pytest.approx(164.6 + 97.9 - saved, rel=0.01)
    assert cost.rate(torch.device("cpu"), torch.float32) > 1e8


def test_report_says_whether_the_kernels_are_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kernels_line() -> str:
        assert run(["doctor", "--model", str(tiny_model), "--device", "cpu"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("kernels of our own: "))

    monkeypatch.setattr(kernels, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(kernels, "library", lambda: object())
    monkeypatch.setattr(kernels, "is_applicable", lambda _: False)  # the library is a fake
    assert kernels_line().endswith("used") and "not used" not in kernels_line()
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert "install a C compiler" in kernels_line()
    monkeypatch.setattr(kernels, "instruction_set", lambda: None)
    assert "none for this processor" in kernels_line()
    monkeypatch.setenv("KANDINSKY22_ACCELERATION", "off")
    assert "KANDINSKY22_ACCELERATION is off" in kernels_line()
    monkeypatch.setenv("KANDINSKY22_ACCELERATION", "filters,linear")
    assert "KANDINSKY22_ACCELERATION leaves out linear, filters" in kernels_line()

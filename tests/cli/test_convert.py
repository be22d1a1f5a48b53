"""`kandinsky22 convert`: the files it writes, its messages, and that torch is imported only if needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from kandinsky22.cli import convert
from kandinsky22.cli.app import run

Capture = pytest.CaptureFixture[str]


def test_convert_writes_one_file_and_restores_its_folders(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    one, folder = tmp_path / "one.safetensors", tmp_path / "folder"
    convert.main([str(tiny_model), str(one), "--dtype", "float16", "-q"])
    convert.main([str(one), str(folder), "-q"])
    assert capsys.readouterr() == (f"{one}\n{folder}\n", "")
    half = load_file(folder / "decoder/unet/diffusion_pytorch_model.safetensors")
    assert {str(value.dtype) for value in half.values()} == {"torch.float16"}


def test_files_left_out_are_listed_unless_quiet(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "decoder").symlink_to(tiny_model / "decoder")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "notes.doc").write_text("")
    convert.main([str(tmp_path), str(tmp_path / "one.safetensors")])
    assert "left out, since they are not part of the model: prior/notes.doc" in capsys.readouterr().err
    convert.main([str(tmp_path), str(tmp_path / "two.safetensors"), "--quiet"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [[], ["box"]])
def test_missing_target_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="`convert` takes a model and a target"):
        convert.main(words)


def test_help_and_conversion_without_dtype_import_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from kandinsky22.cli import convert\n"
        "try: convert.main(sys_argv)\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    for argv in (["--help"], [str(tiny_model), str(tmp_path / "one.safetensors")]):
        command = [sys.executable, "-c", code.replace("sys_argv", repr(argv))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "convert" in done.stdout or "one.safetensors" in done.stdout


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_printed_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, terminal: bool
) -> None:
    """Every quarter of a second in a terminal, on one line; elsewhere every ten seconds; and at the end."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    now = 0.0
    report = convert.progress(lambda: now)
    for now in (1.0, 1.9, 3.0, 3.1, 11.0, 12.0, 14.0):
        report(int(now * 10**9), 15 * 10**9)
    now = 15.0
    report(15 * 10**9, 15 * 10**9)
    printed = capsys.readouterr().err
    expected = ["3.0", "11.0", "12.0", "14.0", "15.0"] if terminal else ["11.0", "15.0"]
    assert [line.split()[1] for line in printed.replace("\r", "\n").splitlines() if line.strip()] == expected
    assert "about 4 s left" in printed and printed.count("\n") == (1 if terminal else 2)


def test_fast_conversion_prints_no_progress(capsys: Capture) -> None:
    now = 0.0
    report = convert.progress(lambda: now)
    now = 1.5
    report(5, 5)
    assert capsys.readouterr().err == ""


def test_one_file_is_accepted_as_a_model_and_unpacked_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "one.safetensors"
    assert run(["convert", str(tiny_model), str(file), "-q"]) == 0
    paths = []
    for model in (tiny_model, file, file):
        paths.append(tmp_path / f"{len(paths)}.png")
        assert run(["a red circle", "--seed", "7", "-q", "--model", str(model), "-o", str(paths[-1])]) == 0
    assert capsys.readouterr().err.count("unpacking") == 1
    assert len({Image.open(path).tobytes() for path in paths}) == 1
    (tmp_path / "other.safetensors").write_bytes(b"no model")
    assert run(["a red circle", "--model", str(tmp_path / "other.safetensors")]) == 2

"""A LoRA as a value: what it is made from, what is refused, and what JSON holds of it."""

from pathlib import Path
from typing import Any

import pytest

from kandinsky22 import LoRA, Request, text2img
from kandinsky22.request.lora import find_files, in_folder


@pytest.fixture
def style(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"adapters")
    return path


def test_a_name_may_end_in_its_scale(style: Path) -> None:
    assert [LoRA.of(f"{style}{end}").scale for end in ("", ":0.8", ":-1", ":2e-1")] == [1, 0.8, -1, 0.2]
    assert LoRA.of(style, 0.5, prior_scale=0).scale_of_prior == 0 and LoRA.of(style, 0.5).scale_of_prior == 0.5


def test_two_are_equal_by_content_and_scale(style: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(style.read_bytes())
    assert LoRA.of(copy) == LoRA.of(style) != LoRA.of(style, 0.5)
    copy.write_bytes(b"others")
    assert LoRA.of(copy) != LoRA.of(style)


def test_a_folder_of_peft_is_one_lora_with_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "style"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"adapters")
    without = LoRA.of(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert LoRA.of(folder) != without and LoRA.of(folder).name == "style"
    assert [name for name, _ in in_folder(tmp_path)] == ["style"]


@pytest.mark.parametrize(
    "source, fix",
    [
        ("none.safetensors", "none.safetensors"),
        ("style.safetensors:200", "from -100 to 100"),
        ("style.safetensors:nan", "from -100 to 100"),
        ("", "is empty"),
        (":0.8", "is empty"),
        ("picture.png", "safetensors file"),
        (7, "a LoRA is a file"),
    ],
)
def test_what_is_no_lora_is_refused(source: Any, fix: str, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(style.parent)
    with pytest.raises(ValueError, match=fix):
        LoRA.of(source)


def test_a_request_holds_references_in_json_and_finds_their_files_again(style: Path) -> None:
    request = text2img("a star", loras=[f"{style}:0.8"])
    restored = Request.from_json(request.to_json())
    assert restored == request and str(style.parent) not in request.to_json()
    (found,) = find_files(restored.loras, [style.parent])
    assert found.file == style.resolve()
    with pytest.raises(ValueError, match=r"'style' .* is not in"):
        find_files(restored.loras, [])
    assert "loras" not in text2img("a star").to_json()


def test_a_request_takes_a_list_of_loras(style: Path) -> None:
    with pytest.raises(ValueError, match="list of files"):
        text2img("a star", loras=str(style))
    with pytest.raises(ValueError, match="at most"):
        text2img("a star", loras=[style] * 33)
    with pytest.raises(ValueError, match="tuple of LoRAs"):
        Request(condition=text2img("a star").condition, loras=(str(style),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a request"):
        Request.from_json('{"condition": {"prompt": "a star"}, "loras": [3]}')

"""The documentation is true: the code of docs/extending.md runs, links have targets, quoted modules exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kandinsky22

ROOT = Path(__file__).parents[1]
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PATH = re.compile(r"`((?:src|tests|benchmarks|examples|docs)/[\w/.-]+\.\w+)(?:::\w+)?`")


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of one kind, in order."""
    return [block for mark, block in FENCED.findall(text) if mark == kind]


def apply_hunks(diff: str, root: Path) -> None:
    """Apply a unified diff without line numbers: the old lines of each hunk must occur exactly once in the file."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, *hunks = re.split(r"\n@@\n", part)
        path = root / name.strip()
        text = path.read_text(encoding="utf-8")
        for hunk in hunks:
            lines = hunk.rstrip("\n").split("\n")
            old, new = ("".join(line[1:] + "\n" for line in lines if line[0] in signs) for signs in (" -", " +"))
            assert text.count(old) == 1, f"{name} has {text.count(old)} places for this hunk of extending.md:\n{hunk}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def test_python_of_extending_runs_in_order(tmp_path: Path) -> None:
    script = tmp_path / "extending.py"
    script.write_text("\n".join(blocks(EXTENDING, "python run")), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "watercolour" in done.stdout
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("ddim-half.png", "offset.png")]
    assert all(picture.std() > 10 for picture in pictures)


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A folder with a copy of the package's source, whose weights are a link."""
    package = ROOT / "src" / "kandinsky22"
    copy = tmp_path / "src" / "kandinsky22"
    shutil.copytree(package, copy, ignore=lambda folder, _: ["weights"] if Path(folder) == package else [])
    (copy / "weights").symlink_to(package / "weights")
    return tmp_path


def test_diff_of_extending_adds_a_control(copied_package: Path) -> None:
    """The option exists after the diff, reaches the picture's own record, and changes the picture."""
    (diff,) = blocks(EXTENDING, "diff run")
    apply_hunks(diff, copied_package)
    environment = os.environ | {"PYTHONPATH": str(copied_package / "src")}
    pictures = []
    for offset in ("0", "0.5"):
        output = copied_package / offset
        options = f"--noise-offset {offset} --num-images 1 --seed 7 --num-inference-steps 4 --output {output}".split()
        command = [sys.executable, "-m", "kandinsky22", "a red circle", *options]
        done = subprocess.run(command, cwd=copied_package, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (path,) = output.glob("*-7.png")
        with Image.open(path) as picture:
            assert any(f'"noise_offset": {float(offset)}' in str(text) for text in picture.info.values())
            pictures.append(np.asarray(picture, dtype=int))
    assert np.abs(pictures[0] - pictures[1]).max() > 10


def test_file_and_diff_of_extending_add_a_trained_network(copied_package: Path) -> None:
    """The command, its plan, resuming and the folder in the model follow from the file and the registry's entry."""
    (code,), (diff,) = blocks(EXTENDING, "python regression.py"), blocks(EXTENDING, "diff regression")
    (copied_package / "src" / "kandinsky22" / "training" / "regression.py").write_text(code, encoding="utf-8")
    apply_hunks(diff, copied_package)
    pictures = copied_package / "pictures"
    pictures.mkdir()
    for name in ("red", "blue", "green", "black"):
        Image.new("RGB", (64, 64), name).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name} circle")

    def train(*options: str) -> str:
        command = [sys.executable, "-m", "kandinsky22", "train", "regression", "--folder", "run", *options]
        environment = os.environ | {"PYTHONPATH": str(copied_package / "src")}
        done = subprocess.run(command, cwd=copied_package, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1000 steps of 256 rows" in train("--recipe", "box", "--plan")
    assert "step 2 of 2" in train("--data", "pictures", "--steps", "2", "--batch", "4")
    assert "step 2 of 2" not in train(), "the complete run is resumed, and nothing is left to do"
    assert (copied_package / "run" / "model" / "prior" / "regression" / "model.safetensors").exists()


def anchor(heading: str) -> str:
    """The anchor that GitHub and mkdocs give a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_files_and_headings(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if fragment:
            headings = HEADING.findall(target.read_text(encoding="utf-8"))
            assert fragment in map(anchor, headings), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_glossary_names_exist_in_the_code() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "kandinsky22").rglob("*.py"))
    terms = [row.split("|")[1] for row in GLOSSARY.splitlines() if row.startswith("| ")]
    names = {name for term in terms for name in re.findall(r"`(\w+)`", term)}
    assert len(names) > 30
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", source)) == []


def test_api_reference_has_every_public_name_and_room() -> None:
    listed = re.findall(r"^::: kandinsky22\.(\w+)", (ROOT / "docs/api/public.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(kandinsky22.__all__)
    rooms = {path.parent.name for path in (ROOT / "src" / "kandinsky22").glob("*/__init__.py")} - {"cli"}
    assert {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} == rooms | {"public"}

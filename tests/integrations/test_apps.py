"""The examples with Gradio and Streamlit paint, where these packages are installed.

Each runs in a process of its own, since the packages leave event loops and threads behind.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
GRADIO = """
import runpy, sys
app = runpy.run_path(sys.argv[1])
*previews, picture = app["paint"]("a red circle", 3)
assert previews and picture.size == (128, 128)
assert [block.label for block in app["page"].input_components] == ["Prompt", "Seed"]
"""
STREAMLIT = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file(sys.argv[1], default_timeout=120).run()
assert not app.exception and not app.get("image")
app.button[0].click().run()
assert not app.exception and app.get("image") and app.get("download_button")
"""


@pytest.mark.parametrize(("package", "program"), [("gradio", GRADIO), ("streamlit", STREAMLIT)])
def test_example_paints(package: str, program: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    command = [sys.executable, "-c", program, EXAMPLES / f"{package}_app.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

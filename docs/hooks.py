"""For mkdocs: code blocks marked `run`, which the tests execute, are shown as ordinary ones."""

import re
from typing import Any

MARKED = re.compile(r"^```(\w+) run$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page without the marks."""
    return MARKED.sub(r"```\1", markdown)

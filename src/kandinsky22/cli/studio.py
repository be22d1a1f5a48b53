"""`kandinsky22 studio`: opens the studio in the browser; starts the server that it needs, if none runs."""

import argparse
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Sequence

from kandinsky22.cli import serve
from kandinsky22.console import echo

ABOUT = "Open the studio in the browser. If no server runs at its address, one is started with these options."
WAIT = 120.0  # seconds for the server to start


def main(arguments: Sequence[str]) -> int:
    """Open the studio; the options are those of `kandinsky22 serve`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default=serve.HOST)
    parser.add_argument("--port", default=str(serve.PORT))
    address, _ = parser.parse_known_args(arguments)
    url = f"http://{address.host}:{address.port}/"
    if not {"-h", "--help"} & {*arguments}:
        if _answers(url):
            echo(f"the studio is at {url}", error=True)
            webbrowser.open(url)
            return 0
        threading.Thread(target=_open_later, args=(url,), daemon=True).start()
    return serve.main(arguments, "studio", ABOUT)


def _open_later(url: str) -> None:
    """Open the browser as soon as the server answers."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if _answers(url):
            webbrowser.open(url)
            return
        time.sleep(0.2)


def _answers(url: str) -> bool:
    """Whether a server of kandinsky22 is there."""
    try:
        with urllib.request.urlopen(f"{url}livez", timeout=2) as answer:
            return bool(answer.read() == b"ok")
    except (OSError, ValueError):
        return False

"""Writes the OpenAPI of `/api/v1` to a file, for the studio's types: python -m kandinsky22.server.openapi FILE."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from kandinsky22.request import Defaults
from kandinsky22.server import app as application
from kandinsky22.server.dialects import native, studio
from kandinsky22.server.job_queue import JobQueue, Session
from kandinsky22.server.limits import Limits
from kandinsky22.server.store import Store


def schema() -> dict[str, Any]:
    """The OpenAPI of the routes that the studio may use."""

    def nothing(*_: Any) -> Any:
        raise NotImplementedError

    def defaults() -> Defaults:
        return cast(Defaults, nothing())

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        queue = JobQueue(store, cast(Session, None), defaults, Limits())
        dialects = cast(list[application.Dialect], [native, studio])
        app = application.create(
            store, queue, dialects, model="box", embed=nothing, resolve=nothing, describe=nothing, close=store.close
        )
        result = app.openapi()
        app.state.services.decoder.close()
        store.close()
        return result


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(schema(), indent=1, sort_keys=True) + "\n")

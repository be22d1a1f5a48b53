"""Serves the fake model: python -m tests.server.serve_fake FOLDER PORT [PROCESSES] [broken]."""

import sys
from pathlib import Path

from kandinsky22.backends.pool import Pool
from kandinsky22.cli.serve import run_server
from kandinsky22.request import Defaults
from kandinsky22.request.tasks import text2img
from kandinsky22.server import app as application
from kandinsky22.server.dialects import DIALECTS
from kandinsky22.server.job_queue import JobQueue
from kandinsky22.server.limits import Limits
from kandinsky22.server.store import Store
from tests.server.fakes import load, load_nothing, read_defaults


def main() -> None:
    folder, port, *rest = sys.argv[1:]
    store = Store(Path(folder))
    store.claim()
    pool = Pool(load_nothing if "broken" in rest else load, processes=int((*rest, "1")[0]))

    def defaults() -> Defaults:
        pool.resolve(text2img("", seed=0))
        return read_defaults()

    queue = JobQueue(store, pool.session(), defaults, Limits(free_bytes=0, waiting=8))
    app = application.create(
        store,
        queue,
        DIALECTS,
        model="fake",
        embed=pool.embedding,
        resolve=pool.resolve,
        describe=pool.describe,
        close=lambda: pool.close(2.0),
    )
    run_server(app, queue, "127.0.0.1", int(port))


if __name__ == "__main__":
    main()

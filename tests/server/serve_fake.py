"""Serves the fake model: python -m tests.server.serve_fake --data FOLDER --port PORT [--max-waiting N]."""

import argparse
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
from tests.server.fakes import load, read_defaults


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-waiting", type=int, default=64)
    options = parser.parse_args()
    store = Store(options.data)
    store.claim()
    pool = Pool(load, processes=1)

    def defaults() -> Defaults:
        pool.resolve(text2img("", seed=0))
        return read_defaults()

    queue = JobQueue(store, pool.session(), defaults, Limits(free_bytes=0, waiting=options.max_waiting))
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
    run_server(app, queue, "127.0.0.1", options.port)


if __name__ == "__main__":
    main()

"""`kandinsky22 serve`: a server for programs that paint over HTTP. Imports the server and what it needs only here."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.cli.evaluation_options import whole_number
from kandinsky22.cli.options import Parser
from kandinsky22.console import echo
from kandinsky22.files import expand

if TYPE_CHECKING:
    from fastapi import FastAPI

    from kandinsky22.backends.pool import Pool
    from kandinsky22.backends.ray_serve import RayServe
    from kandinsky22.server.job_queue import JobQueue
    from kandinsky22.server.picture_files import Sign

HOST, PORT = "127.0.0.1", 8022
MAX_JOBS = 16  # of a key at a time
SCOPES = ("paint", "metrics")  # of keys; see `server.access`
END_SECONDS = 2.0  # that a process is given to end when the server stops


ABOUT = "Serve a model over HTTP: OpenAI's images, AUTOMATIC1111's and FusionBrain's interface, and our own."


def main(arguments: Sequence[str], command: str = "serve", about: str = ABOUT) -> int:
    """Serve a model over HTTP, or add and remove keys. command, about: for the help, of what calls this."""
    parser = Parser(f"kandinsky22 {command}", about, usage=f"kandinsky22 {command} [options]")
    parser.option("host", metavar="ADDRESS", help=f"the address to listen on (default: {HOST}, this machine alone)")
    parser.option("port", metavar="N", type=whole_number, help=f"the port (default: {PORT})")
    parser.option("model", metavar="NAME", help="the model: box, kandinsky-2.2, or a folder (default: box)")
    parser.option("data", metavar="FOLDER", help="where jobs and pictures are stored (default: in your data folder)")
    parser.option(
        "workers", metavar="N", type=whole_number, help="processes that paint (default: one; box: one per core)"
    )
    parser.option("ray", action="store_true", help="paint by replicas of Ray Serve: docs/scale.md")
    parser.option(
        "address", help="with --ray: of the cluster, or auto for one on this machine (default: start Ray here)"
    )
    parser.option(
        "min_workers",
        metavar="N",
        type=whole_number,
        help="with --ray: replicas when there is nothing to do (default: 1)",
    )
    parser.option(
        "update",
        action="store_true",
        help="with --ray: replace the model of the server that uses the cluster, and exit",
    )
    parser.option("device", metavar="NAME", help="cuda, mps or cpu (default: the first that this machine has)")
    parser.option("dtype", metavar="NAME", help="of the weights: float32, float16 or bfloat16 (default: by the device)")
    parser.option("allow_host", metavar="NAME", action="append", help="a name under which the server is reached")
    parser.option(
        "add_key", metavar="NAME", help="add a key, print it, and exit; from then on every client needs a key"
    )
    parser.option("scopes", metavar="NAMES", help=f"of the added key: {','.join(SCOPES)} (default: paint)")
    parser.option(
        "max_jobs", metavar="N", type=whole_number, help=f"jobs of the added key at a time (default: {MAX_JOBS})"
    )
    parser.option("remove_key", metavar="NAME", help="remove a key, and exit")
    parser.option("max_waiting", metavar="N", type=whole_number, help="jobs that may wait (default: 64)")
    parser.option(
        "max_gb", metavar="N", type=whole_number, help="space for pictures; then the oldest go (default: no limit)"
    )
    parser.option(
        "max_days", metavar="N", type=whole_number, help="days that pictures without a star stay (default: all)"
    )
    parser.option("exact_names", action="store_true", help="refuse model names of others, such as gpt-image-1")
    parser.option("c2pa_certificate", metavar="FILE", help="sign pictures (C2PA): your certificates in PEM")
    parser.option("c2pa_key", metavar="FILE", help="the private key of the certificate, in PEM")
    parser.option("c2pa_algorithm", metavar="NAME", help="of the key, such as es256, ps256 or ed25519 (default: es256)")
    parser.option("filter", metavar="MODULE:FUNCTION", help="judges each picture: returns why it is withheld, or None")
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"{command} takes options alone, got {words[0]!r}; see {parser.prog} --help")
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"the server needs {error.name}; install it: pip install 'kandinsky22[serve]'") from None
    for name in ("address", "min_workers", "update"):
        if name in options and "ray" not in options:
            raise ValueError(f"--{name.replace('_', '-')} is of Ray; add --ray")
    if "update" in options:
        _workers(options, update=True)
        return 0
    folder = expand(options["data"]) if "data" in options else data_folder()
    if "add_key" in options or "remove_key" in options:
        return _change_keys(folder, options)
    return _serve(folder, options)


def data_folder() -> Path:
    """The user's folder for what the server stores; `KANDINSKY22_DATA` moves it."""
    if chosen := os.environ.get("KANDINSKY22_DATA"):
        return Path(chosen)
    return expand(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "kandinsky22"


def _change_keys(folder: Path, options: dict[str, Any]) -> int:
    from kandinsky22.server.store import Store

    store = Store(folder)
    if "remove_key" in options:
        store.remove_key(options["remove_key"])
    if "add_key" in options:
        scopes = options.get("scopes", "paint").split(",")
        if unknown := set(scopes) - set(SCOPES):
            raise ValueError(f"there is no scope {min(unknown)!r}; there are {', '.join(SCOPES)}")
        echo(store.add_key(options["add_key"], scopes, options.get("max_jobs", MAX_JOBS)))
        echo("this key is shown only once; send it as Authorization: Bearer KEY", error=True)
    return 0


def _serve(folder: Path, options: dict[str, Any]) -> int:
    from kandinsky22.request import Defaults
    from kandinsky22.request.tasks import text2img
    from kandinsky22.server import app as application
    from kandinsky22.server.access import is_loopback
    from kandinsky22.server.dialects import DIALECTS
    from kandinsky22.server.job_queue import JobQueue
    from kandinsky22.server.limits import Limits
    from kandinsky22.server.logs import log_to_stderr
    from kandinsky22.server.picture_files import PictureFiles
    from kandinsky22.server.store import Store

    model, host, port = options.get("model", catalog.BOX), options.get("host", HOST), options.get("port", PORT)
    locate.part_folders(model)  # raises now if the model is not on this machine
    content_filter = load_filter(options["filter"]) if "filter" in options else None
    files = PictureFiles(Path(model).name, _signer(options))
    store = Store(folder)
    store.claim()
    if not is_loopback(host) and not store.keys():
        raise ValueError(f"{host} is reached by others, so clients need keys: kandinsky22 serve --add-key NAME")
    limits = Limits(
        waiting=options.get("max_waiting", Limits().waiting),
        max_bytes=options["max_gb"] * 10**9 if "max_gb" in options else None,
        max_seconds=options["max_days"] * 86_400.0 if "max_days" in options else None,
    )
    workers = _workers(options)

    def defaults() -> Defaults:
        resolved = workers.resolve(text2img("", seed=0))
        assert resolved.height is not None and resolved.width is not None
        return Defaults(height=resolved.height, width=resolved.width, prior=resolved.prior, decoder=resolved.decoder)

    queue = JobQueue(store, workers.session(), defaults, limits, content_filter=content_filter, files=files)
    hosts = [*options.get("allow_host", []), host]
    app = application.create(
        store,
        queue,
        DIALECTS,
        model=model,
        embed=workers.embedding,
        resolve=workers.resolve,
        describe=workers.describe,
        hosts=hosts,
        aliases="exact_names" not in options,
        close=partial(workers.close, END_SECONDS),
    )
    log_to_stderr()
    echo(f"kandinsky22 serves {model} at http://{host}:{port}", error=True)
    run_server(app, queue, host, port)
    return 0


def _workers(options: Mapping[str, Any], *, update: bool = False) -> "Pool | RayServe":
    """What paints: processes of this machine, or replicas of Ray Serve. update: starts none, and replaces the model."""
    from kandinsky22.backends.pool import Pool, cores

    model = options.get("model", catalog.BOX)
    number = options.get("workers", cores() if model == catalog.BOX else 1)
    where = {key: options.get(key) for key in ("device", "dtype")}
    if "ray" not in options:
        return Pool.of(model, processes=number, **where)
    try:
        from kandinsky22.backends.ray_serve import RayServe, Replicas
    except ModuleNotFoundError as error:
        raise ValueError(f"--ray needs {error.name}; install it: pip install 'kandinsky22[ray]'") from None
    replicas, address = Replicas(options.get("min_workers", 1), number), options.get("address")
    if update and address is None:
        address = "auto"
    echo(f"{'replacing the model' if update else 'starting replicas'} on Ray", error=True)
    return RayServe.of(model, replicas=replicas, address=address, **where)


def run_server(app: "FastAPI", queue: "JobQueue", host: str, port: int) -> None:
    """Serve the application until the process gets SIGTERM or SIGINT; running jobs then get a little time to end."""
    import uvicorn

    from kandinsky22.server.deadline import Deadline

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Deadline,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # after `JobQueue.stop`
        limit_concurrency=1000,
        ws="none",
    )

    class Server(uvicorn.Server):
        """Stops the queue first: then running jobs have ended, and so have the streams of events."""

        async def shutdown(self, sockets: Any = None) -> None:
            await queue.stop()
            await super().shutdown(sockets)

    Server(config).run()


def _signer(options: Mapping[str, Any]) -> "Sign | None":
    """What signs pictures with the operator's certificate, if it is named."""
    if "c2pa_certificate" not in options and "c2pa_key" not in options:
        return None
    if "c2pa_certificate" not in options or "c2pa_key" not in options:
        raise ValueError("signing needs both --c2pa-certificate and --c2pa-key")
    from kandinsky22.server.content_credentials import signer

    certificate, key = expand(options["c2pa_certificate"]), expand(options["c2pa_key"])
    return signer(certificate, key, options.get("c2pa_algorithm", "es256"))


def load_filter(name: str) -> Any:
    """The content filter "module:function". Raises `ValueError` if there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--filter takes module:function, and {name!r} cannot be imported: {error}") from None

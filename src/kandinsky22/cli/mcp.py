"""`kandinsky22 mcp`: the tasks as tools for agents, over standard input and output."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.cli import paint
from kandinsky22.cli.options import Parser, add_parameters
from kandinsky22.request import Request
from kandinsky22.request.tasks import text2img

if TYPE_CHECKING:
    from kandinsky22.backends.remote import Remote
    from kandinsky22.engine.kandinsky import Kandinsky


def main(arguments: Sequence[str]) -> None:
    """Serve agents until the input ends."""
    parser = Parser(
        "kandinsky22 mcp",
        "Serve the tasks as tools of the Model Context Protocol, for agents that start this command.",
        usage="kandinsky22 mcp [options]",
    )
    add_parameters(parser, text2img, ("model",))
    parser.option("output", short="-o", metavar="FOLDER", help="where pictures are saved (default: out)")
    parser.add_edge("device", "dtype", "placement", "server")
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"mcp takes options alone, got {words[0]!r}; see kandinsky22 mcp --help")
    try:
        import mcp  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"this command needs {error.name}; install it: pip install 'kandinsky22[mcp]'") from None
    from kandinsky22.cli import output
    from kandinsky22.integrations.mcp_server import ToolContext, serve

    destination = output.Destination.of(options.get("output", paint.OUTPUT))
    if destination.name is not None or destination.is_stdout:
        raise ValueError("--output names a folder here, since many pictures are saved")
    output.check_writable(destination, 1)
    serve(ToolContext(loader(options), partial(output.save_picture, destination=destination), destination.folder))


def loader(options: dict[str, Any]) -> "Callable[[Request], Kandinsky | Remote]":
    """What returns the model, which is loaded with the first request; a published one again for further parts.

    Raises `ValueError` if the model is not on this machine.
    """
    model = options.get("model", catalog.BOX)
    if not paint.server_of(options):
        locate.part_folders(model)
    loaded: dict[frozenset[str], Kandinsky | Remote] = {}

    def load(request: Request) -> "Kandinsky | Remote":
        parts: frozenset[str] = frozenset()
        if catalog.is_remote(model) and not paint.server_of(options):
            from kandinsky22.engine.requirements import model_parts

            parts = frozenset(model_parts(model, request))
        if parts not in loaded:
            loaded.clear()
            loaded[parts] = paint.load(model, options, request)
        return loaded[parts]

    return load

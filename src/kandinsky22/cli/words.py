"""`kandinsky22 words`: prints the vocabulary that a small model was trained on. Imports no torch."""

from collections.abc import Mapping, Sequence

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.metadata import read_metadata
from kandinsky22.cli.options import Parser
from kandinsky22.cli.terminal import is_terminal
from kandinsky22.console import echo, printable


def main(arguments: Sequence[str]) -> None:
    """Print a model's words by kind, and example prompts."""
    usage = "kandinsky22 words [--model FOLDER]"
    parser = Parser(
        "kandinsky22 words", "Print the words that a small model was trained on, with examples.", usage=usage
    )
    parser.option("model", metavar="FOLDER", help="a model (default: the model in the box)")
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"`words` takes only options, got {words[0]!r}; see {parser.prog} --help")
    language = read_metadata(locate.part_folders(options.get("model", catalog.BOX)).get(catalog.DECODER))
    if not language.words:
        echo("this model has no limited vocabulary: use any prompt")
        return
    print_words = _print_in_colour if is_terminal() else _print_plain
    print_words(language.words)
    for example in language.examples:
        echo(f'kandinsky22 "{example}"')


def _print_plain(words: Mapping[str, Sequence[str]]) -> None:
    for kind, phrases in words.items():
        echo(f"{kind + ':':12} {', '.join(phrases)}")
    echo("")


def _print_in_colour(words: Mapping[str, Sequence[str]]) -> None:
    """Print them as a table, with a swatch of the colour before its name."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from kandinsky22.compositions import COLORS, GROUNDS

    table = Table.grid(padding=(0, 2))
    for kind, phrases in words.items():
        line = Text()
        for i, phrase in enumerate(phrases):
            rgb = {"colors": COLORS, "grounds": GROUNDS}.get(kind, {}).get(phrase)
            line.append("   " if rgb and i else ", " if i else "")
            if rgb:
                line.append("■ ", "#{:02x}{:02x}{:02x}".format(*rgb))
            line.append(printable(phrase).replace(" ", "\N{NO-BREAK SPACE}"))
        table.add_row(Text(printable(kind), "dim"), line)
    Console(highlight=False).print(Padding(table, (1, 0)))

"""The pictures of a report, as SVG that stands in its page: no file beside it, nothing fetched. Needs matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (6.4, 3.6)
OURS, THEIRS = "#c2410c", "#94a3b8"


class Point(NamedTuple):
    """A value, and from where to where it lies."""

    x: float
    y: float
    low: float
    high: float


def check() -> None:
    """Raises `ValueError` where matplotlib is missing; asked before hours of painting."""
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise ValueError("a report has plots, and matplotlib draws them: pip install 'kandinsky22[evaluate]'") from None


def lines(curves: Mapping[str, Sequence[Point]], across: str, up: str) -> str:
    """Curves by name, with a bar for where each value lies."""
    figure = _figure()
    axes = figure.subplots()
    for name, points in curves.items():
        below, above = [p.y - p.low for p in points], [p.high - p.y for p in points]
        at, values = [p.x for p in points], [p.y for p in points]
        axes.errorbar(at, values, yerr=[below, above], label=name, marker="o", markersize=4, linewidth=1.4, capsize=2)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False, ncols=2)
    return _svg(figure)


def bars(values: Mapping[str, float], across: str, ours: str | None = None) -> str:
    """Named values, the smallest on top; `ours` is the name of the one that stands out."""
    names = sorted(values, key=values.__getitem__, reverse=True)
    figure = _figure(height=0.9 + 0.26 * len(names))
    axes = figure.subplots()
    drawn = axes.barh(names, [values[name] for name in names], color=[OURS if n == ours else THEIRS for n in names])
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlabel=across)
    axes.margins(x=0.12)
    return _svg(figure)


def histogram(values: Sequence[float], across: str) -> str:
    """How often values come."""
    figure = _figure()
    axes = figure.subplots()
    axes.hist(values, bins=40, color=OURS)
    axes.set(xlabel=across, ylabel="pictures")
    return _svg(figure)


def _figure(height: float = INCHES[1]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(INCHES[0], height), layout="constrained")


def _svg(figure: "Figure") -> str:
    """Without the prologue that a file has; the same bytes for the same values."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "kandinsky22", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]

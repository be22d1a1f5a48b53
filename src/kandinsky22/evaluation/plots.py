"""The plots of a report, as SVG for embedding in its page. Needs matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (6.4, 3.6)
OURS, THEIRS = "#c2410c", "#94a3b8"


class Point(NamedTuple):
    """A value y at x, with its interval from `low` to `high`."""

    x: float
    y: float
    low: float
    high: float


def check() -> None:
    """Raises `ValueError` if matplotlib is missing; called before hours of painting."""
    try:
        import matplotlib  # noqa: F401  # only whether it can be imported
    except ImportError:
        raise ValueError("a report has plots, and matplotlib draws them: pip install 'kandinsky22[evaluate]'") from None


def lines(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Curves by name, with an error bar for each value."""
    figure = _figure()
    axes = figure.subplots()
    for name, points in curves.items():
        below, above = [p.y - p.low for p in points], [p.high - p.y for p in points]
        xs, ys = [p.x for p in points], [p.y for p in points]
        axes.errorbar(xs, ys, yerr=[below, above], label=name, marker="o", markersize=4, linewidth=1.4, capsize=2)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False, ncols=2)
    return _svg(figure)


def bars(values: Mapping[str, float], x_label: str, ours: str | None = None) -> str:
    """Bars of named values, the smallest on top; the bar called `ours` is highlighted."""
    names = sorted(values, key=values.__getitem__, reverse=True)
    figure = _figure(height=0.9 + 0.26 * len(names))
    axes = figure.subplots()
    rectangles = axes.barh(
        names, [values[name] for name in names], color=[OURS if n == ours else THEIRS for n in names]
    )
    axes.bar_label(rectangles, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlabel=x_label)
    axes.margins(x=0.12)
    return _svg(figure)


def histogram(values: Sequence[float], x_label: str) -> str:
    """A histogram of values."""
    figure = _figure()
    axes = figure.subplots()
    axes.hist(values, bins=40, color=OURS)
    axes.set(xlabel=x_label, ylabel="pictures")
    return _svg(figure)


def _figure(height: float = INCHES[1]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(INCHES[0], height), layout="constrained")


def _svg(figure: "Figure") -> str:
    """The SVG element, without a file's XML prologue; the same values give the same bytes."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "kandinsky22", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

"""Measurements as values and as Markdown tables: joined records, medians, ratios, agreement, and limits.

A file of results is a JSON list of records, one per table row; `speed.py` defines their fields. Imports no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file

OURS, THEIRS, ALLOCATOR, PLAIN = "kandinsky22", "diffusers", "diffusers, allocator set", "plain"
BOTH = {"float32": (2.0, 2.8), "bfloat16": (1.7, 2.3)}
TARGETS: dict[str, dict[str, tuple[float, float]]] = {
    "unet": BOTH,
    "movq": {"float32": (2.5, 4.0), "bfloat16": (2.2, 3.5)},
    "prior": {"float32": (5.0, 8.0), "bfloat16": (5.0, 8.0)},
    "whole": {"float32": (2.2, 3.0), "bfloat16": (1.8, 2.5)},
    "first": {"float32": (2.0, 3.0), "bfloat16": (2.0, 3.0)},
}
"""How many times as fast as diffusers each row must be, and ideally is, at the published size and `SIDE` pixels."""
SIDE = 512
FOR_ANY = {"help": (20.0, 50.0), "box": (3.0, 5.0)}
FAST, FAST_STEPS = (4.0, 8.0), 50
MEMORY = (0.5, 0.4)  # of diffusers' peak
Record = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Record]:
    """The records of several files, joined; if a row was measured twice, the later one. Raises `ValueError` for a bad
    file."""
    joined: dict[str, Record] = {}
    for path in paths:
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read as results ({error}); speed.py writes them with --json") from error
        for record in records:
            key = json.dumps([record[name] for name in ("row", "model", "dtype", "threads", "side", "steps")])
            if key not in joined or record["about"]["date"] >= joined[key]["about"]["date"]:
                joined.pop(key, None)
                joined[key] = record
    return list(joined.values())


def save(path: Path, records: Sequence[Record]) -> None:
    """Write results atomically."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(list(records), indent=1), encoding="utf-8")
    partial.replace(path)


def agreement(results: Mapping[str, Path], reference: Path) -> dict[str, float]:
    """The differences of the programs' results, read from their files.

    For pictures, the largest and the mean difference in levels of 255. For other results the relative rms difference;
    with a float32 result of diffusers as reference, also that of each program from it; with one of our plain network,
    also ours from it.
    """
    if not (results[OURS].is_file() and results[THEIRS].is_file()):
        return {}
    (name, ours), *_ = load_file(results[OURS]).items()
    theirs = load_file(results[THEIRS])[name]
    if name == "levels":
        apart = np.abs(ours - theirs)
        found = {"levels max": float(apart.max()), "levels mean": float(apart.mean())}
    else:
        found = {"rms": relative_rms(ours, theirs)}
    if reference.is_file() and reference != results[THEIRS]:
        exact = load_file(reference)[name]
        if exact.shape == ours.shape and name == "levels":
            found |= {"levels mean, ours": float(np.abs(ours - exact).mean())}
            found |= {"levels mean, theirs": float(np.abs(theirs - exact).mean())}
        elif exact.shape == ours.shape:
            found |= {"rms, ours": relative_rms(ours, exact), "rms, theirs": relative_rms(theirs, exact)}
    if PLAIN in results and results[PLAIN].is_file():
        found |= {"rms, plain": relative_rms(ours, load_file(results[PLAIN])[name])}
    return found


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    """rms(a - b) / rms(b). Raises `ValueError` for unequal shapes, and for results that are zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all() or not b.any():
        raise ValueError(f"results must be alike, finite and not all zero to be compared: {a.shape} and {b.shape}")
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def seconds(record: Record, program: str, clock: str = "seconds") -> float | None:
    """The median of a program's turns; None without turns."""
    turns = record["turns"].get(program, [])
    return median(turn[clock] for turn in turns) if turns else None


def ratio(record: Record, program: str = THEIRS, clock: str = "seconds") -> float | None:
    """The time of a program divided by ours; None if one is missing."""
    ours, theirs = seconds(record, OURS, clock), seconds(record, program, clock)
    return theirs / ours if ours and theirs else None


def targets(record: Record) -> tuple[float, float] | None:
    """The ratio that a row must reach, and the ideal one; None if none was set."""
    if record["row"] in FOR_ANY:
        return FOR_ANY[record["row"]]
    aimed_at = record["published_size"] and record["side"] == SIDE
    return TARGETS.get(record["row"], {}).get(record["dtype"]) if aimed_at else None


def markdown(records: Sequence[Record]) -> str:
    """All tables: ratios, the fast preset, memory, limits, and the commands."""
    timed = [record for record in records if record["row"] not in ("fast", "memory")]
    parts = [
        table(
            "work|dtype|threads|kandinsky22, s|diffusers, s|ratio|diffusers, allocator set, s|ratio|"
            "ratio of processor time|must (stretch)|agreement",
            map(speed_line, timed),
        ),
        table("fast|dtype|threads|kandinsky22, s|diffusers, bfloat16, s|ratio|must (stretch)", fast_lines(records)),
        table("peak memory|dtype|kandinsky22, GB|diffusers, GB|ratio|must (stretch)", memory_lines(records)),
        table(
            "limit|dtype|threads|TFLOP (by Winograd)|weights read, GB|attainable, s (by Winograd)|"
            "kandinsky22 reaches (by Winograd)|diffusers reaches",
            limit_lines(timed),
        ),
        "\n".join(measured_with(records)),
    ]
    return "\n\n".join(part for part in parts if part)


def table(head: str, lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty without lines."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {head.replace('|', ' | ')} |", "|---" * (head.count("|") + 1) + "|", *rows]) if rows else ""


def speed_line(record: Record) -> list[str]:
    """A row of the table of ratios."""
    ours, theirs, allocator = (number(seconds(record, p)) + spread(record, p) for p in (OURS, THEIRS, ALLOCATOR))
    ratios = [times_of(ratio(record, program)) for program in (THEIRS, ALLOCATOR)]
    reached = ratio(record)
    aim = targets(record)
    met = "" if aim is None or reached is None else " ✓" if reached >= aim[0] else " ✗"
    return [
        title(record),
        record["dtype"],
        str(record["threads"]),
        ours,
        theirs,
        f"**{ratios[0]}**{met}",
        allocator,
        ratios[1],
        times_of(ratio(record, clock="cpu")),
        aims(aim),
        agreed(record["agreement"]),
    ]


def title(record: Record) -> str:
    """The first cell of a row."""
    texts = {
        "help": "`kandinsky22 --help`, importing diffusers' pipelines",
        "first": "files to first U-Net step finished",
        "unet": "U-Net step, guided",
        "movq": "MoVQ decode",
        "prior": f"text encoder, prior, {record['prior_steps']} steps",
        "whole": f"whole text to image, {record['prior_steps']} + {record['steps']} steps",
        "box": f"command to saved picture, {record['prior_steps']} + {record['steps']} steps",
    }
    text = texts.get(record["row"], record["row"])
    return text if record["row"] == "help" else f"{text}, {record['side']} px"


def fast_lines(records: Sequence[Record]) -> list[list[str]]:
    """Our fast preset against diffusers' bfloat16 at 50 steps, measured or extrapolated from a shorter run."""
    lines = []
    for record in records:
        ours = seconds(record, OURS)
        if record["row"] != "fast" or ours is None:
            continue
        for theirs, how in full_runs(records, record):
            reached = theirs / ours
            met = " ✓" if reached >= FAST[0] else " ✗"
            lines.append(
                [
                    f"`--speed fast`, {record['side']} px",
                    record["dtype"],
                    str(record["threads"]),
                    number(ours),
                    f"{number(theirs)} ({how})",
                    f"**{times_of(reached)}**{met}",
                    aims(FAST),
                ]
            )
    return lines


def full_runs(records: Sequence[Record], fast: Record) -> Iterable[tuple[float, str]]:
    """diffusers' seconds for 50 steps in bfloat16, and how they were obtained: measured if possible, else
    extrapolated."""
    same = {**{name: fast[name] for name in ("model", "threads", "side")}, "dtype": "bfloat16"}
    alike = [record for record in records if same.items() <= record.items()]
    steps = {record["row"]: seconds(record, THEIRS) for record in alike if record["row"] == "unet"}
    whole = {record["steps"]: seconds(record, THEIRS) for record in alike if record["row"] == "whole"}
    whole = {n: value for n, value in whole.items() if value is not None}
    if whole.get(FAST_STEPS):
        yield whole[FAST_STEPS], "measured"
    elif whole and (step := steps.get("unet")) is not None:
        longest = max(whole)
        yield whole[longest] + (FAST_STEPS - longest) * step, f"{longest} steps measured, the rest by the step"


def memory_lines(records: Sequence[Record]) -> list[list[str]]:
    """Peaks of whole runs."""
    lines = []
    for record in records:
        if record["row"] != "memory":
            continue
        ours, theirs = (seconds(record, program, "peak") for program in (OURS, THEIRS))
        if ours and theirs:
            share = ours / theirs
            met = " ✓" if share <= MEMORY[0] else " ✗"
            lines.append(
                [
                    f"whole text to image, {record['side']} px",
                    record["dtype"],
                    f"{ours / 1e9:.2f}",
                    f"{theirs / 1e9:.2f}",
                    f"**{share:.2f}**{met}",
                    f"{MEMORY[0]} ({MEMORY[1]})",
                ]
            )
    return lines


def limit_lines(records: Sequence[Record]) -> list[list[str]]:
    """Each stage compared with the best that the machine could do, and the share of it that was reached."""
    lines = []
    for record in records:
        limits, ours, theirs = record.get("limits"), seconds(record, OURS), seconds(record, THEIRS)
        if not limits or not ours:
            continue
        direct, winograd = attainable(limits, "operations"), attainable(limits, "winograd")
        lines.append(
            [
                title(record),
                record["dtype"],
                str(record["threads"]),
                f"{limits['operations'] / 1e12:.3g} ({limits['winograd'] / 1e12:.3g})",
                f"{limits['bytes'] / 1e9:.2f}",
                f"{number(direct)} ({number(winograd)})",
                f"{direct / ours:.0%} ({winograd / ours:.0%})",
                "" if not theirs else f"{direct / theirs:.0%}",
            ]
        )
    return lines


def attainable(limits: Mapping[str, Any], count: str) -> float:
    """The least possible seconds: all operations, or all weights read, at the measured rate; whichever takes longer."""
    return max(limits[count] / limits["peaks"]["operations"], limits["bytes"] / limits["peaks"]["bytes"])


def measured_with(records: Sequence[Record]) -> list[str]:
    """A line for each command that produced records, and the rates measured with it."""
    lines: dict[str, None] = {}
    for record in records:
        about = record["about"]
        rates = (record.get("limits") or {}).get("peaks")
        line = f"- {about['date']}: `{about['command']}` on {about['machine']}; {about['software']}"
        if rates:
            line += f"; {rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.1f} GB/s"
        lines[line] = None
    return list(lines)


def agreed(found: Mapping[str, float]) -> str:
    """The agreement as a cell of the table."""
    parts = []
    if "rms" in found:
        parts.append(f"rms {found['rms']:.1e}")
    if "rms, plain" in found:
        parts.append(f"from the plain network {found['rms, plain']:.1e}")
    if "levels max" in found:
        parts.append(f"of 255: mean {found['levels mean']:.2g}, at most {found['levels max']:.0f}")
    if "rms, ours" in found:
        parts.append(f"from float32: ours {found['rms, ours']:.1e}, theirs {found['rms, theirs']:.1e}")
    if "levels mean, ours" in found:
        parts.append(f"from float32: ours {found['levels mean, ours']:.2g}, theirs {found['levels mean, theirs']:.2g}")
    return "; ".join(parts)


def spread(record: Record, program: str) -> str:
    """The minimum and maximum of several turns; empty for one."""
    turns = [turn["seconds"] for turn in record["turns"].get(program, [])]
    return f" ({number(min(turns))}-{number(max(turns))}, n={len(turns)})" if len(turns) > 1 else ""


def number(value: float | None) -> str:
    """A number with three digits; empty for None."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times_of(value: float | None) -> str:
    """A ratio as text; empty for None."""
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def aims(aim: tuple[float, float] | None) -> str:
    """The required and the ideal ratio as text; empty for None."""
    return "" if aim is None else f"{aim[0]:g}x ({aim[1]:g}x)"

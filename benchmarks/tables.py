"""What was measured, as values and as Markdown: records that are joined, medians, ratios, agreement, and the limits beside them.

A file of results is a JSON list of records, one for each row of a table; `speed.py` says what is in them. Imports no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file

OURS, THEIRS, KEPT, PLAIN = "kandinsky22", "diffusers", "diffusers, allocator set", "plain"
BOTH = {"float32": (2.0, 2.8), "bfloat16": (1.7, 2.3)}
TARGETS: dict[str, dict[str, tuple[float, float]]] = {
    "unet": BOTH,
    "movq": {"float32": (2.5, 4.0), "bfloat16": (2.2, 3.5)},
    "prior": {"float32": (5.0, 8.0), "bfloat16": (5.0, 8.0)},
    "whole": {"float32": (2.2, 3.0), "bfloat16": (1.8, 2.5)},
    "first": {"float32": (2.0, 3.0), "bfloat16": (2.0, 3.0)},
}
"""How many times as fast as diffusers each row must be, and should be, at the published size and `SIDE` pixels."""
SIDE = 512
FOR_ANY = {"help": (20.0, 50.0), "box": (3.0, 5.0)}
FAST, FAST_STEPS = (4.0, 8.0), 50
MEMORY = (0.5, 0.4)  # of diffusers' peak
Record = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Record]:
    """The records of several files, joined; of one row measured twice, the later one. Raises `ValueError`."""
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
    """Write results whole, or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(list(records), indent=1), encoding="utf-8")
    partial.replace(path)


def agreement(results: Mapping[str, Path], reference: Path) -> dict[str, float]:
    """How far apart the programs' results are, from the files that were written.

    Of pictures, the largest and the mean difference in levels of 255. Of anything else, relative rms; and where there is a
    float32 result of diffusers to refer to, each program's own from that; where there is one of our plain network, ours from it.
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
    """The rms of a difference over that of b. Raises `ValueError` for results of other shapes or that say nothing."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all() or not b.any():
        raise ValueError(f"results must be alike, finite and not all zero to be compared: {a.shape} and {b.shape}")
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def seconds(record: Record, program: str, clock: str = "seconds") -> float | None:
    """The median of a program's turns; None where there were none."""
    turns = record["turns"].get(program, [])
    return median(turn[clock] for turn in turns) if turns else None


def ratio(record: Record, program: str = THEIRS, clock: str = "seconds") -> float | None:
    """How many times as long a program took as ours."""
    ours, theirs = seconds(record, OURS, clock), seconds(record, program, clock)
    return theirs / ours if ours and theirs else None


def targets(record: Record) -> tuple[float, float] | None:
    """What a row must and should reach, where something was set."""
    if record["row"] in FOR_ANY:
        return FOR_ANY[record["row"]]
    aimed_at = record["published_size"] and record["side"] == SIDE
    return TARGETS.get(record["row"], {}).get(record["dtype"]) if aimed_at else None


def markdown(records: Sequence[Record]) -> str:
    """The tables: ratios, the fast preset, memory, limits, and what each was measured with."""
    timed = [record for record in records if record["row"] not in ("fast", "memory")]
    parts = [
        table(
            "work|dtype|threads|kandinsky22, s|diffusers, s|ratio|diffusers, allocator set, s|ratio|ratio of processor time|"
            "must (stretch)|agreement",
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
    """A Markdown table; nothing where it would have no lines."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {head.replace('|', ' | ')} |", "|---" * (head.count("|") + 1) + "|", *rows]) if rows else ""


def speed_line(record: Record) -> list[str]:
    """A row of the table of ratios."""
    ours, theirs, kept = (number(seconds(record, p)) + spread(record, p) for p in (OURS, THEIRS, KEPT))
    ratios = [times_of(ratio(record, program)) for program in (THEIRS, KEPT)]
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
        kept,
        ratios[1],
        times_of(ratio(record, clock="cpu")),
        aims(aim),
        agreed(record["agreement"]),
    ]


def title(record: Record) -> str:
    """What a row is called."""
    texts = {
        "help": "`kandinsky22 --help`, importing diffusers' pipelines",
        "first": "files to first U-Net step finished",
        "unet": "U-Net step, guided",
        "movq": "MoVQ decode",
        "prior": f"text encoder, prior, {record['prior_steps']} steps",
        "whole": f"whole text to image, {record['prior_steps']} + {record['steps']} steps",
        "box": f"command to saved picture, {record['prior_steps']} + {record['steps']} steps",
    }
    said = texts.get(record["row"], record["row"])
    return said if record["row"] == "help" else f"{said}, {record['side']} px"


def fast_lines(records: Sequence[Record]) -> list[list[str]]:
    """Our fast preset against diffusers' bfloat16 at 50 steps: of a whole run, or of a shorter one and the steps it lacks."""
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
    """diffusers' seconds for 50 steps in bfloat16, and how they were found: the best-founded one there is."""
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
    """Each stage beside what the machine could do at best: the share of it that was reached."""
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
    """Seconds at best: all operations at the measured rate, or all weights read at the measured rate."""
    return max(limits[count] / limits["peaks"]["operations"], limits["bytes"] / limits["peaks"]["bytes"])


def measured_with(records: Sequence[Record]) -> list[str]:
    """A line for each command that records came from, and the rates that were measured with it."""
    lines: dict[str, None] = {}
    for record in records:
        about = record["about"]
        rates = (record.get("limits") or {}).get("peaks")
        said = f"- {about['date']}: `{about['command']}` on {about['machine']}; {about['software']}"
        if rates:
            said += f"; {rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.1f} GB/s"
        lines[said] = None
    return list(lines)


def agreed(found: Mapping[str, float]) -> str:
    """Agreement in few words."""
    said = []
    if "rms" in found:
        said.append(f"rms {found['rms']:.1e}")
    if "rms, plain" in found:
        said.append(f"from the plain network {found['rms, plain']:.1e}")
    if "levels max" in found:
        said.append(f"of 255: mean {found['levels mean']:.2g}, at most {found['levels max']:.0f}")
    if "rms, ours" in found:
        said.append(f"from float32: ours {found['rms, ours']:.1e}, theirs {found['rms, theirs']:.1e}")
    if "levels mean, ours" in found:
        said.append(f"from float32: ours {found['levels mean, ours']:.2g}, theirs {found['levels mean, theirs']:.2g}")
    return "; ".join(said)


def spread(record: Record, program: str) -> str:
    """The least and the most, where there were several turns."""
    turns = [turn["seconds"] for turn in record["turns"].get(program, [])]
    return f" ({number(min(turns))}-{number(max(turns))}, n={len(turns)})" if len(turns) > 1 else ""


def number(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times_of(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def aims(aim: tuple[float, float] | None) -> str:
    """What must and should be reached."""
    return "" if aim is None else f"{aim[0]:g}x ({aim[1]:g}x)"

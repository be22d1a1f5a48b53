"""A run that needs no more painting: its pictures, a check of its settings, and its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kandinsky22.backends.run_folder import ANNOTATIONS, Shard
from kandinsky22.backends.run_state import failed, is_complete_png
from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.evaluation import protocol
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.features import Features
from kandinsky22.evaluation.manifest import Run, as_template
from kandinsky22.evaluation.report import MAX_PICTURES, Picture, Report
from kandinsky22.evaluation.scores import Scores, ShowProgress, cached_statistics
from kandinsky22.files import expand
from kandinsky22.request import Defaults, Request


def pictures_of(run: Run) -> dict[str, Path]:
    """The pictures of a run, by id. Raises `ValueError` unless every caption has a picture or has failed."""
    given_up = failed(run)
    missing = [item.id for item in run.items if item.id not in given_up and not is_complete_png(run.picture(item))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(run.items)} pictures of {run.folder} are not painted yet; paint the other shards, "
            "then give the same command without --shard"
        )
    pictures = {item.id: run.picture(item) for item in run.items if item.id not in given_up}
    if not pictures:
        raise ValueError(f"none of the captions of {run.folder} could be painted; see failed-*.jsonl there")
    return pictures


def captions_of(run: Run) -> dict[str, str]:
    """The captions of a run, by id."""
    return {item.id: item.caption for item in run.items}


def find_painted_run(
    folder: Path,
    captions: Captions,
    request: Request,
    *,
    seed: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    model: Kandinsky | None = None,
    retry: bool = False,
) -> Run | None:
    """The run of a folder if it needs no more painting, so that it can be scored on a machine without its model.

    None if the folder has no run, or one that is unfinished or, with `retry`, has captions that failed. Settings that
    are not given (None, or open in the request) are those of the run. model: where available, so that its weights are
    compared. Raises `ValueError` naming the first setting that differs from the run's.
    """
    try:
        run = Run.open(folder)
        pictures_of(run)
    except ValueError:
        return None
    if retry and failed(run):
        return None
    t = run.template
    # the steps of a speed are known only with the model
    request = request.expand_speed(model.defaults) if model else replace(request, speed=None)
    assert t.height is not None and t.width is not None
    template = as_template(request.resolved(Defaults(height=t.height, width=t.width, prior=t.prior, decoder=t.decoder)))
    name = expand(request.model).resolve().name if model is None else model.name
    current = {name: value for name, value in run.settings.items() if name not in ANNOTATIONS}
    given = {"seed": seed, "batch": batch, "dtype": dtype}
    current |= {name: value for name, value in given.items() if value is not None}
    current["request"] = json.loads(replace(template, model=name).to_json())
    current["captions"] = {"sha256": captions.sha256, "count": len(captions.items)}
    if model is not None:
        current["weights"] = model.describe(t)["weights"]
    run.check_same(current)
    return run


def measure_shard(run: Run, shard: Shard, networks: Mapping[str, Features], show_progress: ShowProgress) -> None:
    """Compute and cache the features of a shard's pictures, for a later report on the run.

    networks: by the names under which the report looks for statistics (see `coco.report`).
    """
    items = [item for unit in run.units(shard) for item in unit]
    pictures = {item.id: run.picture(item) for item in items if is_complete_png(run.picture(item))}
    for name, features in networks.items():
        if pictures:
            cached_statistics(pictures, features, run.folder, name, show_progress, part=True)


def report_of(
    run: Run,
    title: str,
    summary: str,
    scores: Scores,
    features: Mapping[str, Features],
    more_protocol: Mapping[str, Any],
    command: str,
    remarks: Sequence[str] = (),
) -> Report:
    """The report of a run's scores: with its protocol, its first pictures, and a remark on captions that failed."""
    lost = failed(run)
    if lost:
        remarks = [f"{len(lost)} of {len(run.items)} captions could not be painted and are left out.", *remarks]
    pictures = [Picture(run.picture(item), item.caption) for item in run.items if item.id not in lost][:MAX_PICTURES]
    values = {"pictures": len(run.items) - len(lost), "features": protocol.networks(features)}
    return Report(
        title=title,
        summary=summary,
        values=scores.values | values,
        protocol=protocol.run_protocol(run, features, command, **more_protocol),
        numbers=scores.numbers,
        remarks=remarks,
        plots=scores.plots,
        tables=scores.tables,
        pictures=pictures,
    )

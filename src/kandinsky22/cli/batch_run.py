"""The folder that `kandinsky22 batch` paints into: pictures, and the settings that a resumed run must share."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from kandinsky22.backends.run_folder import MADE_BY, RunFolder
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.cli.request_file import Line
from kandinsky22.request import Request


@dataclass(frozen=True)
class BatchRun(RunFolder[Line]):
    """DIR/NAME.png or DIR/NNNNN.png for each line, DIR/batch.json, and the logs of each shard."""

    SETTINGS: ClassVar[str] = "batch.json"

    @classmethod
    def of(cls, folder: Path, lines: Sequence[Line], painter: UnitPainter, settings: Mapping[str, Any]) -> Self:
        """The run of resolved requests, not written yet. settings: what it was made from."""
        weights: dict[str, Any] = {}
        made_by: Mapping[str, Any] = {}
        for line in lines:
            if (networks := _networks(line.request)) not in weights:
                made_by = painter.backend.describe(line.request)
                weights[networks] = made_by.get("weights")
        requests = hashlib.sha256("".join(f"{line.id} {line.request.to_json()}\n" for line in lines).encode())
        return cls(
            folder,
            tuple(lines),
            {
                **settings,
                "batch": painter.batch,
                **{name: made_by[name] for name in MADE_BY if name in made_by},
                "weights": weights,
                "requests": {"count": len(lines), "sha256": requests.hexdigest()},
            },
        )

    def request(self, item: Line) -> Request:
        """The request of a line."""
        return item.request

    @property
    def pictures(self) -> Path:
        """The folder of finished pictures."""
        return self.folder

    def paths(self, item: Line) -> list[Path]:
        """The files of a line's pictures."""
        return [self.folder / f"{stem}.png" for stem in item.stems]

    def made_by(self, item: Line) -> Mapping[str, Any]:
        """What must have made a line's pictures; the weights are those of the decoder that its request needs."""
        return {**super().made_by(item), "weights": self.settings["weights"][_networks(item.request)]}


def _networks(request: Request) -> str:
    """Which networks of a model paint a request."""
    from kandinsky22.engine.requirements import decoder_kind

    return decoder_kind(request) + (" with the linear prior" if request.prior.linear else "")

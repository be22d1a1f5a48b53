"""Weights from the hub: what a task needs of them, whether it fits, and that what came is what was published.

Everything is planned before anything is fetched. What the hub's own cache holds is used where it lies, so that other
programs share it; nothing is copied. This module talks to a `Hub`, which `hugging_face.py` is; it imports no torch.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.about import CheckpointError
from kandinsky22.checkpoints.catalog import File, Repository
from kandinsky22.checkpoints.checked import check, was_checked

Say = Callable[[str], None]

TEXT_TO_IMAGE = (catalog.PRIOR, catalog.DECODER)
MOST_OF_A_CONFIG = 16 << 20  # bytes: what is larger and no network's weights is nothing of ours
SPARE = 64 << 20  # bytes to leave free on a disk
LATER = (
    "; the image encoder, {} more, is fetched once it is needed: for pictures that are given, and one time for guidance "
    "without a negative prompt"
)
WORTH_A_WORD = 10**9  # bytes whose checking takes seconds
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)---[ \t]*(?:\n|$)", re.DOTALL)
PRIOR_LINE = re.compile(
    r"""^prior:[ \t]*(?:\[|\n[ \t]*-[ \t]+|(?=[^\s#]))[ \t]*['"]?([^'"\n,\]]+?)['"]?[ \t]*(?:[,\]]|[ \t]\#.*|$)""",
    re.MULTILINE,
)
PUBLIC_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class UnreachableError(Exception):
    """No hub answers; the message is why."""


class RefusedError(Exception):
    """A hub answers, but not us: who are we? The message is why."""


class Hub(Protocol):
    """A place that repositories come from, and a cache of them."""

    @property
    def folder(self) -> Path:
        """Where its cache is."""
        ...

    def cached(self, repository: Repository, path: str) -> Path | None:
        """A file that is in the cache; asks nobody."""
        ...

    def begun(self, repository: Repository, file: File) -> int:
        """How many bytes of a file an interrupted fetch has left to go on from."""
        ...

    def list(self, name: str, revision: str) -> Repository:
        """A repository at a commit, with all its files. Raises `UnreachableError`, `RefusedError` and `CheckpointError`."""
        ...

    def download(self, repository: Repository, file: File, twin: Path | None) -> Path:
        """Bring a file into the cache, showing progress; `twin` is a file here with the same content. Raises like `list`."""
        ...


class Piece(NamedTuple):
    """A file of a repository."""

    repository: Repository
    file: File

    def __str__(self) -> str:
        return f"{self.file.path} of {self.repository.name}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done before a model can be loaded. here: what the cache holds; missing: what it does not.

    bytes: of all of it, counting a content once that several parts share; coming: those still to be fetched, which an
    interrupted fetch has made fewer. free: on the disk of `folder`, the cache. note: what else to say.
    """

    what: str
    here: Mapping[Piece, Path]
    missing: Sequence[Piece]
    bytes: int
    coming: int
    folder: Path
    free: int
    note: str = ""

    def __str__(self) -> str:
        files = f"{len(self.missing)} file{'s' * (len(self.missing) != 1)}"
        some = f", of {size(self.bytes)} in all" if size(self.bytes) != size(self.coming) else ""
        room = f"to {self.folder} ({size(self.free)} free there)"
        return f"fetching {self.what}: {size(self.coming)} in {files}{some}, {room}{self.note}"

    def check_room(self) -> None:
        """Raises `CheckpointError` where it would not fit."""
        if self.coming + SPARE > self.free:
            raise CheckpointError(
                f"fetching {self.what} takes {size(self.coming)}, and {size(self.free)} is free for {self.folder}; make "
                "room there, or set HF_HOME to a folder on a larger disk"
            )


def fetch(model: str, parts: Sequence[str] = TEXT_TO_IMAGE, *, say: Say, hub: Hub | None = None) -> dict[str, Path]:
    """The folders of a published model's parts, fetching what is not here. Of what `parts` name, no file more.

    parts: of `catalog.PARTS`, and `catalog.IMAGE_ENCODER`, which the prior's folder is without otherwise. say: is told in a
    sentence what will be fetched, how much, and how much is free. Every file is held against its published size and
    SHA-256, once on this machine, whoever brought it. Raises `CheckpointError`, one sentence: no hub, no room, another
    content, or a login refused.
    """
    hub = hub or _hugging_face(f"or fetch the weights elsewhere, with {catalog.by_hand(model, parts)}")
    repositories = catalog.published()[model]
    with _explained(model, catalog.by_hand(model, parts)):
        todo = plan(model, list(_pieces(repositories, parts)), hub)
        if catalog.PRIOR in parts and catalog.IMAGE_ENCODER not in parts:
            later = sum(piece.file.bytes for piece in _pieces(repositories, [catalog.IMAGE_ENCODER]))
            todo = replace(todo, note=LATER.format(size(later)))
        return _roots(repositories, _carry_out(todo, hub, say))


def planned(model: str, parts: Sequence[str] = TEXT_TO_IMAGE) -> Plan:
    """What `fetch` would do; asks nobody. Raises `CheckpointError` without the hub's client."""
    return plan(model, list(_pieces(catalog.published()[model], parts)), _hugging_face("to know what is here"))


def cached_parts(model: str) -> dict[str, Path]:
    """The folders of those parts of a published model that the hub's cache holds whole. Asks nobody; may be empty.

    A part counts without the image encoder: many tasks can do without.
    """
    try:
        hub = _hugging_face("")
    except CheckpointError:
        return {}
    repositories = catalog.published()[model]
    found: dict[str, Path] = {}
    for part in catalog.PARTS:
        paths = {piece: hub.cached(*_where(piece)) for piece in _pieces(repositories, [part])}
        held = {piece: path for piece, path in paths.items() if path}
        if len(held) == len(paths):
            found |= _roots(repositories, held)
    return found


def plan(what: str, pieces: Iterable[Piece], hub: Hub) -> Plan:
    """What of `pieces` is here, what is to come, and the room for it. The small ones come first: they fail soonest."""
    paths = {piece: hub.cached(*_where(piece)) for piece in pieces}
    here = {piece: path for piece, path in paths.items() if path}
    missing = sorted((piece for piece, path in paths.items() if path is None), key=lambda piece: piece.file.bytes)
    contents = {piece.file.sha256 or piece: piece for piece in (*missing, *here)}  # the decoders' MoVQs are the same
    alone = [piece for piece in contents.values() if piece not in here]
    coming = sum(max(0, piece.file.bytes - hub.begun(*piece)) for piece in alone)
    there = next(folder for folder in (hub.folder, *hub.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    return Plan(what, here, missing, sum(piece.file.bytes for piece in contents.values()), coming, hub.folder, free)


def snapshot(
    name: str,
    *,
    revision: str | None = None,
    subfolders: Sequence[str] | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
    say: Say,
    hub: Hub | None = None,
) -> Path:
    """The folder of one pipeline: `name` itself where it is a folder, else a repository "owner/name" of the hub.

    revision: a branch, tag or commit; without one, the pinned commit of a published repository, else `main`. subfolders:
    the networks and settings to fetch, such as "unet" (None: all there are); always in one format, preferring `variant`.
    Without a hub, what its cache holds is used. Raises `CheckpointError`, one sentence.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not PUBLIC_NAME.fullmatch(name):
        raise CheckpointError(
            f"there is no folder {name}, and no repository can be called that; its name is owner/name"
        )
    hub = hub or _hugging_face(f"or fetch it elsewhere with `hf download {name}` and pass the folder")
    pinned = [of.revision for parts in catalog.published().values() for of in parts.values() if of.name == name]
    revisions = [revision] if revision else [*pinned, "main"]
    cached = (hub.cached(Repository(name, revision), "model_index.json") for revision in revisions)
    known = next(filter(None, cached), None)
    if local_files_only:
        if known is None:
            raise CheckpointError(
                f"{name} is not in the hub's cache {hub.folder}; fetch it once with `hf download {name}`"
            )
        return known.parent
    with _explained(name, f"`hf download {name} --local-dir FOLDER`, and pass FOLDER"):
        try:
            repository = hub.list(name, revisions[0])
        except UnreachableError:
            if known is None:
                raise
            return known.parent
        files = chosen(repository.files, subfolders, variant)
        if not files:
            raise CheckpointError(f"{name} has no weights in the layout of diffusers")
        got = _carry_out(plan(name, [Piece(repository, file) for file in files], hub), hub, say)
    return next(_root(piece, path) for piece, path in got.items())


def chosen(files: Iterable[File], subfolders: Sequence[str] | None, variant: str | None) -> list[File]:
    """Of a repository's files those to load a pipeline from: small ones beside one copy of each network's weights."""
    folders: dict[str, dict[str, File]] = {}
    for file in files:
        place = PurePosixPath(file.path)
        if len(place.parts) <= 2:
            folders.setdefault(place.parent.as_posix(), {})[place.name] = file
    found: list[File] = []
    for folder, held in folders.items():
        if folder != "." and (subfolders is None or folder in subfolders):
            found += [held[name] for name in catalog.weights(held, variant)]
            found += [held[name] for name in held if _is_config(held[name])]
        elif folder == ".":
            found += [held[name] for name in held if _is_config(held[name]) or name.endswith(".safetensors")]
    return [file for file in found if file.bytes <= MOST_OF_A_CONFIG or catalog.WEIGHTS_NAME.fullmatch(_name(file))]


def prior_of(decoder: Path) -> str | None:
    """The prior that a decoder's model card names: `prior:` in the front matter of `README.md`, the first of a list.

    None where the folder has no card or the card does not say. It is what diffusers' AutoPipelines go by (spec 1.8).
    """
    try:
        front = FRONT_MATTER.match((decoder / "README.md").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    named = PRIOR_LINE.search(front[1]) if front else None
    return named[1] if named else None


def size(count: int) -> str:
    """Bytes as a person reads them."""
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"


def _pieces(repositories: Mapping[str, Repository], parts: Sequence[str]) -> Iterator[Piece]:
    """The files that parts are made of."""
    for part, repository in repositories.items():
        for file in repository.files:
            folder = file.path.split("/")[0]
            if (catalog.IMAGE_ENCODER if folder == catalog.IMAGE_ENCODER else part) in parts:
                yield Piece(repository, file)


def _carry_out(todo: Plan, hub: Hub, say: Say) -> dict[Piece, Path]:
    """Where each file is, fetched if need be, and what was published."""
    if todo.missing:
        say(str(todo))
        todo.check_room()
    got = dict(todo.here)
    unread = [piece for piece, path in got.items() if not was_checked(path, piece.file)]
    if unread:
        _say_of_checking(sum(piece.file.bytes for piece in unread), "that were already here, once", say)
    for piece in unread:
        check(got[piece], piece.file, str(piece))
    content = {piece.file.sha256: path for piece, path in got.items()}
    for piece in todo.missing:
        file = piece.file
        got[piece] = hub.download(*piece, content.get(file.sha256) if file.sha256 else None)
        _say_of_checking(file.bytes, f"of {piece}", say)
        check(got[piece], file, str(piece))
        content[file.sha256] = got[piece]
    return got


def _say_of_checking(count: int, of: str, say: Say) -> None:
    if count > WORTH_A_WORD:
        say(f"checking {size(count)} {of}")


def _where(piece: Piece) -> tuple[Repository, str]:
    return piece.repository, piece.file.path


def _root(piece: Piece, path: Path) -> Path:
    """The folder of the repository that a file is in."""
    return path.parents[piece.file.path.count("/")]


def _roots(repositories: Mapping[str, Repository], got: Mapping[Piece, Path]) -> dict[str, Path]:
    """The folder of each part."""
    found = {piece.repository.name: _root(piece, path) for piece, path in got.items()}
    return {part: found[repository.name] for part, repository in repositories.items() if repository.name in found}


def _name(file: File) -> str:
    return PurePosixPath(file.path).name


def _is_config(file: File) -> bool:
    """Whether a file is settings, a vocabulary or a card, and no list of weights."""
    name = _name(file)
    return name.endswith((".json", ".txt", ".md")) and not catalog.WEIGHTS_NAME.fullmatch(name)


def _hugging_face(otherwise: str) -> Hub:
    """The hub that there is. Raises `CheckpointError` without its client; `otherwise` is what else can be done."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise CheckpointError(
            f"fetching weights needs huggingface_hub: pip install 'kandinsky22[hub]', {otherwise}"
        ) from None
    from kandinsky22.checkpoints.hugging_face import HuggingFace

    return HuggingFace()


@contextmanager
def _explained(what: str, by_hand: str) -> Iterator[None]:
    """What a person can do about a hub that does not give."""
    try:
        yield
    except UnreachableError as error:
        raise CheckpointError(
            f"{what} is not here and no hub can be reached ({error}); where one can, {by_hand}"
        ) from error
    except RefusedError as error:
        raise CheckpointError(
            f"the hub does not give {what} to this user ({error}); log in with `hf auth login`, or if HF_TOKEN is set, "
            "check or unset it"
        ) from error
